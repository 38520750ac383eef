"""The linear algebra of fitting a layer's factors to what the dense network answered.

Notation, with C output channels and n samples: y is the dense network's response, y^ = W x^ + b the response of the
same layer to the input that the partly compressed network delivers, T = cov(y^), S = cov(y, y^). Responses come
weighted by the channels' effects on the loss, so that variance is lost where it matters least. A basis A of K axes
gives the coordinates z = A y^, a recombination P brings them back.

1. :func:`fit_predictor`: M = I + (S - T)(T + ridge)^-1 predicts y from y^. The ridge shrinks towards the identity, so
   that M is exactly I where nothing was compressed before, and stays near it in directions that too few samples
   describe: it is the mean eigenvalue of T times dimensions / samples. A fully connected layer with as many dimensions
   as samples would otherwise learn the calibration images by heart.
2. :func:`factorise`: A = U^T M with U the first principal axes of M y^, reduced-rank regression, and the P that goes
   with it.
3. :func:`refit`: P = U + (cov(y, z) - U cov(z)) (cov(z) + ridge)^-1, least squares shrunk towards U.
4. :func:`refine`: where an activation behind the layer clips responses, P and the bias are refined for what it lets
   through.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

# Relative to the mean eigenvalue of the matrix that it is added to; the least that is taken.
RIDGE = 1e-3
# Steps towards what an activation behind the layer lets through, and how much longer than a least squares fit they are.
_REFINEMENTS, _STRETCH = 3, 1.5
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


def factorise(predictor: Predictor, rank: int) -> Factors:
    """Step 2.

    Args:
        predictor: from :func:`fit_predictor`.
        rank: K, at least 1; beyond what the responses fill the filters are empty.
    """
    # F F^T = M T M^T
    spread = (predictor.axes + predictor.gain) * predictor.variances.sqrt()
    found, _ = principal_axes(spread, rank)
    axes = functional.pad(found, (0, rank - found.shape[1]))
    basis = axes.T + (axes.T @ predictor.gain) @ predictor.axes.T
    inner = basis @ predictor.axes
    covariance = (inner * predictor.variances) @ inner.T
    cross = (predictor.axes * predictor.variances + predictor.gap) @ inner.T
    return Factors(basis, axes + (cross - axes @ covariance) @ _inverse(covariance, predictor.samples))


def refit(
    dense: torch.Tensor, coordinates: torch.Tensor, recombination: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Step 3: fit a recombination to what the basis filters answer.

    Args:
        dense: y, float (n, C).
        coordinates: z, what the basis filters answer, float (n, K).
        recombination: U, float (C, K), towards which the least squares are shrunk.

    Returns:
        P, float (C, K), and the bias, float (C,), so that P z + bias predicts y.
    """
    count = len(dense)
    mean = coordinates.mean(dim=0)
    centred = coordinates - mean
    covariance = centred.T @ centred / count
    left = dense.T @ centred / count - recombination @ covariance
    fitted = recombination + left @ _inverse(covariance, count)
    return fitted, dense.mean(dim=0) - fitted @ mean


def refine(
    dense: torch.Tensor,
    coordinates: torch.Tensor,
    recombination: torch.Tensor,
    offset: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Step 4: improve a recombination where an activation behind it lets values between two bounds through.

    With f the clipping activation, takes steps towards the least of the matching loss of f, the convex loss whose
    gradient is ``(f(P z + bias) - f(y)) z`` (Auer, Herbster and Warmuth 1996): f changes nothing by more than its
    argument changes, so cov(z) bounds the curvature, and steps up to twice a least squares fit to what is left go down.

    Args:
        dense: y, float (n, C).
        coordinates: z, what the basis filters answer, float (n, K).
        recombination: P, float (C, K).
        offset: bias, float (C,).
        low: lower bound of each channel, float (C,).
        high: upper bound, float (C,).

    Returns:
        P and the bias.
    """
    count, rank = coordinates.shape
    # Each step looks at other samples, as long as they are many for the rank.
    strides = max(1, min(_REFINEMENTS, count // (_ENOUGH * rank)))
    centred = coordinates[::strides] - coordinates[::strides].mean(dim=0)
    inverse = _STRETCH * _inverse(centred.T @ centred / len(centred), count)
    for step in range(_REFINEMENTS):
        seen = coordinates[step % strides :: strides]
        mean = seen.mean(dim=0)
        left = torch.addmm(offset, seen, recombination.T).clamp_(low, high)
        left = dense[step % strides :: strides].clamp(low, high).sub_(left)
        change = left.T @ ((seen - mean) @ inverse) / len(seen)
        recombination = recombination + change
        offset = offset + _STRETCH * left.mean(dim=0) - change @ mean
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


def _inverse(covariance: torch.Tensor, samples: int) -> torch.Tensor:
    """(covariance + ridge)^-1, found in double precision."""
    exact = covariance.double()
    ridge = _ridge(exact.diagonal(), samples) * torch.eye(len(exact)).to(exact)
    return torch.cholesky_inverse(torch.linalg.cholesky(exact + ridge)).to(covariance.dtype)


def _ridge(values: torch.Tensor, samples: int) -> torch.Tensor:
    share = max(RIDGE, len(values) / samples)
    # Its inverse is used with samples of single precision.
    return share * values.sum() / max(len(values), 1) + 1e-30
