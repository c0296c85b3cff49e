"""The non-convex penalties against textbook formulas, least squares, and the algorithms that they replace."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn

import torchlasso as tl
from torchlasso.errors import InputError
from torchlasso.penalties.base import Penalty
from torchlasso.penalties.counting import L0, LHalf
from torchlasso.penalties.nonconvex import MCP, SCAD, LogSum

Array = np.ndarray
Kind = Callable[..., Penalty]
SLOPED: dict[str, Kind] = {"mcp": MCP, "scad": SCAD, "log": partial(LogSum, epsilon=0.2)}
KINDS: dict[str, Kind] = {**SLOPED, "l0": L0, "lhalf": LHalf}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
each_sloped = pytest.mark.parametrize("kind", SLOPED.values(), ids=SLOPED)
GRID = torch.linspace(-6, 6, 2001, dtype=torch.float64)


# ---- the maps against the literature ----------------------------------------------------------


def test_mcp_of_step_one_is_the_firm_threshold_of_the_literature() -> None:
    for strength, gamma in ((0.5, 3.0), (1.0, 1.5), (1.25, 20.0)):
        u = GRID.abs()
        inner = GRID.sign() * (u - strength).clamp_min(0) / (1 - 1 / gamma)
        expected = torch.where(u <= gamma * strength, inner, GRID)
        found = MCP(strength, gamma).prox(GRID, 1.0)
        assert torch.allclose(found, expected, rtol=0, atol=1e-14)


def test_scad_of_step_one_has_the_three_pieces_of_fan_and_li() -> None:
    for strength, a in ((0.5, 3.7), (1.0, 2.5), (0.25, 10.0)):
        u, sign = GRID.abs(), GRID.sign()
        middle = ((a - 1) * GRID - sign * a * strength) / (a - 2)
        expected = torch.where(u <= a * strength, middle, GRID)
        expected = torch.where(u <= 2 * strength, sign * (u - strength).clamp_min(0), expected)
        assert torch.allclose(SCAD(strength, a).prox(GRID, 1.0), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_half_threshold_is_the_largest_root_of_its_cubic(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    for t in (1e-6, 0.1, 1.0, 30.0):
        edge = 1.5 * t ** (2 / 3)
        near = edge * (1 + np.array([-1e-3, -1e-6, 1e-6, 1e-3]))
        w = torch.tensor([*near, *(edge * rng.uniform(0, 20, size=40))], dtype=dtype)
        found = LHalf(t).prox(w, 1.0).double().numpy()
        for u, x in zip(w.double().numpy(), found, strict=True):
            largest = max(np.roots([1, 0, -u, t / 2]).real) ** 2
            expected = largest if u > edge else 0.0
            assert x == pytest.approx(expected, rel=1e-6 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("size", [1e-20, 1e-8, 1e8, 1e20])
def test_half_threshold_has_no_size_of_its_own(size: float) -> None:
    """``prox(s·w, s^{3/2}·step) = s·prox(w, step)``, also where cubes leave float32."""
    w = torch.tensor([0.0, 0.3, 1.4, 1.6, 2.0, 50.0])
    found = LHalf(1.0).prox(w * size, size**1.5)
    assert torch.allclose(found / size, LHalf(1.0).prox(w, 1.0), rtol=1e-6, atol=0)


def test_log_sum_is_where_reweighted_soft_thresholding_ends() -> None:
    """From above, the majorise-minimise algorithm of Candès, Wakin and Boyd falls to the larger root."""
    strength, epsilon, step = 0.5, 0.3, 0.8
    w = GRID[GRID.abs() > step * strength]
    x = w.clone()
    for _ in range(4000):
        weights = epsilon / (x.abs() + epsilon)
        x = tl.L1(strength, weights=weights).prox(w, step)
    assert torch.allclose(LogSum(strength, epsilon).prox(w, step), x, rtol=0, atol=1e-9)


def test_hard_threshold_keeps_to_the_last_bit() -> None:
    w = torch.tensor([0.1, 0.9, 1.1, -7.3])
    assert torch.equal(L0(0.5).prox(w, 1.0), torch.tensor([0.0, 0.0, 1.1, -7.3]))


@pytest.mark.parametrize("step", [0.25, 1.0, 7.0, 50.0])
def test_all_with_a_slope_tend_to_the_lasso(step: float) -> None:
    lasso = tl.L1(0.3).prox(GRID, step)
    for penalty in (MCP(0.3, gamma=1e9), SCAD(0.3, a=1e9), LogSum(0.3, epsilon=1e9)):
        assert torch.allclose(penalty.prox(GRID, step), lasso, atol=1e-6)
        assert float(penalty.value(GRID)) == pytest.approx(float(tl.L1(0.3).value(GRID)), rel=1e-6)


TIES = [
    (L0(0.5), 1.0, 1.0),
    (LHalf(1.0), 1.0, 1.5),
    (MCP(1.0, gamma=1.0), 4.0, 2.0),
    (SCAD(1.0, a=3.0), 9.0, 6.0),
    (LogSum(1.0, epsilon=1.0), 1.0, 1.0),
]


@pytest.mark.parametrize(("penalty", "step", "w"), TIES, ids=lambda x: getattr(x, "describe", str)())
def test_a_tie_is_zero_and_just_above_it_is_not(penalty: Penalty, step: float, w: float) -> None:
    for dtype in (torch.float64, torch.float32):
        for sign in (1.0, -1.0):
            at = torch.tensor([w * sign], dtype=dtype)
            assert float(penalty.prox(at, step)) == 0.0
            above = penalty.prox(at * (1 + 1e-5), step)
            assert float(above) * sign > 0


@each_kind
def test_an_elementwise_step_is_many_steps(kind: Kind) -> None:
    """Steps on both sides of where the objective stops being convex, in one tensor."""
    sizes = torch.tensor([0.0, 0.1, 1.0, 2.7, 3.0, 4.7, 10.0, 1e4])
    w = torch.linspace(-8, 8, 201).unsqueeze(1).expand(-1, 8)
    found = kind(0.6).prox(w, sizes)
    for column, size in enumerate(sizes.tolist()):
        assert torch.allclose(found[:, column], kind(0.6).prox(w[:, column], size), rtol=1e-5, atol=1e-6)


@each_kind
@given(
    w=hnp.arrays(np.float32, 12, elements=st.floats(-1e10, 1e10, width=32)),
    step=st.floats(0, 1e12),
    strength=st.floats(0, 1e6),
)
@example(w=np.full(12, 1e-45, np.float32), step=1e-40, strength=1e-5)
@example(w=np.linspace(-3, 3, 12, dtype=np.float32), step=np.nextafter(3.0, 0), strength=1.0)
def test_prox_shrinks_and_keeps_the_order(kind: Kind, w: Array, step: float, strength: float) -> None:
    x = torch.tensor(np.sort(w))
    found = kind(strength).prox(x, step)
    assert (found.abs() <= x.abs()).all()
    assert (found * x.sign() >= 0).all()
    slack = 1e-5 * found[1:].abs()
    assert (found.diff() >= -slack).all()


@each_kind
def test_an_infinite_weight_is_above_every_threshold(kind: Kind) -> None:
    for dtype in (torch.float32, torch.float64):
        w = torch.tensor([math.inf, -math.inf, 1.0], dtype=dtype)
        for step in (0.3, 1e300, torch.full((3,), 1e38, dtype=dtype)):
            assert kind(1e3).prox(w, step).tolist() == [math.inf, -math.inf, 0.0]


# ---- weights and signs ------------------------------------------------------------------------


@each_kind
def test_weights_keep_exclude_and_multiply_the_strength(kind: Kind) -> None:
    w = torch.tensor([3.0, 3.0, 3.0, -3.0])
    weights = torch.tensor([0.0, math.inf, 2.0, 0.5])
    for strength in (0.0, 0.25, 1e3):
        penalty = kind(strength, weights=weights)
        for step in (0.0, 0.5, 20.0, 1e300, torch.tensor([0.5, 2.0, 20.0, 0.0])):
            found = penalty.prox(w, step)
            assert (float(found[0]), float(found[1])) == (3.0, 0.0)
            for i, c in ((2, 2.0), (3, 0.5)):
                one = step[i] if isinstance(step, Tensor) else step
                assert torch.allclose(found[i], kind(strength * c).prox(w[i : i + 1], one)[0])
        inside = w * torch.tensor([1.0, 0.0, 1.0, 1.0])
        parts = kind(2 * strength).value(w[2:3]) + kind(strength / 2).value(w[3:])
        assert float(penalty.value(inside)) == pytest.approx(float(parts))
        assert float(penalty.value(w)) == math.inf


@each_kind
def test_huge_steps_spare_only_what_is_always_kept(kind: Kind) -> None:
    w = torch.tensor([3.0, 3.0, 3.0])
    penalty = kind(0.5, weights=torch.tensor([0.0, math.inf, 1e-2]))
    for step in (1e9, 1e300, torch.full((3,), 1e38), torch.full((3,), math.inf)):
        assert penalty.prox(w, step).tolist() == [3.0, 0.0, 0.0]


@each_kind
def test_nonnegative_is_the_same_map_behind_a_projection(kind: Kind) -> None:
    for step in (0.0, 0.5, 20.0):
        found = kind(0.4, nonnegative=True).prox(GRID, step)
        assert torch.equal(found, kind(0.4).prox(GRID.clamp_min(0.0), step))
    penalty = kind(0.4, nonnegative=True)
    grad = torch.tensor([5.0, -5.0, 0.0])
    residual = penalty.residual(torch.zeros(3), grad)
    held = 0.0 if kind in (L0, LHalf) else 5.0 - 0.4
    assert residual.tolist() == pytest.approx([0.0, held, 0.0])
    assert penalty.residual(torch.tensor([-1.0]), torch.zeros(1)).isinf().all()


@each_sloped
def test_kink_and_strength_max_are_those_of_the_lasso(kind: Kind) -> None:
    weights = torch.tensor([0.5, 0.0, math.inf])
    grad = torch.tensor([-3.0, 9.0, 9.0])
    plain = kind(0.25, nonnegative=True).kink(grad)
    assert (plain.slope, plain.ridge, plain.nonnegative, plain.convex) == (0.25, 0.0, True, False)
    weighted = kind(0.25, weights=weights).kink(grad)
    assert weighted.slope.tolist() == [0.125, 0.0, math.inf]
    assert not weighted.convex
    assert weighted.everywhere == (kind is not SCAD)  # with γ or ε a step needs nothing else
    for options in ({}, {"weights": weights}, {"nonnegative": True}):
        assert kind(1.0, **options).strength_max(grad) == tl.L1(1.0, **options).strength_max(grad)


@pytest.mark.parametrize("kind", [L0, LHalf])
def test_zero_holds_against_every_gradient_where_the_slope_is_infinite(kind: Kind) -> None:
    grad = torch.tensor([1e6, -1e6, 1e6])
    penalty = kind(1e-6, weights=torch.tensor([1.0, 2.0, 0.0]))
    assert penalty.kink(grad) is None
    assert penalty.strength_max(grad) == 0.0
    assert penalty.residual(torch.zeros(3), grad).tolist() == [0.0, 0.0, 1e6]
    assert kind(0.0).residual(torch.zeros(3), grad).tolist() == [1e6] * 3
    model = nn.Linear(3, 1)
    batches = [(torch.randn(8, 3), torch.randn(8, 1))]
    with pytest.raises(InputError, match="give a number"):
        tl.Regularizer(model, kind("0.1max")).resolve(model, nn.functional.mse_loss, batches)


# ---- gradients --------------------------------------------------------------------------------


@each_kind
def test_the_residual_has_the_gradient_of_the_value(kind: Kind) -> None:
    w = (GRID + 1e-3).requires_grad_()  # nowhere zero
    penalty = kind(0.6, weights=torch.linspace(0, 2, len(GRID), dtype=torch.float64))
    (gradient,) = torch.autograd.grad(penalty.value(w), w)
    assert float(penalty.residual(w.detach(), -gradient).max()) < 1e-12


@each_kind
def test_the_prox_has_finite_gradients(kind: Kind) -> None:
    for step in (0.0, 0.5, 3.0, 50.0):
        w = torch.tensor([-4.0, -0.1, 0.0, 0.3, 2.0, 1e4], requires_grad=True)
        (gradient,) = torch.autograd.grad(kind(0.4).prox(w, step).sum(), w)
        assert gradient.isfinite().all()


# ---- what they are for ------------------------------------------------------------------------


def _descend(penalty: Penalty, x: Array, y: Array, w: Tensor, count: int = 4000) -> Array:
    """Proximal gradient descent on ½·MSE + penalty."""
    step = 1 / float(np.linalg.eigvalsh(x.T @ x / len(y))[-1])
    gram, moment = torch.tensor(x.T @ x / len(y)), torch.tensor(x.T @ y / len(y))
    for _ in range(count):
        w = penalty.prox(w - step * (gram @ w - moment), step)
    assert float(penalty.residual(w, gram @ w - moment).max()) < 1e-10
    return w.numpy()


TRUTH = np.array([2.0, -1.5, 1.0, 0, 0, 0, 0, 0])


def _least_squares() -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 8)) + 0.4 * rng.normal(size=(80, 1))
    return x, x @ TRUTH + 0.2 * rng.normal(size=80)


@pytest.mark.parametrize("penalty", [MCP(0.2), SCAD(0.2), L0(0.02)], ids=lambda p: p.describe())
def test_large_weights_are_those_of_least_squares_on_the_support(penalty: Penalty) -> None:
    x, y = _least_squares()
    w = _descend(penalty, x, y, torch.zeros(8, dtype=torch.float64))
    chosen = w != 0
    assert np.array_equal(chosen, TRUTH != 0)
    oracle = np.linalg.lstsq(x[:, chosen], y, rcond=None)[0]
    np.testing.assert_allclose(w[chosen], oracle, atol=1e-9)
    lasso = _descend(tl.L1(0.2), x, y, torch.zeros(8, dtype=torch.float64))
    assert np.array_equal(lasso != 0, chosen)  # it selects the same and shrinks what it keeps
    assert (np.abs(lasso[chosen]) < np.abs(oracle) - 0.05).all()


@pytest.mark.parametrize("penalty", [LogSum(0.1, epsilon=0.1), LHalf(0.05)], ids=lambda p: p.describe())
def test_log_sum_and_half_shrink_less_than_the_lasso(penalty: Penalty) -> None:
    x, y = _least_squares()
    start = torch.tensor(np.linalg.lstsq(x, y, rcond=None)[0])
    w, lasso = (_descend(p, x, y, start) for p in (penalty, tl.L1(0.2)))
    assert np.array_equal(w != 0, TRUTH != 0)
    assert np.linalg.norm(w - TRUTH) < np.linalg.norm(lasso - TRUTH) / 2


def test_orthogonal_design_is_the_prox_of_least_squares() -> None:
    """With ``XᵀX = n·I`` the fit is the firm threshold of the least-squares solution, entry by entry."""
    rng = np.random.default_rng(1)
    x = np.linalg.qr(rng.normal(size=(60, 8)))[0] * math.sqrt(60)
    y = x @ TRUTH + rng.normal(size=60)
    ols = x.T @ y / 60
    found = _descend(MCP(0.4, gamma=2.5), x, y, torch.zeros(8, dtype=torch.float64), 200)
    inner = np.sign(ols) * np.maximum(np.abs(ols) - 0.4, 0) / (1 - 1 / 2.5)
    np.testing.assert_allclose(found, np.where(np.abs(ols) <= 1.0, inner, ols), atol=1e-10)


def test_reweighted_lasso_ends_where_log_sum_is_stationary() -> None:
    x, y = _least_squares()
    gram, moment = torch.tensor(x.T @ x / len(y)), torch.tensor(x.T @ y / len(y))
    w = torch.zeros(8, dtype=torch.float64)
    for _ in range(30):
        weights = 0.1 / (w.abs() + 0.1)
        w = torch.tensor(_descend(tl.L1(0.1, weights=weights), x, y, w, 1000))
    assert 0 < int((w != 0).sum()) < 8
    assert float(LogSum(0.1, epsilon=0.1).residual(w, gram @ w - moment).max()) < 1e-9


@each_kind
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer_reaches_a_stationary_point(kind: Kind, optimizer: Any) -> None:
    x, y = (torch.tensor(a, dtype=torch.float32) for a in _least_squares())
    model = nn.Linear(8, 1, bias=False)
    with torch.no_grad():  # from the dense fit: what a count has set to zero does not return
        model.weight.copy_(torch.linalg.lstsq(x, y.unsqueeze(1)).solution.T)
    inner = optimizer(model.parameters(), lr=0.02)
    penalty = kind(0.05)
    handle = tl.attach(inner, tl.Regularizer(model, penalty))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(inner, 600)
    for _ in range(600):
        inner.zero_grad()
        (nn.functional.mse_loss(model(x).squeeze(1), y) / 2).backward()
        inner.step()
        schedule.step()
    handle.remove()
    inner.zero_grad()
    (nn.functional.mse_loss(model(x).squeeze(1), y) / 2).backward()
    assert float(penalty.residual(model.weight.detach(), model.weight.grad).max()) < 2e-3
    assert np.array_equal(model.weight.detach().numpy()[0, :3] != 0, TRUTH[:3] != 0)
    assert int((model.weight == 0).sum()) > 0


# ---- arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_shape_parameters_must_make_a_penalty(value: float) -> None:
    for wide in (1e31, math.inf, 1e-31):  # float32 could not divide by them
        with pytest.raises(InputError, match="at most 1e\\+30"):
            MCP(0.1, gamma=wide)
        with pytest.raises(InputError, match="at most 1e\\+30"):
            LogSum(0.1, epsilon=wide)
    with pytest.raises(InputError, match="gamma must be above 0"):
        MCP(0.1, gamma=value)
    with pytest.raises(InputError, match="epsilon must be above 0"):
        LogSum(0.1, epsilon=value)
    for a in (value, 2.0):
        with pytest.raises(InputError, match="a must be above 2"):
            SCAD(0.1, a=a)


@each_kind
def test_bad_strengths_and_weights_are_refused(kind: Kind) -> None:
    with pytest.raises(InputError, match="strength must be"):
        kind(-1.0)
    with pytest.raises(InputError, match="weights must be"):
        kind(1.0, weights=torch.tensor([-1.0]))
    with pytest.raises(InputError, match="do not broadcast"):
        kind(1.0, weights=torch.ones(3)).validate(torch.Size((2, 5)))
    with pytest.raises(InputError, match="not defined for complex weights"):
        kind(1.0).for_complex(torch.Size((2,)))


def test_describe_shows_the_shape_parameter() -> None:
    every = [MCP(1.0, gamma=2.5), SCAD(1.0), LogSum(1.0, epsilon=0.1), L0(1.0), LHalf(1.0)]
    assert [p.describe() for p in every] == [
        "MCP(gamma=2.5)",
        "SCAD(a=3.7)",
        "LogSum(epsilon=0.1)",
        "L0",
        "LHalf",
    ]
    assert all(p.separable and not p.convex for p in every)


@each_kind
def test_everything_follows_the_tensor_to_its_device(kind: Kind) -> None:
    w = torch.ones(2, 3, device="meta")
    penalty = kind(0.1, weights=torch.ones(3))
    for found in (penalty.prox(w, 0.5), penalty.prox(w, w), penalty.residual(w, w), penalty.value(w)):
        assert found.device.type == "meta"
