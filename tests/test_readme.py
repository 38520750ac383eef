import re
import shlex
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from hscc_search import models

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
    for target in ("study", "test", "check"):
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_commands_on_digits_run(cli, folder):
    ran = [command for command in COMMANDS if "my.db" in command]
    assert len(ran) == 4
    for command in ran:
        cli(*shlex.split(command)[1:], cwd=folder)
    assert (folder / "digits-small" / "model.onnx").exists()


def test_the_comparison_runs(cli, folder):
    (command,) = [command for command in COMMANDS if "compare" in command]
    cli(*shlex.split(command)[1:], cwd=folder)
    assert "plotly" in (folder / "comparison" / "comparison.html").read_text()


def test_commands_on_own_images_run(cli, image_folder, tmp_path):
    image_folder({"cat": 30, "dog": 30}, name="IMAGES")
    (study,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(study)
    torch.save(models.build("resnet18", 2, 32).state_dict(), tmp_path / "weights.pt")
    ran = [command for command in COMMANDS if "mine" in command or "IMAGES" in command]
    assert len(ran) == 4
    for command in ran:
        cli(*shlex.split(command)[1:], cwd=tmp_path)
    assert (tmp_path / "mine-compressed" / "README.md").exists()
    assert "plotly" in (tmp_path / "front.html").read_text()


def test_the_python_example_runs(folder):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert "total rank per region" in done.stdout


def test_every_command_is_in_the_table_and_every_option_has_help():
    import click

    from hscc_search.cli import _commands

    def walk(command, path):
        if isinstance(command, click.Group):
            for name, inner in command.commands.items():
                yield from walk(inner, [*path, name])
        else:
            yield " ".join(path), command

    for name, command in walk(_commands, ["hscc-search"]):
        assert f"`{name}" in README
        for option in command.params:
            assert isinstance(option, click.Argument) or option.name == "form" or option.help, f"{name} {option.name}"
