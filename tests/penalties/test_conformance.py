"""Every penalty obeys the same laws, whatever its formula: one table of penalties, one list of laws."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from tests.penalties.brute import Array, Block, argmin_prox, steepest_descent, total
from tests.penalties.cases import CASES, FILLED, ROWS, Case, Shape, metric, point, steps

# Half precision computes in float32 and rounds once, so its tolerance is one rounding of the result.
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}
DTYPES = list(TOLERANCE)
STEPS = ["0", "0.3", "1000", "metric"]

each_case = pytest.mark.parametrize(("case", "shape"), ROWS, ids=str)
each_filled = pytest.mark.parametrize(("case", "shape"), FILLED, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


@cache
def _expected(case: Case, shape: Shape, name: str) -> Array:
    return argmin_prox(case.blocks(shape), point(shape), np.asarray(steps(shape)[name]))


def _step(shape: Shape, name: str, dtype: torch.dtype) -> float | Tensor:
    step = steps(shape)[name]
    return step if isinstance(step, float) else torch.tensor(step, dtype=dtype)


def _excluded(case: Case, shape: Shape) -> Array:
    """Return which entries are held at zero whatever happens."""
    held = np.zeros(int(np.prod(shape)), dtype=bool)
    for block in case.blocks(shape):
        held[block.entries] = block.excluded
    return held.reshape(shape)


def _blockwise(case: Case, shape: Shape, quantity: Any) -> Array:
    """Return one number a block, from ``quantity(block)``."""
    return np.array([quantity(block) for block in case.blocks(shape)])


# ---- the proximal map -------------------------------------------------------------------------


@each_dtype
@each_filled
def test_prox_is_the_minimiser(case: Case, shape: Shape, dtype: torch.dtype) -> None:
    for name in STEPS:
        w = torch.tensor(point(shape), dtype=dtype)
        found = case.build(shape).prox(w, _step(shape, name, dtype))
        expected = _expected(case, shape, name)
        assert found.dtype == dtype
        assert found.shape == shape
        tolerance = TOLERANCE[dtype]
        np.testing.assert_allclose(
            found.double().numpy(), expected, rtol=tolerance, atol=max(tolerance / 100, 1e-7)
        )
        zero = np.abs(expected) < 1e-12
        assert np.array_equal(found.double().numpy() == 0, zero)


@each_filled
def test_prox_leaves_its_input_alone(case: Case, shape: Shape) -> None:
    w, d = torch.tensor(point(shape)), torch.tensor(metric(shape))
    before, d_before = w.clone(), d.clone()
    for step in (0.0, 0.3, d):
        result = case.build(shape).prox(w, step)
        assert torch.equal(w, before)
        assert torch.equal(torch.signbit(w), torch.signbit(before))
        assert torch.equal(d, d_before)
        assert result.data_ptr() != w.data_ptr()


@each_case
def test_step_zero_is_the_identity_to_the_last_bit(case: Case, shape: Shape) -> None:
    for dtype in DTYPES:
        w = torch.tensor(point(shape) / 3, dtype=dtype)
        expected = w.masked_fill(torch.tensor(_excluded(case, shape)), 0.0)
        if "nonnegative" in case.name:
            expected = expected.clamp_min(0.0)
        penalty = case.build(shape)
        for step in (0.0, torch.zeros(shape, dtype=dtype), torch.zeros((), dtype=dtype)):
            assert torch.equal(penalty.prox(w, step), expected)
        silent = replace(penalty, strength=0.0)
        assert torch.equal(silent.prox(w, 0.3), expected)
        assert torch.equal(silent.prox(w, torch.tensor(metric(shape), dtype=dtype)), expected)


@each_case
def test_prox_of_zero_is_zero(case: Case, shape: Shape) -> None:
    for dtype in DTYPES:
        zero = torch.zeros(shape, dtype=dtype)
        for name in STEPS:
            assert torch.equal(case.build(shape).prox(zero, _step(shape, name, dtype)), zero)


@each_filled
def test_huge_step_zeros_what_is_penalised(case: Case, shape: Shape) -> None:
    for dtype in DTYPES:
        w = torch.tensor(point(shape), dtype=dtype)
        for step in (1e6, 1e300, torch.full(shape, 3e4, dtype=dtype)):
            result = case.build(shape).prox(w, step).reshape(-1)
            assert not result.isnan().any()
            for block in case.blocks(shape):
                if block.level > 0 or block.excluded:
                    assert (result[block.entries] == 0).all()


@each_filled
def test_there_is_no_negative_zero(case: Case, shape: Shape) -> None:
    for dtype in DTYPES:
        tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        penalty = case.build(shape)
        for w in (
            torch.full(shape, -0.0, dtype=dtype),
            torch.full(shape, -tiny, dtype=dtype),
            torch.tensor(point(shape), dtype=dtype),
            -torch.tensor(point(shape), dtype=dtype),
        ):
            for name in STEPS:
                result = penalty.prox(w, _step(shape, name, dtype))
                assert not (torch.signbit(result) & (result == 0)).any()


@each_filled
def test_shrinking_by_almost_everything_gives_no_negative_zero(case: Case, shape: Shape) -> None:
    w = -torch.tensor(point(shape)).abs()
    for dtype in (torch.float32, torch.float16):
        for strength in (1 - 1e-8, 1 - 1e-4, 1.0):
            penalty = replace(case.build(shape), strength=strength)
            for size in (0.25, 1.0, 4.0):
                result = penalty.prox(w.to(dtype) * size, size)
                assert not (torch.signbit(result) & (result == 0)).any()


@each_filled
def test_prox_is_firmly_nonexpansive_in_the_metric(case: Case, shape: Shape) -> None:
    positive = np.where(metric(shape) == 0, 0.5, metric(shape))
    penalty = case.build(shape)
    for seed, d in ((3, np.full(shape, 0.3)), (4, positive), (5, positive)):
        w, v = torch.tensor(point(shape, seed)), torch.tensor(point(shape, seed + 10))
        step = torch.tensor(d)
        p, q = penalty.prox(w, step), penalty.prox(v, step)
        assert float(((p - q) ** 2 / step).sum()) <= float(((w - v) * (p - q) / step).sum()) + 1e-12


@each_filled
def test_moreau_identity(case: Case, shape: Shape) -> None:
    """``w = prox_h(w) + d·prox_{h*}(w/d)``, the second by projection on the dual ball."""
    w = point(shape, 7)
    for d in (np.full(shape, 0.3), np.where(metric(shape) == 0, 0.5, metric(shape))):
        found = case.build(shape).prox(torch.tensor(w), torch.tensor(d)).numpy()
        dual = np.empty(w.size)
        for block in case.blocks(shape):
            at = block.entries
            dual[at] = _conjugate_prox(block, (w / d).reshape(-1)[at], d.reshape(-1)[at])
        np.testing.assert_allclose(found + d * dual.reshape(shape), w, rtol=1e-9, atol=1e-9)


def _conjugate_prox(block: Block, v: Array, d: Array) -> Array:
    """Return ``argmin_u ½·Σ d·(u − v)² + h*(u)`` for the conjugate ``h*`` of the block's penalty."""
    if block.excluded:
        return v  # h is the indicator of {0}, so its conjugate is 0
    if block.nonnegative and v[0] <= block.level:
        return v  # the dual set is the half line below the level
    norm = float(np.linalg.norm(v))
    if norm <= block.level:
        return v
    if block.ridge:  # h*(u) = (|u| − level)₊²/(2·ridge), its slope (|u| − level)/ridge outside the ball
        return (d * v + np.sign(v) * block.level / block.ridge) / (d + 1 / block.ridge)
    if block.level == 0:
        return np.zeros_like(v)
    largest = float(np.max(d)) * (norm / block.level) * 2
    multiplier = scipy.optimize.brentq(
        lambda m: np.linalg.norm(d * v / (d + m)) - block.level, 0.0, largest, xtol=1e-15, rtol=1e-14
    )
    return d * v / (d + multiplier)


