"""The bounds of stability selection, against the laws that they are bounds for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from torchlasso.stability_bounds import pfer_bound, pfer_bound_r_concave, tail_bound


def test_the_plain_bound_by_hand() -> None:
    assert pfer_bound(10, 200, 0.75) == pytest.approx(100 / (0.5 * 200))
    assert pfer_bound(50, 1000, 0.9) == pytest.approx(3.125)
    assert pfer_bound(150, 200, 0.6) == 150  # more than all that a half selects is no bound


@given(st.integers(0, 2**31), st.sampled_from([-1 / 2, -1 / 4]))
def test_no_r_concave_law_has_a_heavier_tail(seed: int, r: float) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(4, 30))
    # f^r convex and positive, and f free to end early: a random convex sequence to the power 1/r.
    bends = rng.exponential(size=count - 1) * (rng.random(count - 1) < 0.3)
    slopes = rng.exponential(0.5) * rng.integers(1, 6) * np.concatenate([[1.0], 1.0 + bends.cumsum()])
    convex = 10.0 ** rng.uniform(-2, 1) + np.concatenate([[0.0], slopes.cumsum()])
    law = convex ** (1 / r)
    law[int(rng.integers(2, count + 1)) + 1 :] = 0.0
    law /= law.sum()
    mean = float(law @ np.arange(count + 1)) / count
    for at_least in range(1, count + 1):
        assert law[at_least:].sum() <= tail_bound(mean, at_least, count, r) + 1e-7


@pytest.mark.parametrize("r", [-1 / 2, -1 / 4])
@pytest.mark.parametrize(("mean", "at_least"), [(0.1, 5), (0.1, 8), (0.2, 6), (0.25, 8)])
def test_the_bound_is_reached_by_a_law_found_by_search(mean: float, at_least: int, r: float) -> None:
    count = 8
    i = np.arange(count + 1)

    def law(logs: np.ndarray) -> np.ndarray:
        values = np.exp(logs - logs.max())
        return values / values.sum()

    constraints = [
        {"type": "eq", "fun": lambda z: law(z) @ i - mean * count},
        {"type": "ineq", "fun": lambda z: np.diff(np.exp(r * (z - z.max())), 2)},  # f^r is convex
    ]
    found = 0.0
    for seed in range(8):
        start = -np.random.default_rng(seed).uniform(0.1, 3) * i**0.7
        result = minimize(
            lambda z: -law(z)[at_least:].sum(),
            start,
            constraints=constraints,
            bounds=[(-30.0, 30.0)] * (count + 1),
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-12},
        )
        feasible = (
            abs(constraints[0]["fun"](result.x)) < 1e-6 and constraints[1]["fun"](result.x).min() > -1e-6
        )
        found = max(found, -result.fun if feasible else 0.0)
    bound = tail_bound(mean, at_least, count, r)
    assert 0.97 * bound <= found <= bound * (1 + 1e-5)


@given(st.integers(1, 60), st.integers(26, 50), st.sampled_from([100, 200, 1000]))
def test_the_r_concave_bound_lies_between_nothing_and_the_unimodal_one(q: int, of_50: int, p: int) -> None:
    threshold, theta, pairs = of_50 / 50, q / p, 50
    bound = pfer_bound_r_concave(q, p, threshold, pairs)
    assert 0 <= bound <= pfer_bound(q, p, threshold)
    if theta > 1 / 3**0.5:
        return
    # Theorem 2 of Shah and Samworth: every r-concave law is unimodal.
    if threshold > 0.75:
        unimodal = 4 * (1 - threshold + 1 / (2 * pairs)) / (1 + 1 / pairs)
    elif threshold > min(0.5 + theta**2, 0.5 + 1 / (2 * pairs) + 0.75 * theta**2):
        unimodal = 1 / (2 * (2 * threshold - 1 - 1 / (2 * pairs)))
    else:
        return
    assert bound <= unimodal * theta**2 * p + 1e-9


def test_a_higher_threshold_and_fewer_features_mean_fewer_errors() -> None:
    by_threshold = [pfer_bound_r_concave(20, 400, t, 50) for t in (0.55, 0.6, 0.7, 0.8, 0.9, 1.0)]
    assert by_threshold == sorted(by_threshold, reverse=True)
    by_count = [pfer_bound_r_concave(q, 400, 0.7, 50) for q in (0, 1, 5, 20, 50)]
    assert by_count == sorted(by_count)
    assert by_count[0] == 0.0


def test_the_tail_where_the_bound_says_nothing() -> None:
    assert tail_bound(0.3, 5, 10, -0.5) == 1.0  # below twice the mean
    assert tail_bound(0.9, 10, 10, -0.5) == 1.0
    assert tail_bound(0.0, 3, 10, -0.5) == 0.0
