"""What a user calls ``groups``: names, lists of columns, tiles, attention heads and recurrent units.

A description fits tensors of many shapes; ``layout_of`` turns it into the layout of one.
"""

import operator
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import numpy as np

from torchlasso.errors import InputError
from torchlasso.layouts import Fold, Folded, GroupLayout, Indexed, KeptDims

_KEPT_DIMS = {"rows": (0,), "channels": (0,), "columns": (1,), "kernels": (0, 1), "tensor": (), "pairs": ()}
_EXPECTED = f"one of {sorted(_KEPT_DIMS)}, Blocks(...), Heads(...), Units(...)"


class Grouping(ABC):
    """A description of groups that is more than a name.  It is hashable, and equal to its equals."""

    @abstractmethod
    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        """Return the groups of a tensor of this shape.

        Args:
            shape: of the tensor.

        Raises:
            InputError: the shape has no such groups.
        """


GroupSpec = str | tuple[tuple[int, ...], ...] | Grouping
"""``"rows"`` or ``"channels"``, ``"columns"``, ``"kernels"``, ``"tensor"``, ``"pairs"``, index lists along
dimension 1, or a ``Grouping``."""


@final
@dataclass(frozen=True)
class Blocks(Grouping):
    """Tiles of a matrix: ``k`` consecutive weights of a row, or ``r × c`` weights of dimensions 0 and 1.

    What lies along further dimensions (the kernel of a filter) belongs to its tile whole.  In a tensor of one
    dimension ``k`` weights in a row are a group.

    Args:
        size: ``k`` or ``(r, c)``; it must divide the shape.

    Raises:
        InputError: a size that is no whole number of 1 or more.

    Example:
        >>> import torch
        >>> layout_of(Blocks((2, 3)), (4, 6)).sum(torch.ones(4, 6))
        tensor([6., 6., 6., 6.])

    References:
        Gray, Radford and Kingma, "GPU kernels for block-sparse weights", OpenAI (2017).
    """

    size: int | tuple[int, int]

    def __post_init__(self) -> None:
        """Check the size."""
        sizes = self.size if isinstance(self.size, (tuple, list)) else (self.size,)
        checked = tuple(_count(n, "the size of Blocks") for n in sizes)
        if isinstance(self.size, (tuple, list)) and len(checked) != 2:
            msg = f"Blocks takes a whole number k or a pair (r, c), got {self.size!r}"
            raise InputError(msg)
        object.__setattr__(self, "size", checked if len(checked) == 2 else checked[0])

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        """Return the tiles, or raise ``InputError`` for a shape that they do not divide."""
        pair = self.size if isinstance(self.size, tuple) else (1, self.size)
        widths = pair if isinstance(self.size, tuple) or len(shape) != 1 else pair[1:]
        _need_dimension(self, len(widths) - 1, shape)
        folds = [_split(self, shape, dim, width=width) for dim, width in enumerate(widths)]
        return Folded((*folds, *(Fold(n) for n in shape[len(widths) :])))


@final
@dataclass(frozen=True)
class Heads(Grouping):
    """The heads of an attention layer: equal runs of rows (or columns), once or in each of several parts.

    For ``nn.MultiheadAttention``: ``Heads(n, fused=3)`` on ``in_proj_weight`` and ``in_proj_bias``, whose
    three parts are queries, keys and values, ``Heads(n)`` on separate projections, and ``Heads(n, dim=1)``
    on ``out_proj.weight``.  Where a model stores each head's three parts side by side, ``fused`` is 1.

    Args:
        n: number of heads.
        dim: the dimension that they lie along.
        fused: number of parts along ``dim``, each of which has all the heads one after another.

    Raises:
        InputError: a number of heads or parts below 1, or a negative dimension.

    Example:
        >>> import torch
        >>> layout_of(Heads(2, fused=3), (12, 4)).expand(torch.tensor([0.0, 1.0])).flatten()
        tensor([0., 0., 1., 1., 0., 0., 1., 1., 0., 0., 1., 1.])

    References:
        Michel, Levy and Neubig, "Are sixteen heads really better than one?", NeurIPS (2019).
    """

    n: int
    dim: int = 0
    fused: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        _count(self.n, "the number of Heads")
        _count(self.fused, "the number of fused parts")
        _count(self.dim, "the dim of Heads", least=0)

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        """Return the heads, or raise ``InputError`` for a shape that they do not divide."""
        _need_dimension(self, self.dim, shape)
        return _along(shape, self.dim, _split(self, shape, self.dim, repeats=self.fused, groups=self.n))


