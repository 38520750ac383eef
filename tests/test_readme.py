import os
import re
import shlex
import subprocess
import time

import command_line
import pytest
import torch
import yaml
from conftest import ROOT

from hscc_search.config import StudyConfig
from hscc_search.config.metrics import METRICS
from hscc_search.dense.networks import build_network
from hscc_search.errors import StorageError
from hscc_search.export.verifying import accuracy_on
from hscc_search.pareto.rules import parse_rule
from hscc_search.study.catalogue import list_studies
from hscc_search.study.space import Space

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


def test_the_readme_leads_with_two_commands_and_a_picture():
    assert COMMANDS[:2] == ["make study", "make test"]
    picture = re.search(r"!\[.*?\]\((.*?)\)", README)[1]
    assert (ROOT / picture).stat().st_size > 10_000


def test_make_knows_its_targets():
    for target in ("study", "test", "quick", "check"):
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_commands_on_digits_run(cli, folder):
    ran = [command for command in COMMANDS if "my.db" in command or "digits-small" in command]
    assert len(ran) == 5
    for command in ran:
        cli(*shlex.split(command)[1:], cwd=folder)
    assert (folder / "digits-small" / "model.onnx").exists()


def test_commands_for_many_machines_run(cli, folder, database):
    """Each in a folder of its own, as on machines of their own."""
    export, run, worker, studies = [
        line for block in re.findall(r"```console\n(export.*?)```", README, re.DOTALL) for line in block.splitlines()
    ]
    assert export.startswith("export HSCC_STORAGE=postgresql://")
    environment = {**os.environ, "HSCC_STORAGE": database}
    first_machine, second_machine = folder / "first", folder / "second"
    first_machine.mkdir()
    second_machine.mkdir()
    first = command_line.start(*shlex.split(run)[1:], cwd=first_machine, env=environment)
    while not any(status.finished for status in listed(database)):
        assert first.returncode is None
        time.sleep(0.2)
    cli(*shlex.split(worker)[1:], cwd=second_machine, env=environment)
    assert re.search(r"20 trials finished(, \d of them refined as well)?, 20 wanted", first.communicate()[0])
    assert re.search(
        r"digits +20 +20 +0 +0 +0 +0", cli(*shlex.split(studies)[1:], cwd=second_machine, env=environment).stdout
    )


def listed(url):
    try:
        return list_studies(url)
    except StorageError:  # not there yet
        return []


def test_the_study_options_are_all_allowed():
    (options,) = re.findall(r"## What a study can look for\n\n```yaml\n(.*?)```", README, re.DOTALL)
    tree = {"name": "all", "data": {"source": "digits"}, "model": {"name": "digits_cnn"}, **yaml.safe_load(options)}
    config = StudyConfig.from_tree(tree, "README")
    space = Space(config, scopes={})
    assert config.start
    assert all(space.checked(sample) for sample in config.start)


def test_the_ways_to_give_images_are_allowed():
    blocks = re.findall(r"```yaml\n(data:.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        StudyConfig.from_tree({"name": "mine", "model": {"name": "digits_cnn"}, **yaml.safe_load(block)}, "README")


def test_the_metrics_are_all_allowed():
    (metrics,) = re.findall(r"```yaml\n(metrics:.*?)```", README, re.DOTALL)
    tree = {"name": "all", "data": {"source": "digits"}, "model": {"name": "digits_cnn"}, **yaml.safe_load(metrics)}
    config = StudyConfig.from_tree(tree, "README")
    assert "sensitivity@0.95:meningioma_tumor" in config.asked_metrics
    assert all(f"`{name}`" in README for name in METRICS)


def test_the_rules_of_selection_are_all_read():
    table = README.split("| `--select` |")[1].split("\n\n")[0]
    rows = [line.split(" | ")[0] for line in table.splitlines()[2:]]
    rules = [rule.strip("'") for row in rows for rule in re.findall(r"`([^`]+)`", row)]
    assert len(rules) == 7
    for rule in rules:
        parse_rule(rule.replace("trial:N", "trial:3"))


def test_the_comparison_runs(cli, folder):
    (command,) = [command for command in COMMANDS if "compare" in command]
    cli(*shlex.split(command)[1:], cwd=folder)
    assert "plotly" in (folder / "comparison" / "comparison.html").read_text()


def test_commands_on_own_images_run(cli, image_folder, tmp_path):
    image_folder({"cat": 30, "dog": 30}, name="IMAGES")
    (study,) = re.findall(r"```yaml\n(name: mine.*?)```", README, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(study)
    torch.save(build_network("resnet18", 2, 32).state_dict(), tmp_path / "weights.pt")
    ran = [command for command in COMMANDS if "mine" in command or "IMAGES" in command]
    assert len(ran) == 5
    for command in ran:
        cli(*shlex.split(command)[1:], cwd=tmp_path)
    exported = tmp_path / "mine-compressed"
    assert not [path.name for path in exported.iterdir() if str(tmp_path).encode() in path.read_bytes()]
    sizes = [(exported / name).stat().st_size for name in ("model.onnx", "model.safetensors")]
    assert sizes[0] <= 1.05 * sizes[1]
    found = accuracy_on(exported, tmp_path / "IMAGES")
    assert found.accuracy == found.at_export
    assert "plotly" in (tmp_path / "front.html").read_text()


@pytest.fixture
def python_examples(folder):
    """The examples in Python, and a module with a network and data sets for the first."""
    (folder / "my_project.py").write_text("""
import torch
from torch import nn
from torch.utils.data import TensorDataset

torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten(),
    nn.Linear(128, 3),
)
train, validation, test = (
    TensorDataset(torch.randn(count, 1, 12, 20), torch.arange(count) % 3) for count in (128, 48, 48)
)
""")
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_a_search_in_memory_takes_at_most_twelve_lines_and_runs(python_examples, folder):
    code = python_examples[0]
    assert len(code.strip().splitlines()) <= 12
    beside_the_script = 'import sys; sys.path.insert(0, "")\n'  # as Python finds modules for a script
    program = command_line.start_code(beside_the_script + code, folder)
    stdout, stderr = program.communicate()
    assert program.returncode == 0, stderr
    assert "probability" in stdout
    assert "plotly" in (folder / "front.html").read_text()
    assert (folder / "small" / "model.onnx").exists()


def test_the_python_example_runs(python_examples, folder):
    code = python_examples[1]
    program = command_line.start_code(code, folder)
    stdout, stderr = program.communicate()
    assert program.returncode == 0, stderr
    assert "total rank per region" in stdout


def test_every_command_is_in_the_table_and_every_option_has_help():
    import click

    from hscc_search.cli import commands

    def walk(command, path):
        if isinstance(command, click.Group):
            for name, inner in command.commands.items():
                yield from walk(inner, [*path, name])
        else:
            yield " ".join(path), command

    for name, command in walk(commands, ["hscc-search"]):
        assert f"`{name}" in README
        for option in command.params:
            assert isinstance(option, click.Argument) or option.help, f"{name} {option.name}"
