"""The model card of an exported folder."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from hscc_search.compression.inspection import Inspection
from hscc_search.compression.plan import LayerPlan
from hscc_search.config import IN_MEMORY, StudyConfig
from hscc_search.export.folder import Metrics, Pictures
from hscc_search.export.formats import formats_list
from hscc_search.export.tables import class_names, classes_table, counting_words, escaped, layers_table, results_table

# The folders of a file that a notice names: they say how somebody's machine is set up.
_PLACE = re.compile(r"(?:(?<=[\s('\"])|^)/(?:[^/,()]+/)+")

_CARD = """\
---
{header}---

# {study}: {model}, {ratio:.2f}x fewer FLOPs

Trial {trial} of study {study}, compressed by HSCC (arXiv 2604.23375) with {sample}{finetuned}.{chosen}

## Use

Takes {taken} Returns {returned}, before softmax: {class_names}. \
`run.py` {read_by}, and needs nothing but

```console
pip install {packages}
```

```console
python run.py verify
python run.py predict ../{file}
python run.py benchmark --threads 1 --out ../measured.json
```

`verify` compares all files with `manifest.json` and the network's answers with those at export, and finds files that \
were added; `benchmark` writes what `hscc-search front STUDY --measured FILE` shows. {signed}In Python, from this \
folder:

```python
import sys

sys.dont_write_bytecode = True  # or Python puts a folder of its own beside these files
import run

folder = run.Folder(".")
pixels = folder.read("../{file}")
scores = folder.scores(pixels)
{answer}
```

As a torch module that can be trained further, which takes the same pixels: `{load}`. `model.onnx` has opset {opset} \
and the operators {operators}.{int8}{formats}

## Results

| | dense | compressed |
|---|---|---|
{results}

± is one standard error over {units} ({test_images} in the test part, {validation_images} in the validation \
part), by the bootstrap, or by Jeffreys' interval where all answers are right. {share}One multiply-add is one MAC and \
two FLOPs{counting}. The trial was chosen on the validation part; {test_part}. The test part ran through model.onnx \
with ONNX Runtime.{gap}{larger}

| output | class | recall, test part: dense | compressed |
|---|---|---|---|
{classes}

## Layers

{inspected}| layer | GMACs dense | regions | ranks | fewer MACs |
|---|---|---|---|---|
{layers}

## Limits

