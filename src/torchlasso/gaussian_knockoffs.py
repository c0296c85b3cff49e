"""Knockoff copies of Gaussian columns: as alike as possible in law, as unlike as possible in value.

A copy ``X̃`` of the columns ``X ~ N(μ, Σ)`` is a knockoff if swapping any columns with their copies leaves
the joint law as it is.  For Gaussians this is a statement on second moments alone:
``Cov(X̃) = Σ`` and ``Cov(X, X̃) = Σ − diag(s)``, for any ``s ≥ 0`` with ``2Σ − diag(s) ⪰ 0``.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf

from torchlasso.errors import InputError

Floats = NDArray[np.float64]
Method = Literal["mvr", "equicorrelated"]

_SWEEPS = 100
_TOLERANCE = 1e-6  # of a sweep's largest change of s, in variances
_STREAM = 1_951  # any number that sets the noise apart
_INSIDE = 0.99  # how far the first s goes towards the edge where 2Σ − diag(s) is singular


def knockoff_diagonal(correlation: Floats, method: Method = "mvr") -> Floats:
    """Return ``s``, the variances by which columns and their copies differ, for unit variances.

    * ``"mvr"`` minimises the reconstructability ``Σ_j 1/s_j + tr (2Σ − diag(s))⁻¹``: how well a column
      could be told from all other columns and copies.  Convex, solved one coordinate after the other.
    * ``"equicorrelated"``: ``s_j = min(1, 2·λ_min(Σ))``, the same for all columns.

    Args:
        correlation: ``Σ``, ``[p, p]``, positive definite with a diagonal of ones.
        method: how to choose ``s``.

    Raises:
        InputError: an unknown method, or a matrix that is no positive definite correlation.

    Example:
        >>> knockoff_diagonal(np.array([[1.0, 0.8], [0.8, 1.0]]), "equicorrelated").round(6)
        array([0.4, 0.4])
        >>> knockoff_diagonal(np.eye(2)).round(6)
        array([1., 1.])

    References:
        Candès, Fan, Janson and Lv, "Panning for gold", J. R. Stat. Soc. B 80 (2018); Spector and Janson,
        "Powerful knockoffs via minimizing reconstructability", Ann. Stat. 50 (2022).
    """
    if method not in ("mvr", "equicorrelated"):
        msg = f"method must be 'mvr' or 'equicorrelated', got {method!r}"
        raise InputError(msg)
    smallest = _smallest_eigenvalue(correlation)
    equal = np.full(len(correlation), min(1.0, 2 * smallest))
    return equal if method == "equicorrelated" else _least_reconstructable(correlation, _INSIDE * equal)


def knockoff_law(correlation: Floats, s: Floats) -> tuple[Floats, Floats]:
    """Return ``A`` and ``V`` of ``X̃ | X ~ N(X·A, V)`` for centred columns.

    ``A = I − Σ⁻¹·diag(s)`` and ``V = 2·diag(s) − diag(s)·Σ⁻¹·diag(s)``.

    Args:
        correlation: ``Σ``, ``[p, p]``.
        s: from ``knockoff_diagonal``, ``[p]``.
    """
    solved = np.asarray(np.linalg.solve(correlation, np.diag(s)), dtype=np.float64)
    spread = 2 * np.diag(s) - s[:, None] * solved
    return np.eye(len(s)) - solved, (spread + spread.T) / 2


def gaussian_knockoffs(
    inputs: Floats, *, covariance: Floats | None = None, method: Method = "mvr", seed: int = 0
) -> Floats:
    """Return knockoff copies of columns that are Gaussian, or near enough in their first two moments.

    Args:
        inputs: ``[n, p]``.
        covariance: of the columns, ``[p, p]``, if it is known; else the Ledoit-Wolf estimate on the
            standardised columns, which is positive definite also for fewer rows than columns.
        method: of ``knockoff_diagonal``.
        seed: of the draw.

    Returns:
        ``[n, p]``, with the means of the columns.

    Raises:
        InputError: a column is constant, or the covariance is none of these columns.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(500, 2))
        >>> copies = gaussian_knockoffs(X)
        >>> bool(abs(np.corrcoef(X[:, 0], copies[:, 0])[0, 1]) < 0.1)
        True

    References:
        Candès, Fan, Janson and Lv, J. R. Stat. Soc. B 80 (2018); Ledoit and Wolf, J. Multivar. Anal. 88
        (2004).
    """
    scale = _scales(inputs) if covariance is None else _checked_scales(covariance, inputs.shape[1])
    mean = inputs.mean(axis=0)
    standard = (inputs - mean) / scale
    if covariance is None:
        correlation, _ = ledoit_wolf(standard, assume_centered=True)
        correlation = correlation.reshape(len(scale), len(scale))
    else:
        correlation = covariance / np.outer(scale, scale)
    regression, spread = knockoff_law(correlation, knockoff_diagonal(correlation, method))
    values, vectors = np.linalg.eigh(spread)
    # A stream of its own: columns that were drawn with this very seed would come back as their own noise.
    noise = np.random.default_rng([_STREAM, seed]).normal(size=inputs.shape)
    # The symmetric root is the one that does not depend on the choice of eigenvectors.
    root = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
    drawn = standard @ regression + noise @ root
    result: Floats = mean + scale * drawn
    return result


def _least_reconstructable(correlation: Floats, s: Floats) -> Floats:
    """Minimise ``Σ_j 1/s_j + tr D⁻¹`` with ``D = 2Σ − diag(s)`` by coordinates, from a feasible ``s``.

    Moving ``s_j`` by ``δ`` turns the objective into ``1/(s_j + δ) + δ·c/(1 − δ·d)`` and a constant, where
    ``d = (D⁻¹)_jj`` and ``c = ‖D⁻¹e_j‖²``.  Its minimum is at ``δ = (1 − √c·s_j)/(√c + d)``, always inside
    the feasible interval; the inverse follows by Sherman and Morrison.
    """
    s = s.copy()
    for _ in range(_SWEEPS):
        inverse = np.linalg.inv(2 * correlation - np.diag(s))  # anew each sweep, so that no rounding adds up
        before = s.copy()
        for j in range(len(s)):
            column = inverse[:, j].copy()
            root, d = float(np.linalg.norm(column)), column[j]
            delta = (1 - root * s[j]) / (root + d)
            s[j] += delta
            inverse += np.outer(column, column) * (delta / (1 - delta * d))
        if np.abs(s - before).max() < _TOLERANCE:
            break
    return s


def _smallest_eigenvalue(correlation: Floats) -> float:
    """Return the smallest eigenvalue of a correlation matrix, which must be one and positive definite."""
    shaped = correlation.ndim == 2 and correlation.shape[0] == correlation.shape[1] > 0
    if not shaped or not np.isfinite(correlation).all():
        msg = f"the correlation must be a finite square matrix, got shape {correlation.shape}"
        raise InputError(msg)
    if not np.allclose(np.diag(correlation), 1.0) or not np.allclose(correlation, correlation.T):
        msg = "the correlation must be symmetric with a diagonal of ones; divide by the standard deviations"
        raise InputError(msg)
    smallest = float(np.linalg.eigvalsh(correlation)[0])
    if smallest <= 1e-10 * len(correlation):
        msg = (
            f"the columns must be linearly independent, but the smallest eigenvalue of their correlation is "
            f"{smallest:.1e}; drop duplicates, or give a shrunken covariance"
        )
        raise InputError(msg)
    return smallest


def _scales(inputs: Floats) -> Floats:
    scale: Floats = inputs.std(axis=0)
    flat = np.flatnonzero(scale <= 1e-12 * np.abs(inputs).max(axis=0))
    if len(flat):
        msg = f"a constant column has no knockoff, but columns {flat.tolist()} are constant; drop them"
        raise InputError(msg)
    return scale


def _checked_scales(covariance: Floats, columns: int) -> Floats:
    diagonal = np.diag(covariance) if covariance.ndim == 2 else np.zeros(0)
    if covariance.shape != (columns, columns) or not (diagonal > 0).all():
        msg = (
            f"covariance must be a matrix of {columns} by {columns} with a positive diagonal, got shape "
            f"{covariance.shape}"
        )
        raise InputError(msg)
    return np.sqrt(diagonal)
