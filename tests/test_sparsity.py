"""Zeros counted by hand."""

import re

import pytest
import torch
from torch import nn

import torchlasso as tl
from torchlasso.sparsity import SparsityTable, count_zeros


def test_numbers_by_hand() -> None:
    w = torch.tensor(
        [[0.0, -0.0, 0.0, 0.0], [0.0, 2.0, 1e-3, -1.9e-3], [0.0, 5e-324, -2.0, 2e-3]], dtype=torch.float64
    )
    row = count_zeros("w", w)
    assert (row.name, row.shape, row.numel) == ("w", (3, 4), 12)
    assert row.zeros == 6  # a zero of either sign; 5e-324 is not one
    assert row.near_zeros == 3  # below 2/1000 and not zero: 2e-3 itself is not below
    assert (row.dead_rows, row.dead_columns) == (1, 1)
    assert row.sparsity == 0.5


def test_filters_and_their_inputs_die_whole() -> None:
    w = torch.ones(4, 3, 2, 2)
    w[1], w[2], w[:, 0], w[3, 1, 0, 0] = 0, 0, 0, 0
    row = count_zeros("conv", w)
    assert (row.dead_rows, row.dead_columns) == (2, 1)
    assert row.zeros == 2 * 12 + 2 * 4 + 1


def test_vectors_and_scalars_have_no_rows() -> None:
    for tensor, zeros in ((torch.zeros(3), 3), (torch.tensor(0.0), 1), (torch.tensor(2.0), 0)):
        row = count_zeros("v", tensor)
        assert (row.zeros, row.near_zeros, row.dead_rows, row.dead_columns) == (zeros, 0, None, None)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_empty_tensors_count_nothing(shape: tuple[int, ...]) -> None:
    row = count_zeros("e", torch.zeros(shape))
    assert (row.numel, row.zeros, row.near_zeros, row.sparsity) == (0, 0, 0, 0.0)
    assert row.dead_rows in (None, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
def test_all_dtypes_are_counted(dtype: torch.dtype) -> None:
    row = count_zeros("w", torch.tensor([0.0, 1.0, 1e-5]).to(dtype))
    assert (row.zeros, row.near_zeros) == (1, 1)


def test_nan_is_no_zero() -> None:
    row = count_zeros("w", torch.tensor([[float("nan"), 0.0], [0.0, 0.0]]))
    assert (row.zeros, row.dead_rows, row.dead_columns) == (3, 1, 1)


def _model() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4, bias=False))
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    model[0].weight.data[0] = 0
    model[0].bias.data.zero_()
    return model


def test_the_total_is_over_all_entries() -> None:
    table = tl.sparsity(_model())
    assert [row.name for row in table.rows] == ["0.weight", "0.bias", "1.weight"]
    assert (table.zeros, table.numel) == (7, 12 + 3 + 12)
    assert table.total == pytest.approx(7 / 27)


def test_tied_parameters_count_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    assert tl.sparsity(model).numel == 9


def test_the_table_reads_as_counted() -> None:
    cells = [re.split(r"\s{2,}", line.strip()) for line in str(tl.sparsity(_model())).splitlines()]
    assert cells[0] == [
        "tensor",
        "shape",
        "entries",
        "zeros",
        "sparsity",
        "near zeros",
        "dead rows",
        "dead columns",
    ]
    assert cells[2:] == [
        ["0.weight", "3×4", "12", "4", "33.33%", "0", "1", "0"],
        ["0.bias", "3", "3", "3", "100.00%", "0", "–", "–"],
        ["1.weight", "4×3", "12", "0", "0.00%", "0", "0", "0"],
        ["total", "27", "7", "25.93%", "0"],
    ]


def test_large_counts_have_separators() -> None:
    table = str(tl.sparsity(nn.Linear(1000, 2, bias=False)))
    assert "2,000" in table


def test_a_model_without_parameters_is_not_sparse() -> None:
    table = tl.sparsity(nn.ReLU())
    assert table == SparsityTable(())
    assert table.total == 0.0
    assert "total" in str(table)


def test_counting_leaves_the_model_alone() -> None:
    model = _model()
    before = [p.detach().clone() for p in model.parameters()]
    tl.sparsity(model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
