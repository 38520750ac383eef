"""Rank-adaptive factors of one layer in one region, fitted to what the dense network answered.

Notation, with C output channels and n samples: y is the dense network's response, y^ = W x^ + b the response of the
same layer to the input that the partly compressed network delivers, T = cov(y^), S = cov(y, y^). Responses come
weighted by the channels' effects on the loss, so that variance is lost where it matters least.

1. M = I + (S - T)(T + ridge)^-1 predicts y from y^. The ridge shrinks towards the identity, so that M is exactly I
   where nothing was compressed before, and stays near it in directions that too few samples describe: it is the mean
   eigenvalue of T times dimensions / samples. A fully connected layer with as many dimensions as samples would
   otherwise learn the calibration images by heart.
2. For each cluster c, U_c are the first k_c principal axes of the rows of M y^ that belong to c.
3. Basis A = [U_c^T M_c] over the clusters, recombination P = U + (S - U A T) A^T (A T A^T + ridge)^-1: least
   squares over all channels, shrunk towards the clusters' own axes U.
4. Where an activation behind the layer clips responses, P and the bias are refined for what it lets through.

Everything is expressed in the r <= min(n, C) principal coordinates of y^, so that a fully connected layer with
thousands of outputs never needs a C x C matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

# Relative to the mean eigenvalue of the matrix that it is added to; the least that is taken.
RIDGE = 1e-3
# Steps towards what an activation behind the layer lets through, and how much longer than a least squares fit they are.
_REFINEMENTS, _STRETCH = 3, 1.8
# So many samples for each basis filter are enough for one step.
_ENOUGH = 64


@dataclass(frozen=True)
class Predictor:
    """The best linear predictor M of the dense response y from y^, and the statistics it came from.

    Attributes:
        axes: Q, float64 (C, r), principal axes of y^.
        variances: the r eigenvalues of T, descending.
        gap: (S - T) Q, float64 (C, r): how y - y^ varies with the principal coordinates.
        gain: (S - T) Q (T + ridge)^-1, float64 (C, r), so that M = I + gain Q^T.
        samples: n.
    """

    axes: torch.Tensor
    variances: torch.Tensor
    gap: torch.Tensor
    gain: torch.Tensor
    samples: int

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """M times a matrix of C rows."""
        return weight + self.gain @ (self.axes.T @ weight)


@dataclass(frozen=True)
class Factors:
    """A basis and a recombination of rank K.

    Attributes:
        basis: A, float64 (K, C): the basis filters are A W.
        recombination: P, float64 (C, K).
    """

    basis: torch.Tensor
    recombination: torch.Tensor


def fit_predictor(dense: torch.Tensor, delivered: torch.Tensor) -> Predictor:
    """Step 1.

    Args:
        dense: y, float (n, C).
        delivered: y^ of the same images and positions, float (n, C).
    """
    count = len(dense)
    dense, centred = dense - dense.mean(dim=0), delivered - delivered.mean(dim=0)
    gap = dense - centred
    if count < dense.shape[1]:
        values, vectors = torch.linalg.eigh((centred @ centred.T).double() / count)
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        kept = values > values.sum() * 1e-12
        values, vectors = values[kept], vectors[:, kept]
        coordinates = vectors * (values * count).sqrt()
        # Products of this size in the samples' own precision, as their covariance is.
        axes = (centred.T @ vectors.to(centred.dtype)).double() / (values * count).sqrt()
        gap_axes = (gap.T @ coordinates.to(gap.dtype)).double() / count
    else:
        values, axes = torch.linalg.eigh((centred.T @ centred).double() / count)
        values, axes = values.flip(0).clamp(min=0), axes.flip(1)
        gap_axes = (gap.T @ centred).double() / count @ axes
    return Predictor(
        axes=axes,
        variances=values,
        gap=gap_axes,
        gain=gap_axes / (values + _ridge(values, count)),
        samples=count,
    )


def factorise(predictor: Predictor, clusters: np.ndarray, ranks: Sequence[int]) -> Factors:
    """Steps 2 and 3.

    Args:
        predictor: from :func:`fit_predictor`.
        clusters: int64 (C,), the cluster of each channel, labels from 0 on.
        ranks: k_c for each cluster, together at least 1; a rank beyond what the responses
            fill gets empty filters.
    """
    # F F^T = M T M^T
    spread = (predictor.axes + predictor.gain) * predictor.variances.sqrt()
    columns = []
    for cluster, rank in enumerate(ranks):
        members = torch.from_numpy(np.flatnonzero(clusters == cluster)).to(spread.device)
        found, _ = principal_axes(spread[members], rank)
        block = torch.zeros(len(spread), rank, dtype=spread.dtype, device=spread.device)
        block[members, : found.shape[1]] = found
        columns.append(block)
    axes = torch.cat(columns, dim=1)
    basis = axes.T + (axes.T @ predictor.gain) @ predictor.axes.T
    inner = basis @ predictor.axes
    inner_covariance = (inner * predictor.variances) @ inner.T
    cross = (predictor.axes * predictor.variances + predictor.gap) @ inner.T
    identity = torch.eye(len(inner), dtype=inner.dtype, device=inner.device)
    ridge = _ridge(inner_covariance.diagonal(), predictor.samples) * identity
    correction = torch.linalg.solve(inner_covariance + ridge, (cross - axes @ inner_covariance).T).T
    return Factors(basis=basis, recombination=axes + correction)


def refit(
    dense: torch.Tensor, coordinates: torch.Tensor, recombination: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit a recombination anew to what basis filters deliver once they were changed.

    Args:
        dense: y, float (n, C).
        coordinates: z, what the basis filters answer, float (n, K).
        recombination: P from before, float64 (C, K), towards which the least squares are shrunk.

    Returns:
        P, float64 (C, K), and the bias, float64 (C,), so that P z + bias predicts y.
    """
    count = len(dense)
    mean_dense, mean = dense.mean(dim=0), coordinates.mean(dim=0)
    centred = coordinates - mean
    covariance = (centred.T @ centred).double() / count
    cross = ((dense - mean_dense).T @ centred).double() / count
    ridge = _ridge(covariance.diagonal(), count) * torch.eye(len(covariance)).to(covariance)
    correction = torch.linalg.solve(covariance + ridge, (cross - recombination @ covariance).T).T
    fitted = recombination + correction
    return fitted, mean_dense.double() - fitted @ mean.double()


