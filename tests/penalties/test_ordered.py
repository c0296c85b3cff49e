"""SLOPE: ties, its sequence, its residual, and trained in a user's own loop."""

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.penalties.brute import Array
from tests.penalties.cases_ordered import argmin_sorted, bh
from tests.penalties.coupled_fits import OPTIMIZERS, problem, trained
from torchlasso.errors import InputError
from torchlasso.penalties.ordered import SLOPE
from torchlasso.penalties.separable import L1


def _sequence(count: int, seed: int = 0) -> Tensor:
    return torch.tensor(np.sort(np.random.default_rng(seed).random(count))[::-1].copy()) + 0.01


@given(st.integers(1, 5), st.integers(0, 10_000), st.floats(-2, 1), st.booleans())
def test_prox_in_any_metric_is_the_best_of_all_orders(
    count: int, seed: int, power: float, held: bool
) -> None:
    rng = np.random.default_rng(seed)
    w = np.round(rng.normal(size=count) * 4) / 4 if seed % 2 else rng.normal(size=count)
    d = 10.0 ** rng.uniform(-2, 1, size=count)
    d[rng.random(count) < 0.3 * held] = 0.0
    levels = _sequence(count, seed) * 10**power
    found = SLOPE(1.0, levels).prox(torch.tensor(w), torch.tensor(d)).numpy()
    np.testing.assert_allclose(found, argmin_sorted(levels.numpy(), w, d), atol=1e-8)
    assert np.array_equal(found[d == 0], w[d == 0])


@pytest.mark.parametrize("decades", [0.0, 1.0, 6.0])
@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_many_weights_in_a_metric_are_optimal(decades: float, strength: float) -> None:
    rng = np.random.default_rng(3)
    w = torch.tensor(rng.normal(size=3000))
    d = torch.tensor(10.0 ** rng.uniform(-decades / 2, decades / 2, size=3000))
    for penalty in (SLOPE(strength), SLOPE(strength, torch.linspace(3.0, 0.0, 3000))):
        x = penalty.prox(w, d)
        assert float((d.sqrt() * penalty.residual(x, (x - w) / d)).max()) < 1e-10
        sizes = x.abs().unique()
        assert sizes.numel() < 3000  # ties, exactly


def test_a_constant_sequence_is_the_lasso() -> None:
    w, d = torch.randn(40, dtype=torch.float64), torch.rand(40, dtype=torch.float64)
    slope, lasso = SLOPE(0.3, torch.full((40,), 2.0)), L1(0.6)
    for step in (0.7, d):
        assert torch.allclose(slope.prox(w, step), lasso.prox(w, step), atol=1e-14)
    grad = torch.randn(40, dtype=torch.float64)
    x = lasso.prox(w, 0.7)
    assert torch.allclose(slope.residual(x, grad), lasso.residual(x, grad), atol=1e-14)
    assert slope.strength_max(grad) == pytest.approx(lasso.strength_max(grad) / 2)


def _distance(levels: Array, w: Array, g: Array) -> float:
    """Return the distance of ``−g`` to the hull of the ``±l`` in any order that reach the value at ``w``."""
    corners = []
    for order in itertools.permutations(levels):
        for signs in itertools.product((-1.0, 1.0), repeat=w.size):
            corner = np.array(order) * np.array(signs)
            if corner @ w >= np.sort(np.abs(w))[::-1] @ levels - 1e-12:
                corners.append(corner)
    matrix = np.unique(np.array(corners), axis=0).T
    heavy = 1e6  # the shares sum to one
    system = np.vstack([matrix, heavy * np.ones(matrix.shape[1])])
    shares, _ = scipy.optimize.nnls(system, np.append(-g, heavy))
    return float(np.linalg.norm(matrix @ shares + g))


@pytest.mark.parametrize("w", [[0.0, 0, 0], [1, 0, 0], [1, -1, 0], [2, 2, -2], [2, -1, 1], [3, 2, -1]])
def test_residual_is_the_distance_to_the_subdifferential(w: list[float]) -> None:
    levels, point = np.array([2.0, 1.0, 0.5]), np.array(w, dtype=float)
    penalty = SLOPE(1.0, torch.tensor(levels))
    for seed in range(10):
        g = np.random.default_rng(seed).normal(size=3) * 2
        found = penalty.residual(torch.tensor(point), torch.tensor(g))
        assert float(found.norm()) == pytest.approx(_distance(levels, point, g), abs=1e-5)


