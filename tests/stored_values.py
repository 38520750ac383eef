"""Hypothesis strategies for what is stored of compressed networks, and how the version before stored the same."""

import json
from dataclasses import asdict

from hypothesis import strategies as st

from hscc_search.compression.form import Fold, LayerForm, NetworkForm, Piece, PlainLayer, total_rank
from hscc_search.compression.plan import LayerPlan

names = st.text("abc.0123", min_size=1, max_size=8)
shares = st.floats(0, 1)
counts = st.integers(1, 10**12)
metrics = st.dictionaries(names, shares, max_size=4)
samples = st.dictionaries(names, st.one_of(st.integers(1, 99), st.floats(0.01, 1), names), max_size=4)

region_ranks = st.none() | st.lists(st.integers(1, 512), min_size=1, max_size=3).map(tuple)


@st.composite
def grouped_ranks(draw):
    """Ranks of one to three groups, which all have the same number of regions."""
    groups, regions = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    return tuple(tuple(draw(region_ranks) for _ in range(regions)) for _ in range(groups))


@st.composite
def layer_plans(draw):
    if draw(st.booleans()):
        return LayerPlan(draw(names), draw(counts), draw(counts), left_dense=draw(names))
    ranks = draw(grouped_ranks())
    input_ranks = tuple(draw(st.none() | st.integers(1, 64)) for _ in ranks)
    return LayerPlan(draw(names), draw(counts), draw(counts), ranks, input_ranks)


pieces = st.builds(Piece, *[st.integers(0, 224)] * 4, st.integers(0, 8))


@st.composite
def layer_forms(draw):
    ranks = draw(grouped_ranks())
    return LayerForm(
        output_size=(draw(st.integers(1, 224)), draw(st.integers(1, 224))),
        ranks=ranks,
        pieces=tuple(draw(st.lists(pieces, max_size=3))),
        input_ranks=tuple(draw(st.none() | st.integers(1, 64)) for _ in ranks),
    )


plain_layers = st.builds(
    PlainLayer,
    layer=names,
    weight=st.tuples(*[st.integers(1, 64)] * 4),
    bias=st.booleans(),
    convolution=st.fixed_dictionaries(
        {
            "stride": st.tuples(st.integers(1, 4), st.integers(1, 4)),
            "padding": st.tuples(st.integers(0, 4), st.integers(0, 4)) | st.sampled_from(["same", "valid"]),
            "dilation": st.tuples(st.integers(1, 4), st.integers(1, 4)),
            "groups": st.integers(1, 4),
        }
    ),
) | st.builds(
    PlainLayer,
    layer=names,
    weight=st.tuples(*[st.integers(1, 64)] * 2),
    bias=st.booleans(),
    convolution=st.just({}),
)
network_forms = st.builds(
    NetworkForm,
    plain=st.lists(plain_layers, max_size=2).map(tuple),
    folds=st.lists(st.builds(Fold, names, names), max_size=2).map(tuple),
    layers=st.dictionaries(names, layer_forms(), max_size=3),
)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10) | st.floats() | st.text(max_size=3) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


def places(tree, path=()):
    """The paths of all values of a tree of JSON."""
    steps = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for step, value in steps:
        yield (*path, step)
        yield from places(value, (*path, step))


NOTHING = object()


@st.composite
def changed_trees(draw, tree):
    """A tree of JSON with anything in any place, or NOTHING: the tree, the path, the value before, the value now.

    What is nearly the same comes often: a text or a float of the number, a truth, a list of it.
    """
    path = draw(st.sampled_from(list(places(tree))))
    result = json.loads(json.dumps(tree))
    *outer, last = path
    holder = result
    for step in outer:
        holder = holder[step]
    before, now = holder[last], NOTHING
    if draw(st.integers(0, 5)) == 0:
        del holder[last]
    else:
        near = [str(before), [before], {"0": before}, bool(before)]
        near += [float(before), 1, True] if isinstance(before, int) else []
        near += [before[:-1], [*before, *before]] if isinstance(before, list) else []
        now = holder[last] = draw(st.sampled_from(near) | anything)
    return json.loads(json.dumps(result)), path, before, now


def plan_in_format_4(plan):
    """How a study of format 4 stored the plan of a layer: the regions of all groups in one list, () where dense."""
    flat = [list(ranks or ()) for regions in plan.ranks for ranks in regions]
    return {**asdict(plan), "regions": plan.regions, "ranks": flat}


def form_in_format_3(form):
    """How a folder of format 3 stored the form of a network: a total rank per region, and the size of the input."""
    layers = {
        name: {**asdict(layer), "ranks": [[total_rank(ranks) for ranks in regions] for regions in layer.ranks]}
        for name, layer in form.layers.items()
    }
    return {"input_size": [16, 16], "folds": [asdict(fold) for fold in form.folds], "layers": layers}
