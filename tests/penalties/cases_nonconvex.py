"""The separable non-convex penalties as rows of the table of laws."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tests.penalties.brute import Array
from tests.penalties.cases import ALL, INF, STRENGTH, Shape
from tests.penalties.whole import Whole
from torchlasso.penalties.base import Penalty
from torchlasso.penalties.counting import L0, LHalf
from torchlasso.penalties.nonconvex import MCP, SCAD, LogSum

Cost = Callable[[Array, Array], Array]
"""The price of magnitudes at levels λ of the same shape, or of one that broadcasts against them."""


def mcp(gamma: float) -> Cost:
    """Zhang (2010), by its integral: the slope falls from λ to 0 at γλ."""

    def cost(u: Array, level: Array) -> Array:
        return np.where(u <= gamma * level, level * u - u * u / (2 * gamma), gamma * level * level / 2)

    return cost


def scad(a: float) -> Cost:
    """Fan and Li (2001), the three pieces of the textbook."""

    def cost(u: Array, level: Array) -> Array:
        middle = (2 * a * level * u - u * u - level * level) / (2 * (a - 1))
        flat = level * level * (a + 1) / 2
        return np.where(u <= level, level * u, np.where(u <= a * level, middle, flat))

    return cost


def log_sum(epsilon: float) -> Cost:
    """Candès, Wakin and Boyd (2008), scaled to the slope λ at zero."""
    return lambda u, level: level * epsilon * np.log1p(u / epsilon)


def count(u: Array, level: Array) -> Array:
    """One price for whatever is not zero."""
    return np.where(u > 0, level, 0.0)


def root(u: Array, level: Array) -> Array:
    """The square root."""
    return level * np.sqrt(u)


def argmin_entries(cost: Cost, level: Array, w: Array, step: Array, *, nonnegative: bool) -> Array:
    """Minimise ``½(x − w)² + step·cost(|x|)`` over every entry: a dense grid, then golden sections.

    Args:
        cost: of magnitudes.
        level: λ of every entry, infinite where it is held at zero.
        w: the point.
        step: the step of every entry.
        nonnegative: whether to search above zero only.
    """
    at, s = w.reshape(-1, 1).astype(np.longdouble), step.reshape(-1, 1).astype(np.longdouble)
    held = np.isinf(level).reshape(-1)
    price = np.where(held, 0.0, level.reshape(-1)).reshape(-1, 1).astype(np.longdouble)

    def objective(x: Array) -> Array:
        return (x - at) ** 2 / 2 + s * cost(abs(x), price)

    reach = np.abs(at) + 1e-3
    grid = np.linspace(0.0 if nonnegative else -1.0, 1.0, 4001, dtype=np.longdouble) * reach
    width = grid[:, 1:2] - grid[:, :1]
    best = np.take_along_axis(grid, objective(grid).argmin(axis=1)[:, None], axis=1)
    low, high = best - width, best + width
    golden = (np.sqrt(np.longdouble(5)) - 1) / 2
    for _ in range(80):
        left, right = high - golden * (high - low), low + golden * (high - low)
        down = objective(left) < objective(right)
        low, high = np.where(down, low, left), np.where(down, right, high)
    inside = np.maximum(at, 0.0) if nonnegative else at
    refined = (low + high) / 2
    candidates = np.hstack([np.zeros_like(at), inside, np.maximum(refined, 0.0) if nonnegative else refined])
    values = objective(candidates)
    values[:, 1:] += 1e-17  # what ties with zero is zero
    found = np.take_along_axis(candidates, values.argmin(axis=1)[:, None], axis=1)[:, 0]
    found = np.where(step.reshape(-1) == 0, inside[:, 0], found)
    return np.where(held, 0.0, found).astype(float).reshape(w.shape)


def _row(
    name: str, make: Callable[..., Penalty], cost: Cost, *, slope: bool, weighted: bool, nonnegative: bool
) -> Whole:
    def levels(shape: Shape) -> Array:
        pattern = [1.0, 0.0, INF, 2.5, 0.5] if weighted else [1.0]
        size = int(np.prod(shape))
        return STRENGTH * np.array(list(itertools.islice(itertools.cycle(pattern), size))).reshape(shape)

    def build(shape: Shape) -> Penalty:
        weights = torch.tensor(levels(shape) / STRENGTH) if weighted else None
        return make(STRENGTH, weights=weights, nonnegative=nonnegative)

    def value(x: Array) -> float:
        level = levels(x.shape)
        if np.any(x[np.isinf(level)] != 0) or (nonnegative and np.any(x < 0)):
            return INF
        return float(np.sum(cost(np.abs(x), np.where(np.isinf(level), 0.0, level))))

    def argmin(w: Array, step: Array) -> Array:
        return argmin_entries(cost, levels(w.shape), w, step, nonnegative=nonnegative)

    return Whole(
        name + "-weighted" * weighted + "-nonnegative" * nonnegative,
        build,
        value,
        argmin,
        ALL,
        zeroes=not weighted,
        has_slope=slope,
    )


def _rows(name: str, make: Callable[..., Penalty], cost: Cost, *, slope: bool = True) -> list[Whole]:
    return [
        _row(name, make, cost, slope=slope, weighted=weighted, nonnegative=nonnegative)
        for weighted in (False, True)
        for nonnegative in (False, True)
    ]


def _mcp(gamma: float) -> Callable[..., Penalty]:
    def make(strength: float, **rest: Any) -> Penalty:
        return MCP(strength, gamma, **rest)

    return make


def _scad(a: float) -> Callable[..., Penalty]:
    def make(strength: float, **rest: Any) -> Penalty:
        return SCAD(strength, a, **rest)

    return make


def _log_sum(epsilon: float) -> Callable[..., Penalty]:
    def make(strength: float, **rest: Any) -> Penalty:
        return LogSum(strength, epsilon, **rest)

    return make


CASES: list[Whole] = [
    *_rows("mcp3", _mcp(3.0), mcp(3.0)),
    *_rows("mcp0.25", _mcp(0.25), mcp(0.25)),  # every step of the table but 0 jumps
    *_rows("scad3.7", _scad(3.7), scad(3.7)),
    *_rows("scad2.1", _scad(2.1), scad(2.1)),
    *_rows("log0.1", _log_sum(0.1), log_sum(0.1)),
    *_rows("log2", _log_sum(2.0), log_sum(2.0)),
    *_rows("l0", L0, count, slope=False),
    *_rows("lhalf", LHalf, root, slope=False),
]