def test_the_sequence_of_benjamini_and_hochberg() -> None:
    w = torch.zeros(50, dtype=torch.float64)
    for q in (0.05, 0.5):
        for position in range(3):
            w[position] = 1.0
            expected = bh(50, q)[: position + 1].sum()
            assert float(SLOPE(1.0, q=q).value(w)) == pytest.approx(expected, rel=1e-12)
        w.zero_()


def test_on_an_orthogonal_design_the_prox_of_least_squares_is_the_solution() -> None:
    """Then ``½‖y − Xw‖²`` is ``½‖w − Xᵀy‖²``, and five weights have few enough orders to try them all."""
    rng = np.random.default_rng(1)
    x = np.linalg.qr(rng.normal(size=(30, 5)))[0]
    y = x @ np.array([3.0, -2.9, 1.0, 0.0, 0.0]) + 0.1 * rng.normal(size=30)
    levels = np.array([1.0, 0.8, 0.6, 0.4, 0.2])
    w = argmin_sorted(levels, x.T @ y, np.ones(5))
    penalty = SLOPE(1.0, torch.tensor(levels))
    assert np.allclose(penalty.prox(torch.tensor(x.T @ y), 1.0).numpy(), w, atol=1e-12)
    assert float(penalty.residual(torch.tensor(w), torch.tensor(x.T @ (x @ w - y))).max()) < 1e-9


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_ends_at_the_optimum_with_exact_ties_and_zeros(kind: str) -> None:
    x, y = problem(rank=0)
    penalty = SLOPE(0.15, q=0.2)
    w, grad = trained(kind, penalty, x, y[:, :1])
    assert float(penalty.residual(w, grad).max()) < 1e-6 * 0.15
    assert 0 < int((w == 0).sum()) < w.numel()


@pytest.mark.parametrize(
    "sequence", [torch.tensor([1.0, 2.0]), torch.tensor([1.0, -1.0]), torch.tensor([0.0, 0.0]), "oscar"]
)
def test_a_sequence_that_is_none_is_refused(sequence: Tensor | str) -> None:
    with pytest.raises(InputError, match="sequence must"):
        SLOPE(0.1, sequence)


@pytest.mark.parametrize("q", [0.0, 1.0, -0.1, float("nan")])
def test_q_outside_its_range_is_refused(q: float) -> None:
    with pytest.raises(InputError, match="q must lie"):
        SLOPE(0.1, q=q)


def test_a_sequence_of_another_length_is_refused() -> None:
    with pytest.raises(InputError, match=r"one entry a weight \(6 in \(2, 3\)\), got 4"):
        SLOPE(0.1, torch.ones(4)).validate(torch.Size((2, 3)))


def test_ties_in_the_metric_stay_ties_in_every_dtype() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        w = torch.tensor([1.0, -0.98, 0.96, 0.05], dtype=dtype)
        found = SLOPE(1.0, torch.tensor([0.5, 0.4, 0.1, 0.1])).prox(w, torch.tensor([1.0, 0.5, 0.25, 1.0]))
        assert found[0] == -found[1] > 0
        assert found[3] == 0


def test_slack_is_what_the_zeros_may_still_gain() -> None:
    """By trying: the zeros hold exactly as long as their gradients are scaled by less than 1/(1 − slack)."""
    penalty = SLOPE(1.0, torch.tensor([10.0, 3.0, 1.0, 0.5]))
    w = torch.tensor([3.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    grad = torch.tensor([-10.0, 1.5, 0.9, 0.2], dtype=torch.float64)
    slack = penalty.slack(w, grad)
    assert slack is not None
    for factor, holds in ((0.999 / (1 - slack), True), (1.001 / (1 - slack), False)):
        scaled = torch.cat([grad[:1], factor * grad[1:]])
        assert bool((penalty.residual(w, scaled) < 1e-9).all()) == holds
    assert penalty.slack(torch.ones(4), torch.ones(4)) is None
