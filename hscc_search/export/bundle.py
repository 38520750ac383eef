"""The exported folder: written, checked by running it, and loaded again.

::

    model.onnx          RGB images 0..1, (batch, 3, side, side) -> class scores (batch, classes); one file
    model.safetensors   the weights of the same network as a torch module
    architecture.json   how that module is built
    config.yaml         the study, the trial and its settings
    metrics.json        what dense and compressed network reach and cost
    README.md           the model card
    manifest.json       SHA-256 of every other file
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from hscc_search.compression.compress import Compressed
from hscc_search.compression.form import NetworkForm
from hscc_search.compression.rebuild import rebuild
from hscc_search.config import StudyConfig
from hscc_search.data import Part, load_dataset
from hscc_search.dense.networks import build_network
from hscc_search.dense.weights import load_weights, weights_digest
from hscc_search.errors import ExportError
from hscc_search.evaluation.cost import CountedCost
from hscc_search.evaluation.counters import measure_cost
from hscc_search.evaluation.quality import Quality, measure_quality
from hscc_search.export.card import model_card
from hscc_search.export.deployed import Deployed
from hscc_search.files import folder_written_whole, sha256
from hscc_search.pareto.points import Point
from hscc_search.progress import Progress, Report, silent
from hscc_search.runtime.onnx import write_onnx
from hscc_search.search.space import Space, places_of
from hscc_search.search.stored_study import Study
from hscc_search.search.study import train_dense
from hscc_search.search.trial import make_bench

_FORMAT = 3
_BATCH = 64
# Two runtimes add in different orders; what differs by more than this is another network.
_TOLERANCE = 1e-3


def export(
    study: Study, point: Point, config: StudyConfig, out: Path, device: str = "auto", report: Report = silent
) -> dict[str, Any]:
    """Compress with a trial's setting again, write the folder, load both models back and measure them on the test part.

    Args:
        study: from :func:`hscc_search.search.stored_study.read_study`.
        point: one of its finished trials.
        config: the study's configuration, with the places where data and checkpoint lie now, and perhaps with other
            epochs of fine-tuning.
        out: a folder that does not exist yet.
        device: where the network is compressed.
        report: told of each step.

    Returns:
        The content of ``metrics.json``.

    Raises:
        ExportError: ``out`` exists, the data or the dense network are others than the study's, or a model that was
            written does not give what it should.
    """
    if out.exists():
        raise ExportError(f"output folder {out} exists: name one that does not")
    nearest = next(folder for folder in out.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise ExportError(f"cannot write to {out}: {nearest} is a file: name another output folder")
    # Read from the cache by what follows; other images must not cost a training before they are refused.
    if load_dataset(config.data, report).fingerprint != study.fingerprint:
        raise ExportError(
            f"the images at {config.data.path} are not those of study {config.name}: give them with --data DIR"
        )
    dataset, parts, network = train_dense(config, device, report)
    if weights_digest(network) != study.dense_details["weights"]:
        raise ExportError(
            f"the dense network is not that of study {config.name}: give its weights with --checkpoint FILE"
        )
    place = next(network.parameters()).device
    dense_cost = CountedCost(**study.dense_details["cost"])
    train, validation = parts.train, parts.validation
    bench = make_bench(config, network, dataset.classes, train, validation, place, dense_cost, report=report)
    setting = Space(config, places_of(config, bench.calibration)).setting(point.settings)
    measured = bench.measure(setting, report)
    compressed = (
        Deployed(measured.compressed.network, config.data.mean, config.data.std, config.data.image_size).cpu().eval()
    )
    dense = Deployed(network, config.data.mean, config.data.std, config.data.image_size).cpu().eval()
    out.parent.mkdir(parents=True, exist_ok=True)
    with folder_written_whole(out) as folder:
        steps = ("writing model.onnx", "loading the models back", "writing the model card")
        report(Progress(f"exporting to {out}", 0, len(steps), steps[0]))
        write_onnx(compressed, config.data.image_size, folder / "model.onnx")
        state = {key: value.contiguous() for key, value in compressed.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        (folder / "model.safetensors").chmod(0o644)  # safetensors keeps it to the user
        _write_json(folder / "architecture.json", _architecture(config, dataset.classes, measured.compressed))
        report(Progress(f"exporting to {out}", 1, len(steps), steps[1]))
        test, differing = _check(folder, parts.test, len(dataset.classes), config.seed)
        report(Progress(f"exporting to {out}", 2, len(steps), steps[2]))
        dense_test = _quality(_torch_scores(dense, parts.test), parts.test, len(dataset.classes), config.seed)
        cost = measure_cost(measured.compressed.network, config.data.image_size)
        if cost.macs != measured.cost.macs:
            raise ExportError(
                f"fvcore counts {cost.macs} MACs in the compressed network and the formula {measured.cost.macs}: "
                "a model whose layers run another number of times each time cannot be exported"
            )
        metrics = {
            "study": config.name,
            "trial": point.trial,
            "settings": point.settings,
            "finetuning_epochs": config.finetuning.epochs,
            "classes": list(dataset.classes),
            "dense": {**dense_cost.stored(), **dense_test.stored(), "validation": study.dense_details["quality"]},
            "validation": {
                **cost.stored(),
                **measured.quality.stored(),
                "images": len(parts.validation),
            },
            "test": {
                **cost.stored(),
                **test.stored(),
                "images": len(parts.test),
                "right": round(test.accuracy * len(parts.test)),
                "torch_differs_on": differing,
            },
        }
        _write_json(folder / "metrics.json", metrics)
        stored = {
            "study": config.model_dump(
                mode="json", exclude={"storage": True, "data": {"path"}, "model": {"checkpoint"}}
            ),
            "trial": point.trial,
            "settings": point.settings,
            "dataset_fingerprint": dataset.fingerprint,
            "versions": study.versions,
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(stored, sort_keys=False), encoding="utf-8")
        card = model_card(metrics, config, measured.compressed.plan)
        (folder / "README.md").write_text(card, encoding="utf-8")
        hashes = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        _write_json(folder / "manifest.json", {"sha256": hashes})
        report(Progress(f"exporting to {out}", 3, len(steps)))
    return metrics


def load(folder: str | Path) -> Deployed:
    """Load an exported folder as a torch module in evaluation mode.

    Returns:
        A module that takes float32 RGB images 0..1 of shape (n, 3, side, side) and returns scores (n, classes).

    Raises:
        ExportError: the folder is no export, or a file in it was changed or damaged.
        ModelError: the network that it was compressed from cannot be built.
    """
    folder = Path(folder)
    try:
        hashes = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise ExportError(f"{folder} is no exported folder: it has no readable manifest.json") from error
    for name in ("architecture.json", "model.safetensors"):
        if not (folder / name).is_file() or sha256(folder / name) != hashes.get(name):
            raise ExportError(f"{folder / name} is missing or was changed since the export: export again")
    return _load_torch(folder)


def _load_torch(folder: Path) -> Deployed:
    tree = json.loads((folder / "architecture.json").read_text(encoding="utf-8"))
    if tree["format"] != _FORMAT:
        raise ExportError(f"{folder} has format {tree['format']}, this version reads {_FORMAT}")
    network = build_network(tree["model"], len(tree["classes"]), tree["image_size"])
    rebuild(network, NetworkForm.from_stored(tree["form"]))
    module = Deployed(network, tree["mean"], tree["std"], tree["image_size"])
    load_weights(module, load_file(folder / "model.safetensors"), f"{folder / 'model.safetensors'}")
    return module.eval()


def _architecture(config: StudyConfig, classes: tuple[str, ...], compressed: Compressed) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "model": config.model.name,
        "classes": list(classes),
        "image_size": config.data.image_size,
        "mean": list(config.data.mean),
        "std": list(config.data.std),
        "form": compressed.form.stored(),
    }


def _check(folder: Path, test: Part, classes: int, seed: int) -> tuple[Quality, int]:
    """Run both models from their files over the test part.

    Returns:
        The quality by ONNX Runtime, and on how many images torch decides otherwise.
    """
    by_onnx = _onnx_scores(folder / "model.onnx", test)
    by_torch = _torch_scores(_load_torch(folder), test)
    gap = float(np.abs(by_onnx - by_torch).max())
    scale = max(1.0, float(np.abs(by_torch).max()))
    if not gap <= _TOLERANCE * scale:
        raise ExportError(f"model.onnx and model.safetensors disagree: scores differ by up to {gap:g}")
    return _quality(by_onnx, test, classes, seed), int((by_onnx.argmax(1) != by_torch.argmax(1)).sum())


def _quality(scores: np.ndarray, part: Part, classes: int, seed: int) -> Quality:
    return measure_quality(scores.argmax(axis=1), part.labels, classes, seed)


def _onnx_scores(path: Path, part: Part) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate(
        [
            session.run(None, {name: part.images[start : start + _BATCH].astype(np.float32) / 255})[0]
            for start in range(0, len(part), _BATCH)
        ]
    )


@torch.no_grad()
def _torch_scores(module: nn.Module, part: Part) -> np.ndarray:
    batches = (torch.from_numpy(part.images[start : start + _BATCH]) for start in range(0, len(part), _BATCH))
    return torch.cat([module(batch.float() / 255) for batch in batches]).numpy()


def _write_json(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
