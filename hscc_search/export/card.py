"""The model card of an exported folder."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hscc_search.compression.inspection import Inspection
from hscc_search.compression.plan import LayerPlan
from hscc_search.config import IN_MEMORY, StudyConfig
from hscc_search.evaluation.quality import Quality
from hscc_search.export.folder import Metrics, Results
from hscc_search.export.reading import EIGHT_BITS, Files, picture_fields
from hscc_search.pareto.objectives import title

_CARD = """\
# {study}: {model}, {ratio:.2f}x fewer FLOPs

Trial {trial} of study {study}, compressed by HSCC (arXiv 2604.23375) with {sample}{finetuned}.{chosen}

## Use

Takes {taken} Returns {returned}, before softmax: {class_names}. \
{read_by}

```python
{reading}
scores = onnxruntime.InferenceSession("model.onnx").run(None, {{"images": pixels}})[0]
{answer}
```

As a torch module that can be trained further, which takes the same pixels: `{load}`.{int8}

## Results

| | dense | compressed |
|---|---|---|
{results}

± is one standard error over {units} ({test_images} in the test part, {validation_images} in the validation \
part), by the bootstrap, or by Jeffreys' interval where all answers are right. {share}One multiply-add is one MAC and \
two FLOPs. The trial was chosen on the validation part; {test_part}. The test part ran through model.onnx with ONNX \
Runtime.{larger}

## Layers

{inspected}| layer | GMACs dense | regions | ranks | fewer MACs |
|---|---|---|---|---|
{layers}

## Limits

{notices}Measured on images of the study's data set only. Other scanners, populations and image sizes were not tested; \
the network is not a medical device.
"""


def model_card(
    metrics: Metrics,
    config: StudyConfig,
    plan: Sequence[LayerPlan],
    inspection: Inspection,
    notices: Sequence[str] = (),
    trained_elsewhere: bool = False,
    files: Files = EIGHT_BITS,
) -> str:
    """Write the model card in Markdown: how to run the network, its results, its layers and its limits.

    Args:
        metrics: of the dense and the compressed network.
        config: of the study.
        plan: of each layer.
        inspection: of the dense network.
        notices: what the user was warned of when the study was created.
        trained_elsewhere: whether the images that the dense network was trained on are not known.
        files: the kind of the study's images.
    """
    dense, compressed = metrics.dense.cost.parameters, metrics.compressed.cost.parameters
    return _CARD.format(
        study=metrics.study,
        model=config.model.name,
        ratio=metrics.flops_ratio,
        trial=metrics.trial,
        sample=_in_words(metrics.sample),
        finetuned=_finetuned(metrics),
        chosen=f" Why this trial: {_in_markdown(metrics.chosen['in_words'])}." if metrics.chosen else "",
        **picture_fields(config.data, files),
        class_names=", ".join(map(_in_markdown, metrics.classes)),
        **_answer(metrics),
        results=_results(metrics),
        units="images" if metrics.test_groups is None else "groups of images that belong together",
        test_images=metrics.test_images if metrics.test_groups is None else metrics.test_groups,
        validation_images=metrics.validation_images if metrics.validation_groups is None else metrics.validation_groups,
        layers=_layers(plan),
        test_part=_test_part(metrics, trained_elsewhere),
        load=f'hscc_search.load("this folder"{", network" if config.model.name == IN_MEMORY else ""})',
        int8=_int8(metrics),
        larger=f" The compressed network has {compressed / dense:.2f}x the parameters." if compressed > dense else "",
        inspected=f"{inspection.share:.1%} of the multiply-adds of the dense network are in layers that can be "
        f"compressed; with all of these replaced at full rank its answers differ by {inspection.error:.0e} of what "
        "they vary by.\n\n",
        notices="".join(f"- {_in_markdown(line)}\n" for line in notices) + ("\n" if notices else ""),
    )


def _test_part(metrics: Metrics, trained_elsewhere: bool) -> str:
    """Words on what else the test part was used for."""
    if not (trained_elsewhere or metrics.trained_further):
        return "the test part was used for this table only"
    network = "dense network" if trained_elsewhere else "compressed network"
    return f"which images the {network} was trained on is not known, so that the test part may hold some of them"


def _answer(metrics: Metrics) -> dict[str, str]:
    """The fields on what the network answers with, and how to read it."""
    classes = list(metrics.classes)
    if not metrics.maps:
        return {"returned": "one score per class", "answer": f"print({classes}[scores.argmax()])", "share": ""}
    size = ", ".join(map(str, metrics.maps))
    return {
        "returned": f"one score per class at each position, shape (images, {len(classes)}, {size})",
        "answer": f"found = scores[0].argmax(axis=0)  # shape ({size}), positions in {classes}",
        "share": "Accuracy is the share of positions whose class is right. ",
    }


def _in_markdown(name: str) -> str:
    """Escape what would end a cell of a table, or change how a name looks."""
    return re.sub(r"([\\|`*<])", r"\\\1", name)


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


def _results(metrics: Metrics) -> str:
    dense, compressed = (_cells(results, metrics.classes) for results in (metrics.dense, metrics.compressed))
    return "\n".join(f"| {name} | {dense[name]} | {compressed[name]} |" for name in dense)


def _cells(results: Results, classes: Sequence[str]) -> dict[str, str]:
    """The column of one network in the table of results, by the name of the row."""
    cost, metrics = results.cost, results.test.metrics
    recalls = {name: metrics[f"recall:{name}"] for name in classes if f"recall:{name}" in metrics}  # none of maps
    return {
        "accuracy, test part": _with_error(results.test, "accuracy"),
        **({"macro F1, test part": _with_error(results.test, "macro_f1")} if "macro_f1" in metrics else {}),
        "accuracy, validation part": _with_error(results.validation, "accuracy"),
        **_asked(results),
        **{f"recall of {_in_markdown(name)}, test part": f"{recall:.3f}" for name, recall in recalls.items()},
        "GMACs per image": f"{cost.macs / 1e9:.4f}",
        "GFLOPs per image": f"{cost.flops / 1e9:.4f}",
        "parameters": f"{cost.parameters:,}",
        "size in MB": f"{cost.megabytes:.1f}",
    }


def _asked(results: Results) -> dict[str, str]:
    """The rows of the further metrics that the study asks for."""
    common = ("accuracy", "macro_f1", "recall", "f1")
    further = [name for name in results.test.metrics if name.split(":")[0] not in common]
    parts = (("test", results.test), ("validation", results.validation))
    return {
        f"{_in_markdown(title(name))}, {part} part": _with_error(quality, name)
        for name in further
        for part, quality in parts
        if name in quality.metrics
    }


def _with_error(quality: Quality, metric: str) -> str:
    return f"{quality.metrics[metric]:.4f} ± {quality.errors[metric]:.4f}"


def _layers(plan: Sequence[LayerPlan]) -> str:
    return "\n".join(
        f"| {layer.name} | {layer.macs_dense / 1e9:.4f} | {layer.regions or '-'} | {layer.summary} | "
        f"{layer.macs_dense / layer.macs:.2f}x |"
        for layer in plan
        if layer.macs
    )
