"""Knockoffs are exchangeable to second order; the filter keeps its promise where the truth is known."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import toeplitz
from scipy.optimize import minimize
from sklearn.linear_model import Lasso, LassoCV, LassoLars, LogisticRegression

import torchlasso as tl
from torchlasso.errors import InputError
from torchlasso.gaussian_knockoffs import gaussian_knockoffs, knockoff_diagonal, knockoff_law
from torchlasso.knockoffs import KnockoffSelection, knockoff_filter, knockoff_threshold

METHODS = ("mvr", "equicorrelated")


def _correlation(size: int, seed: int) -> np.ndarray:
    """Return a random correlation, from nearly independent to nearly singular columns."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(size, rng.integers(1, size + 1)))
    covariance = factors @ factors.T + 10.0 ** rng.uniform(-2, 1) * np.eye(size)
    scale = np.sqrt(np.diag(covariance))
    return covariance / np.outer(scale, scale)


def _reconstructability(correlation: np.ndarray, s: np.ndarray) -> float:
    return (1 / s).sum() + np.trace(np.linalg.inv(2 * correlation - np.diag(s)))


# --- the copies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@given(st.integers(1, 8), st.integers(0, 2**31))
def test_swapping_columns_with_copies_leaves_the_covariance_unchanged(
    method: str, size: int, seed: int
) -> None:
    sigma = _correlation(size, seed)
    s = knockoff_diagonal(sigma, method)
    regression, spread = knockoff_law(sigma, s)
    # The joint law of (X, X̃) from its two halves, X ~ N(0, Σ) and X̃ | X ~ N(X·A, V).
    cross = sigma @ regression
    joint = np.block([[sigma, cross], [cross.T, regression.T @ sigma @ regression + spread]])
    swapped = np.random.default_rng(seed).random(size) < 0.5
    order = np.arange(2 * size)
    order[:size][swapped] += size
    order[size:][swapped] -= size
    np.testing.assert_allclose(joint[np.ix_(order, order)], joint, atol=1e-8)
    np.testing.assert_allclose(cross, sigma - np.diag(s), atol=1e-8)
    assert np.linalg.eigvalsh(spread)[0] > -1e-8
    assert (s > 0).all()


@given(st.integers(2, 6), st.integers(0, 2**31))
def test_the_diagonal_is_the_least_reconstructable(size: int, seed: int) -> None:
    sigma = _correlation(size, seed)
    s = knockoff_diagonal(sigma)
    value = _reconstructability(sigma, s)
    # The analytic optimum: the gradient −1/s_j² + ‖D⁻¹e_j‖² vanishes, and no other point is better.
    inverse = np.linalg.inv(2 * sigma - np.diag(s))
    np.testing.assert_allclose(s * np.linalg.norm(inverse, axis=0), 1.0, atol=2e-3)

    def objective(log_s: np.ndarray) -> float:
        d = 2 * sigma - np.diag(np.exp(log_s))
        return _reconstructability(sigma, np.exp(log_s)) if np.linalg.eigvalsh(d)[0] > 0 else 1e12

    found = minimize(objective, np.log(0.9 * knockoff_diagonal(sigma, "equicorrelated")), method="Powell")
    assert value <= found.fun * (1 + 1e-6)


def test_equal_copies_are_as_far_as_the_smallest_eigenvalue_allows() -> None:
    rho = 0.7  # equicorrelated columns have the smallest eigenvalue 1 − ρ
    sigma = np.full((4, 4), rho) + (1 - rho) * np.eye(4)
    np.testing.assert_allclose(knockoff_diagonal(sigma, "equicorrelated"), 2 * (1 - rho))
    mild = np.full((4, 4), 0.2) + 0.8 * np.eye(4)
    np.testing.assert_allclose(knockoff_diagonal(mild, "equicorrelated"), 1.0)
    # Least reconstructability moves off the edge, where columns and copies sum to something they all know.
    assert (knockoff_diagonal(sigma) < 2 * (1 - rho)).all()


@pytest.mark.parametrize("method", METHODS)
def test_drawn_copies_have_the_moments_and_keep_the_units(method: str) -> None:
    rng = np.random.default_rng(1)
    sigma = toeplitz(0.6 ** np.arange(4))
    scale, mean = np.array([1.0, 10.0, 0.1, 3.0]), np.array([0.0, 5.0, -1.0, 100.0])
    x = mean + scale * rng.multivariate_normal(np.zeros(4), sigma, size=40_000)
    before = x.copy()
    copies = gaussian_knockoffs(x, method=method)
    assert np.array_equal(x, before)
    joint = np.cov(np.hstack([(x - mean) / scale, (copies - mean) / scale]).T)
    s = knockoff_diagonal(sigma, method)
    wanted = np.block([[sigma, sigma - np.diag(s)], [sigma - np.diag(s), sigma]])
    np.testing.assert_allclose(joint, wanted, atol=0.03)
    np.testing.assert_allclose(copies.mean(axis=0), x.mean(axis=0), atol=0.03 * scale.max())
    other = gaussian_knockoffs(x * 7.0 - 3.0, method=method)
    np.testing.assert_allclose(other, copies * 7.0 - 3.0, rtol=1e-6, atol=1e-5)  # units of up to 70


