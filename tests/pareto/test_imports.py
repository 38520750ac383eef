import pkgutil
import subprocess
import sys

from conftest import ROOT

from hscc_search import pareto

PROGRAM = """
import importlib, sys
sys.modules["torch"] = sys.modules["optuna"] = None  # importing them raises
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_the_whole_folder_needs_neither_torch_nor_optuna():
    names = [module.name for module in pkgutil.iter_modules(pareto.__path__, f"{pareto.__name__}.")]
    assert "hscc_search.pareto.confidence" in names
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
