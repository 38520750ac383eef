"""The commands on exported folders: ``verify`` and ``predict``."""

import json
from pathlib import Path

import click

from hscc_search.cli.options import absolute, table_or_json_option
from hscc_search.cli.printing import say
from hscc_search.cli.stopping import stoppable_bars


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--data",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Folder or table of images to measure the accuracy on: on the test part, where they are the study's.",
)
@click.option(
    "--trust",
    is_flag=True,
    help="Import the functions of somebody's own that the folder names, and run its files for torch.export, OpenVINO "
    "and ExecuTorch, which do not check what they load.",
)
@click.option(
    "--key",
    metavar="PUBLIC",
    type=click.Path(path_type=Path),
    help="Public Ed25519 key that the manifest must be signed with, as ssh-keygen writes it to KEY.pub.",
)
def verify(folder: Path, data: Path | None, trust: bool, key: Path | None) -> None:
    """Compare all files of the exported folder DIR, and what its models answer, with those at export."""
    from hscc_search.export.run import SIGNATURE
    from hscc_search.export.verifying import accuracy_on
    from hscc_search.export.verifying import verify as verify_folder

    verified = verify_folder(folder, trust, key)
    if verified.signed_by is not None:
        say(f"signature: the manifest is signed with {key} ({verified.signed_by})")
    elif (folder / SIGNATURE).exists():
        say("signature: there is one, not checked: --key PUBLIC checks it")
    say(f"files: all {verified.files} are as exported, and there are no others")
    for name, gap in verified.gaps.items():
        say(f"{name}: answers as at export, scores differ by {gap:.1g} of the largest")
    for name, why in verified.not_run.items():
        say(f"warning: {name} was not run: {why}")
    path = absolute(data)
    if path is None:
        return
    with stoppable_bars() as report:
        found = accuracy_on(folder, path, report)
    if found.at_export is None:
        images = f"{found.images:,} images of {path}, which are not the study's"
    else:
        images = f"the {found.images:,} images of the study's test part (at export {found.at_export:.4f})"
    say(f"accuracy: {found.accuracy:.4f} ± {found.error:.4f} on {images}")


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@table_or_json_option
def predict(folder: Path, images: tuple[Path, ...], output_format: str) -> None:
    """Classify image files with the model.onnx of the exported folder DIR."""
    from hscc_search.export import run
    from hscc_search.export.manifest import check_digests, refusing

    check_digests(folder, (run.ARCHITECTURE, run.ONNX))
    with refusing():
        network = run.Folder(folder)
        answers = []
        for image in images:
            answers.append(network.answer(image))
            if output_format == "table":
                say(run.in_words(answers[-1]))
    if output_format == "json":
        click.echo(json.dumps(answers, indent=2))