def test_a_known_covariance_is_used() -> None:
    rng = np.random.default_rng(2)
    sigma = np.array([[4.0, 1.0], [1.0, 1.0]])
    x = rng.multivariate_normal([0.0, 0.0], sigma, size=50)
    known = gaussian_knockoffs(x, covariance=sigma, seed=3)
    assert np.array_equal(known, gaussian_knockoffs(x, covariance=sigma, seed=3))
    assert not np.array_equal(known, gaussian_knockoffs(x, covariance=sigma, seed=4))
    assert not np.allclose(known, gaussian_knockoffs(x, seed=3))


def test_there_are_copies_for_fewer_rows_than_columns() -> None:
    x = np.random.default_rng(0).normal(size=(20, 50))
    assert np.isfinite(gaussian_knockoffs(x)).all()


def test_columns_drawn_with_the_same_seed_are_not_their_own_noise() -> None:
    x = np.random.default_rng(0).normal(size=(2000, 1))
    assert abs(np.corrcoef(x[:, 0], gaussian_knockoffs(x, seed=0)[:, 0])[0, 1]) < 0.1


def test_wrong_columns_and_covariances_are_errors() -> None:
    x = np.random.default_rng(0).normal(size=(30, 3))
    constant = x.copy()
    constant[:, 1] = 5.0
    with pytest.raises(InputError, match=r"columns \[1\] are constant"):
        gaussian_knockoffs(constant)
    for covariance in (np.eye(2), np.ones(3), np.diag([1.0, 0.0, 1.0])):
        with pytest.raises(InputError, match="3 by 3 with a positive diagonal"):
            gaussian_knockoffs(x, covariance=covariance)
    with pytest.raises(InputError, match="linearly independent"):
        gaussian_knockoffs(x, covariance=np.ones((3, 3)))
    with pytest.raises(InputError, match="method"):
        knockoff_diagonal(np.eye(2), "sdp")
    with pytest.raises(InputError, match="square"):
        knockoff_diagonal(np.ones((2, 3)))
    with pytest.raises(InputError, match="square"):
        knockoff_diagonal(np.full((2, 2), math.nan))
    with pytest.raises(InputError, match="diagonal of ones"):
        knockoff_diagonal(2 * np.eye(2))


# --- the threshold ---------------------------------------------------------------------------------------


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30), st.sampled_from([0.05, 0.1, 0.2, 0.34, 0.5]))
def test_the_threshold_is_a_brute_force_reading_of_its_definition(values: list[int], fdr: float) -> None:
    w = np.array(values, dtype=np.float64)
    allowed = [
        t
        for t in sorted({abs(v) for v in values} - {0})
        if (1 + sum(v <= -t for v in values)) / max(1, sum(v >= t for v in values)) <= fdr
    ]
    assert knockoff_threshold(w, fdr) == (min(allowed) if allowed else math.inf)


def test_the_selection_reads_itself() -> None:
    w = np.array([5.0, 4.0, 3.0, -0.5, 2.0, 0.1])
    found = KnockoffSelection(np.array(list("abcdef")), w, knockoff_threshold(w, 0.3), 0.3)
    assert list(found.selected) == ["a", "b", "c", "e"]
    assert found.estimated_fdp == 1 / 4
    assert [line.split()[0] for line in found.table().splitlines()[2:]] == list("abcefd")
    nothing = KnockoffSelection(np.arange(6), w, math.inf, 0.1)
    assert len(nothing.selected) == 0
    assert nothing.estimated_fdp == 0.0


@pytest.mark.parametrize("fdr", [0.0, 1.0, -0.1, 1, True, "0.1", math.nan, None])
def test_a_wrong_level_is_an_error(fdr: object) -> None:
    with pytest.raises(InputError, match="fdr"):
        knockoff_threshold([1.0], fdr)


def test_wrong_statistics_are_errors() -> None:
    with pytest.raises(InputError, match="finite"):
        knockoff_threshold([1.0, math.nan], 0.1)
    with pytest.raises(InputError, match="vector"):
        knockoff_threshold([[1.0]], 0.1)


# --- the filter ------------------------------------------------------------------------------------------


def _linear_data(seed: int, rows: int = 300, columns: int = 60, true: int = 15) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng([seed, 7])
    x = rng.multivariate_normal(np.zeros(columns), toeplitz(0.4 ** np.arange(columns)), size=rows)
    support = rng.choice(columns, true, replace=False)
    y = x[:, support] @ rng.choice([-1.0, 1.0], true) * 0.4 + rng.normal(size=rows)
    return x, y, support


