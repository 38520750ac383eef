"""The linear algebra of fitting a layer's factors to what the dense network answered.

Notation, with C output channels and n samples: y is the dense network's response, y^ = W x^ + b the response of the
same layer to the input that the partly compressed network delivers, T = cov(y^), S = cov(y, y^). Responses come
weighted by the channels' effects on the loss, so that variance is lost where it matters least. A basis A of K axes
gives the coordinates z = A y^, a recombination P brings them back.

1. :func:`fit_predictor`: M = I + (S - T)(T + ridge)^-1 predicts y from y^. The ridge shrinks towards the identity, so
   that M is exactly I where nothing was compressed before, and stays near it in directions that too few samples
   describe: it is the mean eigenvalue of T times dimensions / samples. A fully connected layer with as many dimensions
   as samples would otherwise overfit the calibration images.
2. :func:`factorise`: A = U^T M with U the first principal axes of M y^, reduced-rank regression, and the P that goes
   with it.
3. :func:`refit`: P = U + (cov(y, z) - U cov(z)) (cov(z) + ridge)^-1, least squares shrunk towards U.
4. :func:`refit_clipped`: where an activation behind the layer clips responses, P and the bias are improved for the
   values that it lets through.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

# The smallest ridge, relative to the mean eigenvalue of the matrix that it is added to.
RIDGE = 1e-3
# Samples per basis filter that are enough for one step of such a fit.
SAMPLES_PER_FILTER = 64
# Steps of a fit in front of an activation, and their length relative to a least squares fit.
_STEPS, _STRETCH = 3, 1.5


@dataclass(frozen=True)
class Predictor:
    """The best linear predictor M of the dense response y from y^, and the statistics it came from.

    Attributes:
        axes: Q, float64 (C, r), principal axes of y^.
        variances: the r eigenvalues of T, descending.
        gap: (S - T) Q, float64 (C, r): how y - y^ varies with the principal coordinates.
        gain: (S - T) Q (T + ridge)^-1, float64 (C, r), so that M = I + gain Q^T.
        samples: n, the number of samples.
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
    """Fit the predictor of the dense responses, step 1.

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
        significant = values > values.sum() * 1e-12
        values, vectors = values[significant], vectors[:, significant]
        coordinates = vectors * (values * count).sqrt()
        # In the samples' precision, like their covariance: products of this size are slow in double precision.
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
        gain=gap_axes / (values + ridge(values, count)),
        samples=count,
    )


def factorise(predictor: Predictor, rank: int) -> Factors:
    """Choose a basis and its recombination, step 2.

    Args:
        predictor: from :func:`fit_predictor`.
        rank: K, at least 1; filters beyond the rank of the responses change nothing.
    """
    # F F^T = M T M^T
    spread = (predictor.axes + predictor.gain) * predictor.variances.sqrt()
    leading, _ = principal_axes(spread, rank)
    axes = functional.pad(leading, (0, rank - leading.shape[1]))
    basis = axes.T + (axes.T @ predictor.gain) @ predictor.axes.T
    inner = basis @ predictor.axes
    covariance = (inner * predictor.variances) @ inner.T
    cross = (predictor.axes * predictor.variances + predictor.gap) @ inner.T
    return Factors(basis, axes + (cross - axes @ covariance) @ _inverse(covariance, predictor.samples))


def refit(
    dense: torch.Tensor, coordinates: torch.Tensor, recombination: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit a recombination to what the basis filters answer, step 3.

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
    residual = dense.T @ centred / count - recombination @ covariance
    fitted = recombination + residual @ _inverse(covariance, count)
    return fitted, dense.mean(dim=0) - fitted @ mean


def refit_clipped(
    dense: torch.Tensor,
    coordinates: torch.Tensor,
    recombination: torch.Tensor,
    offset: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Improve a recombination in front of an activation that clips values to two bounds, step 4.

    With f the clipping activation, take steps towards the minimum of the matching loss of f, the convex loss whose
    gradient is ``(f(P z + bias) - f(y)) z`` (Auer, Herbster and Warmuth 1996). f is 1-Lipschitz, so cov(z) bounds the
    curvature, and a step of up to twice the least squares fit to the residual lowers the loss.

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
    # Each step takes other samples, if these are enough for the rank.
    strides = max(1, min(_STEPS, count // (SAMPLES_PER_FILTER * rank)))
    centred = coordinates[::strides] - coordinates[::strides].mean(dim=0)
    inverse = _STRETCH * _inverse(centred.T @ centred / len(centred), count)
    for step in range(_STEPS):
        samples = coordinates[step % strides :: strides]
        mean = samples.mean(dim=0)
        answers = torch.addmm(offset, samples, recombination.T).clamp_(low, high)
        residual = dense[step % strides :: strides].clamp(low, high).sub_(answers)
        change = residual.T @ ((samples - mean) @ inverse) / len(samples)
        recombination = recombination + change
        offset = offset + _STRETCH * residual.mean(dim=0) - change @ mean
    return recombination, offset


def balanced(first: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Balance two factors without changing their product: further training needs weights of the same size.

    Args:
        first: float (K, D).
        last: float (C, K).

    Returns:
        Both, each row of ``first`` with the norm of its column of ``last``; unchanged where one of these is 0.
    """
    first_norms, last_norms = first.norm(dim=1).double(), last.norm(dim=0).double()
    both_positive = (first_norms > 0) & (last_norms > 0)
    scale = torch.where(both_positive, (last_norms / first_norms).sqrt(), torch.ones_like(first_norms))
    return first * scale[:, None].to(first.dtype), last / scale.to(last.dtype)


def principal_axes(rows: torch.Tensor, count: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The eigenvectors and eigenvalues of ``rows @ rows.T``, by descending eigenvalue.

    Args:
        rows: float64 (channels, r).
        count: of eigenvectors, at most; None for all.

    Returns:
        Eigenvectors as columns, float64 (channels, axes), and eigenvalues, float64 (axes,). With fewer columns than
        rows, those of eigenvalue 0 are left out.
    """
    if rows.shape[0] <= rows.shape[1]:
        values, axes = torch.linalg.eigh(rows @ rows.T)
        return axes.flip(1)[:, :count], values.flip(0).clamp(min=0)[:count]
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    significant = (values > values.sum() * 1e-12).nonzero()[:count, 0]
    values, vectors = values[significant], vectors[:, significant]
    return rows @ vectors / values.sqrt(), values


def ridge(values: torch.Tensor, samples: int) -> torch.Tensor:
    """The ridge for a covariance: its mean eigenvalue times the larger of dimensions / samples and :data:`RIDGE`.

    Args:
        values: the eigenvalues of the covariance or its diagonal, float64 (dimensions,).
        samples: number of samples that the covariance was estimated from.

    Returns:
        float64, a scalar.
    """
    share = max(RIDGE, len(values) / samples)
    # The constant keeps the inverse finite in single precision where all eigenvalues are 0.
    return share * values.sum() / max(len(values), 1) + 1e-30


def _inverse(covariance: torch.Tensor, samples: int) -> torch.Tensor:
    """(covariance + ridge)^-1, computed in double precision."""
    exact = covariance.double()
    shrinkage = ridge(exact.diagonal(), samples) * torch.eye(len(exact)).to(exact)
    return torch.cholesky_inverse(torch.linalg.cholesky(exact + shrinkage)).to(covariance.dtype)
