"""Studies in Python: searched, looked at, and taken further, as in a notebook."""

from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.storages import BaseStorage
from torch import nn

from hscc_search.config import StudyConfig
from hscc_search.pareto.points import Point
from hscc_search.pareto.selection import Rule, select
from hscc_search.progress import Report, silent
from hscc_search.search import stored_study
from hscc_search.search import study as search_study
from hscc_search.search.opening import open_again
from hscc_search.search.space import space_of
from hscc_search.search.trial import Prepared, prepare, run_trial

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects


class Study(stored_study.Study):
    """A study as it stands in its storage, whose trials can be tabulated, drawn, built again and exported."""

    def select(self, rule: Rule | str = "knee") -> Point:
        """Choose a trial by a rule: ``knee``, ``trial:N``, ``min-accuracy:X`` or ``max-flops:X``.

        Raises:
            ConfigError: the text is not a rule.
            StudyError: no trial fits the rule.
        """
        record = self.record
        return select(
            rule,
            self.points,
            self.objectives,
            record.labels,
            record.classes,
            self.config.seed,
            most_parameters=self.dense["parameters"],
        )

    def dataframe(self) -> "pandas.DataFrame":
        """Tabulate the finished trials.

        Returns:
            A row per trial, by its number: the values of its sample, its metrics, each metric's standard error in
            ``METRIC error``, ``feasible``, ``on front``, and ``probability`` of being on the front.
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

    def compressed(self, trial: Point | int | str = "knee", report: Report = silent) -> nn.Module:
        """Build the network of a trial again: compressed, fine-tuned where the study says so, in evaluation mode.

        It takes normalised images as the dense network does, and can be trained further.

        Args:
            trial: a finished one, its number, or a rule as for :meth:`select`.
            report: told of reading, calibrating and fine-tuning.

        Raises:
            HsccError: there is no such trial, or images or weights are not on this machine: see :meth:`located`.
        """
        point = self._trial(trial)
        setting = space_of(self.config, self._prepared.calibration).setting(dict(point.sample))
        return run_trial(self._prepared, setting, report).compressed.network

    def export(
        self,
        trial: Point | int | str,
        out: Path | str,
        network: nn.Module | None = None,
        device: str = "auto",
        report: Report = silent,
    ) -> Path:
        """Write a trial as a folder with ONNX and torch models and a model card.

        Args:
            trial: a finished one, its number, or a rule as for :meth:`select`.
            out: a folder that does not exist yet.
            network: what :meth:`compressed` built for the trial and was trained further; measured anew, and the card
                says that it was trained elsewhere. None builds it again.
            device: where the network is built.
            report: told of each step.

        Returns:
            The folder.

        Raises:
            HsccError: as for :meth:`compressed`; or ``out`` cannot be written, the network cannot be exported, or it is
                not of the trial's form.
        """
        from hscc_search.export.export import export

        out = Path(out)
        export(self, self._trial(trial), self.config, out, device, report, network)
        return out

    def located(self, data: Path | str | None = None, checkpoint: Path | str | None = None) -> "Study":
        """The same study with its images or its checkpoint elsewhere on this machine."""
        places = (None if place is None else Path(place).absolute() for place in (data, checkpoint))
        return _whole(self, self.config.with_paths(*places))

    def _trial(self, trial: Point | int | str) -> Point:
        if isinstance(trial, Point):
            return trial
        return self.select(f"trial:{trial}" if isinstance(trial, int) else trial)

    @cached_property
    def _prepared(self) -> Prepared:
        return prepare(open_again(self.record, self.config), self.record.dense)


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


def _whole(study: stored_study.Study, config: StudyConfig | None = None) -> Study:
    """A stored study, perhaps with its paths on this machine, as one that can be taken further."""
    values = {member.name: getattr(study, member.name) for member in fields(stored_study.Study)}
    if config is not None:
        values["record"] = replace(study.record, config=config)
    return Study(**values)
