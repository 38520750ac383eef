import contextlib
import os
import re
import subprocess
import sys
import sysconfig
from importlib import metadata

from conftest import ROOT

IMPORT_ALL = """
import importlib, pkgutil, sys
for package in ("hscc_search", "dashboards"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        importlib.import_module(module.name)
print(*{name.split(".")[0] for name in sys.modules})
"""


def needed(name):
    """The distributions that installing one installs, by their names in lower case."""
    found, waiting = set(), [name]
    while waiting:
        name = re.split(r"[^\w.-]", waiting.pop())[0].lower().replace("_", "-")
        if name not in found:
            found.add(name)
            with contextlib.suppress(metadata.PackageNotFoundError):  # for another platform or Python
                waiting += [line for line in metadata.requires(name) or () if "extra ==" not in line]
    return found


def test_all_that_is_imported_is_asked_for():
    """What tests and checks bring along is not there where a user installs the package."""
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=ROOT, check=True, capture_output=True, text=True)
    owners = metadata.packages_distributions()
    imported = {owner.lower().replace("_", "-") for name in done.stdout.split() for owner in owners.get(name, ())[:1]}
    assert "torch" in imported
    assert imported <= needed("hscc-search") | {"setuptools"}


def test_an_installed_package_runs_from_any_folder(tmp_path):
    """As a user installs it: a new environment, pip install, another folder."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python, command = environment / "bin" / "python", environment / "bin" / "hscc-search"
    # What it needs is taken from where the tests run: to install torch again takes longer than all the rest.
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--ignore-installed", "--no-deps"]
    subprocess.run([*pip, ROOT], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # No Python path of the tests may lend the new environment what it lacks.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    place = [python, "-c", "import hscc_search; print(hscc_search.__file__)"]
    found = subprocess.run(place, cwd=elsewhere, env=clean, check=True, capture_output=True, text=True).stdout
    assert found.startswith(str(packages))
    for arguments in (["run", "digits", "--trials", "3"], ["front", "digits", "--html", "front.html"]):
        subprocess.run([command, *arguments], cwd=elsewhere, env=clean, check=True, capture_output=True)
    assert (elsewhere / "hscc-studies.db").exists()
    assert (elsewhere / "front.html").exists()