# ---- numbers that are none --------------------------------------------------------------------


@each_filled
def test_nan_stays_visible(case: Case, shape: Shape) -> None:
    penalty = case.build(shape)
    held = torch.tensor(_excluded(case, shape)).reshape(-1)
    for position in range(int(np.prod(shape))):
        w = torch.tensor(point(shape))
        w.reshape(-1)[position] = math.nan
        for name in STEPS:
            result = penalty.prox(w, _step(shape, name, torch.float64)).reshape(-1)
            assert bool(held[position]) or bool(result[position].isnan())
        assert bool(held[position]) or not math.isfinite(float(penalty.value(w)))
        assert not penalty.residual(w, w.nan_to_num()).isfinite().all() or bool(held[position])


@each_filled
def test_nan_metric_stays_visible(case: Case, shape: Shape) -> None:
    w = torch.tensor(point(shape))
    for position in range(int(np.prod(shape))):
        step = torch.full(shape, 0.3, dtype=w.dtype)
        step.reshape(-1)[position] = math.nan
        result = case.build(shape).prox(w, step).reshape(-1)
        (block,) = (b for b in case.blocks(shape) if position in b.entries)
        if block.level > 0:
            assert bool(result[position].isnan())


@each_filled
def test_nan_gradient_stays_visible(case: Case, shape: Shape) -> None:
    penalty = case.build(shape)
    for position in range(int(np.prod(shape))):
        grad = torch.tensor(point(shape, 2))
        grad.reshape(-1)[position] = math.nan
        (block,) = (b for b in case.blocks(shape) if position in b.entries)
        if block.level > 0:
            assert math.isnan(penalty.strength_max(grad))
            assert penalty.residual(torch.zeros(shape, dtype=grad.dtype), grad).isnan().any()


