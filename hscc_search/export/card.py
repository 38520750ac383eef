"""The model card of an exported folder."""

from typing import Any

from hscc_search.compression.plan import LayerPlan
from hscc_search.config import StudyConfig

_USE = """\
```python
import numpy as np, onnxruntime
from PIL import Image

image = Image.open("image.jpg").convert("RGB").resize(({side}, {side}), Image.Resampling.BILINEAR)
pixels = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255
scores = onnxruntime.InferenceSession("model.onnx").run(None, {{"images": pixels}})[0]
print({classes}[scores.argmax()])
```"""


def model_card(metrics: dict[str, Any], config: StudyConfig, plan: tuple[LayerPlan, ...]) -> str:
    """Markdown that says what the folder holds, how to run it, what it reaches and what was not looked at."""
    dense, test, validation = metrics["dense"], metrics["test"], metrics["validation"]
    classes, side = metrics["classes"], config.data.image_size
    settings = ", ".join(
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in metrics["settings"].items()
    )
    epochs = metrics["finetuning_epochs"]
    tuned = f", fine-tuned for {epochs} epoch{'s'[: epochs > 1]}" if epochs else ""
    rows = [
        ("accuracy, test part", _with_error(dense, "accuracy"), _with_error(test, "accuracy")),
        ("macro F1, test part", _with_error(dense, "macro_f1"), _with_error(test, "macro_f1")),
        (
            "accuracy, validation part",
            _with_error(dense["validation"], "accuracy"),
            _with_error(validation, "accuracy"),
        ),
        *(
            (f"recall of {name}, test part", f"{dense['recall'][index]:.3f}", f"{test['recall'][index]:.3f}")
            for index, name in enumerate(classes)
        ),
        ("GMACs per image", f"{dense['macs'] / 1e9:.4f}", f"{test['macs'] / 1e9:.4f}"),
        ("GFLOPs per image", f"{dense['flops'] / 1e9:.4f}", f"{test['flops'] / 1e9:.4f}"),
        ("parameters", f"{dense['parameters']:,}", f"{test['parameters']:,}"),
        ("size in MB", f"{dense['megabytes']:.1f}", f"{test['megabytes']:.1f}"),
    ]
    layers = [
        f"| {layer.name} | {layer.regions or '-'} | {layer.summary} | {layer.macs_dense / layer.macs:.2f}x |"
        for layer in plan
        if layer.macs
    ]
    return "\n".join(
        [
            f"# {config.name}: {config.model.name}, {dense['flops'] / test['flops']:.2f}x fewer FLOPs",
            "",
            f"Trial {metrics['trial']} of study {config.name}, compressed by HSCC (arXiv 2604.23375) with "
            f"{settings}{tuned}.",
            "",
            "## Use",
            "",
            f"Takes RGB images of {side} x {side} pixels, float32 values 0 to 1, shape (batch, 3, {side}, {side}); "
            f"normalisation is part of the network. Returns one score per class: {', '.join(classes)}.",
            "",
            _USE.format(side=side, classes=classes),
            "",
            'As a torch module that can be trained further: `hscc_search.load("this folder")`.',
            "",
            "## Figures",
            "",
            "| | dense | compressed |",
            "|---|---|---|",
            *(f"| {name} | {before} | {after} |" for name, before, after in rows),
            "",
            f"± is one bootstrap standard error over images ({test['images']} in the test part, "
            f"{validation['images']} in the validation part). One multiply-add is one MAC and two FLOPs. The setting "
            "was chosen on the validation part; the test part was used for this table alone, run by ONNX Runtime from "
            "model.onnx.",
            "",
            "## Layers",
            "",
            "| layer | regions | what became of it | fewer MACs |",
            "|---|---|---|---|",
            *layers,
            "",
            "## Limits",
            "",
            "Measured on images of the study's data set only. Other scanners, populations and image sizes were not "
            "looked at; the network is no medical device.",
            "",
        ]
    )


def _with_error(figures: dict[str, Any], key: str) -> str:
    return f"{figures[key]:.4f} ± {figures[key + '_se']:.4f}"
