"""The index of an exported front: ``index.json`` for programs and ``index.html`` for people. Needs no torch.

::

    index.json      what was asked, and each trial in its place, with its results once its folder is there
    index.html      the same as a page that needs no network and runs no script
    01-trial-12/    an exported folder, see :mod:`hscc_search.export.folder`, for each trial
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader

from hscc_search.errors import ExportError
from hscc_search.export.folder import CARD, METRICS, ONNX
from hscc_search.export.manifest import check_digests, refusing
from hscc_search.export.run import Refused, listed, read_json
from hscc_search.export.signature import check_signature
from hscc_search.files import check_new_folder, folder_written_whole, make_parent, written_whole
from hscc_search.pareto.objectives import title, written
from hscc_search.pareto.points import Point
from hscc_search.pareto.selection import Choice
from hscc_search.resources import resource_folder

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FORMAT = 1
INDEX, PAGE = "index.json", "index.html"
ORDER = "by the share of bootstrap draws in which a trial is the knee, then by that in which it is on the front"

_TEMPLATES = Environment(loader=FileSystemLoader(resource_folder("dashboards")), autoescape=True)


@dataclass(frozen=True)
class Asked:
    """What an export of a front was asked for; the same command continues one that asked for the same.

    Attributes:
        study: its name.
        fingerprint: of the data set.
        weights: digest of the dense network's weights.
        finetuning_epochs: epochs of fine-tuning after compression.
        refine: whether trials that are not refined are.
        trials: of the front, in their places.
        formats: further files in each folder.
        signed_by: name of the key that signs each folder; None where none does.
    """

    study: str
    fingerprint: str
    weights: str
    finetuning_epochs: int
    refine: bool
    trials: tuple[int, ...]
    formats: tuple[str, ...] = ()
    signed_by: str | None = None

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values."""
        return {**asdict(self), "trials": list(self.trials), "formats": list(self.formats)}


