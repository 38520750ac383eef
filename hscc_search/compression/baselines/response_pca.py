"""Low rank in the responses, layer after layer, each making up for the errors before it."""

import heapq
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from hscc_search.compression.baselines.budget import allowance, dense_macs, fixed_macs, out_of_reach
from hscc_search.compression.baselines.low_rank import (
    layer_at,
    leading_axes,
    low_rank_pair,
    matrix_of,
    spectrum,
    with_layers,
)
from hscc_search.compression.calibration import Calibration, LayerRecord, responses_on

_BATCH = 64
# Relative to the mean variance of a channel. Few images leave many directions of a wide layer undescribed.
_RIDGE = 1e-3


@torch.no_grad()
def compress_response_pca(network: nn.Module, calibration: Calibration, budget: float) -> nn.Module:
    """Keep the leading principal axes of each layer's responses, rebuilt from what the layers before deliver.

    Ranks are chosen greedily to keep the product over layers of the PCA energies large, see :func:`greedy_ranks`. Then,
    in execution order, each layer's responses y in the dense network are approximated by M y^ + b, where y^ are its
    responses in the partly compressed network and M is the best matrix of the chosen rank.

    Source: Zhang et al. 2015, "Accelerating Very Deep Convolutional Networks for Classification and Detection"
    (arXiv 1505.06798): sections 2.1 (linear case), 2.3 (asymmetric reconstruction) and 2.4 (rank selection). Its solver
    for the rectified responses of section 2.2 is left out. A small ridge that draws M towards the identity is added,
    since a wide fully connected layer has more outputs than there are images.

    Args:
        network: the dense network.
        calibration: of it.
        budget: dense over compressed multiply-adds, 1 or more.

    Raises:
        CompressionError: the budget is out of reach.
    """
    weights = [matrix_of(layer_at(network, record.name)) for record in calibration.records]
    per_rank = [
        record.macs // weight.numel() * sum(weight.shape)
        for record, weight in zip(calibration.records, weights, strict=True)
    ]
    total = dense_macs(calibration)
    room = allowance(total, budget) - fixed_macs(calibration)
    dense = [record.macs for record in calibration.records]
    least = sum(min(pair) for pair in zip(dense, per_rank, strict=True))
    if least > room:
        raise out_of_reach("response-pca", total, least + fixed_macs(calibration), budget)
    energies = [_response_energies(record) for record in calibration.records]
    ranks = greedy_ranks(energies, per_rank, dense, room)
    result = with_layers(network, {})
    pending = {
        record.name: _Pending(layer_at(result, record.name), record, rank)
        for record, rank, macs, own in zip(calibration.records, ranks, per_rank, dense, strict=True)
        if rank * macs < own
    }
    for name, place in pending.items():
        result.set_submodule(name, place)
    result(calibration.images)
    for name, place in pending.items():
        assert place.pair is not None
        result.set_submodule(name, place.pair)
    return result.eval()


def greedy_ranks(energies: Sequence[np.ndarray], per_rank: Sequence[int], dense: Sequence[int], room: int) -> list[int]:
    """Drop principal axes one by one, each time where the product of energies loses least per multiply-add saved.

    With E the product over layers of the sum of the kept eigenvalues, dropping a layer's last axis loses the share
    last / sum of E and saves that layer's ``per_rank``. A layer whose rank costs as much as its dense filters stays
    dense. What the last drop saved too much goes back to the axes dropped last.

    Args:
        energies: for each layer its eigenvalues, descending.
        per_rank: multiply-adds per image that a rank costs.
        dense: and those of the dense layer.
        room: multiply-adds per image of all these layers together, enough for rank 1 everywhere.

    Returns:
        A rank for each layer, 1 or more.
    """
    ranks = [len(values) for values in energies]
    sums = [np.cumsum(values) for values in energies]

    def cost(layer: int, rank: int) -> int:
        return min(dense[layer], rank * per_rank[layer])

    def loss(layer: int) -> tuple[float, int]:
        last = ranks[layer] - 1
        kept = sums[layer][last]
        return (float(energies[layer][last] / kept / per_rank[layer]) if kept > 0 else 0.0, layer)

    queue = [loss(layer) for layer in range(len(ranks)) if ranks[layer] > 1]
    heapq.heapify(queue)
    spent = sum(cost(layer, rank) for layer, rank in enumerate(ranks))
    dropped: list[int] = []
    while spent > room:
        _, layer = heapq.heappop(queue)
        spent -= cost(layer, ranks[layer]) - cost(layer, ranks[layer] - 1)
        ranks[layer] -= 1
        dropped.append(layer)
        if ranks[layer] > 1:
            heapq.heappush(queue, loss(layer))
    for layer in reversed(dropped):
        more = cost(layer, ranks[layer] + 1) - cost(layer, ranks[layer])
        if spent + more <= room:
            ranks[layer], spent = ranks[layer] + 1, spent + more
    return ranks


def rebuild_layer(
    layer: nn.Conv2d | nn.Linear, dense: torch.Tensor, delivered: torch.Tensor, rank: int
) -> nn.Sequential:
    """The pair of the given rank that best predicts the dense responses from the delivered ones.

    With S = cov(y, y^) and T = cov(y^), the best matrix of any rank is S T^-1, and the best one of rank k is U U^T of
    it, where U are the k leading eigenvectors of S T^-1 S^T (reduced-rank regression, what the paper's generalised
    singular value decomposition computes). Here S T^-1 = I + (S - T) (T + ridge)^-1 and U those of the predictions.

    Args:
        layer: the dense layer.
        dense: y, float (samples, Cout).
        delivered: y^ of the same samples, float (samples, Cout).
        rank: k.
    """
    mean_dense, mean_delivered = dense.mean(dim=0), delivered.mean(dim=0)
    centred = delivered - mean_delivered
    gap = (dense - mean_dense) - centred
    covariance = (centred.T @ centred).double() / len(centred)
    predictor = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)
    ridge = _RIDGE * covariance.trace() / len(covariance) + torch.finfo(torch.float64).tiny
    predictor += torch.linalg.solve(
        covariance + ridge * predictor, (gap.T @ centred).double() / len(centred), left=False
    )
    axes = leading_axes(predictor.to(centred.dtype) @ centred.T, rank)
    basis = axes.T @ predictor
    bias = 0 if layer.bias is None else layer.bias.double()
    offset = mean_dense.double() - axes @ (basis @ (mean_delivered.double() - bias))
    return low_rank_pair(layer, basis @ matrix_of(layer), axes, offset)


class _Pending(nn.Module):
    """Stands in a network for a layer that is rebuilt when the calibration images arrive."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, record: LayerRecord, rank: int) -> None:
        super().__init__()
        self.layer, self.record, self.rank = layer, record, rank
        self.pair: nn.Sequential | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [responses_on(self.layer, part, self.record.lattice) for part in x.split(_BATCH)]
        delivered = torch.cat(parts, dim=1).flatten(0, 1)
        pair = rebuild_layer(self.layer, self.record.responses.flatten(0, 1), delivered, self.rank)
        self.pair = pair
        return torch.cat([pair(part) for part in x.split(_BATCH)])


def _response_energies(record: LayerRecord) -> np.ndarray:
    responses = record.responses.flatten(0, 1)
    values = spectrum(responses - responses.mean(dim=0)).numpy(force=True)
    return values[: max(1, int(np.count_nonzero(values)))]
