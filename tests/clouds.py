"""Points and clouds of them for the tests of fronts and selections."""

import numpy as np
from hypothesis import strategies as st

from hscc_search.pareto.objectives import Objective
from hscc_search.pareto.points import Point

FLOPS, ACCURACY = Objective("flops", False), Objective("accuracy", True)
PLANE = (FLOPS, ACCURACY)
ALL = (FLOPS, ACCURACY, Objective("latency", False), Objective("macro_f1", True))
LABELS = np.zeros(10, dtype=np.int64)


def make_point(trial, flops, accuracy, latency=1.0, macro_f1=0.5, violation=0.0):
    """A trial whose predictions for ``LABELS`` fit its accuracy."""
    right = round(accuracy * len(LABELS))
    return Point(
        metrics={"flops": flops, "accuracy": accuracy, "latency": latency, "macro_f1": macro_f1},
        errors={"accuracy": 0.01},
        predictions=np.repeat([0, 1], [right, len(LABELS) - right]).astype("<u2").tobytes(),
        trial=trial,
        sample={"energy": 0.9},
        violations={"latency": violation, "megabytes": 0.0},
    )


def make_points(*pairs):
    """Trials of some FLOPs and accuracies."""
    return [make_point(trial, flops, accuracy) for trial, (flops, accuracy) in enumerate(pairs)]


# Few values, so that ties and duplicates are common.
values = st.tuples(
    st.integers(1, 6),
    st.integers(0, 6).map(lambda n: n / 6),
    st.integers(1, 4).map(float),
    st.integers(0, 3).map(lambda n: n / 3),
    st.sampled_from([0.0, 0.0, 0.0, 0.0, 0.1]),
)
clouds = st.lists(values, max_size=25).map(lambda rows: [make_point(trial, *row) for trial, row in enumerate(rows)])
objectives_in_any_order = st.integers(2, 4).flatmap(
    lambda size: st.permutations(ALL).map(lambda order: tuple(order[:size]))
)
