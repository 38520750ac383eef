import os
import subprocess
import sys

from conftest import ROOT


def test_an_installed_package_runs_from_any_folder(tmp_path):
    """As a user installs it: a new environment, pip install, another folder."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python, command = environment / "bin" / "python", environment / "bin" / "hscc-search"
    # Only what is imported needs to be compiled.
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    subprocess.run([*pip, "torch==2.13.0"], check=True)
    subprocess.run([*pip, "torchvision==0.28.0", ROOT], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # No Python path of the tests may lend the new environment what it lacks.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for arguments in (["run", "digits", "--trials", "3"], ["front", "digits", "--html", "front.html"]):
        subprocess.run([command, *arguments], cwd=elsewhere, env=clean, check=True, capture_output=True)
    assert (elsewhere / "hscc-studies.db").exists()
    assert (elsewhere / "front.html").exists()
