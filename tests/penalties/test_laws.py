"""The laws of every penalty, over rows that bring a formula and a minimiser of their own."""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from tests.penalties import (
    cases_constraints,
    cases_groups,
    cases_hierarchical,
    cases_nonconvex,
    cases_ordered,
)
from tests.penalties.brute import Array
from tests.penalties.cases import Shape, metric, point, steps
from tests.penalties.whole import Whole
from torchlasso.errors import InputError
from torchlasso.penalties.base import Penalty

CASES: list[Whole] = [
    *cases_nonconvex.CASES,
    *cases_groups.CASES,
    *cases_constraints.CASES,
    *cases_hierarchical.CASES,
    *cases_ordered.CASES,
]

# Half precision computes in float32 and rounds once, so its tolerance is one rounding of the result.
TOLERANCE = {torch.float64: 0.0, torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}
DTYPES = list(TOLERANCE)

ROWS = [(row, shape) for row in CASES for shape in row.shapes]
FILLED = [(row, shape) for row, shape in ROWS if np.prod(shape) > 0]
PRICED = [(row, shape) for row, shape in FILLED if not row.constraint]
SLOPED = [(row, shape) for row, shape in PRICED if row.has_slope]
CONVEX = [(row, shape) for row, shape in FILLED if row.build(shape).convex]
SCALE_FREE = [(row, shape) for row, shape in FILLED if row.scale_free]


def over(rows: list[tuple[Whole, Shape]]) -> pytest.MarkDecorator:
    """Run a test over rows and shapes."""
    return pytest.mark.parametrize(("row", "shape"), rows, ids=str)


each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def _steps(row: Whole, shape: Shape) -> dict[str, float | Array]:
    return {name: step for name, step in steps(shape).items() if row.metric or name != "metric"}


def _tensors(row: Whole, shape: Shape, dtype: torch.dtype) -> list[float | Tensor]:
    every = _steps(row, shape).values()
    return [step if isinstance(step, float) else torch.tensor(step, dtype=dtype) for step in every]


@cache
def _expected(row: Whole, shape: Shape, name: str) -> Array:
    return row.argmin(point(shape), np.broadcast_to(np.asarray(_steps(row, shape)[name]), shape))


def _inside(row: Whole, w: Array) -> Array:
    """Return ``w`` where it is allowed, else the allowed point next to it."""
    return w if math.isfinite(row.value(w)) else row.argmin(w, _allowing(row, w))


def _allowing(row: Whole, w: Array) -> Array:
    """Return a step that leads to what is allowed: at step 0 a constraint moves nothing."""
    return np.ones_like(w) if row.constraint else np.zeros_like(w)


def _held(row: Whole, shape: Shape) -> Array:
    """Return which entries are zero whatever happens; a constraint holds none for good."""
    return np.zeros(shape, dtype=bool) if row.constraint else _inside(row, np.ones(shape)) == 0


def _objective(row: Whole, x: Array, w: Array, step: Array) -> float:
    distance = np.divide((x - w) ** 2, 2 * step, out=np.zeros_like(w), where=step > 0)
    return float(np.sum(distance)) + row.value(x)


# ---- the proximal map -------------------------------------------------------------------------


@each_dtype
@over(FILLED)
def test_prox_is_the_minimiser(row: Whole, shape: Shape, dtype: torch.dtype) -> None:
    w, penalty = point(shape), row.build(shape)
    slack = max(TOLERANCE[dtype], row.tolerance)
    for name, step in zip(_steps(row, shape), _tensors(row, shape, dtype), strict=True):
        result = penalty.prox(torch.tensor(w, dtype=dtype), step)
        assert (result.dtype, tuple(result.shape)) == (dtype, shape)
        found, expected = result.double().numpy(), _expected(row, shape, name)
        near = np.isclose(found, expected, rtol=slack, atol=max(slack / 100, row.tolerance))
        assert (found[near & (expected == 0)] == 0).all()
        if near.all():
            continue
        # Another minimum that is as good, but for rounding.
        d = np.broadcast_to(np.asarray(_steps(row, shape)[name]), shape)
        assert near[d == 0].all()
        least = _objective(row, expected, w, d)
        assert _objective(row, found, w, d) <= least + slack * (1 + abs(least))


@over(FILLED)
def test_prox_leaves_its_input_alone_and_repeats_itself(row: Whole, shape: Shape) -> None:
    w, penalty = torch.tensor(point(shape)), row.build(shape)
    before = w.clone()
    for step in _tensors(row, shape, w.dtype):
        kept = step.clone() if isinstance(step, Tensor) else step
        result = penalty.prox(w, step)
        assert torch.equal(w, before)
        assert torch.equal(torch.signbit(w), torch.signbit(before))
        assert torch.equal(torch.as_tensor(step), torch.as_tensor(kept))
        assert result.data_ptr() != w.data_ptr()
        assert torch.equal(penalty.prox(w.clone(), step), result)