@each_filled
def test_infinite_weights_never_turn_into_ordinary_numbers(case: Case, shape: Shape) -> None:
    held = torch.tensor(_excluded(case, shape)).reshape(-1)
    for position in range(int(np.prod(shape))):
        w = torch.tensor(point(shape), dtype=torch.float32)
        w.reshape(-1)[position] = math.inf
        for name in ("0", "0.3", "metric"):
            result = case.build(shape).prox(w, _step(shape, name, torch.float32)).reshape(-1)
            assert bool(held[position]) or not bool(result[position].isfinite())
            others = torch.ones_like(held).index_fill(0, torch.tensor(position), False)
            assert result[others].isfinite().all()


@each_filled
def test_prox_has_no_scale(case: Case, shape: Shape) -> None:
    """``prox(s·w, s·step) = s·prox(w, step)`` without a square, also where squares leave float32."""
    if any(block.ridge for block in case.blocks(shape)):
        return  # a square has a scale
    w = torch.tensor(point(shape), dtype=torch.float32)
    penalty = case.build(shape)
    for step in (0.3, torch.tensor(metric(shape), dtype=torch.float32)):
        for size in (1e-30, 1e-22, 1e22, 1e30):
            expected = penalty.prox(w, step).double() * size
            found = penalty.prox(w * size, step * size).double()
            assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7 * size)
            assert torch.equal(found == 0, expected == 0)


# ---- the value and its gradient ---------------------------------------------------------------


@each_filled
def test_value_is_the_definition(case: Case, shape: Shape) -> None:
    for dtype in DTYPES:
        w = np.where(_excluded(case, shape), 0.0, point(shape))
        if "nonnegative" in case.name:
            w = np.abs(w)
        value = case.build(shape).value(torch.tensor(w, dtype=dtype))
        assert value.shape == ()
        assert float(value) == pytest.approx(total(case.blocks(shape), w), rel=1e-6)


@each_filled
def test_value_is_infinite_outside_the_constraints(case: Case, shape: Shape) -> None:
    w = -np.abs(point(shape)) - 1
    value = case.build(shape).value(torch.tensor(w))
    assert float(value) == pytest.approx(total(case.blocks(shape), w), rel=1e-12)


@each_filled
def test_gradient_of_the_value(case: Case, shape: Shape) -> None:
    w = np.where(_excluded(case, shape), 0.0, np.abs(point(shape)) + 0.5)
    blocks, h = case.blocks(shape), 1e-6
    leaf = torch.tensor(w, requires_grad=True)
    (found,) = torch.autograd.grad(case.build(shape).value(leaf), leaf)
    for position in np.flatnonzero(w):
        e = np.zeros(w.size)
        e[position] = h
        slope = (total(blocks, w + e.reshape(shape)) - total(blocks, w - e.reshape(shape))) / (2 * h)
        assert float(found.reshape(-1)[position]) == pytest.approx(slope, rel=1e-6, abs=1e-8)


@each_case
def test_gradient_at_zero_is_zero(case: Case, shape: Shape) -> None:
    for dtype in DTYPES:
        leaf = torch.zeros(shape, dtype=dtype, requires_grad=True)
        value = case.build(shape).value(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
        assert value.item() == 0.0
        assert torch.equal(gradient, torch.zeros_like(leaf))


# ---- the residual -----------------------------------------------------------------------------


@each_filled
def test_residual_is_the_steepest_descent(case: Case, shape: Shape) -> None:
    w = np.where(_excluded(case, shape), 0.0, point(shape))
    w = np.abs(w) if "nonnegative" in case.name else w
    if "group" in case.name:  # a group that is zero, beside groups that are not
        w.reshape(-1)[case.blocks(shape)[0].entries] = 0.0
    grad = point(shape, 2) / 4
    found = case.build(shape).residual(torch.tensor(w), torch.tensor(grad)).numpy()
    flat, g = w.reshape(-1), grad.reshape(-1)
    expected = _blockwise(case, shape, lambda b: steepest_descent(b, flat[b.entries], g[b.entries]))
    assert found.shape == (shape if "group" not in case.name else expected.shape)
    np.testing.assert_allclose(found.reshape(-1), expected, atol=1e-5)


@each_filled
def test_residual_vanishes_at_a_solution_and_nowhere_else(case: Case, shape: Shape) -> None:
    """At ``x = argmin ½‖x − w‖²/s + h`` the gradient of the quadratic is ``(x − w)/s``."""
    for dtype in DTYPES:
        w, s = point(shape), 0.3
        solution = _expected(case, shape, "0.3")
        x = torch.tensor(solution, dtype=dtype)
        grad = torch.tensor((x.double().numpy() - w) / s, dtype=dtype)
        penalty = case.build(shape)
        scale = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 0.2, torch.float16: 0.02}[dtype]
        assert float(penalty.residual(x, grad).max()) <= scale
        outside = np.where(_excluded(case, shape), 0.0, solution) + 0.0
        for seed in range(3):  # elsewhere: move what is not held, and the quadratic's gradient with it
            away = outside + np.where(_excluded(case, shape), 0.0, np.abs(point(shape, 20 + seed)) + 0.5)
            residual = penalty.residual(torch.tensor(away), torch.tensor((away - w) / s))
            assert float(residual.max()) > 0.1


