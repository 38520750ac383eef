import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

import hscc_search

SOURCE = ast.parse(Path(hscc_search.__file__).read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def for_type_checkers():
    """The names that type checkers see, each with the module it is imported from."""
    (block,) = (node for node in SOURCE.body if isinstance(node, ast.If))
    for statement in block.body:
        (alias,) = statement.names
        assert alias.name == alias.asname  # a type checker passes on only what is imported by the same name
        yield alias.name, statement.module


def test_type_checkers_see_the_names_that_are_there():
    assert dict(for_type_checkers()) == hscc_search._MODULES


@pytest.mark.parametrize("name", hscc_search.__all__)
def test_a_public_name_comes_from_the_module_that_defines_it(name):
    public = getattr(hscc_search, name)
    assert public is getattr(importlib.import_module(hscc_search._MODULES[name]), name)
    assert public.__doc__
    assert public.__module__.startswith(hscc_search._MODULES[name])


def test_the_readme_lists_the_public_names():
    (names,) = re.findall(r"The public names are (.*?)\.\n", README, re.DOTALL)
    assert sorted(re.findall(r"`(\w+)`", names)) == sorted(hscc_search.__all__)


def test_dir_shows_the_public_names_and_nothing_else():
    assert set(dir(hscc_search)) == {*hscc_search.__all__, "__version__"}


def test_another_name_is_refused_as_any_module_does():
    with pytest.raises(AttributeError, match="module 'hscc_search' has no attribute 'prune'"):
        _ = hscc_search.prune


def test_the_version_is_that_of_the_project():
    """Where it is not, the project was installed before its version changed: install it again."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert hscc_search.__version__ == project["version"]


def test_the_package_says_that_it_is_typed():
    assert (Path(hscc_search.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize("code", ["import hscc_search; hscc_search.StudyConfig", "import hscc_search.cli"])
def test_the_package_and_its_commands_are_imported_without_what_is_slow(code):
    slow = "{'torch', 'torchvision', 'optuna', 'sklearn', 'plotly', 'onnxruntime', 'timm'}"
    script = f"import sys; {code}; print(*{slow}.intersection(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