{notices}Measured on images of the study's data set only. Other scanners, populations and image sizes were not tested; \
the network is not a medical device. It answers with one of its classes to any image, also to one of none of them.
"""

_SIGNED = """\
`manifest.json.sig` signs the manifest: `hscc-search verify DIR --key PUBLIC` checks it against a key that you know, \
and so does `ssh-keygen -Y verify` with `-n hscc-search`. """


def model_card(
    metrics: Metrics,
    config: StudyConfig,
    plan: Sequence[LayerPlan],
    inspection: Inspection,
    notices: Sequence[str] = (),
    trained_elsewhere: bool = False,
    pictures: Pictures | None = None,
    signed: bool = False,
) -> str:
    """Write the model card in Markdown: how to run the network, its results, its layers and its limits.

    Args:
        metrics: of the dense and the compressed network.
        config: of the study.
        plan: of each layer.
        inspection: of the dense network.
        notices: what the user was warned of when the study was created.
        trained_elsewhere: whether the images that the dense network was trained on are not known.
        pictures: how files become images; None where all have 8 bits.
        signed: whether the manifest is.
    """
    dense, compressed = metrics.dense.cost.parameters, metrics.compressed.cost.parameters
    return _CARD.format(
        study=metrics.study,
        model=config.model.name,
        ratio=metrics.flops_ratio,
        trial=metrics.trial,
        sample=_in_words(metrics.sample),
        finetuned=_finetuned(metrics),
        **_taken(config, pictures or Pictures.of(config.data, np.dtype(np.uint8))),
        header=_header(metrics, config),
        **_of_files(metrics, config),
        gap=_gap(metrics),
        signed=_SIGNED if signed else "",
        chosen=f" Why this trial: {escaped(metrics.chosen['in_words'])}." if metrics.chosen else "",
        **_tables(metrics, plan),
        **_answer(metrics),
        units="images" if metrics.test_groups is None else "groups of images that belong together",
        test_images=metrics.test_images if metrics.test_groups is None else metrics.test_groups,
        validation_images=metrics.validation_images if metrics.validation_groups is None else metrics.validation_groups,
        test_part=_test_part(metrics, trained_elsewhere),
        load=f'hscc_search.load("this folder"{_given(config)})',
        larger=f" The compressed network has {compressed / dense:.2f}x the parameters." if compressed > dense else "",
        inspected=f"{inspection.share:.1%} of the multiply-adds of the dense network are in layers that can be "
        f"compressed; with all of these replaced at full rank its answers differ by {inspection.error:.0e} of what "
        "they vary by.\n\n",
        notices="".join(f"- {escaped(_PLACE.sub('', line))}\n" for line in notices) + ("\n" if notices else ""),
    )


def _tables(metrics: Metrics, plan: Sequence[LayerPlan]) -> dict[str, str]:
    """The fields that are tables, and those on what stands in them."""
    return {
        "class_names": class_names(metrics.classes),
        "results": results_table(metrics),
        "counting": counting_words(metrics.compressed.cost),
        "classes": classes_table(metrics),
        "layers": layers_table(plan),
    }


def _of_files(metrics: Metrics, config: StudyConfig) -> dict[str, str]:
    """The fields on what the files of the folder hold."""
    return {
        "opset": str(metrics.onnx.get("opset", "?")),
        "operators": ", ".join(metrics.onnx.get("operators", ())),
        "int8": _int8(metrics),
        "formats": formats_list(metrics.formats, config.data.channels == 1, bool(metrics.int8)),
    }


def _header(metrics: Metrics, config: StudyConfig) -> str:
    """The lines in YAML by which a hub of models finds and sorts a card."""
    task = "image-segmentation" if metrics.maps else "image-classification"
    accuracy = metrics.compressed.test.metrics["accuracy"]
    result = {
        "task": {"type": task},
        "dataset": {"name": f"test part of study {metrics.study}", "type": metrics.study},
        "metrics": [{"type": "accuracy", "value": round(accuracy, 4)}],
    }
    name = f"{metrics.study}-{metrics.trial}"
    tree = {
        "library_name": "onnx",
        "pipeline_tag": task,
        "tags": ["onnx", "safetensors", "model-compression", "hscc", *(["int8"] if metrics.int8 else [])],
        "metrics": ["accuracy"],
        "model-index": [{"name": name, "results": [result]}],
    }
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)


def _taken(config: StudyConfig, pictures: Pictures) -> dict[str, str]:
    """The fields on what the network takes, and on what reads it."""
    channels, height, width = pictures.shape
    shape = f"shape (images, {channels}, {height}, {width})"
    packages = "onnxruntime numpy pillow"
    if pictures.values == "float32":
        return {
            "taken": f"inputs as the study's data set gives them, float32, {shape}.",
            "read_by": "takes one such input from a file of `numpy.save`",
            "file": "input.npy",
            "packages": packages,
        }
    colours = {1: "grey", 3: "RGB"}.get(channels, f"{channels}-channel")
    own = config.data.source in ("python", "memory")
    return {
        "taken": f"{colours} images of {height} x {width} pixels, float32 values 0 to 1, {shape}; normalisation is "
        f"part of the network.{_bounds_in_words(pictures)}",
        "read_by": "reads a file as such an image (those of the study were made by its own data set)"
        if own
        else "reads a file exactly as the study read its images",
        "file": "image.png" if pictures.values == "uint16" else "image.jpg",
        "packages": f"{packages} pydicom" if pictures.values == "uint16" else packages,
    }


def _bounds_in_words(pictures: Pictures) -> str:
    if pictures.values != "uint16":
        return ""
    if pictures.bounds is not None:
        return " Values {:g} and {:g} of a file of more than 8 bits are 0 and 1; what is beyond is clipped.".format(
            *pictures.bounds
        )
    return " Values 0 and 65535 of a file of 16 bits are 0 and 1; of a DICOM file, its first window goes from 0 to 1."


def _given(config: StudyConfig) -> str:
    """What :func:`hscc_search.load` must be given beside the folder."""
    network = ", network" if config.model.name == IN_MEMORY else ""
    own = ":" in config.model.name or config.model.output is not None
    return f"{network}, trust=True" if own else network


def _gap(metrics: Metrics) -> str:
    """A sentence on how much better the network is on the part on which it was chosen."""
    parts = metrics.compressed.validation, metrics.compressed.test
    (validation, its_error), (test, error) = ((each.metrics["accuracy"], each.errors["accuracy"]) for each in parts)
    gap, of_gap = 100 * (validation - test), 100 * math.hypot(its_error, error)
    beyond = "more" if abs(gap) > 2 * of_gap else "no more"
    return (
        f" On the validation part its accuracy is {abs(gap):.1f} ± {of_gap:.1f} points "
        f"{'higher' if gap >= 0 else 'lower'}, {beyond} than chance explains (two standard errors)."
    )


def _test_part(metrics: Metrics, trained_elsewhere: bool) -> str:
    """Words on what else the test part was used for."""
    if not (trained_elsewhere or metrics.trained_further):
        return "the test part was used for this table only"
    network = "dense network" if trained_elsewhere else "compressed network"
    return f"which images the {network} was trained on is not known, so that the test part may hold some of them"


def _answer(metrics: Metrics) -> dict[str, str]:
    """The fields on what the network answers with, and how to read it."""
    if not metrics.maps:
        return {"returned": "one score per class", "answer": "print(folder.classes[scores.argmax()])", "share": ""}
    size = ", ".join(map(str, metrics.maps))
    return {
        "returned": f"one score per class at each position, shape (images, {len(metrics.classes)}, {size})",
        "answer": f"found = scores[0].argmax(axis=0)  # shape ({size}), positions in folder.classes",
        "share": "Accuracy is the share of positions whose class is right. ",
    }


def _in_words(sample: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}" for name, value in sample.items()
    )


def _finetuned(metrics: Metrics) -> str:
    epochs, refined = metrics.finetuning_epochs, metrics.refined
    if metrics.trained_further:
        return ", then trained further in a way of the user's own, and measured anew"
    words = ""
    if refined:
        words = (
            ", refined towards the dense network's answers without labels (divergence on train images set aside "
            f"{refined['before']:.4g} before and {refined['after']:.4g} after)"
        )
    return words + (f", fine-tuned for {epochs} {'epoch' if epochs == 1 else 'epochs'}" if epochs else "")


def _int8(metrics: Metrics) -> str:
    """A paragraph on a file of 8-bit integers."""
    if not (int8 := metrics.int8):
        return ""
    in_float, images = len(int8["in_float"]), metrics.test_images
    rest = f", {in_float} of them in float, as rounding these changes answers too much" if in_float else ""
    same = "It is, byte by byte, the file that the search measured. " if int8["as_measured"] else ""
    return (
        f"\n\n`model.onnx` computes with 8-bit integers: weights and what passes between operators are rounded{rest}. "
        f"{same}The torch module is the float32 network that was rounded: on the test part both differ on "
        f"{metrics.torch_differs_on} of {images} images, with a mean divergence of {int8['divergence']:.2g} nats."
    )
