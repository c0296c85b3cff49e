"""Constraints for the table of laws: the sets in numpy, and projections found by trying."""

import itertools
from collections.abc import Callable

import numpy as np
import scipy.optimize

from tests.penalties.brute import Array
from tests.penalties.cases import FILTERS, MATRIX, NO_ROWS, VECTOR, Shape
from tests.penalties.whole import Whole
from torchlasso.penalties.constraints import NM, L1Ball, TopK


def best_subset(w: Array, step: Array, count: int) -> Array:
    """Return the nearest vector with ``count`` nonzero entries, of all subsets; ties go to the first."""
    fixed = [i for i in range(w.size) if step[i] == 0 and w[i] != 0]  # they cannot move
    free = [i for i in range(w.size) if i not in fixed]
    room = min(max(count - len(fixed), 0), len(free))
    cost = np.divide(w**2, step, out=np.zeros_like(w), where=step > 0)
    # min takes the first of equals
    kept = min(
        itertools.combinations(free, room), key=lambda subset: sum(cost[i] for i in free if i not in subset)
    )
    return np.where(np.isin(np.arange(w.size), [*fixed, *kept]), w, 0.0) + 0.0


def nearest_in_ball(w: Array, step: Array, radius: float) -> Array:
    """Return the nearest vector with ``Σ|x| ≤ radius``: the root of the sum in the multiplier."""

    def shrunk(theta: float) -> Array:
        return np.maximum(np.abs(w) - theta * step, 0.0)

    if np.abs(w).sum() <= radius or not step.any():
        return w + 0.0
    if np.abs(w[step == 0]).sum() >= radius:
        return np.where(step == 0, w, 0.0) + 0.0
    high = float(np.max(np.abs(w)[step > 0] / step[step > 0])) * 2
    theta = scipy.optimize.brentq(lambda t: shrunk(t).sum() - radius, 0.0, high, xtol=1e-16, rtol=1e-15)
    return np.sign(w) * shrunk(theta) + 0.0


def blocks_of(w: Array, m: int) -> list[tuple[tuple[int, ...], ...]]:
    """Return the indices of every block of ``m`` along dimension 1 (0 for a vector), by walking."""
    dim = min(1, w.ndim - 1)
    found: dict[tuple[object, ...], list[tuple[int, ...]]] = {}
    for index in np.ndindex(*w.shape):
        found.setdefault((index[:dim], index[dim] // m, index[dim + 1 :]), []).append(index)
    return [tuple(block) for block in found.values()]


def _whole(project: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """Return a projection of whole tensors at which nothing moves where the step is 0 everywhere."""

    def argmin(w: Array, step: Array) -> Array:
        return w + 0.0 if not step.any() else project(w, step)

    return argmin


def _blockwise(n: int, m: int) -> Callable[[Array, Array], Array]:
    def project(w: Array, step: Array) -> Array:
        x = np.empty_like(w)
        for block in blocks_of(w, m):
            at = tuple(np.array(block).T)
            x[at] = best_subset(w[at], step[at], n)
        return x

    return project


def _topk(sparsity: float) -> Whole:
    def count(w: Array) -> int:
        return round((1 - sparsity) * w.size)

    def project(w: Array, step: Array) -> Array:
        return best_subset(w.reshape(-1), step.reshape(-1), count(w)).reshape(w.shape)

    return Whole(
        name=f"topk{sparsity}",
        build=lambda shape: TopK(sparsity),
        value=lambda w: 0.0 if np.count_nonzero(w) <= count(w) else np.inf,
        argmin=_whole(project),
        shapes=(VECTOR, MATRIX, NO_ROWS),
        zeroes=sparsity == 1,
        has_slope=False,
        constraint=True,
    )


def _nm(n: int, m: int, shapes: tuple[Shape, ...]) -> Whole:
    def value(w: Array) -> float:
        used = [sum(w[i] != 0 for i in block) for block in blocks_of(w, m)]
        return 0.0 if max(used, default=0) <= n else np.inf

    return Whole(
        name=f"nm{n}:{m}",
        build=lambda shape: NM(n, m),
        value=value,
        argmin=_whole(_blockwise(n, m)),
        shapes=shapes,
        zeroes=n == 0,
        has_slope=False,
        constraint=True,
    )


def _l1ball(radius: float) -> Whole:
    def project(w: Array, step: Array) -> Array:
        return nearest_in_ball(w.reshape(-1), step.reshape(-1), radius).reshape(w.shape)

    return Whole(
        name=f"l1ball{radius}",
        build=lambda shape: L1Ball(radius),
        value=lambda w: 0.0 if np.abs(w).sum() <= radius * (1 + 1e-12) else np.inf,
        argmin=_whole(project),
        shapes=(VECTOR, MATRIX, FILTERS, NO_ROWS),
        tolerance=1e-10,
        zeroes=radius == 0,
        has_slope=False,
        constraint=True,
    )


CASES = [
    _topk(0.5),
    _topk(0.75),
    _topk(1.0),
    _nm(2, 4, (MATRIX, (4,), (2, 8, 2, 2), NO_ROWS)),
    _nm(1, 3, (VECTOR, FILTERS)),
    _l1ball(2.0),
    _l1ball(0.0),
    _l1ball(1000.0),
]
