"""How the entries of one tensor fall into groups.

A layout answers two questions, and every group penalty is written in terms of them alone: what is the
sum over each group (``sum``), and how does one value a group spread over the tensor (``expand``).  A
tensor whose groups cross a shard boundary is a layout whose ``sum`` also adds over the shards.
"""

import math
import operator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from torchlasso.errors import InputError

GroupSpec = str | tuple[tuple[int, ...], ...]
"""``"rows"``, ``"columns"``, ``"kernels"``, ``"tensor"``, ``"pairs"``, or index lists along dimension 1."""

_KEPT_DIMS = {"rows": (0,), "columns": (1,), "kernels": (0, 1), "tensor": (), "pairs": ()}


class GroupLayout(Protocol):
    """The groups of one tensor."""

    @property
    def count(self) -> int:
        """The number of groups."""

    @property
    def sizes(self) -> Tensor:
        """The number of entries of each group, a float64 vector of length ``count``."""

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of ``values`` (shaped as the tensor) over each group, a vector."""

    def expand(self, per_group: Tensor) -> Tensor:
        """Return a vector of one value a group as a tensor that broadcasts against the tensor."""


@dataclass(frozen=True)
class KeptDims:
    """Groups that share their index along the kept dimensions: rows, columns, kernels, all."""

    shape: tuple[int, ...]
    kept: tuple[int, ...]

    @property
    def count(self) -> int:
        """The number of groups."""
        return math.prod(self.shape[dim] for dim in self.kept)

    @property
    def sizes(self) -> Tensor:
        """The number of entries of each group."""
        size = math.prod(n for dim, n in enumerate(self.shape) if dim not in self.kept)
        return torch.full((self.count,), float(size), dtype=torch.float64, device="cpu")

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over each group."""
        dims = [dim for dim in range(len(self.shape)) if dim not in self.kept]
        return (values.sum(dims) if dims else values).reshape(-1)

    def expand(self, per_group: Tensor) -> Tensor:
        """Return one value a group, shaped to broadcast against the tensor."""
        return per_group.reshape([n if dim in self.kept else 1 for dim, n in enumerate(self.shape)])


@dataclass(frozen=True, eq=False)
class Indexed:
    """Groups of indices along one dimension; a group holds all entries at its indices.

    ``numbers`` is the group of each position along ``dim``.  It is no tensor, because layouts are cached:
    one first made in inference mode or under a default device would be of no use anywhere else.
    """

    shape: tuple[int, ...]
    dim: int
    numbers: "np.ndarray[tuple[int], np.dtype[np.int64]]"
    count: int

    @property
    def sizes(self) -> Tensor:
        """The number of entries of each group."""
        others = math.prod(n for dim, n in enumerate(self.shape) if dim != self.dim)
        counts = np.bincount(self.numbers, minlength=self.count)
        return torch.from_numpy(counts.astype(np.float64) * others)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over each group."""
        others = [dim for dim in range(len(self.shape)) if dim != self.dim]
        totals = values.sum(others) if others else values
        return totals.new_zeros(self.count).index_add(0, self._index(values), totals)

    def expand(self, per_group: Tensor) -> Tensor:
        """Return one value a group, shaped to broadcast against the tensor."""
        spread = per_group[self._index(per_group)]
        return spread.reshape([n if dim == self.dim else 1 for dim, n in enumerate(self.shape)])

    def _index(self, like: Tensor) -> Tensor:
        return torch.from_numpy(self.numbers).to(like.device)


def normalise_groups(groups: object) -> GroupSpec:
    """Check what a user calls ``groups`` and return it in a hashable form.

    Args:
        groups: ``"rows"``, ``"columns"``, ``"kernels"``, ``"tensor"``, ``"pairs"`` (what lies along the last
            dimension), or lists of indices along dim 1.

    Raises:
        InputError: an unknown name, an empty list, a negative index, or overlapping groups.

    Example:
        >>> normalise_groups([[0, 2], [1]])
        ((0, 2), (1,))
    """
    if isinstance(groups, str):
        if groups not in _KEPT_DIMS:
            msg = f"groups must be one of {sorted(_KEPT_DIMS)} or lists of column indices, got {groups!r}"
            raise InputError(msg)
        return groups
    lists = _whole_numbers(groups)
    flat = [i for group in lists for i in group]
    if not lists or not all(lists) or min(flat) < 0:
        msg = "groups as index lists must be non-empty lists of indices that are zero or more"
        raise InputError(msg)
    if len(set(flat)) != len(flat):
        twice = sorted({i for i in flat if flat.count(i) > 1})
        msg = f"groups must not overlap, but {twice} are in more than one; give each index to one group"
        raise InputError(msg)
    return lists


def _whole_numbers(groups: object) -> tuple[tuple[int, ...], ...]:
    try:
        return tuple(tuple(operator.index(i) for i in group) for group in groups)  # type: ignore[attr-defined]
    except TypeError:
        msg = f"groups must be one of {sorted(_KEPT_DIMS)} or lists of whole numbers, got {groups!r}"
        raise InputError(msg) from None


@lru_cache(maxsize=1024)
def layout_of(groups: GroupSpec, shape: tuple[int, ...]) -> GroupLayout:
    """Return the layout that ``groups`` describes for a tensor of this shape.

    Raises:
        InputError: the shape has too few dimensions, or index lists do not cover dimension 1 exactly.

    Example:
        >>> layout_of("columns", (2, 3)).sum(torch.ones(2, 3))
        tensor([2., 2., 2.])
    """
    if isinstance(groups, str):
        kept = tuple(range(len(shape) - 1)) if groups == "pairs" else _KEPT_DIMS[groups]
        if kept and max(kept) >= len(shape):
            msg = f"groups={groups!r} needs a tensor of {max(kept) + 1} dimensions or more, got shape {shape}"
            raise InputError(msg)
        return KeptDims(shape, kept)
    if not shape:
        msg = "groups as index lists need a tensor of one dimension or more, got a scalar"
        raise InputError(msg)
    dim = min(1, len(shape) - 1)
    expected, got = set(range(shape[dim])), {i for group in groups for i in group}
    if expected != got:
        raise InputError(_coverage_message(expected, got, shape, dim))
    numbers = np.empty(shape[dim], dtype=np.int64)
    for number, group in enumerate(groups):
        numbers[list(group)] = number
    return Indexed(shape, dim, numbers, len(groups))


def _coverage_message(expected: set[int], got: set[int], shape: tuple[int, ...], dim: int) -> str:
    missing, beyond = sorted(expected - got), sorted(got - expected)
    found = f"indices {beyond} are out of range" if beyond else f"indices {missing} are in no group"
    return (
        f"groups must cover every index of dimension {dim} of shape {shape} once, but {found}; "
        "a group with weight 0 is left unpenalised"
    )
