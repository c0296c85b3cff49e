"""The nuclear norm: exact ranks, in a metric too, and low-rank regression in a user's own loop."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.penalties.cases_ordered import argmin_spectral
from tests.penalties.coupled_fits import OPTIMIZERS, problem, trained
from torchlasso.errors import InputError
from torchlasso.penalties.separable import L1
from torchlasso.penalties.spectral import NuclearNorm
from torchlasso.proximal.coupled import prox_in_metric


def _rank(w: Tensor) -> int:
    return int(torch.linalg.matrix_rank(w.double(), rtol=1e-6 if w.dtype == torch.float32 else 1e-13))


@pytest.mark.parametrize("decades", [0.0, 1.0, 3.0, 6.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_prox_in_a_metric_is_optimal_and_of_low_rank(decades: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w = torch.tensor(rng.normal(size=(8, 12)))
    d = torch.tensor(10.0 ** rng.uniform(-decades / 2, decades / 2, size=(8, 12)))
    penalty = NuclearNorm(3.0 * 10 ** (decades / 4))
    x = penalty.prox(w, d)
    assert _rank(x) < 8
    # The residual is in units of the slope; the shortest step turns it into a distance.
    assert float(penalty.residual(x, (x - w) / d)) * float(d.min()) < 1e-8 * float((x - w).abs().max())


def test_prox_in_a_metric_against_descent_on_the_dual() -> None:
    rng = np.random.default_rng(5)
    w, d = rng.normal(size=(4, 5)), 10.0 ** rng.uniform(-1, 0.5, size=(4, 5))
    expected = argmin_spectral(0.8, w, d)
    found = NuclearNorm(0.8).prox(torch.tensor(w), torch.tensor(d)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-7)
    d[1, 2] = d[3, 0] = 0.0
    expected = argmin_spectral(0.8, w, d)
    found = NuclearNorm(0.8).prox(torch.tensor(w), torch.tensor(d)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.array_equal(found[d == 0], w[d == 0])


def test_one_short_step_among_long_ones_is_found() -> None:
    """The mean of the steps is then far from the one that suits the splitting."""
    w, d = torch.ones(3, 4, dtype=torch.float64), torch.full((3, 4), 554.0, dtype=torch.float64)
    d[0, 0] = 1 / 32
    x = NuclearNorm(5.0).prox(w, d)
    assert float(NuclearNorm(5.0).residual(x, (x - w) / d)) < 1e-6
    assert float(x[0, 0]) == pytest.approx(1 - 5 / 32, abs=1e-6)
    assert _rank(x) == 1


def test_a_metric_that_is_constant_is_a_step() -> None:
    w = torch.randn(5, 7, dtype=torch.float64)
    penalty = NuclearNorm(0.9)
    assert torch.allclose(penalty.prox(w, torch.full_like(w, 0.4)), penalty.prox(w, 0.4), atol=1e-9)


def test_the_metric_solver_takes_any_penalty() -> None:
    """For the lasso the prox in a metric has a closed form."""
    w, d = torch.randn(60, dtype=torch.float64), 10 ** (3 * torch.rand(60, dtype=torch.float64) - 2)
    d[:3] = 0.0
    lasso = L1(1.0)
    expected = lasso.prox(w, d)
    found = prox_in_metric(w, d, lasso.prox)
    assert torch.allclose(found, expected, atol=1e-8)
    assert torch.equal(found == 0, expected == 0)


def test_the_rank_is_exact_and_a_dead_matrix_is_exactly_zero() -> None:
    for dtype in (torch.float64, torch.float32):
        w = torch.randn(9, 6, dtype=dtype)
        sizes = torch.linalg.svdvals(w)
        for alive in range(7):
            threshold = float(sizes[alive]) * 1.01 if alive < 6 else float(sizes[5]) / 2
            x = NuclearNorm(1.0).prox(w, threshold)
            assert _rank(x) == int((sizes > threshold).sum())
            assert (x == 0).all() or alive > 0


def test_the_shape_of_a_convolution_is_its_matrix_of_filters() -> None:
    w = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    penalty = NuclearNorm(0.5)
    for step in (0.7, torch.rand_like(w)):
        d = step.flatten(1) if isinstance(step, Tensor) else step
        assert torch.equal(penalty.prox(w, step).flatten(1), penalty.prox(w.flatten(1), d))
    assert torch.equal(penalty.value(w), penalty.value(w.flatten(1)))


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_residual_is_the_distance_to_the_subdifferential(rank: int) -> None:
    """Against projected gradients over the ``Z`` of spectral norm one across what ``W`` spans."""
    rng = np.random.default_rng(rank)
    u, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    v, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    w = u[:, :rank] @ np.diag(np.arange(1.0, rank + 1)) @ v[:, :rank].T
    for g in rng.normal(size=(5, 4, 5)):
        free = u[:, rank:].T @ (-g / 0.7) @ v[:, rank:]
        z = np.zeros_like(free)
        for _ in range(200):
            left, s, right = np.linalg.svd(z + 0.5 * (free - z), full_matrices=False)
            z = (left * np.minimum(s, 1.0)) @ right
        nearest = 0.7 * (u[:, :rank] @ v[:, :rank].T + u[:, rank:] @ z @ v[:, rank:].T)
        found = NuclearNorm(0.7).residual(torch.tensor(w), torch.tensor(g))
        assert found.shape == (1,)
        assert float(found) == pytest.approx(np.linalg.norm(nearest + g), rel=1e-9)


def test_the_value_has_a_gradient_where_singular_values_tie_or_vanish() -> None:
    for w in (torch.eye(3), torch.diag(torch.tensor([2.0, 2.0, 0.0])), torch.ones(3, 3)):
        leaf = w.double().requires_grad_()
        value = NuclearNorm(2.0).value(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
        assert float(value.detach()) == pytest.approx(2 * float(torch.linalg.svdvals(w.double()).sum()))
        assert torch.linalg.matrix_rank(gradient) == torch.linalg.matrix_rank(w)
        assert float(torch.linalg.svdvals(gradient).max()) == pytest.approx(2.0)


def _fista(x: Tensor, y: Tensor, strength: float) -> Tensor:
    """Minimise ``½‖X·Wᵀ − Y‖²/n + strength·‖W‖_*`` by accelerated proximal gradients."""
    n = len(x)
    rate = n / float(torch.linalg.matrix_norm(x, 2)) ** 2
    w = ahead = torch.zeros(y.shape[1], x.shape[1], dtype=x.dtype)
    for k in range(3000):
        moved = ahead - rate * (ahead @ x.T - y.T) @ x / n
        u, s, vt = torch.linalg.svd(moved, full_matrices=False)
        new = (u * (s - rate * strength).clamp_min(0.0)) @ vt
        ahead, w = new + k / (k + 3) * (new - w), new
    return w


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_ends_at_the_low_rank_optimum(kind: str) -> None:
    x, y = problem(rank=2)
    penalty = NuclearNorm(0.3)
    w, grad = trained(kind, penalty, x, y)
    assert float(penalty.residual(w, grad)) < 1e-6 * 0.3
    assert torch.allclose(w, _fista(x, y, 0.3), atol=1e-6)
    assert _rank(w) == 2


def test_a_vector_is_refused() -> None:
    with pytest.raises(InputError, match="two dimensions or more"):
        NuclearNorm(0.1).validate(torch.Size((3,)))


def test_a_certificate_claims_no_slack() -> None:
    """No entry is zero on account of the penalty, whatever the gradient there."""
    w = torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    assert NuclearNorm(0.1).slack(w, torch.ones(2, 2)) is None