@pytest.mark.slow
@pytest.mark.parametrize("statistic", ["difference", "signed max"])
def test_false_discoveries_are_at_the_level_and_the_true_ones_are_found(statistic: str) -> None:
    estimator = LassoCV(cv=3) if statistic == "difference" else LassoLars(alpha=0.0, max_iter=60)
    shares, power = {0.1: [], 0.2: []}, {0.1: [], 0.2: []}
    for seed in range(25):
        x, y, support = _linear_data(seed)
        found = knockoff_filter(estimator, x, y, fdr=0.2, statistic=statistic, random_state=seed)
        for fdr in shares:
            chosen = np.flatnonzero(found.statistics >= knockoff_threshold(found.statistics, fdr))
            false = len(set(chosen) - set(support))
            shares[fdr].append(false / max(len(chosen), 1))
            power[fdr].append(len(set(chosen) & set(support)) / len(support))
    for fdr in shares:
        error = np.std(shares[fdr], ddof=1) / 5
        assert np.mean(shares[fdr]) <= fdr + 2 * error
    assert np.mean(power[0.2]) > 0.8
    assert np.mean(power[0.1]) > 0.5


def test_ours_and_scikit_learns_lasso_give_the_same_statistics() -> None:
    x, y, support = _linear_data(0, rows=200, columns=20, true=8)
    theirs = knockoff_filter(_lasso(0.05), x, y, fdr=0.2, random_state=0)
    ours = knockoff_filter(tl.LassoMLPRegressor((), strength=0.05), x, y, fdr=0.2, random_state=0)
    np.testing.assert_allclose(ours.statistics, theirs.statistics, atol=1e-5)
    assert set(ours.selected) == set(theirs.selected)
    assert len(set(ours.selected) & set(support)) >= 6


def _lasso(alpha: float) -> Lasso:
    return Lasso(alpha=alpha, tol=1e-12, max_iter=100_000)


def test_the_signed_maximum_is_read_from_our_path() -> None:
    x, y, support = _linear_data(1, rows=200, columns=20, true=8)
    found = knockoff_filter(
        tl.LassoMLPRegressor((), random_state=0), x, y, fdr=0.2, statistic="signed max", random_state=0
    )
    assert (found.statistics[support] > 0).mean() > 0.8
    assert len(set(found.selected) & set(support)) >= 6


@pytest.mark.slow
def test_a_network_prefers_columns_to_their_copies() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 16))
    y = sum(np.abs(x[:, j]) for j in range(6)) + 0.1 * rng.normal(size=300)  # nothing a line could see
    network = tl.LassoMLPRegressor((16,), penalty="features", strength="0.02max")
    found = knockoff_filter(network, x, y, fdr=0.3, random_state=0)
    assert (found.statistics[:6] > np.abs(found.statistics[6:]).max()).all()
    assert set(range(6)) <= set(found.selected)


def test_the_names_of_a_data_frame_and_classes() -> None:
    x, y, _ = _linear_data(2, rows=400, columns=12, true=6)
    frame = pd.DataFrame(x, columns=[f"gene{j}" for j in range(12)])
    found = knockoff_filter(
        LogisticRegression(), frame, np.where(y > 0, "yes", "no"), fdr=0.3, random_state=0
    )
    assert len(found.selected) >= 4
    assert set(found.selected) <= set(frame.columns)
    again = knockoff_filter(LogisticRegression(), x, y > 0, fdr=0.3, random_state=0)
    assert [f"gene{j}" for j in again.selected] == list(found.selected)


def test_the_units_of_the_columns_do_not_matter() -> None:
    x, y, _ = _linear_data(3, rows=100, columns=10, true=5)
    plain = knockoff_filter(_lasso(0.05), x, y, random_state=1)
    scaled = knockoff_filter(_lasso(0.05), x * np.logspace(-3, 3, 10) + 5, y, random_state=1)
    np.testing.assert_allclose(scaled.statistics, plain.statistics, atol=1e-8)


def test_wrong_arguments_are_errors() -> None:
    x, y, _ = _linear_data(0, rows=30, columns=4, true=2)
    with pytest.raises(InputError, match="fdr"):
        knockoff_filter(LassoCV(), x, y, fdr=2.0)
    with pytest.raises(InputError, match="statistic"):
        knockoff_filter(LassoCV(), x, y, statistic="swap")
    with pytest.raises(InputError, match="must have a path"):
        knockoff_filter(LassoCV(), x, y, statistic="signed max")
    with pytest.raises(ValueError, match="inconsistent numbers"):
        knockoff_filter(LassoCV(), x, y[:-1])