def refine(
    dense: torch.Tensor,
    coordinates: torch.Tensor,
    recombination: torch.Tensor,
    offset: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Improve a recombination where an activation behind it lets values between two bounds through.

    With f the clipping activation, takes steps towards the least of the matching loss of f, the convex loss whose
    gradient is ``(f(P z + bias) - f(y)) z`` (Auer, Herbster and Warmuth 1996): f changes nothing by more than its
    argument changes, so cov(z) bounds the curvature, and steps up to twice a least squares fit to what is left go down.

    Args:
        dense: y, float (n, C).
        coordinates: z, what the basis filters answer, float (n, K).
        recombination: P, float64 (C, K).
        offset: bias, float64 (C,).
        low: lower bound of each channel, float (C,).
        high: upper bound, float (C,).

    Returns:
        P and the bias.
    """
    count, rank = coordinates.shape
    # Each step looks at other samples, as long as they are many for the rank.
    strides = max(1, min(_REFINEMENTS, count // (_ENOUGH * rank)))
    centred = coordinates[::strides] - coordinates[::strides].mean(dim=0)
    covariance = (centred.T @ centred).double() / len(centred)
    ridge = _ridge(covariance.diagonal(), count) * torch.eye(rank).to(covariance)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance + ridge))
    for step in range(_REFINEMENTS):
        seen = coordinates[step % strides :: strides]
        left = torch.addmm(offset.to(seen.dtype), seen, recombination.T.to(seen.dtype)).clamp_(low, high)
        left = dense[step % strides :: strides].clamp(low, high).sub_(left).mul_(_STRETCH)
        mean, mean_left = seen.mean(dim=0), left.mean(dim=0)
        change = (left.T @ (seen - mean)).double() / len(seen) @ inverse
        recombination = recombination + change
        offset = offset + mean_left.double() - change @ mean.double()
    return recombination, offset


def balanced(first: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two factors with the same product, whose weights are of the same size: further training needs that.

    Args:
        first: float (K, D).
        last: float (C, K).

    Returns:
        Both, each row of ``first`` with the norm of its column of ``last``; where one of them is 0 as they were.
    """
    sizes, others = first.norm(dim=1).double(), last.norm(dim=0).double()
    scale = torch.where((sizes > 0) & (others > 0), (others / sizes).sqrt(), torch.ones_like(sizes))
    return first * scale[:, None].to(first.dtype), last / scale.to(last.dtype)


def principal_axes(rows: torch.Tensor, count: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvectors and eigenvalues, descending, of ``rows @ rows.T``.

    Args:
        rows: float64 (channels, r).
        count: how many at most, all by default.
    """
    if rows.shape[0] <= rows.shape[1]:
        values, axes = torch.linalg.eigh(rows @ rows.T)
        return axes.flip(1)[:, :count], values.flip(0).clamp(min=0)[:count]
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    kept = (values > values.sum() * 1e-12).nonzero()[:count, 0]
    values, vectors = values[kept], vectors[:, kept]
    return rows @ vectors / values.sqrt(), values


def _ridge(values: torch.Tensor, samples: int) -> torch.Tensor:
    share = max(RIDGE, len(values) / samples)
    return share * values.sum() / max(len(values), 1) + torch.finfo(values.dtype).tiny
