"""SLOPE, the nuclear norm and total variation as rows of the table of laws."""

import itertools
from collections.abc import Callable

import numpy as np
import scipy.stats
import torch

from tests.penalties.brute import Array
from tests.penalties.cases import ALL, FILTERS, MATRIX, NO_COLUMNS, NO_ROWS, STRENGTH, VECTOR, Shape
from tests.penalties.whole import Whole
from torchlasso.penalties.base import Penalty
from torchlasso.penalties.ordered import SLOPE
from torchlasso.penalties.spectral import NuclearNorm
from torchlasso.penalties.variation import TotalVariation

SMALL = (VECTOR, (2, 3), (1, 3, 2), NO_ROWS, NO_COLUMNS)
"""Shapes of so few entries that all their orders can be tried."""


# ---- SLOPE ------------------------------------------------------------------------------------


def falling(count: int) -> Array:
    """Return a sequence that ties some ranks, and ends at zero."""
    return np.array([2.0, 1.5, 1.5, 1.0, 0.25, 0.0][:count])


def bh(count: int, q: float = 0.1) -> Array:
    """Return the sequence of Benjamini and Hochberg from scipy's quantiles."""
    return scipy.stats.norm.isf(np.arange(1, count + 1) * q / (2 * count))


def sorted_sum(levels: Array, x: Array) -> float:
    """Return the sum of the levels times the sizes, both from the largest down."""
    return float(np.sum(levels * np.sort(np.abs(x).reshape(-1))[::-1]))


def argmin_sorted(levels: Array, w: Array, step: Array) -> Array:
    """Try every division of every order into ties, and keep the best point that is in that order."""
    size, d = np.abs(w).reshape(-1), step.reshape(-1)
    price = np.where(d > 0, 1 / np.where(d > 0, d, 1.0), 1e13)
    best, least = size, np.inf
    for order in map(list, itertools.permutations(range(size.size))):
        x = np.empty_like(size)
        x[order] = np.maximum(_pooled(size[order] - levels / price[order], price[order]), 0.0)
        cost = float(np.sum(price * (x - size) ** 2) / 2 + np.sum(levels * np.sort(x)[::-1]))
        if cost < least - 1e-13 * abs(cost):
            best, least = x, cost
    for at in np.flatnonzero((d == 0) & (best > 0)):
        best = np.where(best == best[at], size[at], best)  # its tie is where it is
    best = np.where(d == 0, size, best)
    return (np.sign(w).reshape(-1) * best).reshape(w.shape)


def _pooled(y: Array, price: Array) -> Array:
    """Return the best falling sequence: ``min over a ≤ i of max over b ≥ i`` of the means of ``y[a..b]``."""
    n = y.size
    means = np.full((n, n), -np.inf)
    for a in range(n):
        means[a, a:] = np.cumsum((price * y)[a:]) / np.cumsum(price[a:])
    from_right = np.maximum.accumulate(means[:, ::-1], axis=1)[:, ::-1]  # over b ≥ i
    return np.array([from_right[: i + 1, i].min() for i in range(n)])


def _slope(name: str, make: Callable[[int], Array], given: Callable[[int], torch.Tensor | str]) -> Whole:
    def build(shape: Shape) -> Penalty:
        return SLOPE(STRENGTH, given(int(np.prod(shape))))

    return Whole(
        name,
        build,
        value=lambda x: sorted_sum(STRENGTH * make(x.size), x),
        argmin=lambda w, step: argmin_sorted(STRENGTH * make(w.size), w, step),
        shapes=SMALL,
        tolerance=1e-9,
        scale_free=True,
    )


# ---- the nuclear norm -------------------------------------------------------------------------


def singular_values(x: Array) -> Array:
    """Return the singular values of the rows of a tensor."""
    return np.linalg.svd(x.reshape(x.shape[0], -1), compute_uv=False)