@each_dtype
@over(FILLED)
def test_step_and_strength_zero_keep_what_is_allowed(row: Whole, shape: Shape, dtype: torch.dtype) -> None:
    penalty = row.build(shape)
    some: list[float | Tensor] = [0.0, torch.zeros((), dtype=dtype)]
    some += [torch.zeros(shape, dtype=dtype)] if row.metric else []
    w = torch.tensor(point(shape) / 3, dtype=dtype)
    expected = w.double().numpy() if row.constraint else _inside(row, w.double().numpy())
    slack = max(TOLERANCE[dtype], row.tolerance)
    found = [penalty.prox(w, step) for step in some]
    if not row.constraint:
        silent = penalty.with_strength(0.0)
        found += [silent.prox(w, step) for step in _tensors(row, shape, dtype)]
    for result in found:
        assert np.allclose(result.double().numpy(), expected, rtol=slack, atol=slack)
        kept = torch.tensor(expected) == w
        assert torch.equal(result[kept], w[kept])


@over(ROWS)
def test_prox_of_zero_is_zero(row: Whole, shape: Shape) -> None:
    for dtype in DTYPES:
        zero = torch.zeros(shape, dtype=dtype)
        for step in _tensors(row, shape, dtype):
            assert torch.equal(row.build(shape).prox(zero, step), zero)


@each_dtype
@over(FILLED)
def test_huge_steps_end_at_zero_and_not_at_nan(row: Whole, shape: Shape, dtype: torch.dtype) -> None:
    w, penalty = torch.tensor(point(shape), dtype=dtype), row.build(shape)
    huge: list[float | Tensor] = [1e6, 1e300, torch.tensor(3e4, dtype=dtype)]
    huge += [torch.full(shape, 3e4, dtype=dtype)] if row.metric else []
    for step in huge:
        result = penalty.prox(w, step)
        assert not result.isnan().any()
        assert not row.zeroes or not result.any()


@each_dtype
@over(FILLED)
def test_there_is_no_negative_zero(row: Whole, shape: Shape, dtype: torch.dtype) -> None:
    penalty = row.build(shape)
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    some = torch.tensor(point(shape), dtype=dtype)
    for w in (torch.full(shape, -0.0, dtype=dtype), torch.full(shape, -tiny, dtype=dtype), some, -some):
        for step in _tensors(row, shape, dtype):
            result = penalty.prox(w, step)
            assert not (torch.signbit(result) & (result == 0)).any()


@over(CONVEX)
def test_prox_of_a_convex_penalty_is_firmly_nonexpansive(row: Whole, shape: Shape) -> None:
    penalty = row.build(shape)
    for seed, d in enumerate(_positive_steps(row, shape)):
        w, v = torch.tensor(point(shape, seed)), torch.tensor(point(shape, seed + 10))
        step = torch.tensor(d) if row.metric else float(d.flat[0])
        p, q = penalty.prox(w, step), penalty.prox(v, step)
        price = 1 / torch.tensor(d)
        left, right = float(((p - q) ** 2 * price).sum()), float(((w - v) * (p - q) * price).sum())
        assert left <= right + 10 * row.tolerance * (1 + abs(right))


@over(CONVEX)
def test_prox_of_a_convex_penalty_leaves_a_subgradient(row: Whole, shape: Shape) -> None:
    """``(w − p)/d`` is one at ``p``: the whole penalty lies above that plane."""
    penalty, w = row.build(shape), point(shape, 7)
    for d in _positive_steps(row, shape):
        step = torch.tensor(d) if row.metric else float(d.flat[0])
        p = penalty.prox(torch.tensor(w), step).numpy()
        plane, here = (w - p) / d, 0.0 if row.constraint else row.value(p)
        for seed in range(20):
            z = _inside(row, point(shape, 30 + seed) * 2.0 ** (seed % 5 - 2))
            there = 0.0 if row.constraint else row.value(z)
            assert there >= here + float(np.sum(plane * (z - p))) - 100 * row.tolerance * (1 + abs(here))


def _positive_steps(row: Whole, shape: Shape) -> list[Array]:
    constant = [np.full(shape, 0.3), np.full(shape, 5.0)]
    return [*constant, np.where(metric(shape) == 0, 0.5, metric(shape))] if row.metric else constant


