"""The layers of the package: each module imports only from its own floor and from those below."""

import ast
import graphlib
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "hscc_search"

# From the ground up. A module imports from its own floor and from those below it, never from one above.
FLOORS = (
    "errors",
    "temporary files memory progress resources torchvision_operators user_code",
    "cache",
    "config",
    "storage_faults",
    "sqlite_files storage",
    "data",
    "evaluation",
    "pareto",  # numbers only: neither torch nor Optuna
    "runtime",
    "dense",
    "compression",  # knows nothing of images on disk, studies and trials
    "study",
    "export comparison",
    "report",
    "session",
    "cli __init__",
)
# The same within the compressor, in the order of the method.
STEPS = (
    "form inspection plan divided stand_ins",
    "layers",
    "calibration",
    "rebuild",
    "factors input_axes",
    "division",
    "setting balancing",
    "ranks",
    "fitting",
    "refining",
    "compress",
    "baselines",
)
LONGEST_FILE, LONGEST_FUNCTION = 350, 50
# The script in exported folders, which is one file wherever it goes.
ALONE, LONGEST_ALONE = PACKAGE / "export" / "run.py", 485
# Test files of a folder that test several of its modules together.
OF_SEVERAL_MODULES = (
    "test_agreement",
    "test_conformance",
    "test_hostile",
    "test_imports",
    "test_landscape",
    "test_peers",
)


def modules():
    """Every module of the package with its syntax tree, by dotted name."""
    trees = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        names = path.relative_to(ROOT).with_suffix("").parts
        trees[".".join(names).removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


MODULES = modules()


def imports(name):
    """The modules of the package that a module imports, inside of functions too."""
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("hscc_search."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hscc_search":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def floor_of(name, floors, depth):
    module = name.split(".")[depth] if name.count(".") >= depth else "__init__"
    return next(number for number, modules in enumerate(floors) if module in modules.split())


def test_every_module_has_a_floor():
    for name in MODULES:
        floor_of(name, FLOORS, depth=1)


@pytest.mark.parametrize("name", MODULES)
def test_nothing_imports_upward(name):
    floor = floor_of(name, FLOORS, depth=1)
    for imported in imports(name):
        assert floor_of(imported, FLOORS, depth=1) <= floor, f"{name} imports {imported} from above"


@pytest.mark.parametrize("name", [name for name in MODULES if name.count(".") > 1 and ".compression." in name])
def test_the_compressor_follows_the_order_of_the_method(name):
    step = floor_of(name, STEPS, depth=2)
    for imported in imports(name):
        if imported.startswith("hscc_search.compression."):
            assert floor_of(imported, STEPS, depth=2) <= step, f"{name} imports {imported} from a later step"


def test_imports_form_no_circle():
    tuple(graphlib.TopologicalSorter({name: set(imports(name)) - {name} for name in MODULES}).static_order())


@pytest.mark.parametrize("name", MODULES)
def test_modules_import_no_private_name_of_another(name):
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hscc_search"):
            private = [alias.name for alias in node.names if alias.name.startswith("_")]
            assert not private, f"{name} imports {private} from {node.module}"


def test_no_file_and_no_function_is_too_long():
    long = []
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > (LONGEST_ALONE if path == ALONE else LONGEST_FILE):
            long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION:
                long += [f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"]
    assert not long


def test_only_the_command_line_prints_and_only_the_report_draws():
    for name, tree in MODULES.items():
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert "print" not in called or name.startswith(("hscc_search.cli", "hscc_search.export.run")), name
        libraries = {
            alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        } | {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        # A session draws nothing itself, but says the type of what it returns.
        assert "plotly" not in libraries or name.startswith(("hscc_search.report", "hscc_search.session")), name


def test_the_tests_mirror_the_package():
    """Each test file of a folder tests a module there, or several of them together."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.parent.relative_to(ROOT / "tests")
        if folder == Path():
            continue
        module = PACKAGE / folder / path.name.removeprefix("test_")
        counterpart = module.parent.is_dir() if path.stem in OF_SEVERAL_MODULES else module.is_file()
        assert counterpart, f"{path} has no counterpart"
