"""The table of penalties that all conformance tests run over: a new penalty is one more row."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import torchlasso as tl
from tests.penalties.brute import Array, Block
from torchlasso.penalties.base import Penalty

STRENGTH = 0.75
INF = float("inf")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A penalty, and the same thing in plain numpy.

    Attributes:
        name: shown as the test's id.
        build: returns the penalty for tensors of a shape.
        blocks: returns its definition for tensors of a shape.
        shapes: where it is legal.
        l1_part: the factor of the norm; without one nothing becomes zero.
    """

    name: str
    build: Callable[[Shape], Penalty]
    blocks: Callable[[Shape], list[Block]]
    shapes: tuple[Shape, ...]
    l1_part: float = 1.0

    def __repr__(self) -> str:
        return self.name


VECTOR, MATRIX, FILTERS, NO_ROWS, NO_COLUMNS = (6,), (3, 4), (2, 3, 2, 2), (0, 4), (3, 0)
ALL = (VECTOR, MATRIX, FILTERS, NO_ROWS, NO_COLUMNS)
TWO_DIMENSIONS = (MATRIX, FILTERS, NO_ROWS, NO_COLUMNS)


def _pattern(count: int) -> Array:
    """Weights that keep, exclude and shrink by various amounts."""
    return np.array(list(itertools.islice(itertools.cycle([1.0, 0.0, INF, 2.5, 0.5]), count)))


def _separable(
    name: str,
    make: Callable[..., Penalty],
    *,
    shares: tuple[float, float],
    weighted: bool = False,
    nonnegative: bool = False,
) -> Case:
    def build(shape: Shape) -> Penalty:
        weights = torch.tensor(_pattern(int(np.prod(shape)))).reshape(shape) if weighted else None
        return make(STRENGTH, weights=weights, nonnegative=nonnegative)

    def blocks(shape: Shape) -> list[Block]:
        count = int(np.prod(shape))
        c = _pattern(count) if weighted else np.ones(count)
        finite = np.where(np.isinf(c), 0.0, c) * STRENGTH
        a, b = shares
        return [
            Block(np.array([i]), a * finite[i], b * finite[i], nonnegative, bool(np.isinf(c[i])))
            for i in range(count)
        ]

    return Case(name, build, blocks, ALL, l1_part=shares[0])


def _elastic(ratio: float, *, weighted: bool = False, nonnegative: bool = False) -> Case:
    def make(strength: float, *, weights: Tensor | None, nonnegative: bool) -> Penalty:
        return tl.ElasticNet(strength, l1_ratio=ratio, weights=weights, nonnegative=nonnegative)

    name = f"elastic{ratio}" + "-weighted" * weighted + "-nonnegative" * nonnegative
    shares = (ratio, 1 - ratio)
    return _separable(name, make, shares=shares, weighted=weighted, nonnegative=nonnegative)


def _members(groups: str, shape: Shape) -> list[Array]:
    """Return the flat indices of every group, by walking over the tensor."""
    key: Callable[[Shape], Shape] = {
        "rows": lambda i: i[:1],
        "columns": lambda i: i[1:2],
        "kernels": lambda i: i[:2],
        "tensor": lambda i: (),
        "lists": lambda i: (int(i[min(1, len(shape) - 1)] in (0, 2)),),
    }[groups]
    found: dict[Shape, list[int]] = {}
    for flat, index in enumerate(np.ndindex(*shape)):
        found.setdefault(key(index), []).append(flat)
    return [np.array(found[name]) for name in sorted(found)]


def _index_lists(shape: Shape) -> list[list[int]]:
    positions = range(shape[min(1, len(shape) - 1)])
    return [[i for i in positions if i not in (0, 2)], [2, 0]]


def _group(groups: str, weights: str | None, shapes: tuple[Shape, ...]) -> Case:
    def chosen(shape: Shape) -> Array:
        members = _members(groups, shape)
        if weights == "sqrt":
            return np.array([np.sqrt(len(m)) for m in members])
        return np.ones(len(members)) if weights is None else _pattern(len(members))

    def build(shape: Shape) -> Penalty:
        given = torch.tensor(_pattern(_count(groups, shape))) if weights == "tensor" else weights
        return tl.GroupLasso(
            STRENGTH, groups=_index_lists(shape) if groups == "lists" else groups, weights=given
        )

    def blocks(shape: Shape) -> list[Block]:
        c = chosen(shape)
        finite = np.where(np.isinf(c), 0.0, c) * STRENGTH
        pairs = zip(_members(groups, shape), finite, np.isinf(c), strict=True)
        return [Block(members, level, excluded=bool(out)) for members, level, out in pairs]

    return Case(f"group-{groups}-{weights}", build, blocks, shapes)


def _count(groups: str, shape: Shape) -> int:
    kept = {"rows": 1, "columns": 1, "kernels": 2, "tensor": 0, "lists": 0}[groups]
    if groups == "lists":
        return 2
    return int(np.prod(shape[1:2] if groups == "columns" else shape[:kept]))


def _l1(strength: float, *, weights: Tensor | None, nonnegative: bool) -> Penalty:
    return tl.L1(strength, weights=weights, nonnegative=nonnegative)


CASES = [
    _separable("l1", _l1, shares=(1.0, 0.0)),
    _separable("l1-weighted", _l1, shares=(1.0, 0.0), weighted=True),
    _separable("l1-nonnegative", _l1, shares=(1.0, 0.0), nonnegative=True),
    _separable("l1-weighted-nonnegative", _l1, shares=(1.0, 0.0), weighted=True, nonnegative=True),
    _elastic(0.0),
    _elastic(0.25),
    _elastic(1.0),
    _elastic(0.5, weighted=True),
    _elastic(0.5, nonnegative=True),
    _elastic(0.75, weighted=True, nonnegative=True),
    _elastic(0.0, weighted=True, nonnegative=True),
    _group("rows", "sqrt", ALL),
    _group("rows", None, ALL),
    _group("rows", "tensor", ALL),
    _group("columns", "sqrt", TWO_DIMENSIONS),
    _group("columns", "tensor", TWO_DIMENSIONS),
    _group("kernels", "sqrt", TWO_DIMENSIONS),
    _group("kernels", "tensor", TWO_DIMENSIONS),
    _group("tensor", "sqrt", ALL),
    _group("tensor", None, ALL),
    _group("lists", "sqrt", (VECTOR, MATRIX, FILTERS, NO_ROWS)),
    _group("lists", "tensor", (VECTOR, MATRIX, FILTERS, NO_ROWS)),
]

ROWS = [(case, shape) for case in CASES for shape in case.shapes]
FILLED = [(case, shape) for case, shape in ROWS if np.prod(shape) > 0]


def point(shape: Shape, seed: int = 0) -> Array:
    """Return weights that every dtype holds exactly: multiples of 1/8, with zeros of both signs."""
    w = np.round(np.random.default_rng(seed).normal(size=shape) * 16) / 8
    flat = w.reshape(-1)
    flat[3::7] = 0.0
    flat[5::7] = -0.0
    if len(shape) > 1 and shape[0] > 1:
        w[-1] *= 0.125  # one small row
    return w


def metric(shape: Shape) -> Array:
    """Return an elementwise step of very different sizes, zeros among them."""
    d = 2.0 ** np.random.default_rng(1).integers(-5, 3, size=shape)
    d.reshape(-1)[1::5] = 0.0
    return d


def steps(shape: Shape) -> dict[str, float | Array]:
    """Return the steps of the table."""
    return {"0": 0.0, "0.3": 0.3, "1000": 1e3, "metric": metric(shape)}