@over(SCALE_FREE)
def test_prox_has_no_scale(row: Whole, shape: Shape) -> None:
    """``prox(s·w, s·step) = s·prox(w, step)``, also where squares leave float32."""
    w, penalty = torch.tensor(point(shape), dtype=torch.float32), row.build(shape)
    for step in _tensors(row, shape, torch.float32):
        for size in (1e-30, 1e-22, 1e22, 1e30):
            expected = penalty.prox(w, step).double() * size
            found = penalty.prox(w * size, step * size).double()
            assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6 * size)


# ---- numbers that are none --------------------------------------------------------------------


@over(FILLED)
def test_nan_and_infinity_stay_visible(row: Whole, shape: Shape) -> None:
    penalty, held = row.build(shape), _held(row, shape).reshape(-1)
    for position in np.flatnonzero(~held):
        w = torch.tensor(np.abs(point(shape)), dtype=torch.float32)
        w.reshape(-1)[position] = math.inf
        for name, step in zip(_steps(row, shape), _tensors(row, shape, w.dtype), strict=True):
            assert name == "1000" or not penalty.prox(w, step).isfinite().all()
        w.reshape(-1)[position] = math.nan
        for step in _tensors(row, shape, w.dtype):
            assert penalty.prox(w, step).isnan().any()
        assert row.constraint or not math.isfinite(float(penalty.value(w)))
        assert not penalty.residual(w, w.nan_to_num()).isfinite().all()


@over(SLOPED)
def test_nan_in_a_gradient_stays_visible(row: Whole, shape: Shape) -> None:
    penalty, grad = row.build(shape), torch.tensor(point(shape, 2))
    for position in np.flatnonzero(_penalised_entries(row, shape)):
        broken = grad.clone()
        broken.reshape(-1)[position] = math.nan
        assert math.isnan(penalty.strength_max(broken))
        assert penalty.residual(torch.zeros_like(grad), broken).isnan().any()


@over([(row, shape) for row, shape in PRICED if row.metric])
def test_nan_in_a_metric_stays_visible(row: Whole, shape: Shape) -> None:
    w, penalty = torch.tensor(np.abs(point(shape)) + 0.5), row.build(shape)
    for position in np.flatnonzero(_penalised_entries(row, shape)):
        step = torch.full_like(w, 0.3)
        step.reshape(-1)[position] = math.nan
        assert penalty.prox(w, step).isnan().any()


def _penalised_entries(row: Whole, shape: Shape) -> Array:
    """Return which entries, alone in a tensor of zeros, cost something and are not held."""
    costs = np.array([row.value(e.reshape(shape)) for e in np.eye(int(np.prod(shape)))])
    return (costs > 0) & np.isfinite(costs)


# ---- the value and its gradient ---------------------------------------------------------------


@over(FILLED)
def test_value_is_the_definition(row: Whole, shape: Shape) -> None:
    for dtype in DTYPES:
        for w in (point(shape), -np.abs(point(shape)) - 1, _inside(row, point(shape))):
            rounded = torch.tensor(w, dtype=dtype)
            value = row.build(shape).value(rounded)
            assert value.shape == ()
            if not row.constraint or dtype == torch.float64:
                assert float(value) == pytest.approx(row.value(rounded.double().numpy()), rel=1e-5)


@over(PRICED)
def test_gradient_of_the_value(row: Whole, shape: Shape) -> None:
    for seed in range(3):
        w = _inside(row, np.abs(np.random.default_rng(seed).normal(size=shape)) * 2 + 0.1)
        leaf, h = torch.tensor(w, requires_grad=True), 1e-6
        (found,) = torch.autograd.grad(row.build(shape).value(leaf), leaf)
        for position in np.flatnonzero(w):
            e = np.zeros(w.size)
            e[position] = h
            slope = (row.value(w + e.reshape(shape)) - row.value(w - e.reshape(shape))) / (2 * h)
            assert float(found.reshape(-1)[position]) == pytest.approx(slope, rel=1e-5, abs=1e-7)


@over(ROWS)
def test_value_and_gradient_at_zero_are_zero(row: Whole, shape: Shape) -> None:
    for dtype in DTYPES:
        leaf = torch.zeros(shape, dtype=dtype, requires_grad=True)
        value = row.build(shape).value(leaf)
        assert value.item() == 0.0
        if not row.constraint:
            (gradient,) = torch.autograd.grad(value, leaf)
            assert torch.equal(gradient, torch.zeros_like(leaf))


# ---- the residual and the largest strength ----------------------------------------------------


