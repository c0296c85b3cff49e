"""The sparsity of a model as a table: exact zeros, near zeros, dead rows and columns."""

from dataclasses import dataclass

from torch import Tensor, nn

from torchlasso.rules import candidates
from torchlasso.tables import render_table

NEAR = 1e-3
"""A weight is *near* zero if it is not zero but below this fraction of its tensor's largest magnitude."""

_COLUMNS = ("tensor", "shape", "entries", "zeros", "sparsity", "near zeros", "dead rows", "dead columns")


@dataclass(frozen=True)
class SparsityRow:
    """The zeros of one tensor.

    Attributes:
        name: the tensor's name.
        shape: its shape.
        numel: number of entries.
        zeros: number of entries that are exactly zero.
        near_zeros: entries that are not zero, but below a thousandth of the largest magnitude.
        dead_rows: how many rows (neurons, filters; dimension 0) are zero throughout; None for vectors.
        dead_columns: how many columns (inputs; dimension 1) are zero throughout; None for vectors.
    """

    name: str
    shape: tuple[int, ...]
    numel: int
    zeros: int
    near_zeros: int
    dead_rows: int | None
    dead_columns: int | None

    @property
    def sparsity(self) -> float:
        """The fraction of exact zeros."""
        return self.zeros / self.numel if self.numel else 0.0


@dataclass(frozen=True)
class SparsityTable:
    """The zeros of every tensor of a model; ``print`` it for the table."""

    rows: tuple[SparsityRow, ...]

    @property
    def numel(self) -> int:
        """Number of entries in all tensors."""
        return sum(row.numel for row in self.rows)

    @property
    def zeros(self) -> int:
        """Number of entries that are exactly zero in all tensors."""
        return sum(row.zeros for row in self.rows)

    @property
    def total(self) -> float:
        """The fraction of all entries that is exactly zero."""
        return self.zeros / self.numel if self.numel else 0.0

    def __str__(self) -> str:
        cells: list[tuple[object, ...]] = [
            (*_cells(row), row.dead_rows, row.dead_columns) for row in self.rows
        ]
        near = sum(row.near_zeros for row in self.rows)
        counts = f"{self.numel:,}", f"{self.zeros:,}", f"{self.total:.2%}", f"{near:,}"
        cells.append(("total", "", *counts, "", ""))
        return render_table(_COLUMNS, cells)


def sparsity(model: nn.Module) -> SparsityTable:
    """Count the exact zeros of every parameter of a model; tied parameters count once.

    Args:
        model: any module.

    Returns:
        A table with one row a tensor; ``.total`` is the fraction of exact zeros over all of them.

    Example:
        >>> import torch
        >>> layer = nn.Linear(3, 2, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 1e-6]]))
        >>> print(sparsity(layer))
          tensor   shape   entries   zeros   sparsity   near zeros   dead rows   dead columns
         ─────────────────────────────────────────────────────────────────────────────────────
          weight   2×3           6       4     66.67%            1           1              1
          total                  6       4     66.67%            1
        >>> round(sparsity(layer).total, 2)
        0.67
    """
    return SparsityTable(tuple(count_zeros(c.names[0], c.parameter.detach()) for c in candidates(model)))


def count_zeros(name: str, tensor: Tensor) -> SparsityRow:
    """Count the zeros of one tensor.

    Args:
        name: how to call it.
        tensor: any tensor.
    """
    zero = tensor == 0
    magnitude = tensor.abs()
    largest = magnitude.max() if tensor.numel() else magnitude.new_zeros(())
    near = int(((magnitude < NEAR * largest) & ~zero).sum())
    return SparsityRow(
        name,
        tuple(tensor.shape),
        tensor.numel(),
        int(zero.sum()),
        near,
        _dead(zero, 0) if tensor.ndim > 1 else None,
        _dead(zero, 1) if tensor.ndim > 1 else None,
    )


def _dead(zero: Tensor, dim: int) -> int:
    return int(zero.movedim(dim, 0).reshape(zero.shape[dim], -1).all(dim=1).sum()) if zero.numel() else 0


def _cells(row: SparsityRow) -> tuple[str, str, str, str, str, str]:
    shape = "×".join(map(str, row.shape)) or "scalar"
    return row.name, shape, f"{row.numel:,}", f"{row.zeros:,}", f"{row.sparsity:.2%}", f"{row.near_zeros:,}"