@final
@dataclass(frozen=True)
class Units(Grouping):
    """The units of a recurrent layer: the rows of a unit in all of its gates are one group.

    For ``weight_ih``, ``weight_hh`` and their biases, of ``gates · hidden_size`` rows: row ``u`` of every
    gate.  A unit whose weights and biases are all zero (one joint block of the four) has a state of zero.

    Args:
        gates: 4 for ``nn.LSTM``, 3 for ``nn.GRU``, 1 for ``nn.RNN``.

    Raises:
        InputError: less than one gate.

    Example:
        >>> import torch
        >>> lstm = torch.nn.LSTM(input_size=5, hidden_size=8)
        >>> layout_of(Units(gates=4), tuple(lstm.weight_hh_l0.shape)).count
        8

    References:
        Wen et al., "Learning intrinsic sparse structures within long short-term memory", ICLR (2018).
    """

    gates: int = 4

    def __post_init__(self) -> None:
        """Check the number."""
        _count(self.gates, "the number of gates")

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        """Return the units, or raise ``InputError`` for a shape that they do not divide."""
        _need_dimension(self, 0, shape)
        return _along(shape, 0, _split(self, shape, 0, repeats=self.gates, width=1))


def _count(number: object, name: str, least: int = 1) -> int:
    try:
        count = operator.index(number)  # type: ignore[arg-type]  # what is no whole number raises
    except TypeError:
        count = least - 1
    if count < least:
        msg = f"{name} must be a whole number of {least} or more, got {number!r}"
        raise InputError(msg)
    return count


def _need_dimension(spec: GroupSpec, dim: int, shape: tuple[int, ...]) -> None:
    if dim >= len(shape):
        msg = f"groups={spec!r} needs a tensor of {dim + 1} dimensions or more, got shape {shape}"
        raise InputError(msg)


def _split(
    spec: Grouping, shape: tuple[int, ...], dim: int, *, repeats: int = 1, groups: int = 0, width: int = 0
) -> Fold:
    """Return a dimension split in three, of which either ``groups`` or ``width`` is what remains."""
    size, known = shape[dim], repeats * (groups or width)
    if size % known:
        divisors = [n for n in range(1, size + 1) if size % n == 0]
        msg = (
            f"groups={spec!r} needs a dimension {dim} that is a multiple of {known}, but that of shape "
            f"{shape} has {size} entries, which {divisors} divide"
        )
        raise InputError(msg)
    return Fold(repeats, groups or size // known, width or size // known)


def _along(shape: tuple[int, ...], dim: int, fold: Fold) -> Folded:
    return Folded((*(Fold(n) for n in shape[:dim]), fold, *(Fold(n) for n in shape[dim + 1 :])))


def normalise_groups(groups: object) -> GroupSpec:
    """Check what a user calls ``groups`` and return it in a hashable form.

    Args:
        groups: ``"rows"``, ``"channels"`` (the same, in a coupled set), ``"columns"``, ``"kernels"``,
            ``"tensor"``, ``"pairs"`` (what lies along the last dimension), ``Blocks``, ``Heads``,
            ``Units``, or lists of indices along dim 1.

    Raises:
        InputError: an unknown name, an empty list, a negative index, or overlapping groups.

    Example:
        >>> normalise_groups([[0, 2], [1]])
        ((0, 2), (1,))
    """
    if isinstance(groups, Grouping):
        return groups
    if isinstance(groups, str):
        if groups not in _KEPT_DIMS:
            msg = f"groups must be {_EXPECTED} or lists of column indices, got {groups!r}"
            raise InputError(msg)
        return groups
    lists = _whole_numbers(groups)
    flat = [i for group in lists for i in group]
    if not lists or not all(lists) or min(flat) < 0:
        msg = "groups as index lists must be non-empty lists of indices that are zero or more"
        raise InputError(msg)
    if len(set(flat)) != len(flat):
        twice = sorted({i for i in flat if flat.count(i) > 1})
        msg = (
            f"groups must not overlap, but {twice} are in more than one; give each index to one group.  For "
            "groups that share columns, repeat these columns in the input and give every group a copy of its "
            "own (the latent group lasso: Jacob, Obozinski and Vert, ICML 2009)"
        )
        raise InputError(msg)
    return lists


def _whole_numbers(groups: object) -> tuple[tuple[int, ...], ...]:
    try:
        return tuple(tuple(operator.index(i) for i in group) for group in groups)  # type: ignore[attr-defined]
    except TypeError:
        msg = f"groups must be {_EXPECTED} or lists of whole numbers, got {groups!r}"
        raise InputError(msg) from None


@lru_cache(maxsize=1024)
def layout_of(groups: GroupSpec, shape: tuple[int, ...]) -> GroupLayout:
    """Return the layout that ``groups`` describes for a tensor of this shape.

    Raises:
        InputError: the shape has too few dimensions or cannot be divided so, or index lists do not cover
            dimension 1 exactly.

    Example:
        >>> import torch
        >>> layout_of("columns", (2, 3)).sum(torch.ones(2, 3))
        tensor([2., 2., 2.])
    """
    if isinstance(groups, Grouping):
        return groups.layout(shape)
    if isinstance(groups, str):
        kept = tuple(range(len(shape) - 1)) if groups == "pairs" else _KEPT_DIMS[groups]
        if kept:
            _need_dimension(groups, max(kept), shape)
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
