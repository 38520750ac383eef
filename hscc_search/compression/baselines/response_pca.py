"""Low rank in the responses, layer after layer, each making up for the errors before it."""

import heapq
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from hscc_search.compression.baselines.ladder import allowance, check_reach
from hscc_search.compression.baselines.low_rank import leading_axes, low_rank_pair, spectrum
from hscc_search.compression.baselines.targets import Target, targets
from hscc_search.compression.calibration.calibrate import BATCH_SIZE, Calibration
from hscc_search.compression.calibration.lattice import responses_on
from hscc_search.compression.calibration.maps import by_image
from hscc_search.compression.factors import fit_predictor
from hscc_search.compression.stand_ins import replaced_in_order


@torch.no_grad()
def compress_response_pca(calibration: Calibration, budget: float) -> nn.Module:
    """Keep the leading principal axes of each layer's responses, fitted to the input that the layers before deliver.

    Ranks are chosen greedily to keep the product over layers of the PCA energies large, see :func:`greedy_ranks`. Then,
    in execution order, each layer's responses y in the dense network are approximated by M y^ + b, where y^ are its
    responses in the partly compressed network and M is the best matrix of the chosen rank.

    Source: Zhang et al. 2015, "Accelerating Very Deep Convolutional Networks for Classification and Detection"
    (arXiv 1505.06798): the linear case, the asymmetric reconstruction and the rank selection. Its solver for rectified
    responses is left out. A small ridge is added, since a wide fully connected layer has more outputs than there are
    images.

    Args:
        calibration: of the dense network.
        budget: dense over compressed multiply-adds, 1 or more.

    Raises:
        CompressionError: the budget is out of reach.
    """
    layers = targets(calibration)
    ranks = _choose_ranks(calibration, layers, budget)
    fits = {target.name: partial(_fit, target, ranks[target.name]) for target in layers if target.name in ranks}
    return replaced_in_order(calibration.network, fits, calibration.images)


def _choose_ranks(calibration: Calibration, layers: Sequence[Target], budget: float) -> dict[str, int]:
    """The rank of each layer by its name, without the layers that stay dense."""
    total = calibration.macs
    dense, per_rank = [target.macs for target in layers], [target.macs_per_rank for target in layers]
    fixed = total - sum(dense)
    check_reach("response-pca", total, fixed + sum(map(min, dense, per_rank)), budget)
    energies = [_response_energies(target) for target in layers]
    room = allowance(total, budget) - fixed
    ranks = greedy_ranks(energies, per_rank, dense, room)
    room -= sum(min(rank * macs, macs_dense) for rank, macs, macs_dense in zip(ranks, per_rank, dense, strict=True))
    chosen = {}
    for target, rank, values in zip(layers, ranks, energies, strict=True):
        saved = target.macs - rank * target.macs_per_rank
        # Few images span few axes of a wide layer. One that keeps all of these stays dense where there is room.
        if rank == len(values) and 0 < saved <= room:
            room -= saved
        elif saved > 0:
            chosen[target.name] = rank
    return chosen


def _response_energies(target: Target) -> np.ndarray:
    """The eigenvalues of a layer's dense responses, descending, without zeros but at least one."""
    responses = target.record.responses.flatten(0, 1)
    values = spectrum(responses - responses.mean(dim=0)).numpy(force=True)
    return values[: max(1, int(np.count_nonzero(values)))]


def greedy_ranks(energies: Sequence[np.ndarray], per_rank: Sequence[int], dense: Sequence[int], room: int) -> list[int]:
    """Drop principal axes one by one, each time where the product of energies loses least per multiply-add saved.

    With E the product over layers of the sum of the kept eigenvalues, dropping a layer's last axis loses the share
    last / sum of E and saves that layer's ``per_rank``. A layer whose rank costs as much as its dense filters stays
    dense. The last drop may save more than is needed: the axes dropped last come back where they fit.

    Args:
        energies: the eigenvalues of each layer's responses, descending.
        per_rank: multiply-adds per image that one rank of each layer costs.
        dense: multiply-adds per image of each dense layer.
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
        total = sums[layer][last]
        return (float(energies[layer][last] / total / per_rank[layer]) if total > 0 else 0.0, layer)

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


def fitted_pair(layer: nn.Conv2d | nn.Linear, dense: torch.Tensor, delivered: torch.Tensor, rank: int) -> nn.Sequential:
    """Build the pair of the given rank that best predicts the dense responses from the delivered ones.

    With S = cov(y, y^) and T = cov(y^), the best matrix of any rank is S T^-1, and the best one of rank k is U U^T of
    it, where U are the k leading eigenvectors of S T^-1 S^T: reduced-rank regression, which is what the paper's
    generalised singular value decomposition computes.

    Args:
        layer: the dense layer.
        dense: y, float (samples, Cout).
        delivered: y^ of the same samples, float (samples, Cout).
        rank: k.
    """
    predictor = fit_predictor(dense, delivered)
    # The covariance of the predictions is this times its transpose.
    predicted = (predictor.axes + predictor.gain) * predictor.variances.sqrt()
    axes = leading_axes(predicted, rank)
    basis = axes.T @ predictor.apply(layer.weight.detach().flatten(1).double())
    without_bias = delivered.mean(dim=0).double() - (0 if layer.bias is None else layer.bias.detach().double())
    offset = dense.mean(dim=0).double() - axes @ (axes.T @ predictor.apply(without_bias[:, None]))[:, 0]
    return low_rank_pair(layer, basis, axes, offset)


def _fit(target: Target, rank: int, x: torch.Tensor) -> tuple[nn.Module, torch.Tensor]:
    """Compress a layer for the input that arrives in the partly compressed network."""
    layer, record = target.layer, target.record
    images = record.responses.shape[1]
    if isinstance(layer, nn.Linear) and by_image(x, images).shape != x.shape:
        pair, output = _fit(target, rank, by_image(x, images))
        return pair, output.reshape(*x.shape[:-1], -1)
    responses = [responses_on(layer, batch, record.lattice) for batch in x.split(BATCH_SIZE)]
    delivered = torch.cat(responses, dim=1).flatten(0, 1)
    pair = fitted_pair(layer, record.responses.to(delivered).flatten(0, 1), delivered, rank)
    return pair, torch.cat([pair(batch) for batch in x.split(BATCH_SIZE)])
