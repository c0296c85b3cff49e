"""How the entries of one tensor fall into groups, in tensors.

A layout answers two questions, and every group penalty is written in terms of them alone: what is the
sum over each group (``sum``), and how does one value a group spread over the tensor (``expand``).  A
tensor whose groups cross a shard boundary is a layout whose ``sum`` also adds over the shards.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor


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


class Fold(NamedTuple):
    """A dimension of ``repeats · groups · width`` entries.

    The entry at ``i`` belongs to the group ``(i // width) % groups`` of the dimension: runs of ``width``
    entries, whose groups come round ``repeats`` times.
    """

    repeats: int = 1
    groups: int = 1
    width: int = 1

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self)


@dataclass(frozen=True)
class Folded:
    """Groups that share their group along every folded dimension: tiles, attention heads, recurrent units.

    Seen with three dimensions for each of its own, ``(repeats, groups, width)``, the tensor has the groups of
    kept dimensions.  A dimension of one group only is left to broadcasting.
    """

    folds: tuple[Fold, ...]

    @property
    def count(self) -> int:
        """The number of groups."""
        return self._unfolded.count

    @property
    def sizes(self) -> Tensor:
        """The number of entries of each group."""
        return self._unfolded.sizes

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over each group."""
        unfolded = self._unfolded
        return unfolded.sum(values.reshape(unfolded.shape))

    def expand(self, per_group: Tensor) -> Tensor:
        """Return one value a group, shaped to broadcast against the tensor."""
        used = [fold if fold.groups != 1 else Fold() for fold in self.folds]
        spread = self._unfolded.expand(per_group).expand([n for fold in used for n in fold])
        return spread.reshape([fold.size for fold in used])

    @property
    def _unfolded(self) -> KeptDims:
        shape = tuple(n for fold in self.folds for n in fold)
        return KeptDims(shape, tuple(range(1, len(shape), 3)))


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