@over(FILLED)
def test_residual_vanishes_at_a_solution_and_nowhere_else(row: Whole, shape: Shape) -> None:
    """At ``x = argmin ½‖x − w‖²/s + h`` the gradient of the quadratic is ``(x − w)/s``."""
    w, s, penalty = point(shape), 0.3, row.build(shape)
    x = _expected(row, shape, "0.3")
    assert float(penalty.residual(torch.tensor(x), torch.tensor((x - w) / s)).max()) <= 100 * row.tolerance
    if row.constraint:
        return
    for seed in range(3):
        away = _inside(row, x + np.abs(point(shape, 20 + seed)) + 0.5)
        if away.any():
            residual = penalty.residual(torch.tensor(away), torch.tensor((away - w) / s))
            assert float(residual.max()) > 0.1


@over(SLOPED)
def test_strength_max_is_where_zero_becomes_stationary(row: Whole, shape: Shape) -> None:
    penalty = row.build(shape)
    for dtype in DTYPES:
        grad = torch.tensor(-np.abs(point(shape, 2)), dtype=dtype)
        zero = torch.zeros_like(grad)
        penalised = penalty.with_strength(1e6).residual(zero, grad) == 0  # all but what is always kept
        largest = penalty.strength_max(grad)
        assert largest > 0
        assert not penalty.with_strength(largest * (1 + 1e-5)).residual(zero, grad)[penalised].any()
        assert penalty.with_strength(largest * (1 - 1e-4)).residual(zero, grad)[penalised].any()
        assert penalty.strength_max(zero) == 0.0


# ---- what does not depend on the numbers ------------------------------------------------------


@over(ROWS)
def test_shapes_and_empty_tensors(row: Whole, shape: Shape) -> None:
    penalty = row.build(shape)
    penalty.validate(torch.Size(shape))
    for dtype in DTYPES:
        w = torch.zeros(shape, dtype=dtype)
        assert penalty.support(w).dtype == torch.bool
        assert not penalty.support(w).any()
        assert penalty.prox(w, 0.3).shape == shape
        assert not penalty.residual(w, w).any()
    if np.prod(shape) == 0:
        assert penalty.strength_max(torch.zeros(shape)) == 0.0


@over(ROWS)
def test_a_shape_is_taken_or_refused_in_words(row: Whole, shape: Shape) -> None:
    refused = 0
    for other in ((), (1,), (7,), (5, 7), (5, 7, 2), (3, 5, 2, 2)):
        try:
            row.build(shape).validate(torch.Size(other))
        except InputError:
            refused += 1
    assert refused or "weighted" not in row.name


@over(PRICED)
def test_strength_that_changes_by_step(row: Whole, shape: Shape) -> None:
    penalty = row.build(shape).with_strength(lambda step: 0.25 * step)
    w = torch.tensor(point(shape))
    assert torch.equal(penalty.at(3).prox(w, 0.3), row.build(shape).prox(w, 0.3))
    assert penalty.at(0).current_strength == 0.0
    with pytest.raises(InputError, match="schedule"):
        penalty.prox(w, 0.3)


def test_the_table_names_every_row_once() -> None:
    assert len({row.name for row in CASES}) == len(CASES)


# ---- numbers that hypothesis chooses ----------------------------------------------------------


def _at_most(penalty: Penalty, found: Tensor, other: Tensor, w: Tensor, step: Tensor, slack: float) -> bool:
    """Return whether the objective at ``found`` is no larger than at ``other``, which is allowed."""

    def objective(x: Tensor) -> float:
        return float(((x - w) ** 2 / (2 * step)).sum())

    left, right = objective(found), objective(other)
    if math.isfinite(float(penalty.value(found))):  # a projection may be off by a rounding
        left, right = left + float(penalty.value(found)), right + float(penalty.value(other))
    return left <= right + slack * (1 + abs(right))


@pytest.mark.parametrize("row", CASES, ids=str)
@given(data=st.data())
def test_no_point_is_better_than_the_prox(row: Whole, data: Any) -> None:
    shape = next(shape for shape in row.shapes if np.prod(shape) > 0)
    penalty = row.build(shape).with_strength(data.draw(st.floats(0.0, 10.0)))
    entries = hnp.arrays(np.float64, shape, elements=st.floats(-8.0, 8.0))
    size = st.floats(1e-3, 1e3)
    step = torch.tensor(data.draw(hnp.arrays(np.float64, shape, elements=size) if row.metric else size))
    w, z = torch.tensor(data.draw(entries)), torch.tensor(data.draw(entries))
    step = step.to(w.dtype)
    found = penalty.prox(w, step)
    for other in (w, z, w + z / 100, found + z / 1000, torch.zeros_like(w)):
        allowed = penalty.prox(other, 1.0 if row.constraint else 0.0)  # at step 0 a constraint moves nothing
        assert _at_most(penalty, found, allowed, w, step, 10 * row.tolerance)
