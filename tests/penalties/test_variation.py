"""Total variation: exactly constant pieces, and signals without noise in a user's own loop."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.penalties.brute import Array
from tests.penalties.coupled_fits import OPTIMIZERS, problem, trained
from torchlasso.errors import InputError
from torchlasso.penalties.variation import TotalVariation


def _jumps(count: int) -> Array:
    return np.diff(np.eye(count), axis=0)


def _denoised(w: Array, d: Array, strength: float) -> Array:
    """Solve the dual, a least-squares problem in a box, and go back: ``x = w − d·Jᵀu``."""
    jumps = _jumps(w.size)
    system = np.sqrt(d)[:, None] * jumps.T
    found = scipy.optimize.lsq_linear(
        system, w / np.sqrt(d), bounds=(-strength, strength), method="bvls", tol=1e-15
    )
    return np.asarray(w - d * (jumps.T @ found.x))


@given(st.integers(2, 30), st.integers(0, 10_000), st.floats(-1.5, 1), st.booleans())
def test_prox_against_the_dual(count: int, seed: int, power: float, elementwise: bool) -> None:
    rng = np.random.default_rng(seed)
    w = np.round(rng.normal(size=count) * 4) / 4 if seed % 2 else rng.normal(size=count)
    d = 10.0 ** rng.uniform(-1, 1, size=count) if elementwise else np.full(count, 0.5)
    found = TotalVariation(10**power).prox(torch.tensor(w), torch.tensor(d)).numpy()
    np.testing.assert_allclose(found, _denoised(w, d, 10**power), atol=1e-6)


@given(st.integers(2, 200), st.integers(0, 10_000), st.floats(-3, 2), st.floats(0, 6))
def test_long_chains_are_optimal(count: int, seed: int, power: float, decades: float) -> None:
    """The running sum of ``(x − w)/d`` is the dual: within the strength, and at it wherever ``x`` jumps."""
    rng = np.random.default_rng(seed)
    w = np.cumsum(rng.normal(size=count)) if seed % 3 else np.round(rng.normal(size=count) * 2) / 2
    d, strength = 10.0 ** rng.uniform(-decades / 2, decades / 2, size=count), 10**power
    x = TotalVariation(strength).prox(torch.tensor(w), torch.tensor(d)).numpy()
    dual, jump = np.cumsum((x - w) / d), np.sign(np.diff(x))
    noise = 1e-10 * strength + 1e-14 * np.cumsum((np.abs(w) + np.abs(x)) / d)
    assert abs(dual[-1]) <= noise[-1]
    assert (np.abs(dual[:-1]) <= strength + noise[:-1]).all()
    assert (np.abs(dual[:-1] - strength * jump)[jump != 0] <= noise[:-1][jump != 0]).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_pieces_are_exactly_constant(dtype: torch.dtype) -> None:
    w = (torch.repeat_interleave(torch.tensor([1.0, -2.0, 3.0, 0.1]), 25) + 0.05 * torch.randn(100)).to(dtype)
    for step in (0.5, torch.rand(100, dtype=dtype) + 0.5):
        x = TotalVariation(1.0).prox(w, step)
        jumps = x.diff()[x.diff() != 0]
        assert 3 <= jumps.numel() < 9  # an entry beside a jump may be a step of the stairs
        assert float(jumps.abs().min()) > 1e-3


def test_a_constant_keeps_every_bit() -> None:
    for value in (1 / 3, 1e-300, 1e300):
        w = torch.full((7,), value, dtype=torch.float64)
        assert torch.equal(TotalVariation(0.7).prox(w, 0.9), w)
        assert torch.equal(TotalVariation(0.7).prox(w, torch.rand(7)), w)


def test_lines_along_any_dimension_stand_alone() -> None:
    w, d = torch.randn(4, 5, 6, dtype=torch.float64), torch.rand(4, 5, 6, dtype=torch.float64)
    for dim in range(-3, 3):
        found = TotalVariation(0.3, dim=dim).prox(w, d)
        lines, steps, solved = w.movedim(dim, -1), d.movedim(dim, -1), found.movedim(dim, -1)
        for index in np.ndindex(*lines.shape[:-1]):
            alone = TotalVariation(0.3).prox(lines[index], steps[index])
            assert torch.allclose(alone, solved[index], rtol=0, atol=1e-14)


def test_one_broken_line_leaves_the_others_alone() -> None:
    w = torch.randn(3, 6)
    expected = TotalVariation(0.3).prox(w, 1.0)
    for broken in (math.nan, math.inf):
        w[1, 2] = broken
        found = TotalVariation(0.3).prox(w, 1.0)
        assert found[1].isnan().all()
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[2], expected[2])


@given(st.integers(1, 8), st.integers(0, 10_000))
def test_held_entries_stay_and_are_the_limit_of_short_steps(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w = torch.tensor(np.round(rng.normal(size=count) * 2) / 2 if seed % 2 else rng.normal(size=count))
    d = torch.tensor(10.0 ** rng.uniform(-1, 1, size=count))
    held = torch.tensor(rng.random(count) < 0.4)
    found = TotalVariation(0.6).prox(w, torch.where(held, 0.0, d))
    assert torch.equal(found[held], w[held])
    assert torch.allclose(found, TotalVariation(0.6).prox(w, torch.where(held, 1e-10, d)), atol=1e-8)


@given(st.integers(2, 9), st.integers(0, 10_000))
def test_residual_is_the_distance_to_the_subdifferential(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w, g = np.round(rng.normal(size=count)), rng.normal(size=count)
    jump = np.sign(np.diff(w))
    low, high = np.where(jump == 0, -0.7, 0.7 * jump - 1e-12), np.where(jump == 0, 0.7, 0.7 * jump + 1e-12)
    u = scipy.optimize.lsq_linear(_jumps(count).T, -g, bounds=(low, high), method="bvls", tol=1e-15).x
    found = TotalVariation(0.7).residual(torch.tensor(w), torch.tensor(g)).numpy()
    np.testing.assert_allclose(found, np.abs(_jumps(count).T @ u + g), atol=1e-6)


def test_zero_is_stationary_only_where_the_gradient_sums_to_zero() -> None:
    penalty, zero = TotalVariation(1.0), torch.zeros(4)
    assert penalty.strength_max(torch.tensor([1.0, 0.0, 0.0, 0.0])) == math.inf
    assert penalty.strength_max(torch.zeros(4)) == 0.0
    grad = torch.tensor([1.0, 2.0, -1.5, -1.5])
    assert penalty.strength_max(grad) == 3.0
    assert not TotalVariation(3.0).residual(zero, grad).any()
    assert TotalVariation(2.9).residual(zero, grad).any()
    assert penalty.strength_max(torch.tensor([0.1, 0.2, -0.3])) == pytest.approx(0.3)  # but for rounding
    assert math.isnan(penalty.strength_max(torch.tensor([1.0, math.nan])))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_ends_at_the_optimum_with_constant_pieces(kind: str) -> None:
    x, y = problem(rank=0)
    penalty = TotalVariation(0.4)
    w, grad = trained(kind, penalty, x, y[:, :1])
    assert float(penalty.residual(w, grad).max()) < 1e-6 * 0.4
    assert 0 < int((w.diff() == 0).sum()) < 11


@pytest.mark.parametrize("dim", [0.5, None, "rows"])
def test_a_dimension_is_a_whole_number(dim: object) -> None:
    with pytest.raises(InputError, match="whole number"):
        TotalVariation(0.1, dim=dim)  # type: ignore[arg-type]


@pytest.mark.parametrize(("shape", "dim"), [((), -1), ((3,), 1), ((2, 3), -3)])
def test_a_dimension_that_is_not_there_is_refused(shape: tuple[int, ...], dim: int) -> None:
    with pytest.raises(InputError, match="no dimension"):
        TotalVariation(0.1, dim=dim).validate(torch.Size(shape))


def test_a_certificate_claims_no_slack() -> None:
    """No entry is zero on account of the penalty, whatever the gradient there."""
    w = torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    assert TotalVariation(0.1).slack(w, torch.ones(2, 2)) is None
