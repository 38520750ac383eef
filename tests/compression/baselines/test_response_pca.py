import math

import numpy as np
import torch
from geometry import smooth_images
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import IMAGE_SIZE, Residual, calibrated, input_of, layer_with, low_rank
from torch import nn

from hscc_search.compression.baselines import METHODS
from hscc_search.compression.baselines.response_pca import compress_response_pca, fitted_pair, greedy_ranks
from hscc_search.evaluation.counters import measure_cost


def naive_greedy(energies, per_rank, dense, room):
    """The greedy rule by its definition: the product of the sums and the whole cost are computed anew for each drop."""
    ranks = [len(values) for values in energies]

    def cost(ranks):
        costs = zip(ranks, per_rank, dense, strict=True)
        return sum(min(macs_dense, rank * macs) for rank, macs, macs_dense in costs)

    def product(ranks):
        return math.prod(sum(values[:rank]) for values, rank in zip(energies, ranks, strict=True))

    def without(layer):
        return [rank - (index == layer) for index, rank in enumerate(ranks)]

    history = []
    while cost(ranks) > room:
        layer = min(
            (layer for layer in range(len(ranks)) if ranks[layer] > 1),
            key=lambda layer: (1 - product(without(layer)) / product(ranks)) / per_rank[layer],
        )
        ranks = without(layer)
        history.append(layer)
    for layer in reversed(history):
        more = [rank + (index == layer) for index, rank in enumerate(ranks)]
        if cost(more) <= room:
            ranks = more
    return ranks


@given(st.integers(1, 4), st.floats(0, 1), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_greedy_ranks_follow_their_definition(layers, share, seed):
    generator = np.random.default_rng(seed)
    energies = [np.sort(generator.random(generator.integers(1, 7)) + 0.01)[::-1] for _ in range(layers)]
    per_rank = generator.integers(1, 50, layers).tolist()
    dense = [
        int(macs * generator.uniform(0.6, 1.2) * len(values)) + 1
        for macs, values in zip(per_rank, energies, strict=True)
    ]
    least = sum(map(min, dense, per_rank))
    room = int(least + share * (sum(dense) - least))
    assert greedy_ranks(energies, per_rank, dense, room) == naive_greedy(energies, per_rank, dense, room)


@given(st.integers(2, 7), st.integers(1, 7), st.floats(0, 2), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_fitted_pair_is_the_best_linear_map_of_its_rank(outputs, rank, noise, seed):
    generator = torch.Generator().manual_seed(seed)
    layer = layer_with(torch.randn(outputs, 9, generator=generator), ())
    x = torch.randn(400, 9, generator=generator)
    delivered = layer(x)
    mixed = delivered + noise * torch.tanh(delivered @ torch.randn(outputs, outputs, generator=generator))
    dense = mixed + 0.3
    rank = min(rank, outputs)
    error = (fitted_pair(layer, dense, delivered, rank)(x) - dense).detach().double().square().sum()
    y = (dense - dense.mean(dim=0)).double().numpy()
    span, _ = np.linalg.qr((delivered - delivered.mean(dim=0)).double().numpy())
    predicted = span @ (span.T @ y)
    least = ((y - predicted) ** 2).sum() + (np.linalg.svd(predicted, compute_uv=False)[rank:] ** 2).sum()
    total = (y**2).sum()
    assert least - 1e-5 * total <= float(error) <= least + 0.01 * total  # the ridge costs a little


def test_the_fitted_pair_of_a_layer_of_low_rank_is_exact_where_nothing_was_lost():
    generator = torch.Generator().manual_seed(0)
    layer = layer_with(low_rank(8, 12, 3, generator), (3, 2, 2))
    x = input_of(layer, generator)
    responses = layer(x).movedim(1, -1).flatten(0, 2)
    torch.testing.assert_close(fitted_pair(layer, responses, responses, 3)(x), layer(x), rtol=1e-3, atol=1e-3)


def test_it_beats_truncated_weights_on_images_like_those_of_the_calibration():
    residual = calibrated(Residual)

    def distance(method):
        x = smooth_images(64, seed=3)
        with torch.no_grad():
            expected = residual.network(x)
            return float((METHODS[method](residual.calibration, 4)(x) - expected).norm())

    assert distance("response-pca") < 0.5 * distance("global-svd")


def test_a_layer_that_few_images_fill_stays_dense_where_there_is_room():
    dense = calibrated(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * IMAGE_SIZE * IMAGE_SIZE, 64), nn.ReLU(), nn.Linear(64, 50)),
        images=6,
    )
    compressed = compress_response_pca(dense.calibration, 1.05)
    assert isinstance(compressed[1], nn.Linear)
    assert isinstance(compressed[3], nn.Sequential)
    assert dense.macs / 1.06 < measure_cost(compressed, IMAGE_SIZE).macs <= dense.macs / 1.05
