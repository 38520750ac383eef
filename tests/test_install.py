import ast
import contextlib
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata

from conftest import ROOT


def test_all_that_is_imported_is_asked_for():
    """What tests and checks bring along is missing where a user installs the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(line for name, lines in extras.items() if name != "dev" for line in lines)]
    # Also what those need in turn, such as the core of pydantic.
    declared, waiting = set(), asked
    while waiting:
        name = re.split(r"[^\w.-]", waiting.pop())[0].lower().replace("_", "-")
        if name not in declared:
            declared.add(name)
            with contextlib.suppress(metadata.PackageNotFoundError):  # for another platform or Python
                waiting += [line for line in metadata.requires(name) or () if "extra ==" not in line]
    imported = set()
    for path in (ROOT / "hscc_search").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    owners = metadata.packages_distributions()
    foreign = imported - set(sys.stdlib_module_names) - {"hscc_search"}
    assert "torch" in foreign
    named = {name: {owner.lower().replace("_", "-") for owner in owners[name]} for name in foreign}
    assert not [name for name, distributions in named.items() if not distributions & declared]


def test_an_installed_package_runs_from_any_folder(tmp_path):
    """As a user installs it from what is published: a new environment, pip install, another folder."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python, command = environment / "bin" / "python", environment / "bin" / "hscc-search"
    (packages,) = environment.glob("lib/python*/site-packages")
    # pip and what the package needs are taken from where the tests run: to install torch again takes longer than all
    # the rest.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    before = set(packages.iterdir())
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--ignore-installed"]
    subprocess.run([*pip, "--no-deps", source_archive(pip, tmp_path)], check=True)
    assert {path.name for path in set(packages.iterdir()) - before} == {
        "hscc_search",
        f"hscc_search-{metadata.version('hscc-search')}.dist-info",
    }
    assert not [*(packages / "hscc_search").rglob("*.md")]

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # No Python path of the tests may lend the new environment what it lacks.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    where = [python, "-c", "import hscc_search; print(hscc_search.__file__)"]
    installed = subprocess.run(where, cwd=elsewhere, env=clean, check=True, capture_output=True, text=True).stdout
    assert installed.startswith(str(packages))
    for arguments in (["run", "digits", "--trials", "3"], ["front", "digits", "--html", "front.html"]):
        subprocess.run([command, *arguments], cwd=elsewhere, env=clean, check=True, capture_output=True)
    assert (elsewhere / "hscc-studies.db").exists()
    assert "plotly" in (elsewhere / "front.html").read_text()


def source_archive(pip, folder):
    """Pack the source as it is published, from which pip then builds what it installs."""
    tools = folder / "tools"
    subprocess.run([*pip, "--target", tools, "hatchling"], check=True)
    build = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", folder / "dist"]
    subprocess.run(build, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tools)}, check=True, capture_output=True)
    (archive,) = (folder / "dist").iterdir()
    return archive
