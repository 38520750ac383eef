import json

from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_search.compression.form import LayerForm, Piece, total_rank

positive = st.integers(1, 99)
region_ranks = st.none() | st.lists(positive, min_size=1, max_size=3).map(tuple)
layer_forms = st.builds(
    LayerForm,
    output_size=st.tuples(positive, positive),
    ranks=st.lists(st.lists(region_ranks, min_size=1).map(tuple), min_size=1, max_size=4).map(tuple),
    pieces=st.lists(st.builds(Piece, *[st.integers(0, 99)] * 5), min_size=1).map(tuple),
    input_ranks=st.lists(st.none() | positive, min_size=1, max_size=4).map(tuple),
)


@given(form=layer_forms)
@settings(max_examples=60, deadline=None)
def test_the_form_of_a_layer_comes_back_from_json_as_it_was(form):
    assert LayerForm.from_stored(json.loads(json.dumps(form.stored()))) == form


@given(form=layer_forms)
@settings(max_examples=20, deadline=None)
def test_total_ranks_of_regions_are_read_as_one_cluster(form):
    totals = [[total_rank(ranks) for ranks in regions] for regions in form.ranks]
    stored = {**json.loads(json.dumps(form.stored())), "ranks": totals}
    read = LayerForm.from_stored(stored)
    assert [[total_rank(ranks) for ranks in regions] for regions in read.ranks] == totals
    assert all(ranks is None or len(ranks) == 1 for regions in read.ranks for ranks in regions)