@each_filled
def test_residual_is_infinite_outside_the_constraints(case: Case, shape: Shape) -> None:
    w = -torch.ones(shape)
    residual = case.build(shape).residual(w, torch.zeros(shape)).reshape(-1).numpy()
    outside = _blockwise(case, shape, lambda b: b.excluded or b.nonnegative)
    assert np.array_equal(np.isinf(residual), outside)


@each_filled
def test_support_holds_whole_blocks(case: Case, shape: Shape) -> None:
    w = point(shape)
    support = case.build(shape).support(torch.tensor(w))
    expected = np.zeros(w.size, dtype=bool)
    for block in case.blocks(shape):
        expected[block.entries] = np.any(w.reshape(-1)[block.entries] != 0)
    assert support.dtype == torch.bool
    assert np.array_equal(support.numpy(), expected.reshape(shape))


# ---- the largest strength ---------------------------------------------------------------------


@each_filled
def test_strength_max_is_where_zero_becomes_stationary(case: Case, shape: Shape) -> None:
    for dtype in DTYPES:
        grad = torch.tensor(-np.abs(point(shape, 2)), dtype=dtype)
        penalty = case.build(shape)
        largest = penalty.strength_max(grad)
        if case.l1_part == 0:
            assert largest == math.inf
            continue
        zero, s = torch.zeros_like(grad), 0.3
        penalised = [b for b in case.blocks(shape) if b.level > 0]
        entries = np.concatenate([b.entries for b in penalised])
        off = dtype in (torch.float64, torch.float32) or 0.01
        above, below = (1 + 1e-5, 1 - 1e-4) if off is True else (1 + off, 1 - off)
        at = replace(penalty, strength=largest * above)
        assert not at.prox(-s * grad, s).reshape(-1)[entries].any()
        assert not _of(penalised, case, shape, at.residual(zero, grad)).any()
        under = replace(penalty, strength=largest * below)
        assert under.prox(-s * grad, s).reshape(-1)[entries].any()
        assert _of(penalised, case, shape, under.residual(zero, grad)).any()


def _of(chosen: list[Block], case: Case, shape: Shape, residual: Tensor) -> Tensor:
    """Return the residuals of some blocks."""
    numbers = [int(block.entries[0]) for block in chosen]
    keep = [int(block.entries[0]) in numbers for block in case.blocks(shape)]
    return residual.reshape(-1)[torch.tensor(keep)]


@each_case
def test_strength_max_of_no_gradient_is_zero(case: Case, shape: Shape) -> None:
    assert case.build(shape).strength_max(torch.zeros(shape)) == 0.0


# ---- what does not depend on the numbers ------------------------------------------------------


@each_case
def test_strength_that_changes_by_step(case: Case, shape: Shape) -> None:
    penalty = replace(case.build(shape), strength=lambda step: 0.25 * step)
    w = torch.tensor(point(shape)).abs()
    assert torch.equal(penalty.at(3).prox(w, 0.3), case.build(shape).prox(w, 0.3))
    assert penalty.at(0).current_strength == 0.0
    with pytest.raises(ValueError, match="schedule"):
        penalty.prox(w, 0.3)


@each_case
def test_penalty_validates_its_own_shape(case: Case, shape: Shape) -> None:
    case.build(shape).validate(torch.Size(shape))
    if "weighted" in case.name or ("group" in case.name and "tensor" in case.name.split("-")[2:]):
        with pytest.raises(ValueError, match=r"weights|groups"):
            case.build(shape).validate(torch.Size((5, 7, 2)))


def test_the_table_names_every_case_once() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
