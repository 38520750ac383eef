"""What a study looks for: its objectives, its constraints, and how metrics are written."""

from collections.abc import Mapping, Sequence

from hscc_search.config import StudyConfig
from hscc_search.errors import ConfigError
from hscc_search.search.points import Objective

_GAINS = ("accuracy", "macro_f1", "recall")


def objectives_of(config: StudyConfig) -> tuple[Objective, ...]:
    """The objectives of a study, with their direction."""
    return tuple(Objective(name, maximise=name.split(":")[0] in _GAINS) for name in config.objectives)


def violations(config: StudyConfig, metrics: Mapping[str, float]) -> dict[str, float]:
    """By constraint how far a network is from keeping it; zero or less where it does."""
    found = {}
    for bound in config.constraints:
        value = metrics[bound.metric]
        if bound.at_least is not None:
            found[f"{bound.metric} >= {bound.at_least:g}"] = bound.at_least - value
        else:
            assert bound.at_most is not None
            found[f"{bound.metric} <= {bound.at_most:g}"] = value - bound.at_most
    return found


def needs_latency(config: StudyConfig) -> bool:
    """Whether trials of a study measure latency."""
    return "latency" in (*config.objectives, *(bound.metric for bound in config.constraints))


def check_classes(config: StudyConfig, classes: Sequence[str]) -> None:
    """Whether the classes that metrics name are there.

    Raises:
        ConfigError: one is not.
    """
    for name in (*config.objectives, *(bound.metric for bound in config.constraints)):
        metric, _, wanted = name.partition(":")
        if metric == "recall" and wanted not in classes:
            raise ConfigError(f"study {config.name}: {name}: there is no class {wanted!r}: use {', '.join(classes)}")


def title(metric: str) -> str:
    """A metric as tables and plots call it."""
    titles = {
        "flops": "FLOPs",
        "macs": "MACs",
        "megabytes": "size in MB",
        "latency": "latency in ms",
        "macro_f1": "macro F1",
    }
    name, _, of = metric.partition(":")
    return f"recall of {of}" if of else titles.get(name, name)


def written(metric: str, value: float) -> str:
    """A metric's value as tables write it; FLOPs and MACs in units of 10^9."""
    if metric in ("flops", "macs"):
        return f"{value / 1e9:.4f} G"
    if metric == "parameters":
        return f"{value:,.0f}"
    return f"{value:.3f}" if metric in ("latency", "megabytes") else f"{value:.4f}"