def argmin_spectral(strength: float, w: Array, step: Array) -> Array:
    """By the eigenvectors of ``WᵀW`` for a constant step, else by descent on the dual."""
    matrix, d = w.reshape(w.shape[0], -1), step.reshape(w.shape[0], -1)
    if not d.any():
        return w
    if np.any(d != d.flat[0]):
        return _argmin_on_the_dual(strength, matrix, d).reshape(w.shape)
    squares, v = np.linalg.eigh(matrix.T @ matrix)
    sizes = np.sqrt(np.maximum(squares, 0.0))
    keep = np.maximum(1 - d.flat[0] * strength / np.where(sizes > 0, sizes, 1.0), 0.0) * (sizes > 0)
    return (matrix @ (v * keep) @ v.T).reshape(w.shape)


def _argmin_on_the_dual(strength: float, w: Array, d: Array) -> Array:
    """Return ``w − d·y`` for the ``y`` with ``σ_max(y) ≤ strength`` that minimises ``Σ ½d·y² − w·y``."""
    y = ahead = np.zeros_like(w)
    t = 1.0
    for _ in range(20_000):
        u, s, vt = np.linalg.svd(ahead + (w - d * ahead) / d.max(), full_matrices=False)
        new = (u * np.minimum(s, strength)) @ vt
        move = new - y
        if np.abs(move).max() < 1e-14:
            break
        if np.sum((ahead - new) * move) > 0:
            t = 1.0  # it swings: begin again without momentum
        after = (1 + np.sqrt(1 + 4 * t * t)) / 2
        y, ahead, t = new, new + (t - 1) / after * move, after
    return w - d * y


# ---- total variation --------------------------------------------------------------------------


def variation(x: Array, dim: int) -> float:
    """Return the sum of the jumps along a dimension."""
    lines = np.moveaxis(x, dim, -1)
    return float(sum(abs(lines[..., i + 1] - lines[..., i]).sum() for i in range(lines.shape[-1] - 1)))


def argmin_variation(strength: float, w: Array, step: Array, dim: int) -> Array:
    """Try every way to go up, down or nowhere from neighbour to neighbour, line by line."""
    lines, steps = np.moveaxis(w, dim, -1), np.moveaxis(step, dim, -1)
    found = np.empty_like(lines)
    for index in np.ndindex(*lines.shape[:-1]):
        found[index] = _argmin_line(strength, lines[index], steps[index])
    return np.moveaxis(found, -1, dim)


def _argmin_line(strength: float, w: Array, d: Array) -> Array:
    price = np.where(d > 0, 1 / np.where(d > 0, d, 1.0), 1e13)
    best, least = w, np.inf
    for pattern in itertools.product((0, -1, 1), repeat=w.size - 1):
        jumps = np.array(pattern, dtype=int)
        piece = np.concatenate([[0], np.cumsum(jumps != 0)]).astype(int)
        slope = strength * (np.concatenate([[0], jumps]) - np.concatenate([jumps, [0]]))
        level = np.bincount(piece, price * w - slope) / np.bincount(piece, price)
        x = level[piece]
        for at in np.flatnonzero(d == 0):
            x[piece == piece[at]] = w[at]
        cost = float(np.sum(price * (x - w) ** 2) / 2 + strength * np.abs(np.diff(x)).sum())
        if cost < least - 1e-13 * abs(cost):
            best, least = x, cost
    return best


def _variation(dim: int, shapes: tuple[Shape, ...]) -> Whole:
    return Whole(
        f"variation{dim}",
        build=lambda shape: TotalVariation(STRENGTH, dim=dim),
        value=lambda x: STRENGTH * variation(x, dim),
        argmin=lambda w, step: argmin_variation(STRENGTH, w, step, dim),
        shapes=shapes,
        tolerance=1e-9,
        zeroes=False,
        scale_free=True,
        has_slope=False,
    )


CASES: list[Whole] = [
    _slope("slope-falling", falling, lambda count: torch.tensor(falling(count))),
    _slope("slope-bh", bh, lambda count: "bh"),
    Whole(
        "nuclear",
        build=lambda shape: NuclearNorm(STRENGTH),
        value=lambda x: STRENGTH * float(singular_values(x).sum()),
        argmin=lambda w, step: argmin_spectral(STRENGTH, w, step),
        shapes=(MATRIX, FILTERS, (4, 1), (2, 5), NO_ROWS, NO_COLUMNS),
        scale_free=True,
    ),
    _variation(-1, ALL),
    _variation(0, ALL),
    _variation(1, (MATRIX, FILTERS)),
]
