"""The proximal maps against plain numpy, on numbers that hypothesis chooses to hurt."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from torchlasso.groups import KeptDims
from torchlasso.prox import (
    at_least_float32,
    group_norms,
    group_soft_threshold,
    group_soft_threshold_metric,
    soft_threshold,
    soft_threshold_nonnegative,
)

Array = np.ndarray
EPS = {np.float32: float(np.finfo(np.float32).eps), np.float64: float(np.finfo(np.float64).eps)}
WIDTH = {np.float32: 32, np.float64: 64}


def _numbers(dtype: Any, **limits: Any) -> st.SearchStrategy[float]:
    return st.floats(width=WIDTH[dtype], allow_nan=False, allow_infinity=False, **limits)


@st.composite
def _vector_and_threshold(draw: Any) -> tuple[Array, Any]:
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    w = draw(hnp.arrays(dtype, st.integers(0, 9), elements=_numbers(dtype)))
    number = draw(_numbers(dtype, min_value=0.0))
    many = draw(hnp.arrays(dtype, w.shape, elements=_numbers(dtype, min_value=0.0)))
    return w, draw(st.sampled_from([number, many]))


def _as_torch(threshold: Any) -> Any:
    return threshold if isinstance(threshold, float) else torch.tensor(threshold)


def _no_negative_zero(found: Array) -> bool:
    return not np.any(np.signbit(found) & (found == 0))


# ---- one entry at a time ----------------------------------------------------------------------


@given(_vector_and_threshold())
def test_soft_threshold_is_its_formula_to_the_last_bit(case: tuple[Array, Any]) -> None:
    w, threshold = case
    t = np.asarray(threshold, dtype=w.dtype)
    found = soft_threshold(torch.tensor(w), _as_torch(threshold)).numpy()
    assert np.array_equal(found, np.sign(w) * np.maximum(np.abs(w) - t, 0))
    assert found.dtype == w.dtype
    assert _no_negative_zero(found)


@given(_vector_and_threshold())
def test_nonnegative_soft_threshold_is_its_formula_to_the_last_bit(case: tuple[Array, Any]) -> None:
    w, threshold = case
    with np.errstate(over="ignore"):
        expected = np.maximum(w - np.asarray(threshold, dtype=w.dtype), 0)
    found = soft_threshold_nonnegative(torch.tensor(w), _as_torch(threshold)).numpy()
    assert np.array_equal(found, expected)
    assert found.dtype == w.dtype
    assert _no_negative_zero(found)


@pytest.mark.parametrize("prox", [soft_threshold, soft_threshold_nonnegative])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [1e5, 1e39, 1e300, math.inf])
def test_a_threshold_beyond_the_dtype_zeros_everything(
    prox: Any, dtype: torch.dtype, threshold: float
) -> None:
    w = torch.tensor([-1.0, 0.0, 2.0], dtype=dtype)
    assert torch.equal(prox(w, threshold), torch.zeros_like(w))


@pytest.mark.parametrize("prox", [soft_threshold, soft_threshold_nonnegative])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once_and_keeps_its_dtype(prox: Any, dtype: torch.dtype) -> None:
    w = torch.randn(200).to(dtype)
    for threshold in (0.1, torch.full((200,), 0.1), torch.full((200,), 0.1, dtype=torch.float64)):
        found = prox(w, threshold)
        t = threshold if isinstance(threshold, float) else threshold.to(torch.float64)
        expected = prox(w.double(), t).to(dtype)
        assert found.dtype == dtype
        assert torch.allclose(found.float(), expected.float(), rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("prox", [soft_threshold, soft_threshold_nonnegative])
def test_nan_in_either_argument_comes_out(prox: Any) -> None:
    nan = torch.tensor([math.nan, 1.0])
    assert prox(nan, 0.5).isnan().tolist() == [True, False]
    assert prox(torch.ones(2), nan).isnan().tolist() == [True, False]
    assert prox(torch.ones(2), math.nan).isnan().all()


@pytest.mark.parametrize("prox", [soft_threshold, soft_threshold_nonnegative])
def test_infinity_stays(prox: Any) -> None:
    w = torch.tensor([math.inf, -math.inf])
    for threshold in (0.5, torch.tensor([0.5, 0.5]), 1e300):
        assert prox(w, threshold).tolist() == [math.inf, -math.inf if prox is soft_threshold else 0.0]


def test_maps_are_differentiable() -> None:
    w = torch.tensor([2.0, 0.1, -3.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(soft_threshold(w, 0.5).sum(), w)
    assert gradient.tolist() == [1.0, 0.0, 1.0]


# ---- groups -----------------------------------------------------------------------------------


def _rows(shape: tuple[int, int]) -> KeptDims:
    return KeptDims(shape, (0,))


@st.composite
def _matrix(draw: Any, low: float, high: float) -> Array:
    """Return a matrix whose entries are zero or spread over many powers of ten."""
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 6)))
    powers = draw(hnp.arrays(np.float64, shape, elements=st.floats(low, high)))
    signs = draw(hnp.arrays(np.int8, shape, elements=st.sampled_from([-1, 0, 1, 1])))
    return (signs * 10.0**powers).astype(dtype)


@given(_matrix(-36, 36))
@example(np.full((1, 3), 3e38, dtype=np.float32) / 4)
@example(np.full((2, 4), 1e-42, dtype=np.float32))
def test_group_norms_hold_wherever_the_numbers_do(w: Array) -> None:
    found = group_norms(torch.tensor(w), _rows(w.shape)).numpy()
    expected = np.array([math.hypot(*row.astype(float)) for row in w])
    np.testing.assert_allclose(found, expected, rtol=1e-3 if expected.min() < 1e-37 else 1e-5)
    assert np.array_equal(found == 0, ~w.any(axis=1))


def test_gradient_of_a_group_norm_is_the_unit_vector_and_zero_at_zero() -> None:
    w = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 2.0], [3e-30, 4e-30]], requires_grad=True)
    (gradient,) = torch.autograd.grad(group_norms(w, _rows((4, 2))).sum(), w)
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert torch.allclose(gradient, expected)


@given(_matrix(-12, 12), st.data())
def test_group_soft_threshold_is_its_formula(w: Array, data: Any) -> None:
    norms = np.array([math.hypot(*row.astype(float)) for row in w])
    factors = data.draw(hnp.arrays(np.float64, norms.shape, elements=st.floats(0, 2)))
    t = (norms * factors).astype(w.dtype)
    found = group_soft_threshold(torch.tensor(w), torch.tensor(t), _rows(w.shape)).numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.where(norms > 0, np.maximum(1 - t.astype(float) / norms, 0), 1.0)
    expected = w.astype(float) * scale[:, None]
    error = np.abs(found - expected).max(axis=1)
    assert np.all(error <= 8 * EPS[w.dtype.type] * norms)
    assert found.dtype == w.dtype
    assert _no_negative_zero(found)
    assert np.all(found[factors > 1.01] == 0)
    assert np.array_equal(found[t == 0], w[t == 0] + 0.0)


def _metric_reference(w: Array, t: Array) -> Array:
    """Return the group's prox by bisection on its norm in extended precision.

    ``x = w·r/(r + t)`` and ``‖x‖ = r``: the left side over r falls as r grows.
    """
    w, t = w.astype(np.longdouble), t.astype(np.longdouble)
    free = t == 0
    if np.any(w[free] != 0) or np.all(free):
        low = np.longdouble(np.sqrt(np.sum(w[free] ** 2)))
    elif np.sum((w[~free] / t[~free]) ** 2) <= 1:
        return np.zeros(w.shape)
    else:
        low = np.longdouble(0)
    high = np.sqrt(np.sum(w**2))
    for _ in range(20_000):
        middle = np.sqrt(low * high) if low > 0 else high * np.longdouble(1e-4)
        if not low < middle < high:
            break
        if np.sum((w / (middle + t)) ** 2) > 1:
            low = middle
        elif low == 0 and middle < 1e-60:
            break
        else:
            high = middle
    r = high
    return np.asarray(np.where(free, w, w * r / (r + np.where(free, 1, t))), dtype=float)


@given(_matrix(-6, 6), st.data())
def test_group_prox_in_a_metric_is_the_root_whatever_the_metric(w: Array, data: Any) -> None:
    """Metrics from 1e-8 to 1e8 within one group, levels around the size at which the group dies."""
    shape = w.shape
    powers = data.draw(hnp.arrays(np.float64, shape, elements=st.floats(-8, 8)))
    held = data.draw(hnp.arrays(np.bool_, shape, elements=st.sampled_from([False] * 5 + [True])))
    d = np.where(held, 0.0, 10.0**powers)
    with np.errstate(divide="ignore", invalid="ignore"):
        death = np.where(held, 0.0, np.abs(w.astype(float)) / d)
    factors = data.draw(
        hnp.arrays(np.float64, shape[:1], elements=st.sampled_from([0.0, 1e-6, 0.3, 0.9, 0.999, 1.5, 1e6]))
    )
    level = np.array([math.hypot(*row) for row in death]) * factors
    t = (d * level[:, None]).astype(w.dtype)
    assume(np.all(np.isfinite(t)))
    found = group_soft_threshold_metric(torch.tensor(w), torch.tensor(t), _rows(shape)).numpy()
    expected = np.stack([_metric_reference(row, level) for row, level in zip(w, t, strict=True)])
    norms = np.array([math.hypot(*row.astype(float)) for row in w])
    error = np.abs(found - expected).max(axis=1)
    assert np.all(error <= 8 * EPS[w.dtype.type] * norms), (found, expected)
    assert found.dtype == w.dtype
    assert _no_negative_zero(found)
    assert np.array_equal(found[t == 0], w[t == 0] + 0.0)  # what has no threshold does not move
    beyond = (factors > 1.2) & ~np.any((t == 0) & (w != 0), axis=1)
    assert np.all(found[beyond] == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-30, 1e-15, 1.0, 1e15, 1e30])
def test_group_prox_in_a_metric_has_no_scale(dtype: torch.dtype, size: float) -> None:
    w = torch.randn(6, 5, dtype=dtype)
    t = (torch.rand(6, 5, dtype=dtype) + 0.5) * torch.tensor(
        [[0.1], [0.5], [1], [2], [20], [99]], dtype=dtype
    )
    expected = group_soft_threshold_metric(w, t, _rows((6, 5)))
    found = group_soft_threshold_metric(w * size, t * size, _rows((6, 5)))
    assert torch.allclose(found, expected * size, rtol=1e-5, atol=1e-6 * size)
    assert 0 < int((expected == 0).sum()) < 30


def test_group_prox_in_a_metric_stays_finite_for_groups_that_overflow_when_squared() -> None:
    w = torch.full((1, 3), 1e20)
    found = group_soft_threshold_metric(w, torch.tensor([[1.0, 1e19, 1e25]]), _rows((1, 3)))
    assert found.isfinite().all()
    assert float(found[0, 0]) == pytest.approx(1e20, rel=1e-5)
    assert float(found[0, 2]) < float(found[0, 1]) < 1e20


def test_group_without_any_threshold_is_returned_as_it_is() -> None:
    w = torch.randn(3, 4) * torch.tensor([[1e-30], [1.0], [1e30]])
    found = group_soft_threshold_metric(w, torch.zeros(3, 4), _rows((3, 4)))
    assert torch.equal(found, w)


def test_zero_groups_stay_zero_in_any_metric() -> None:
    w = torch.zeros(2, 3)
    for t in (torch.zeros(2, 3), torch.rand(2, 3), torch.tensor([[0.0, 1.0, math.inf]] * 2)):
        assert torch.equal(group_soft_threshold_metric(w, t, _rows((2, 3))), w)


def test_an_infinite_threshold_zeros_its_entry() -> None:
    w = torch.tensor([[3.0, 4.0]])
    found = group_soft_threshold_metric(w, torch.tensor([[1.0, math.inf]]), _rows((1, 2)))
    assert found.tolist() == [[2.0, 0.0]]


def test_nan_spoils_its_own_group_only() -> None:
    w = torch.randn(3, 4)
    w[1, 2] = math.nan
    for found in (
        group_soft_threshold(w, torch.full((3,), 0.1), _rows((3, 4))),
        group_soft_threshold_metric(w, torch.full((3, 4), 0.1), _rows((3, 4))),
    ):
        assert found.isnan().any(dim=1).tolist() == [False, True, False]
        assert not (found[1] == 0).any()


def test_many_dissimilar_groups_at_once_converge_together() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(400, 12)) * 10 ** rng.uniform(-4, 4, size=(400, 12))
    t = 10 ** rng.uniform(-8, 8, size=(400, 12))
    found = group_soft_threshold_metric(torch.tensor(w), torch.tensor(t), _rows((400, 12))).numpy()
    expected = np.stack([_metric_reference(row, level) for row, level in zip(w, t, strict=True)])
    assert np.abs(found - expected).max() <= 1e-12 * np.abs(w).max()
    assert np.array_equal((found != 0).any(axis=1), (expected != 0).any(axis=1))


def test_half_precision_is_widened_and_nothing_else_is() -> None:
    half = torch.zeros(2, dtype=torch.bfloat16)
    assert at_least_float32(half).dtype == torch.float32
    for dtype in (torch.float32, torch.float64):
        w = torch.zeros(2, dtype=dtype)
        assert at_least_float32(w) is w
