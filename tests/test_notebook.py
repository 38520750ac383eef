import nbformat
from conftest import ROOT
from nbclient import NotebookClient


def test_the_notebook_runs_and_shows_the_front(tmp_path):
    notebook = nbformat.read(ROOT / "studies" / "search_in_memory.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("application/vnd.plotly.v1+json" in output.get("data", {}) for output in outputs)
    assert any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs)  # the bars
    assert any("<iframe" in output.get("data", {}).get("text/html", "") for output in outputs)  # the page
    (table,) = (output["data"]["text/html"] for output in outputs if "dataframe" in str(output.get("data", {})))
    # A head of two lines, a row for each of 8 trials, and one for each that became better when it was refined.
    assert 10 < table.count("<tr") <= 15
    assert "'model.onnx'" in outputs[-1]["data"]["text/plain"]
    assert not list(tmp_path.iterdir())
