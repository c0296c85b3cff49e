"""Strengths and weights: what is accepted, what is refused and with which words."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch

import torchlasso as tl
from torchlasso.errors import InputError
from torchlasso.penalties.base import fraction_of_max, split_weights

KINDS: list[Callable[..., object]] = [tl.L1, tl.ElasticNet, tl.GroupLasso]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [-1e-9, math.nan, math.inf, -math.inf, "0.1", b"1", None, 1j, [0.1]])
def test_a_bad_strength_is_refused(kind: Callable[..., object], strength: object) -> None:
    with pytest.raises(InputError, match="strength must be"):
        kind(strength)


@pytest.mark.parametrize(
    "strength", ["0.1 of max", "max", "-0.1max", "nanmax", "1.2.3max", "0.1max ", "auto"]
)
def test_what_is_no_fraction_is_refused_with_an_example(strength: str) -> None:
    with pytest.raises(InputError, match=r"a fraction such as '0.1max', got '"):
        tl.L1(strength)


def test_an_infinite_fraction_is_refused() -> None:
    with pytest.raises(InputError, match="the fraction in '1e999max' must be finite"):
        tl.L1("1e999max")


@pytest.mark.parametrize("strength", ["0.1max", ".1max", "1e-1max", "0.1 max"])
def test_a_fraction_is_kept_as_it_was_written(strength: str) -> None:
    penalty = tl.GroupLasso(strength)
    assert penalty.at(3).strength == strength
    assert fraction_of_max(strength) == 0.1
    with pytest.raises(InputError, match="is a fraction of strength_max and needs data"):
        penalty.prox(torch.ones(2, 2), 0.1)


@pytest.mark.parametrize("strength", [torch.ones(2), np.ones(2)])
def test_several_numbers_are_no_strength(strength: object) -> None:
    with pytest.raises(InputError, match="strength must be a number"):
        tl.L1(strength)  # type: ignore[arg-type]


@pytest.mark.parametrize("strength", [0, 2, np.float32(2), torch.tensor(2.0), Fraction(4, 2), True])
def test_any_kind_of_number_is_a_strength(strength: float) -> None:
    found = tl.L1(strength).current_strength
    assert type(found) is float
    assert found == float(strength)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, "much"])
def test_a_schedule_that_returns_no_strength_is_named(value: float) -> None:
    with pytest.raises(InputError, match="the schedule at step 7"):
        tl.L1(lambda step: value).at(7)


def test_a_fixed_strength_does_not_change_by_step() -> None:
    penalty = tl.L1(0.5)
    assert penalty.at(3) is penalty


def test_resolving_a_schedule_keeps_all_other_arguments() -> None:
    weights = torch.tensor([1.0, 2.0])
    penalty = tl.ElasticNet(lambda step: step, l1_ratio=0.3, weights=weights, nonnegative=True)
    resolved = penalty.at(4)
    assert (resolved.strength, resolved.l1_ratio, resolved.nonnegative) == (4.0, 0.3, True)
    assert resolved.weights is weights
    assert callable(penalty.strength)  # the original still is a schedule


def test_penalties_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        tl.L1(0.5).strength = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("ratio", [-0.01, 1.01, math.nan])
def test_a_ratio_outside_its_range_is_refused(ratio: float) -> None:
    with pytest.raises(InputError, match="l1_ratio must lie between 0"):
        tl.ElasticNet(0.1, l1_ratio=ratio)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", [torch.tensor([1.0, -1.0]), torch.tensor([math.nan]), [1.0, 2.0], 3.0])
def test_bad_weights_are_refused(kind: Callable[..., object], weights: object) -> None:
    with pytest.raises(InputError, match="weights must be"):
        kind(0.1, weights=weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_too_large_for_the_dtype_excludes_nothing(dtype: torch.dtype) -> None:
    weights = torch.tensor([1e300, math.inf, 0.0, 2.0], dtype=torch.float64)
    finite, excluded = split_weights(weights, torch.device("cpu"), dtype)
    assert excluded.tolist() == [False, True, False, False]
    assert finite.isfinite().all()
    assert finite[1:].tolist() == [0.0, 0.0, 2.0]
    assert float(finite[0]) >= 1e38


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("given", [torch.float64, torch.float32, torch.float16, torch.int64])
def test_weights_of_another_dtype_mean_the_same(dtype: torch.dtype, given: torch.dtype) -> None:
    w, weights = torch.tensor([[3.0, -2.0], [1.0, 0.5]], dtype=dtype), torch.tensor([1, 2], dtype=given)
    l1 = tl.L1(0.25, weights=weights).prox(w, 1.0)
    group = tl.GroupLasso(0.25, groups="columns", weights=weights).prox(w.abs().diag().diag(), 1.0)
    assert l1.dtype == group.dtype == dtype
    assert l1.tolist() == [[2.75, -1.5], [0.75, 0.0]]
    assert group.tolist() == [[2.75, 0.0], [0.0, 0.0]]


def test_large_and_small_weights_survive_half_precision() -> None:
    """1e5 is infinite and 1e-8 zero in float16: neither may exclude or free an entry."""
    w = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float16)
    weights = torch.tensor([1e5, 1e-8, math.inf], dtype=torch.float64)
    penalty = tl.L1(5e-6, weights=weights)
    assert penalty.prox(w, 1.0).tolist() == [0.5, 1.0, 0.0]
    assert float(penalty.value(w[:2].repeat(1).new_tensor([1.0, 1.0, 0.0]))) == pytest.approx(0.5)
    assert tl.L1(1.0, weights=weights).strength_max(torch.ones(3, dtype=torch.float16)) == pytest.approx(1e8)


def test_weights_follow_the_tensor_to_its_device() -> None:
    w = torch.ones(2, 3, device="meta")
    for penalty in (tl.L1(0.1, weights=torch.ones(3)), tl.GroupLasso(0.1, weights=torch.ones(2))):
        found = [penalty.prox(w, 0.5), penalty.residual(w, w), penalty.value(w)]
        assert all(tensor.device.type == "meta" for tensor in found)


def test_describe_names_the_penalty_without_its_strength() -> None:
    described = [
        tl.L1(0.1).describe(),
        tl.ElasticNet(0.1, l1_ratio=0.25).describe(),
        tl.GroupLasso(0.1, groups="columns").describe(),
        tl.GroupLasso(0.1, groups=[[0], [1, 2]]).describe(),
    ]
    assert described == ["L1", "ElasticNet(l1_ratio=0.25)", "GroupLasso(columns)", "GroupLasso(2 lists)"]
