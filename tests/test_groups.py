"""Layouts against loops over every entry, and what is refused as a description of groups."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchlasso.errors import InputError
from torchlasso.groups import Blocks, Heads, Units, layout_of, normalise_groups
from torchlasso.layouts import Indexed

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


# ---- tiles, heads and units ----------------------------------------------------------------------


def _group_of(spec: Any, index: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the name of the group of an entry, from the definition."""
    if isinstance(spec, Units):
        return (index[0] % (shape[0] // spec.gates),)
    if isinstance(spec, Heads):
        part = shape[spec.dim] // spec.fused
        return ((index[spec.dim] % part) // (part // spec.n),)
    row = (spec.size,) if len(shape) == 1 else (1, spec.size)
    size = spec.size if isinstance(spec.size, tuple) else row
    return tuple(i // n for i, n in zip(index, size, strict=False))


FOLDED: list[tuple[Any, tuple[int, ...]]] = [
    (Blocks(1), (3, 4)),
    (Blocks(2), (3, 4)),
    (Blocks(4), (3, 4)),
    (Blocks(2), (6,)),
    (Blocks(2), (3, 4, 2, 2)),
    (Blocks((3, 2)), (6, 4)),
    (Blocks((1, 1)), (2, 3)),
    (Blocks((2, 4)), (4, 4, 3)),
    (Blocks(2), (3, 0)),
    (Heads(4), (12, 5)),
    (Heads(1), (3, 4)),
    (Heads(3), (6,)),
    (Heads(2, dim=1), (3, 6)),
    (Heads(2, dim=2), (3, 2, 4)),
    (Heads(2, fused=3), (12, 5)),
    (Heads(2, fused=3), (12,)),
    (Heads(2, dim=1, fused=3), (5, 12)),
    (Units(4), (12, 5)),
    (Units(4), (12,)),
    (Units(3), (6, 2)),
    (Units(1), (3, 4)),
    (Units(2), (4, 3, 2, 2)),
    (Units(4), (0, 3)),
]


@pytest.mark.parametrize(("spec", "shape"), FOLDED, ids=str)
def test_tiles_heads_and_units_are_what_their_definitions_say(spec: Any, shape: tuple[int, ...]) -> None:
    layout = layout_of(spec, shape)
    names = {index: _group_of(spec, index, shape) for index in np.ndindex(*shape)}
    order = {name: number for number, name in enumerate(sorted(set(names.values())))}
    numbers = np.zeros(shape, dtype=int)
    for index, name in names.items():
        numbers[index] = order[name]
    values = np.random.default_rng(0).normal(size=shape)
    assert layout.count == len(order)
    expected = [values[numbers == g].sum() for g in range(layout.count)]
    np.testing.assert_allclose(layout.sum(torch.tensor(values)).numpy(), expected, atol=1e-12)
    assert layout.sizes.tolist() == [float((numbers == g).sum()) for g in range(layout.count)]
    spread = layout.expand(torch.arange(layout.count)).broadcast_to(shape).numpy()
    assert np.array_equal(spread, numbers)


@given(
    gates=st.integers(1, 4),
    groups=st.integers(1, 4),
    width=st.integers(1, 3),
    others=st.lists(st.integers(1, 3), max_size=2),
)
def test_the_expanded_sum_of_ones_is_the_size_of_the_group(
    gates: int, groups: int, width: int, others: list[int]
) -> None:
    shape = (gates * groups * width, *others)
    layout = layout_of(Heads(groups, fused=gates), shape)
    assert layout.count == groups
    assert torch.equal(layout.sum(torch.ones(shape, dtype=torch.float64)), layout.sizes)
    per_group = torch.randn(groups)
    assert torch.allclose(
        layout.sum(layout.expand(per_group).expand(shape)), per_group * layout.sizes.float()
    )


def test_the_heads_of_real_attention_are_those_that_torch_forms() -> None:
    """Torch reads the projection as (3, heads, width): without a head's weights its output is zero."""
    attention = torch.nn.MultiheadAttention(8, num_heads=4, bias=False)
    x = torch.randn(5, 1, 8)
    for head in range(4):
        dead = layout_of(Heads(4, fused=3), (24, 8)).expand(torch.arange(4) == head).expand(24, 8)
        with torch.no_grad():
            weight = attention.in_proj_weight.masked_fill(dead, 0.0)
            other = torch.nn.MultiheadAttention(8, num_heads=4, bias=False)
            other.in_proj_weight.copy_(weight)
            other.out_proj.weight.copy_(torch.eye(8))
            found, _ = other(x, x, x)
        zero = (found == 0).all(0).squeeze(0).view(4, 2)
        assert zero.all(1).tolist() == [h == head for h in range(4)]


def test_descriptions_are_hashable_and_equal_to_their_equals() -> None:
    assert Blocks((2, 3)) == Blocks([2, 3])  # type: ignore[arg-type]
    assert Blocks(2) != Blocks((1, 2))
    assert len({Heads(4), Heads(4, dim=0), Heads(4, fused=3), Units(4), Units(), Blocks(4)}) == 4
    assert normalise_groups(Heads(2)) == Heads(2)
    assert layout_of(Heads(2), (4, 4)) is layout_of(Heads(2), (4, 4))
    with pytest.raises(AttributeError):
        Units(4).gates = 3  # type: ignore[misc]


def test_only_the_dimensions_that_are_split_are_filled() -> None:
    assert layout_of(Heads(2), (4, 1000)).expand(torch.ones(2)).shape == (4, 1)
    assert layout_of(Blocks(2), (4, 6, 3, 3)).expand(torch.ones(12)).shape == (4, 6, 1, 1)


@pytest.mark.parametrize("make", [Blocks, Heads, Units])
@pytest.mark.parametrize("number", [0, -1, 1.5, "2", None])
def test_numbers_that_count_nothing_are_refused(make: Any, number: object) -> None:
    with pytest.raises(InputError, match="whole number of 1 or more"):
        make(number)


def test_other_arguments_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="pair"):
        Blocks((1, 2, 3))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="pair"):
        Blocks((2,))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="fused parts must be"):
        Heads(2, fused=0)
    with pytest.raises(InputError, match="dim of Heads must be a whole number of 0 or more"):
        Heads(2, dim=-1)
    with pytest.raises(InputError, match=r"Blocks\(\.\.\.\), Heads"):
        normalise_groups(Units)


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        (Blocks(3), (2, 4), r"dimension 1 that is a multiple of 3.*has 4 entries, which \[1, 2, 4\] divide"),
        (Blocks((3, 2)), (4, 4), "dimension 0 that is a multiple of 3"),
        (Blocks(4), (6,), "dimension 0 that is a multiple of 4"),
        (Heads(4), (6, 8), "dimension 0 that is a multiple of 4"),
        (Heads(4, fused=3), (16, 8), "dimension 0 that is a multiple of 12"),
        (Heads(4, dim=1), (8, 6), "dimension 1 that is a multiple of 4"),
        (Units(4), (6, 8), "dimension 0 that is a multiple of 4"),
        (Blocks((2, 2)), (4,), "needs a tensor of 2 dimensions"),
        (Blocks(2), (), "needs a tensor of 2 dimensions"),
        (Heads(2, dim=1), (4,), "needs a tensor of 2 dimensions"),
        (Units(1), (), "needs a tensor of 1 dimensions"),
    ],
    ids=str,
)
def test_shapes_without_such_groups_are_refused(spec: Any, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        layout_of(spec, shape)


# ---- what layouts are to the rest ---------------------------------------------------------------


def test_sum_is_differentiable_and_keeps_the_dtype() -> None:
    for groups in ("rows", ((0, 2), (1,)), Heads(2), Units(1)):
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
    with pytest.raises(InputError, match=r"\['channels', 'columns', 'kernels', 'pairs', 'rows', 'tensor'\]"):
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
    with pytest.raises(InputError, match=r"must not overlap, but \[[01]\].*one group.*Jacob.*2009"):
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