@dataclass(frozen=True)
class Index:
    """The index of an exported front.

    Attributes:
        asked: what was asked for.
        choices: the trials in their places.
        classes: class names.
        metrics: names of the metrics of answers that are shown.
        dense_latency: of the dense network, in milliseconds per batch; None where the study does not measure it.
    """

    asked: Asked
    choices: tuple[Choice, ...]
    classes: tuple[str, ...]
    metrics: tuple[str, ...]
    dense_latency: float | None

    def folders(self) -> list[str]:
        """Name the folder of each trial, in the order of the places."""
        digits = max(2, len(str(len(self.choices))))
        return [f"{place:0{digits}d}-trial-{choice.point.trial}" for place, choice in enumerate(self.choices, start=1)]

    def claim(self, out: Path, key: "Ed25519PrivateKey | None" = None) -> None:
        """Make the folder with an index of trials that are still to be exported, or check that it has the same one.

        Args:
            out: the folder.
            key: that signs its folders; None where none does.

        Raises:
            ExportError: it holds something else, or one of its folders was changed.
            UnwritableError: it cannot be written.
        """
        if not os.path.lexists(out):
            check_new_folder(out)
            make_parent(out)
            with folder_written_whole(out) as folder:
                self._write(folder)
            return
        try:
            tree = read_json(out / INDEX)
            stored_format, before = tree["format"], dict(tree["asked"])
        except (Refused, ValueError, KeyError, TypeError) as error:
            raise ExportError(
                f"output folder {out} exists and holds no export of a front: name one that does not"
            ) from error
        now = self.asked.stored()
        differing = [] if stored_format == FORMAT else [f"format: {stored_format} -> {FORMAT}"]
        differing += [f"{key}: {before.get(key)} -> {value}" for key, value in now.items() if before.get(key) != value]
        if differing:
            raise ExportError(
                f"{out} holds the export of another front ({'; '.join(differing)}): name another output folder"
            )
        for name in self.folders():
            if os.path.lexists(out / name):
                _check_whole(out / name, key)

    def lacking(self, out: Path) -> list[str]:
        """Name the folders that are not there yet."""
        return [name for name in self.folders() if not os.path.lexists(out / name)]

    def write(self, out: Path) -> list[dict[str, Any]]:
        """Write the index anew, with the results of those folders that are there.

        Returns:
            What ``index.json`` says of each trial.
        """
        for name, content in self._files(out).items():
            with written_whole(out / name) as temporary:
                temporary.write_text(content, encoding="utf-8")
        return self._entries(out)

    def _write(self, folder: Path) -> None:
        for name, content in self._files(folder).items():
            (folder / name).write_text(content, encoding="utf-8")

    def _files(self, out: Path) -> dict[str, str]:
        """The content of both files, by name."""
        entries = self._entries(out)
        tree = {"format": FORMAT, "asked": self.asked.stored(), "order": ORDER, "classes": list(self.classes)}
        return {INDEX: json.dumps({**tree, "trials": entries}, indent=2) + "\n", PAGE: self._page(entries)}

    def _entries(self, out: Path) -> list[dict[str, Any]]:
        return [
            {
                "folder": name,
                "trial": choice.point.trial,
                "sample": dict(choice.point.sample),
                **choice.stored(),
                **self._results(out / name / METRICS, choice.point),
            }
            for name, choice in zip(self.folders(), self.choices, strict=True)
        ]

    def _results(self, path: Path, point: Point) -> dict[str, Any]:
        """The results that an exported folder tells of its network and of the dense one, where it is there."""
        if not path.exists():
            return {"exported": False}
        with refusing():
            tree = read_json(path)
        results = {name: _results(tree[name], self.metrics) for name in ("compressed", "dense")}
        if self.dense_latency is not None:  # which an export does not measure again
            results["compressed"]["cost"]["latency"] = point["latency"]
            results["dense"]["cost"]["latency"] = self.dense_latency
        return {"exported": True, "test_images": tree["test_images"], **results}

    def _page(self, entries: Sequence[Mapping[str, Any]]) -> str:
        dense = next((entry["dense"] for entry in entries if entry["exported"]), None)
        heads = ["fewer FLOPs", *map(title, self._costs())]
        heads += [f"{title(metric)}, {part} part" for metric in self.metrics for part in ("test", "validation")]
        rows = [
            {**entry, "cells": self._cells(entry["compressed"], entry["dense"]) if entry["exported"] else None}
            for entry in entries
        ]
        return _TEMPLATES.get_template("exported.html.j2").render(
            title=f"hscc-search: the front of {self.asked.study}",
            style=(resource_folder("dashboards") / "explorer.css").read_text(encoding="utf-8"),
            asked=self.asked,
            order=ORDER,
            classes=self.classes,
            heads=heads,
            rows=rows,
            dense=None if dense is None else self._cells(dense, dense),
            files={"card": CARD, "ONNX": ONNX, "metrics": METRICS},
        )

    def _costs(self) -> tuple[str, ...]:
        """The costs that the page shows beside FLOPs."""
        return ("parameters", "megabytes") if self.dense_latency is None else ("parameters", "megabytes", "latency")

    def _cells(self, network: Mapping[str, Any], dense: Mapping[str, Any]) -> list[str]:
        """The cells of a row of the page, behind those that say which trial it is."""
        cost = network["cost"]
        costs = [f"{dense['cost']['flops'] / cost['flops']:.2f}x"]
        costs += [written(name, cost[name]) for name in self._costs()]
        parts = [network[part].get(metric) for metric in self.metrics for part in ("test", "validation")]
        return costs + ["-" if part is None else f"{part['value']:.4f} ± {part['error']:.4f}" for part in parts]


def _results(network: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    """The cost of a network, and on both parts the metrics that are shown, each with its standard error."""
    cost = {name: network["cost"][name] for name in ("flops", "macs", "parameters", "megabytes")}
    return {"cost": cost} | {
        part: {
            name: {"value": network[part]["metrics"][name], "error": network[part]["errors"][name]}
            for name in metrics
            if name in network[part]["metrics"]
        }
        for part in ("test", "validation")
    }


def _check_whole(folder: Path, key: "Ed25519PrivateKey | None") -> None:
    """Check that an exported folder is as it was written, and signed where a key signs it.

    Raises:
        ExportError: it is not.
    """
    try:
        with refusing():
            names = list(listed(folder))
        check_digests(folder, names)
        if key is not None:
            check_signature(folder, key.public_key())
    except ExportError as error:
        raise ExportError(
            f"{folder} was changed since it was exported, or is no export: remove it, and the same command writes it "
            "again"
        ) from error
