"""Layouts against loops over every entry, and what is refused as a description of groups."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchlasso.errors import InputError
from torchlasso.groups import Indexed, layout_of, normalise_groups

SHAPES = [(4,), (3, 4), (2, 3, 2), (2, 3, 2, 2), (0, 3), (3, 0)]
KEYS = {"rows": (0,), "columns": (1,), "kernels": (0, 1), "tensor": ()}
NAMED = [
    (name, shape) for name, kept in KEYS.items() for shape in SHAPES if all(k < len(shape) for k in kept)
]


def _numbers(shape: tuple[int, ...], groups: Any) -> tuple[np.ndarray, int]:
    """Return the number of the group of every entry, by walking over them, and how many groups there are."""
    numbers = np.zeros(shape, dtype=int)
    if isinstance(groups, str):
        sizes = [shape[k] for k in KEYS[groups]]
        for index in np.ndindex(*shape):
            numbers[index] = np.ravel_multi_index([index[k] for k in KEYS[groups]], sizes) if sizes else 0
        return numbers, math.prod(sizes)
    for index in np.ndindex(*shape):
        position = index[min(1, len(shape) - 1)]
        (numbers[index],) = (g for g, members in enumerate(groups) if position in members)
    return numbers, len(groups)


def _check(groups: Any, shape: tuple[int, ...]) -> None:
    layout = layout_of(normalise_groups(groups), shape)
    numbers, count = _numbers(shape, groups)
    values = np.random.default_rng(0).normal(size=shape)
    expected = np.array([values[numbers == g].sum() for g in range(count)])
    assert layout.count == count
    np.testing.assert_allclose(layout.sum(torch.tensor(values)).numpy(), expected, atol=1e-12)
    assert layout.sizes.tolist() == [float((numbers == g).sum()) for g in range(count)]
    per_group = torch.arange(count, dtype=torch.float64)
    spread = layout.expand(per_group).broadcast_to(shape).numpy()
    assert np.array_equal(spread, numbers)


@pytest.mark.parametrize(("groups", "shape"), NAMED)
def test_named_groups_are_what_their_names_say(groups: str, shape: tuple[int, ...]) -> None:
    _check(groups, shape)


@given(st.data())
def test_any_partition_of_dimension_one_is_a_layout(data: Any) -> None:
    columns = data.draw(st.integers(1, 7))
    order = data.draw(st.permutations(range(columns)))
    cuts = sorted(data.draw(st.sets(st.integers(1, columns - 1)))) if columns > 1 else []
    groups = [order[a:b] for a, b in zip([0, *cuts], [*cuts, columns], strict=True)]
    for shape in ((columns,), (3, columns), (2, columns, 2), (0, columns)):
        _check(groups, shape)


@pytest.mark.parametrize(("groups", "shape"), [("tensor", ()), ("rows", (1,)), ("kernels", (1, 1))])
def test_the_smallest_tensors_have_one_group(groups: str, shape: tuple[int, ...]) -> None:
    layout = layout_of(groups, shape)
    assert layout.count == 1
    assert layout.sum(torch.full(shape, 2.0)).tolist() == [2.0]
    assert layout.sizes.tolist() == [1.0]


def test_sum_is_differentiable_and_keeps_the_dtype() -> None:
    for groups in ("rows", ((0, 2), (1,))):
        values = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
        layout = layout_of(groups, (2, 3))
        total = layout.sum(values)
        weights = torch.tensor([1.0, 2.0], dtype=torch.float64)
        (gradient,) = torch.autograd.grad((total * weights).sum(), values)
        assert total.dtype == torch.float64
        assert torch.equal(gradient, layout.expand(weights).expand(2, 3))


# ---- layouts are cached, so nothing of their first use may stick --------------------------------


def test_a_layout_made_in_inference_mode_works_under_autograd() -> None:
    groups = ((0, 3), (1, 2))
    with torch.inference_mode():
        layout_of(groups, (5, 4)).sum(torch.ones(5, 4))
    values = torch.ones(5, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(layout_of(groups, (5, 4)).sum(values.square()).sum(), values)
    assert torch.equal(gradient, torch.full((5, 4), 2.0))


def test_a_layout_made_under_a_default_device_works_elsewhere() -> None:
    groups = ((0, 4), (1, 2, 3))
    with torch.device("meta"):
        assert layout_of(groups, (2, 5)).sizes.tolist() == [4.0, 6.0]
        assert layout_of("rows", (2, 5)).sizes.tolist() == [5.0, 5.0]
    assert layout_of(groups, (2, 5)).sum(torch.ones(2, 5)).tolist() == [4.0, 6.0]


def test_a_layout_works_on_meta_tensors() -> None:
    for groups in ("columns", ((0, 1), (2,))):
        assert layout_of(groups, (4, 3)).sum(torch.ones(4, 3, device="meta")).device.type == "meta"


def test_equal_requests_share_one_layout() -> None:
    groups = normalise_groups([[0], [1]])
    first = layout_of(groups, (2, 2))
    assert isinstance(first, Indexed)
    assert layout_of(normalise_groups([[0], [1]]), (2, 2)) is first
    assert layout_of(groups, (3, 2)) is not first


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("groups", ["row", "", "Columns"])
def test_unknown_names_are_refused_and_the_known_ones_listed(groups: str) -> None:
    with pytest.raises(InputError, match=r"\['columns', 'kernels', 'pairs', 'rows', 'tensor'\]"):
        normalise_groups(groups)


@pytest.mark.parametrize("groups", [5, None, [0, 1], [[0.5, 1]], [["a"]], [[None]], ["rows"]])
def test_what_is_no_list_of_lists_of_whole_numbers_is_refused(groups: object) -> None:
    with pytest.raises(InputError, match="groups must be one of"):
        normalise_groups(groups)


@pytest.mark.parametrize("groups", [[], [[]], [[0], []], [[-1, 0]]])
def test_empty_groups_and_negative_indices_are_refused(groups: list[list[int]]) -> None:
    with pytest.raises(InputError, match="non-empty lists"):
        normalise_groups(groups)


@pytest.mark.parametrize("groups", [[[0, 1], [1]], [[0, 0]]])
def test_overlaps_are_refused_and_named(groups: list[list[int]]) -> None:
    with pytest.raises(InputError, match=r"must not overlap, but \[[01]\]"):
        normalise_groups(groups)


@pytest.mark.parametrize(
    "groups",
    [np.array([[0, 2], [1, 3]]), torch.tensor([[0, 2], [1, 3]]), ((0, 2), (1, 3)), [range(0, 3, 2), {1, 3}]],
)
def test_any_nesting_of_whole_numbers_is_understood(groups: object) -> None:
    assert normalise_groups(groups) == ((0, 2), (1, 3))


@pytest.mark.parametrize(("groups", "needed"), [("rows", 1), ("columns", 2), ("kernels", 2)])
def test_too_few_dimensions_are_refused(groups: str, needed: int) -> None:
    with pytest.raises(InputError, match=f"needs a tensor of {needed} dimensions"):
        layout_of(groups, (3,) * (needed - 1))


def test_index_lists_need_a_dimension() -> None:
    with pytest.raises(InputError, match="got a scalar"):
        layout_of(((0,),), ())


def test_indices_out_of_range_are_named() -> None:
    with pytest.raises(InputError, match=r"indices \[3, 7\] are out of range"):
        layout_of(((0, 3), (1, 2, 7)), (5, 3))


def test_missing_indices_are_named_with_the_way_out() -> None:
    with pytest.raises(InputError, match=r"indices \[2\] are in no group; a group with weight 0"):
        layout_of(((0, 1),), (5, 3))
