"""Studies in Python: searched, looked at, and taken further, as in a notebook."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import torch
from optuna.storages import BaseStorage
from torch import nn
from torch.utils.data import DataLoader

from hscc_search.compression.stand_ins import copied
from hscc_search.config import IN_MEMORY, StudyConfig
from hscc_search.data import Dataset, split
from hscc_search.data.own import dataset_of
from hscc_search.dense.checked import check_network
from hscc_search.dense.device import choose_device
from hscc_search.dense.identity import identity
from hscc_search.dense.opened import Opened
from hscc_search.dense.output import picking
from hscc_search.errors import ConfigError, DataError
from hscc_search.evaluation.predictions import network_input
from hscc_search.pareto.points import Point
from hscc_search.pareto.rules import ByTrial, Rule, WholeFront, parse_rule
from hscc_search.pareto.selection import select
from hscc_search.progress import Report, silent
from hscc_search.report.terminal import progress_bars
from hscc_search.study import stored_study
from hscc_search.study import study as search_study
from hscc_search.study.opening import open_again
from hscc_search.study.refinement import refinement_from_stored
from hscc_search.study.space import space_of
from hscc_search.study.trial import Prepared, prepare, run_trial
from hscc_search.temporary import TemporaryFolder

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

    from hscc_search.report.page import Page


@dataclass(frozen=True, repr=False)
class Study(stored_study.Study):
    """A study as it stands in its storage, whose trials can be tabulated, drawn, built again and exported.

    Attributes:
        given: images and dense network of a study that was searched on objects in memory; None for any other.
        kept: the folder of its storage, which is removed with this object; None where a storage was named.
    """

    given: Opened | None = field(default=None, compare=False)
    kept: TemporaryFolder | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        """Say how far the study is."""
        trials = f"{len(self.searched.points)} of {self.config.trials} trials"
        return f"study {self.config.name}: {trials}, {len(self.front)} on the front"

    def select(self, rule: Rule | str = "knee") -> Point:
        """Choose a trial by a rule, see :func:`hscc_search.pareto.selection.select`.

        Args:
            rule: ``knee``, ``trial:N``, ``min-accuracy:X``, ``max-flops:X``, ``budget:X`` or bounds such as
                ``accuracy>=0.9 and flops<=1.2G``. :meth:`choose` says of the same trial why it is that one.

        Raises:
            ConfigError: the text is not a rule, or the rule is of several trials.
            StudyError: no trial fits the rule.
        """
        return select(rule, self.points, self.objectives, self.truth, self.config.seed, self.dense)

    def dataframe(self) -> "pandas.DataFrame":
        """Tabulate the finished trials.

        Returns:
            A row per trial, by its number: the values of its sample, its metrics, each metric's standard error in
            ``METRIC error``, ``feasible``, ``refined``, ``on front``, and ``probability`` of being on the front.
        """
        import pandas

        members = {point.trial for point in self.front}
        probability = self.confidence.probability
        rows = [
            {
                **point.sample,
                **point.metrics,
                **{f"{metric} error": error for metric, error in point.errors.items()},
                "feasible": point.feasible,
                "refined": bool(point.refined),
                "on front": point.trial in members,
                "probability": probability.get(point.trial, 0.0),
            }
            for point in self.points
        ]
        return pandas.DataFrame(rows, index=pandas.Index([point.trial for point in self.points], name="trial"))

    def figure(self) -> "plotly.graph_objects.Figure":
        """Draw the front. In a notebook the figure shows itself where it is the last value of a cell."""
        from hscc_search.report.figures import draw_front, front_info

        return draw_front(front_info(self))

    def page(self) -> "Page":
        """Make the page to explore the study. In a notebook it shows itself where it is the last value of a cell."""
        from hscc_search.report.page import Page, frozen_page

        return Page(frozen_page(self, self.config.storage))

    def compressed(self, trial: Point | int | str = "knee", report: Report = silent) -> nn.Module:
        """Build the network of a trial again: compressed, fine-tuned where the study says so, in evaluation mode.

        It takes normalised images as the dense network does, and can be trained further. Of an int8 trial it is the
        float32 network that was rounded: :meth:`export` writes the file that was measured.

        Args:
            trial: a finished one, its number, or a rule as for :meth:`select`.
            report: told of reading, calibrating and fine-tuning.

        Raises:
            HsccError: there is no such trial, or images or weights are not on this machine: see :meth:`located`.
        """
        point = trial if isinstance(trial, Point) else self.select(_rule(trial))
        setting = space_of(self.config, self._prepared.calibration).setting(dict(point.sample))
        return run_trial(self._prepared, setting, refinement_from_stored(point.refined), report).compressed.network

    def export(
        self,
        trial: Point | int | str,
        out: Path | str,
        network: nn.Module | None = None,
        device: str = "auto",
        report: Report = silent,
        accept_loss: bool = False,
        formats: Sequence[str] = (),
        sign: Path | str | None = None,
    ) -> Path:
        """Write a trial as a folder with ONNX and torch models and a model card.

        Args:
            trial: a finished one, its number, or a rule as for :meth:`select`; ``all`` writes each trial of the front
                into a folder within ``out``, see :func:`hscc_search.export.front.export_front`.
            out: a folder that does not exist yet; with ``all`` one in which the same export was begun may.
            network: what :meth:`compressed` built for the trial and was trained further; measured anew, and the card
                says that it was trained elsewhere. None builds it again.
            device: where the network is built.
            report: told of each step.
            accept_loss: also an int8 trial or a format that loses much on the test part.
            formats: further files: ``pt2``, ``float16``, ``uint8``; by their packages ``openvino`` and ``executorch``.
            sign: file of a private Ed25519 key that signs the manifest; None signs nothing.

        Returns:
            The folder.

        Raises:
            HsccError: as for :meth:`compressed`; or ``out`` or the network cannot be written, or is not of its form.
        """
        from hscc_search.export.export import export
        from hscc_search.export.formats import Extras
        from hscc_search.export.front import export_front
        from hscc_search.export.signature import read_signing_key

        out, rule = Path(out), ByTrial(trial.trial) if isinstance(trial, Point) else _rule(trial)
        prepared = self._prepared if self.given else None
        extras = Extras(tuple(formats), accept_loss, None if sign is None else read_signing_key(Path(sign)))
        if isinstance(rule, WholeFront):
            if network is not None:
                raise ConfigError("all exports each trial of the front, and the given network is of one: name that")
            export_front(self, self.config, out, device, report, prepared, extras=extras)
            return out
        choice = self.choose(rule)
        point = trial if isinstance(trial, Point) else choice.point
        export(self, point, self.config, out, device, report, network, prepared, choice=choice, extras=extras)
        return out

    def located(self, data: Path | str | None = None, checkpoint: Path | str | None = None) -> "Study":
        """The same study with its images or its checkpoint elsewhere on this machine."""
        places = (None if place is None else Path(place).absolute() for place in (data, checkpoint))
        return replace(self, record=replace(self.record, config=self.config.with_paths(*places)))

    @cached_property
    def _prepared(self) -> Prepared:
        return prepare(self.given or open_again(self.record, self.config), self.record.dense)


def search(
    network: nn.Module,
    train: Any,
    validation: Any,
    test: Any,
    metrics: Mapping[str, Callable[..., float]] | None = None,
    objectives: Sequence[str] | None = None,
    trials: int = 40,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    progress: bool = True,
    **sections: Any,
) -> Study:
    """Search over a trained network and data sets that are in memory; no file is needed.

    Args:
        network: trained; it is not changed.
        train: inputs and targets, perhaps with the group of each, such as its patient, as a torch Dataset, a DataLoader
            of one, or a list: see :func:`hscc_search.data.own.dataset_of`. Floating-point inputs go into the network
            as they are.
        validation: likewise; trials are measured on it.
        test: likewise; exports are measured on it.
        metrics: functions of scores and targets by name, higher is better; defined at the top of a module or notebook.
        objectives: metrics to weigh; by default ``flops`` and the first of ``metrics``, or ``accuracy``.
        trials: number of trials.
        classes: names of the classes by position.
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: whether to show bars on the error stream, or in the notebook.
        sections: further keys and sections of a study file, such as ``space``, ``constraints`` or ``seed``. By default
            ``name`` is that of the network's class, and ``storage`` is gone when the study is: give a URL to keep it.

    Raises:
        HsccError: an item cannot be used, the network cannot be compressed, or a setting is wrong.
    """
    with progress_bars() if progress else nullcontext(silent) as report:
        judged = {key: value for key, value in sections.get("data", {}).items() if key in ("copies", "allow_leaks")}
        dataset = dataset_of(_items(train), _items(validation), _items(test), classes, **judged, report=report)
        kept = None if "storage" in sections else TemporaryFolder("hscc-search")
        tree = {"name": type(network).__name__, "storage": kept and f"sqlite:///{kept.path}/studies.db", **sections}
        config = _config(tree, dataset, trials, metrics or {}, objectives)
        opened = _opened(config, network, dataset, device)
        with _quiet():
            study = _whole(search_study.run_study(opened.config, device, report, given=opened))
    return replace(study, given=opened, kept=kept)


def _rule(trial: int | str) -> Rule:
    return ByTrial(trial) if isinstance(trial, int) else parse_rule(str(trial))


def _config(
    tree: dict[str, Any],
    dataset: Dataset,
    trials: int,
    metrics: Mapping[str, Callable[..., float]],
    objectives: Sequence[str] | None,
) -> StudyConfig:
    """Write down as a study file what is searched."""
    given = {
        "trials": trials,
        **_objectives(objectives, metrics, dataset),
        "metrics": {name: _function_name(name, function) for name, function in metrics.items()},
        "model": {**tree.get("model", {}), "name": IN_MEMORY},
        "data": {"source": "memory", **_picture(dataset), **tree.get("data", {})},
    }
    return StudyConfig.from_tree({**tree, **given}, "search")


def _objectives(
    objectives: Sequence[str] | None, metrics: Mapping[str, Callable[..., float]], dataset: Dataset
) -> dict[str, list[str]]:
    """The objectives that are given, or the default ones; none for maps without a metric, which have no default."""
    if objectives is None and dataset.maps and not metrics:
        return {}
    return {"objectives": list(objectives or ("flops", next(iter(metrics), "accuracy")))}


def _items(part: Any) -> Any:
    return part.dataset if isinstance(part, DataLoader) else part


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from printing a line per trial beside the progress."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _picture(dataset: Dataset) -> dict[str, Any]:
    """The keys of a study file that say what inputs look like."""
    shape = dataset.images.shape[1:]
    if len(shape) != 3:
        raise DataError(f"inputs are of shape {shape}, and must be (channels, height, width)")
    return {"channels": shape[0], "image_size": [int(side) for side in shape[1:]]}


def _opened(config: StudyConfig, network: nn.Module, dataset: Dataset, device: str) -> Opened:
    """Put images and network in memory together, as :func:`hscc_search.dense.opened.open_dense` does from files."""
    chosen = choose_device(device)
    config.check_classes(dataset.classes)
    if dataset.maps:
        config.check_maps()
    parts = split(dataset, config.data.validation, config.data.test, config.data.split_seed)
    images = network_input(torch.from_numpy(parts.train.images[:2]).to(chosen), config.data)
    network = copied(network).to(chosen)
    if config.model.output is not None:
        network = picking(network, config.model.output)
    check_network(network, images, type(network).__name__, len(dataset.classes), dataset.maps)
    return Opened(config, dataset, parts, network, chosen, identity(network), given=True)


def _function_name(metric: str, function: Callable[..., float]) -> str:
    """The name by which a function can be imported where the study is measured.

    Raises:
        ConfigError: it cannot be imported.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if getattr(sys.modules.get(module or ""), name, None) is not function:
        raise ConfigError(f"metrics: {metric} must be a function that is defined at the top of a module or a notebook")
    return f"{module}:{name}"


def read_study(storage: str | BaseStorage, name: str) -> Study:
    """Read a study from its storage, given by URL or already open.

    Raises:
        StorageError: the storage cannot be reached or holds no such study.
        StudyError: the study was not made by hscc-search, or by a version whose format this one does not read.
    """
    return _whole(stored_study.read_study(storage, name))


def run_study(
    config: StudyConfig, device: str = "auto", report: Report = silent, workers: int = 1, strict: bool = False
) -> Study:
    """Start a study, or continue it, until it has ``config.trials`` finished trials in all.

    Every trial is stored when it finishes, so that whatever stops this function loses no finished trial.

    Args:
        config: its storage is created where it does not exist.
        device: ``auto``, ``cpu`` or ``cuda``.
        report: told of reading, training, calibrating and each trial.
        workers: number of processes that share the trials.
        strict: whether a new study is refused where there is something to warn of.

    Raises:
        HsccError: bad input, a study whose file has changed, or several trials in a row that fail.
    """
    return _whole(search_study.run_study(config, device, report, workers, strict))


def _whole(study: stored_study.Study) -> Study:
    """A stored study as one that can be taken further."""
    return Study(**{member.name: getattr(study, member.name) for member in fields(stored_study.Study)})
