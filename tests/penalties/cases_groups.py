"""The penalties on groups as rows of the table of laws; groups are found by walking over the entries."""

import itertools
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import scipy.optimize
import torch

from tests.penalties.brute import Array
from tests.penalties.cases import INF, STRENGTH, Shape
from tests.penalties.whole import Whole
from torchlasso.groups import Blocks, GroupSpec, Heads, Units
from torchlasso.penalties.base import Penalty
from torchlasso.penalties.group_mcp import GroupMCP
from torchlasso.penalties.sparse_group import SparseGroupLasso
from torchlasso.penalties.structured import GroupLasso

Key = Callable[[Shape, Shape], Shape]
"""The name of the group of the entry at an index, in a tensor of a shape."""

Cost = Callable[[Array, float], Array]
"""The price of one group at a weight ``c``, for every row of entries; without constraints."""


def rows(index: Shape, shape: Shape) -> Shape:
    return index[:1]


def columns(index: Shape, shape: Shape) -> Shape:
    return index[1:2]


def whole(index: Shape, shape: Shape) -> Shape:
    return ()


def lists(index: Shape, shape: Shape) -> Shape:
    """``[[1, 3], [0, 2]]``"""
    return (int(index[1] in (0, 2)),)


def blocks(index: Shape, shape: Shape, *, size: Shape) -> Shape:
    return tuple(i // n for i, n in zip(index, size, strict=False))


def heads(index: Shape, shape: Shape, *, n: int, dim: int, fused: int) -> Shape:
    part = shape[dim] // fused
    return ((index[dim] % part) // (part // n),)


def units(index: Shape, shape: Shape, *, gates: int) -> Shape:
    return (index[0] % (shape[0] // gates),)


@cache
def members(key: Key, shape: Shape) -> tuple[Array, ...]:
    """Return the flat indices of every group, by walking over the tensor."""
    found: dict[Shape, list[int]] = {}
    for flat, index in enumerate(np.ndindex(*shape)):
        found.setdefault(key(index, shape), []).append(flat)
    return tuple(np.array(found[name]) for name in sorted(found))


def sparse_group(x: Array, c: float, ratio: float) -> Array:
    """Simon et al. (2013)."""
    return STRENGTH * (ratio * np.abs(x).sum(-1) + (1 - ratio) * c * np.sqrt(np.sum(x * x, -1)))


def group_mcp(x: Array, c: float, gamma: float) -> Array:
    """Zhang (2010) on the norm: the integral of a slope that falls from λc to 0 at γλc."""
    level, norm = STRENGTH * c, np.sqrt(np.sum(x * x, -1))
    return np.where(norm <= gamma * level, level * norm - norm**2 / (2 * gamma), gamma * level**2 / 2)


def argmin_group(cost: Cost, c: float, entry: float, w: Array, step: Array) -> Array:
    """Minimise ``½·Σ(x − w)²/step + cost`` over one group.

    On a sphere there remains ``½·Σ(x − w)²/step + entry·|x|``, whose minimiser there is that of every
    entry alone with some ridge ``μ`` on top.  So the search is along ``μ``: a dense grid, then Brent's
    method around every dip of it, with ``w`` (μ = 0) and zero (μ → ∞) beside them.
    """
    if np.isinf(c) or not step.any():
        return np.zeros_like(w) if np.isinf(c) else w
    price = np.divide(1.0, step, out=np.zeros_like(w), where=step > 0)

    def at(mu: Array) -> Array:
        size = np.maximum(np.abs(w) - step * entry, 0.0) / (1 + step * mu)
        return np.where(step == 0, w, np.sign(w) * size)

    def objective(x: Array) -> Array:
        return np.sum((x - w) ** 2 * price, -1) / 2 + cost(x, c)

    grid = np.linspace(-14, 14, 2001)
    heights = objective(at(10.0 ** grid[:, None]))
    dips = 1 + np.flatnonzero((heights[1:-1] <= heights[:-2]) & (heights[1:-1] <= heights[2:]))
    found = [at(np.zeros(1)), *([] if np.any(w[step == 0]) else [np.zeros_like(w)])]
    for dip in dips[np.argsort(heights[dips])[:8]]:
        bounds = (grid[dip - 1], grid[dip + 1])
        best = scipy.optimize.minimize_scalar(
            lambda mu: float(objective(at(10.0**mu))),
            bounds=bounds,
            method="bounded",
            options={"xatol": 1e-12},
        )
        found.append(at(10.0**best.x))
    heights = np.array([objective(x) for x in found])
    ties = [x for x, height in zip(found, heights, strict=True) if height <= heights.min() + 1e-14]
    return min(ties, key=np.count_nonzero) + 0.0


def _row(
    name: str,
    key: Key,
    groups: GroupSpec,
    shapes: tuple[Shape, ...],
    make: Callable[..., Penalty],
    cost: Cost,
    *,
    entry: float = 0.0,
    weights: str | None = "sqrt",
    scale_free: bool = True,
) -> Whole:
    def levels(shape: Shape) -> list[float]:
        count = len(members(key, shape))
        if weights == "tensor":
            return list(itertools.islice(itertools.cycle([1.0, 0.0, INF, 2.5, 0.5]), count))
        return [np.sqrt(len(m)) if weights == "sqrt" else 1.0 for m in members(key, shape)]

    def build(shape: Shape) -> Penalty:
        given = torch.tensor(levels(shape)) if weights == "tensor" else weights
        return make(STRENGTH, groups=groups, weights=given)

    def value(x: Array) -> float:
        flat, total = x.reshape(-1), 0.0
        for group, c in zip(members(key, x.shape), levels(x.shape), strict=True):
            held = np.isinf(c)
            total += (INF if np.any(flat[group]) else 0.0) if held else float(cost(flat[group], c))
        return total

    def argmin(w: Array, step: Array) -> Array:
        flat, steps = w.reshape(-1).astype(float), np.broadcast_to(step, w.shape).reshape(-1).astype(float)
        x = np.empty_like(flat)
        for group, c in zip(members(key, w.shape), levels(w.shape), strict=True):
            x[group] = argmin_group(cost, c, entry, flat[group], steps[group])
        return x.reshape(w.shape)

    zeroes = weights != "tensor"
    return Whole(name, build, value, argmin, shapes, tolerance=3e-7, zeroes=zeroes, scale_free=scale_free)


VECTOR, MATRIX, FILTERS, NO_ROWS, NO_COLUMNS = (6,), (6, 4), (6, 2, 2, 2), (0, 4), (6, 0)
PLAIN: dict[str, tuple[Key, GroupSpec, tuple[Shape, ...]]] = {
    "rows": (rows, "rows", (VECTOR, MATRIX, FILTERS, NO_ROWS)),
    "columns": (columns, "columns", (MATRIX, FILTERS)),
    "tensor": (whole, "tensor", (VECTOR, MATRIX)),
    "lists": (lists, ((1, 3), (0, 2)), (MATRIX,)),
}
NAMED: dict[str, tuple[Key, GroupSpec, tuple[Shape, ...]]] = {
    "blocks-2": (partial(blocks, size=(1, 2)), Blocks(2), (MATRIX, FILTERS, NO_ROWS)),
    "blocks-2-vector": (partial(blocks, size=(2,)), Blocks(2), (VECTOR,)),
    "blocks-3x2": (partial(blocks, size=(3, 2)), Blocks((3, 2)), (MATRIX, FILTERS)),
    "heads-3": (partial(heads, n=3, dim=0, fused=1), Heads(3), (VECTOR, MATRIX, FILTERS, NO_COLUMNS)),
    "heads-fused": (partial(heads, n=2, dim=0, fused=3), Heads(2, fused=3), (VECTOR, MATRIX, (12, 2))),
    "heads-dim1": (partial(heads, n=2, dim=1, fused=1), Heads(2, dim=1), (MATRIX, FILTERS)),
    "units-2": (partial(units, gates=2), Units(gates=2), (VECTOR, MATRIX, FILTERS, NO_ROWS)),
    "units-1": (partial(units, gates=1), Units(gates=1), (MATRIX,)),
}


def _group_lasso(name: str, weights: str | None = "sqrt") -> Whole:
    key, groups, shapes = NAMED[name]
    return _row(
        f"group-{name}-{weights}",
        key,
        groups,
        shapes,
        GroupLasso,
        partial(sparse_group, ratio=0.0),
        weights=weights,
    )


def _sparse(name: str, ratio: float, weights: str | None = "sqrt") -> Whole:
    key, groups, shapes = (PLAIN | NAMED)[name]
    return _row(
        f"sparse-group-{name}-{ratio}-{weights}",
        key,
        groups,
        shapes,
        partial(SparseGroupLasso, l1_ratio=ratio),
        partial(sparse_group, ratio=ratio),
        entry=STRENGTH * ratio,
        weights=weights,
    )


def _mcp(name: str, gamma: float, weights: str | None = "sqrt") -> Whole:
    key, groups, shapes = (PLAIN | NAMED)[name]
    return _row(
        f"group-mcp-{name}-{gamma}-{weights}",
        key,
        groups,
        shapes,
        partial(GroupMCP, gamma=gamma),
        partial(group_mcp, gamma=gamma),
        weights=weights,
        scale_free=False,
    )


CASES: list[Whole] = [
    *(_group_lasso(name) for name in NAMED),
    _group_lasso("blocks-2", "tensor"),
    _group_lasso("heads-fused", None),
    *(_sparse("rows", ratio) for ratio in (0.0, 0.3, 1.0)),
    _sparse("columns", 0.3),
    *(_sparse(name, 0.3, None) for name in ("tensor", "lists")),
    _sparse("rows", 0.3, "tensor"),
    _sparse("blocks-3x2", 0.5),
    _sparse("units-2", 0.1),
    *(_mcp("rows", gamma) for gamma in (0.25, 1.5, 3.0, 30.0)),
    *(_mcp(name, 3.0, None) for name in ("columns", "tensor", "lists", "heads-fused", "units-2")),
    _mcp("rows", 3.0, "tensor"),
]
