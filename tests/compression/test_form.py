import json
from dataclasses import asdict

from hypothesis import given, settings
from hypothesis import strategies as st
from stored_values import NOTHING, changed_trees

from hscc_search.compression.form import Fold, LayerForm, NetworkForm, Piece, PlainLayer, total_rank

positive = st.integers(1, 99)
region_ranks = st.none() | st.lists(positive, min_size=1, max_size=3).map(tuple)


@st.composite
def layer_forms(draw):
    groups = st.lists(
        st.tuples(st.lists(region_ranks, min_size=1).map(tuple), st.none() | positive), min_size=1, max_size=4
    )
    ranks, input_ranks = zip(*draw(groups), strict=True)
    pieces = draw(st.lists(st.builds(Piece, *[st.integers(0, 99)] * 5), min_size=1).map(tuple))
    return LayerForm(draw(st.tuples(positive, positive)), ranks, pieces, input_ranks)


@given(form=layer_forms())
@settings(max_examples=60, deadline=None)
def test_the_form_of_a_layer_comes_back_from_json_as_it_was(form):
    assert LayerForm.from_stored(json.loads(json.dumps(form.stored()))) == form


@given(form=layer_forms())
@settings(max_examples=20, deadline=None)
def test_total_ranks_of_regions_are_read_as_one_cluster(form):
    totals = [[total_rank(ranks) for ranks in regions] for regions in form.ranks]
    stored = {**json.loads(json.dumps(form.stored())), "ranks": totals}
    read = LayerForm.from_stored(stored)
    assert [[total_rank(ranks) for ranks in regions] for regions in read.ranks] == totals
    assert all(ranks is None or len(ranks) == 1 for regions in read.ranks for ranks in regions)


OF_ALL_KINDS = NetworkForm(
    (
        PlainLayer("a", (4, 3, 3, 3), True, {"stride": (2, 2), "padding": "same", "dilation": (1, 1), "groups": 1}),
        PlainLayer("b", (4, 3), False, {}),
    ),
    (Fold("a", "norm"),),
    {"a": LayerForm((2, 1), (((1, 2), None),), (Piece(0, 1, 0, 1, 0), Piece(1, 2, 0, 1, 1)), (None,))},
)


@given(changed_trees(json.loads(json.dumps(OF_ALL_KINDS.stored()))))
@settings(max_examples=300, deadline=None)
def test_a_form_with_a_value_of_another_type_is_read_as_it_was_or_refused(changed):
    tree, path, before, now = changed
    try:
        read = NetworkForm.from_stored(tree)
    except (KeyError, TypeError, ValueError):
        return
    stored = json.loads(json.dumps(asdict(read)))
    if json.dumps(stored, sort_keys=True) != json.dumps(json.loads(json.dumps(OF_ALL_KINDS.stored())), sort_keys=True):
        one_less = now is NOTHING and (isinstance(path[-1], int) or path[:-1] == ("layers",))
        several_types = {"ranks", "input_ranks", "padding"} & set(path)
        assert type(now) is type(before) or one_less or several_types, (path, before, now)
