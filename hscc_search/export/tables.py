"""The tables of a model card in Markdown, and how names are written in it."""

import json
import re
from collections.abc import Sequence

from hscc_search.compression.plan import LayerPlan
from hscc_search.errors import printable
from hscc_search.evaluation.cost import CountedCost
from hscc_search.evaluation.quality import Quality
from hscc_search.export.folder import Metrics, Results
from hscc_search.pareto.objectives import title

# Classes that a sentence names.
_MOST_IN_A_SENTENCE = 10


def results_table(metrics: Metrics) -> str:
    """The rows of the results of both networks."""
    dense, compressed = map(_cells, (metrics.dense, metrics.compressed))
    return "\n".join(f"| {name} | {dense[name]} | {compressed[name]} |" for name in dense)


def _cells(results: Results) -> dict[str, str]:
    """The column of one network in the table of results, by the name of the row."""
    cost, metrics = results.cost, results.test.metrics
    return {
        "accuracy, test part": _with_error(results.test, "accuracy"),
        **({"macro F1, test part": _with_error(results.test, "macro_f1")} if "macro_f1" in metrics else {}),
        "accuracy, validation part": _with_error(results.validation, "accuracy"),
        **_asked(results),
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
        f"{escaped(title(name))}, {part} part": _with_error(quality, name)
        for name in further
        for part, quality in parts
        if name in quality.metrics
    }


def _with_error(quality: Quality, metric: str) -> str:
    return f"{quality.metrics[metric]:.4f} ± {quality.errors[metric]:.4f}"


def classes_table(metrics: Metrics) -> str:
    """The rows of the classes, with what share of its test images each network finds; none of maps."""
    both = [network.test.metrics for network in (metrics.dense, metrics.compressed)]
    rows = []
    for number, name in enumerate(metrics.classes):
        recalls = [f"{found[f'recall:{name}']:.3f}" if f"recall:{name}" in found else "-" for found in both]
        rows.append(f"| {number} | {escaped(name)} | {' | '.join(recalls)} |")
    return "\n".join(rows)


def layers_table(plan: Sequence[LayerPlan]) -> str:
    """The rows of the layers, and what became of each."""
    return "\n".join(
        f"| {layer.name} | {layer.macs_dense / 1e9:.4f} | {layer.regions or '-'} | {layer.summary} | "
        f"{layer.macs_dense / layer.macs:.2f}x |"
        for layer in plan
        if layer.macs
    )


def class_names(classes: Sequence[str]) -> str:
    """The names of the classes in a sentence, of many where they stand; those that commas would divide are quoted."""
    if len(classes) > _MOST_IN_A_SENTENCE:
        return f"the {len(classes)} classes below, in their order"
    quoted = (json.dumps(name, ensure_ascii=False) if set(name) & {",", '"'} else name for name in classes)
    return ", ".join(map(escaped, quoted))


def counting_words(cost: CountedCost) -> str:
    """Words on what the cost of a network leaves out, and on where its two counters disagree."""
    words = ""
    if cost.uncounted:
        names = ", ".join(f"{name} ({count})" for name, count in cost.uncounted.items())
        words += f"; operators of the compressed network that are not counted: {names}"
    return words + (f"; MACs are torch's count: {'; '.join(map(escaped, cost.notes))}" if cost.notes else "")


def escaped(name: str) -> str:
    """Escape what would end a line or a cell of a table, or change how a name looks."""
    return re.sub(r"([\\|`*<])", r"\\\1", printable(name))
