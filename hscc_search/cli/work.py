"""The commands that compute trials: ``train``, ``run``, ``worker`` and ``proxy``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hscc_search.cli.options import (
    Whole,
    absolute,
    checkpoint_option,
    command_line,
    data_option,
    device_option,
    naming_storage,
    read_config,
    storage_option,
    timeout_option,
    workers_option,
)
from hscc_search.cli.printing import Watch, quiet_optuna, say, show_front
from hscc_search.cli.stopping import stoppable_bars

if TYPE_CHECKING:
    from hscc_search.study.stored_study import Study


@click.command()
@click.argument("study")
@data_option
@device_option
def train(study: str, data: Path | None, device: str) -> None:
    """Train the dense network of STUDY, a file or a name, and keep it in the cache.

    `run` does this too where the network is not in the cache. Weights that come with a network are kept as they are.
    """
    config = read_config(study, data__path=absolute(data))
    if config.model.checkpoint is not None:
        say(f"study {config.name} names the checkpoint {config.model.checkpoint}: there is nothing to train")
        return
    from hscc_search.dense.opened import open_dense
    from hscc_search.evaluation.predictions import predict

    with stoppable_bars() as report:
        opened = open_dense(config, device, report, keep=True)
    validation = opened.parts.validation
    scores = predict(opened.network, validation, config.data, opened.device)
    accuracy = float((scores.argmax(axis=1) == validation.labels).mean())
    say(f"dense {config.model.name}: accuracy {accuracy:.4f} on {len(validation)} validation images")
    if opened.weights_file is not None:
        say(f"checkpoint: {opened.weights_file}")
    option = ("--data", data) if data is not None else ()
    say(f"next: {command_line('hscc-search', 'run', study, *option)}")


@click.command()
@click.argument("study")
@click.option(
    "--storage",
    metavar="URL",
    envvar="HSCC_STORAGE",
    help="Database of the studies, in place of the study file's.",
)
@click.option(
    "--trials",
    metavar="N",
    type=Whole(min=1),
    help="Total number of finished trials to reach.",
)
@timeout_option
@workers_option
@data_option
@checkpoint_option
@device_option
@click.option("--strict", is_flag=True, help="Refuse a new study that there is a warning about.")
def run(
    study: str,
    storage: str | None,
    trials: int | None,
    timeout: float | None,
    workers: int,
    data: Path | None,
    checkpoint: Path | None,
    device: str,
    strict: bool,
) -> None:
    """Start STUDY, a file or a name, or continue it until it has all its trials."""
    config = read_config(
        study,
        storage=storage,
        trials=trials,
        timeout=timeout,
        data__path=absolute(data),
        model__checkpoint=absolute(checkpoint),
    )
    from hscc_search.storage import without_password
    from hscc_search.study.study import run_study

    quiet_optuna()
    with stoppable_bars() as report:
        watch = Watch(report)
        result = run_study(config, device, watch, workers, strict)
    show_front(result)
    say(f"study {config.name}: {_how_far(result, config.trials, watch)}; stored in {without_password(config.storage)}")
    storage_named = naming_storage(config.storage)
    say(f"next: {command_line('hscc-search', 'front', config.name, *storage_named, '--html', 'front.html')}")


@click.command()
@click.argument("study_name")
@storage_option
@workers_option
@timeout_option
@data_option
@checkpoint_option
@device_option
def worker(
    study_name: str,
    storage: str,
    workers: int,
    timeout: float | None,
    data: Path | None,
    checkpoint: Path | None,
    device: str,
) -> None:
    """Work on STUDY_NAME, which `run` has started, until it has all its trials.

    Any number of machines may do so at once; each needs the images and, where the study was given one, the checkpoint.
    """
    from hscc_search.study.study import work_on

    quiet_optuna()
    with stoppable_bars() as report:
        watch = Watch(report)
        study = work_on(storage, study_name, absolute(data), absolute(checkpoint), device, watch, workers, timeout)
    say(f"study {study_name}: {_how_far(study, study.config.trials, watch)}")


@click.command()
@storage_option
@click.option("--host", metavar="H", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", metavar="P", type=Whole(1, 65535), default=13000, show_default=True, help="Port to listen at.")
def proxy(storage: str, host: str, port: int) -> None:
    """Share one database among very many workers, which use grpc://HOST:PORT as their storage."""
    from hscc_search.report.guard import is_local
    from hscc_search.storage import serve_proxy

    quiet_optuna()
    if not is_local(host):
        say(
            f"warning: whoever reaches {host}:{port} can read, change and remove all studies in this storage: the "
            "proxy knows no password, so put it behind a tunnel or TLS, as README says"
        )
    serve_proxy(storage, host, port, lambda address: click.echo(f"proxy: {address} (Ctrl-C ends it)"))


def _how_far(study: "Study", wanted: int, watch: Watch) -> str:
    """Say how many trials a study has, and why it ended where that is fewer than it wants."""
    finished = len(study.searched.points)
    refined = len(study.points) - finished
    also = f", {refined} of them refined as well" if refined else ""
    reason = watch.note if finished < wanted else "so there is nothing to do" if watch.idle else ""
    return f"{finished} trials finished{also}, {wanted} wanted{', ' if reason else ''}{reason}"
