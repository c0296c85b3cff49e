"""Rows of a matrix that may be stored sparse (torch's CSR), and the moments of its columns."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear


def is_sparse_rows(inputs: Tensor) -> bool:
    """Return whether a matrix is stored as sparse rows.

    Args:
        inputs: ``[n, p]``.
    """
    return inputs.layout == torch.sparse_csr


def sparse_rows(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return a torch CSR matrix.

    Args:
        starts: ``[n + 1]``: where each row begins among the values.
        columns: the column of each value, growing within a row.
        values: what is not zero.
        shape: ``(n, p)``.

    Example:
        >>> matrix = sparse_rows(torch.tensor([0, 1, 1]), torch.tensor([2]), torch.tensor([5.0]), (2, 3))
        >>> matrix.to_dense()
        tensor([[0., 0., 5.],
                [0., 0., 0.]])
    """
    with warnings.catch_warnings():
        # torch says once a process that CSR is in beta; what is used here is tested against dense matrices.
        warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)", category=UserWarning)
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


def from_scipy(matrix: Any) -> Tensor:
    """Return a SciPy matrix or array in CSR form as a torch matrix that shares nothing with it.

    Args:
        matrix: of any order of its indices, which may repeat.
    """
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    starts, columns = torch.tensor(matrix.indptr), torch.tensor(matrix.indices)
    return sparse_rows(starts.long(), columns.long(), torch.tensor(matrix.data), tuple(matrix.shape))


def take_rows(inputs: Tensor, chosen: Tensor) -> Tensor:
    """Return some rows of a matrix.

    Args:
        inputs: ``[n, p]``, dense or sparse rows.
        chosen: their numbers.

    Example:
        >>> starts, columns = torch.tensor([0, 1, 2]), torch.tensor([2, 0])
        >>> matrix = sparse_rows(starts, columns, torch.tensor([5.0, 7.0]), (2, 3))
        >>> take_rows(matrix, torch.tensor([1, 0, 1])).to_dense()
        tensor([[7., 0., 0.],
                [0., 0., 5.],
                [7., 0., 0.]])
    """
    if not is_sparse_rows(inputs):
        return inputs[chosen]
    starts = inputs.crow_indices()
    counts = starts.diff()[chosen]
    ends = counts.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    offsets = (starts[:-1][chosen] - ends + counts).repeat_interleave(counts)
    places = torch.arange(total, device=counts.device) + offsets
    return sparse_rows(
        torch.cat([ends.new_zeros(1), ends]),
        inputs.col_indices()[places],
        inputs.values()[places],
        (len(chosen), inputs.shape[1]),
    )


def split_rows(inputs: Tensor, size: int) -> tuple[Tensor, ...]:
    """Return a matrix in parts of so many rows, as ``Tensor.split`` does for a dense one.

    Args:
        inputs: ``[n, p]``, dense or sparse rows.
        size: rows a part; the last has the rest.
    """
    if not is_sparse_rows(inputs):
        parts: tuple[Tensor, ...] = inputs.split(size)
        return parts
    if size >= len(inputs):
        return (inputs,)
    numbers = torch.arange(len(inputs), device=inputs.device)
    return tuple(take_rows(inputs, rows) for rows in numbers.split(size))


def column_moments(inputs: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean, the standard deviation and the largest magnitude of every column.

    Args:
        inputs: ``[n, p]``, dense or sparse rows.
        weights: of the rows, of mean 1, or None.
    """
    if not is_sparse_rows(inputs):
        if weights is None:
            return inputs.mean(dim=0), inputs.std(dim=0, correction=0), inputs.abs().amax(dim=0)
        mean = (weights[:, None] * inputs).mean(dim=0)
        square = (weights[:, None] * (inputs - mean).square()).mean(dim=0)
        return mean, square.sqrt(), inputs.abs().amax(dim=0)
    counts = inputs.crow_indices().diff()
    columns, values = inputs.col_indices(), inputs.values()
    w = torch.ones(len(inputs), dtype=values.dtype, device=values.device) if weights is None else weights
    of_value = w.repeat_interleave(counts) / len(inputs)
    empty = torch.zeros(inputs.shape[1], dtype=values.dtype, device=values.device)
    mean = empty.index_add(0, columns, of_value * values)
    # The values that are stored, and the zeros that are not: both are as far from the mean as they are.
    stored = empty.index_add(0, columns, of_value)
    square = empty.index_add(0, columns, of_value * (values - mean[columns]).square())
    square = square + (w.mean() - stored).clamp_min(0.0) * mean.square()
    return mean, square.sqrt(), empty.scatter_reduce(0, columns, values.abs(), "amax")


def centred_product(inputs: Tensor, mean: Tensor, left_out: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the map from weights and biases to ``(X − mean)·Wᵀ + b``; sparse rows are never filled in.

    Args:
        inputs: ``X``, ``[n, p]``, dense or sparse rows.
        mean: of its columns.
        left_out: the columns to take for zero.
    """
    if not is_sparse_rows(inputs):
        centred = torch.where(left_out, 0.0, inputs - mean)
        return lambda weight, bias: linear(centred, weight, bias)
    columns = inputs.col_indices()
    values = torch.where(left_out[columns], 0.0, inputs.values())
    kept = sparse_rows(inputs.crow_indices(), columns, values, (inputs.shape[0], inputs.shape[1]))
    shift = torch.where(left_out, 0.0, mean)
    return lambda weight, bias: linear(kept, weight, bias - weight @ shift)
