import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_search.compression.ranks.energy import raise_to_total, rank_for_energy
from hscc_search.errors import CompressionError

# Eigenvalues are whole numbers, whose sums are exact.
spectra = st.lists(st.integers(-3, 1000), min_size=1, max_size=30).map(lambda values: sorted(values, reverse=True))
energies = st.floats(0, 1, exclude_min=True)


def ranked(values, energy):
    return rank_for_energy(torch.tensor(values, dtype=torch.float64), energy)


def by_trying_every_rank(values, energy):
    variances = [max(value, 0) for value in values]
    if sum(variances) == 0:
        return 0
    # At least one eigenvalue belongs to any positive share, even one that underflows.
    ranks = range(1, len(variances) + 1)
    return next(rank for rank in ranks if sum(variances[:rank]) >= energy * sum(variances))


@given(values=spectra, energy=energies)
@settings(max_examples=300, deadline=None)
def test_rank_is_the_smallest_that_holds_the_energy(values, energy):
    assert ranked(values, energy) == by_trying_every_rank(values, energy)


@given(values=spectra, pair=st.tuples(energies, energies))
@settings(max_examples=150, deadline=None)
def test_more_energy_never_takes_fewer_filters(values, pair):
    less, more = sorted(pair)
    assert ranked(values, less) <= ranked(values, more)


@given(values=spectra)
@settings(max_examples=100, deadline=None)
def test_all_the_energy_is_every_positive_eigenvalue(values):
    assert ranked(values, 1) == sum(value > 0 for value in values)


@given(values=spectra, energy=energies, exponent=st.integers(-60, 60))
@settings(max_examples=100, deadline=None)
def test_the_unit_of_the_responses_does_not_matter(values, energy, exponent):
    assert ranked([value * 2.0**exponent for value in values], energy) == ranked(values, energy)


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0, 0.0], [-1e-9, -1e-8]])
@pytest.mark.parametrize("energy", [0.1, 1.0])
def test_no_variance_needs_no_filter(values, energy):
    assert ranked(values, energy) == 0


@pytest.mark.parametrize("energy", [0, -0.5, 1.0001, math.inf, math.nan])
def test_energy_out_of_range_is_an_error(energy):
    with pytest.raises(CompressionError, match="energy"):
        ranked([2.0, 1.0], energy)


@st.composite
def spectra_of_clusters(draw):
    """Spectra of clusters, ranks to begin with, and a total that can be reached."""
    values = draw(st.lists(spectra, min_size=1, max_size=5))
    ranks = [draw(st.integers(0, len(spectrum))) for spectrum in values]
    return values, ranks, draw(st.integers(sum(ranks), sum(len(spectrum) for spectrum in values)))


def tensors(spectra_of_case):
    return [torch.tensor(spectrum, dtype=torch.float64) for spectrum in spectra_of_case]


@given(case=spectra_of_clusters())
@settings(max_examples=200, deadline=None)
def test_ranks_are_raised_to_the_total_by_what_varies_most(case):
    values, ranks, total = case
    raised = raise_to_total(tensors(values), ranks, total)
    assert sum(raised) == total
    raises = list(zip(values, ranks, raised, strict=True))
    assert all(low <= high <= len(spectrum) for spectrum, low, high in raises)
    added = [value for spectrum, low, high in raises for value in spectrum[low:high]]
    unused = [value for spectrum, _, high in raises for value in spectrum[high:]]
    assert min(added, default=1001) >= max(unused, default=-4)


@given(case=spectra_of_clusters())
@settings(max_examples=50, deadline=None)
def test_ranks_that_add_up_already_stay(case):
    values, ranks, _ = case
    assert raise_to_total(tensors(values), ranks, sum(ranks)) == tuple(ranks)


@given(case=spectra_of_clusters())
@settings(max_examples=100, deadline=None)
def test_a_higher_total_takes_no_cluster_a_rank_away(case):
    values, ranks, total = case
    less = raise_to_total(tensors(values), ranks, (sum(ranks) + total) // 2)
    more = raise_to_total(tensors(values), ranks, total)
    assert all(low <= high for low, high in zip(less, more, strict=True))
