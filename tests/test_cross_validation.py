"""The errors of the folds are those of models solved by another route; the choice is its definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Lasso
from sklearn.model_selection import KFold

from torchlasso.cross_validation import (
    CrossValidation,
    begin,
    cross_validate,
    make_fitter,
    module_at,
    path_at,
)
from torchlasso.errors import InputError
from torchlasso.estimators_rows import Rows
from torchlasso.fit.settings import Budget, Settings
from torchlasso.mlp import used_features
from torchlasso.tasks import Task

LINEAR = Settings((), "l1", None)
NETWORK = Settings((4,), "features", None, seed=3, learning_rate=0.05, budget=Budget(dense=60, point=100))


def _rows(count: int = 60) -> Rows:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 5)) * [1.0, 3.0, 0.5, 1.0, 1.0] + 2.0
    return Rows(x, x[:, 0] - x[:, 1] + 0.5 * rng.normal(size=count))


def _folds(rows: Rows, count: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(KFold(count).split(rows.inputs))


def test_linear_errors_are_those_of_scikit_learns_lasso() -> None:
    rows, strengths = _rows(), [0.01, 0.1, 0.5, 2.0]
    folds = _folds(rows)
    found = cross_validate(rows, Task("regression"), LINEAR, strengths, folds)
    assert found.errors.shape == (3, 4)
    for number, (train, test) in enumerate(folds):
        for place, strength in enumerate(strengths):
            lasso = Lasso(alpha=strength, tol=1e-12, max_iter=100_000).fit(
                rows.inputs[train], rows.target[train]
            )
            error = 0.5 * np.square(lasso.predict(rows.inputs[test]) - rows.target[test]).mean()
            assert found.errors[number, place] == pytest.approx(error, rel=1e-4)


def test_a_score_takes_the_place_of_the_loss() -> None:
    rows = _rows()

    def score(module: torch.nn.Module, test: Rows) -> float:
        output = module(torch.tensor(test.inputs)).squeeze(1).detach().numpy()
        return -0.5 * float(np.square(output - test.target).mean())

    plain = cross_validate(rows, Task("regression"), LINEAR, [0.1, 1.0], _folds(rows))
    scored = cross_validate(rows, Task("regression"), LINEAR, [0.1, 1.0], _folds(rows), score=score)
    np.testing.assert_allclose(scored.errors, plain.errors, rtol=1e-10)


def test_weighted_rows_are_repeated_rows() -> None:
    rows = _rows(30)
    times = np.random.default_rng(1).integers(1, 4, size=30)
    weighted = Rows(rows.inputs, rows.target, times.astype(float))
    repeated = rows.take(np.repeat(np.arange(30), times))
    folds = _folds(rows)
    number = np.repeat(np.arange(30), times)
    wide = [(np.flatnonzero(np.isin(number, a)), np.flatnonzero(np.isin(number, b))) for a, b in folds]
    task = Task("regression", weighted=True)
    first = cross_validate(weighted, task, LINEAR, [0.05, 0.5], folds)
    second = cross_validate(repeated, Task("regression"), LINEAR, [0.05, 0.5], wide)
    np.testing.assert_allclose(first.errors, second.errors, rtol=1e-4)


def test_folds_of_a_network_have_seeds_of_their_own() -> None:
    rows = _rows()
    same = [(np.arange(40), np.arange(40, 60))] * 2
    found = cross_validate(rows, Task("regression", unit=3.0), NETWORK, [0.01, 0.1], same)
    assert not np.array_equal(*found.errors)


# --- a path at given strengths --------------------------------------------------------------------------


def test_a_linear_path_is_ascending_and_starts_from_the_empty_end() -> None:
    rows = _rows()
    fitter = make_fitter(rows, None, Task("regression"), LINEAR)
    limit = begin(fitter)
    centred = rows.inputs - rows.inputs.mean(axis=0)
    assert limit == pytest.approx(np.abs(centred.T @ (rows.target - rows.target.mean())).max() / 60, rel=1e-5)
    points = path_at(fitter, [0.1 * limit, 0.5 * limit, 1.001 * limit])
    assert [point.strength for point in points] == [0.1 * limit, 0.5 * limit, 1.001 * limit]
    assert [point.nonzero for point in points][-1] == 0
    assert points[0].nonzero >= points[1].nonzero >= 1
    lasso = Lasso(alpha=0.1 * limit, tol=1e-12).fit(rows.inputs, rows.target)
    np.testing.assert_allclose(points[0].state["weight"][0].numpy(), lasso.coef_, atol=1e-3)


def test_a_network_that_is_empty_stays_so_to_the_end_of_the_path() -> None:
    rows = _rows()
    fitter = make_fitter(rows, None, Task("regression", unit=3.0), NETWORK)
    limit = begin(fitter)
    budget = fitter.budget
    points = path_at(fitter, [0.01 * limit, 5 * limit, 100 * limit])
    assert fitter.budget is budget
    assert [point.strength for point in points] == [0.01 * limit, 5 * limit, 100 * limit]
    assert points[0].features > 0
    assert points[1].features == points[2].features == 0
    assert points[2].train_loss == points[1].train_loss
    module = module_at(fitter, points[0])
    assert int(used_features(module).sum()) == points[0].features
    assert not module.training


# --- the choice -----------------------------------------------------------------------------------------


def test_mean_and_standard_error_are_the_textbooks() -> None:
    found = CrossValidation(np.array([0.1, 0.2]), np.array([[1.0, 2.0], [2.0, 2.0], [6.0, 2.0]]))
    assert list(found.mean) == [3.0, 2.0]
    assert found.se[0] == pytest.approx(math.sqrt(7.0) / math.sqrt(3))  # deviations −2, −1, 3
    assert found.se[1] == 0.0
    rows = found.table().splitlines()[2:]
    assert [row.split() for row in rows] == [["0.1", "3", "1.528"], ["0.2", "2", "0"]]


@given(st.lists(st.lists(st.integers(0, 9), min_size=5, max_size=5), min_size=2, max_size=6))
def test_the_choice_is_a_brute_force_reading_of_the_rule(table: list[list[int]]) -> None:
    errors = np.array(table, dtype=float)
    found = CrossValidation(np.arange(1.0, 6.0), errors)
    means = [sum(row[j] for row in table) / len(table) for j in range(5)]
    lowest = max(j for j in range(5) if means[j] == min(means))
    spread = sum((row[lowest] - means[lowest]) ** 2 for row in table) / (len(table) - 1)
    edge = means[lowest] + math.sqrt(spread / len(table))
    assert found.best("min") == lowest
    allowed = [j for j in range(5) if means[j] <= edge + 1e-12]
    sure = [j for j in range(5) if means[j] <= edge - 1e-12 or j == lowest]
    assert found.best("1se") in allowed  # exactly at the edge, rounding may fall to either side
    assert found.best("1se") >= max(sure)


def test_one_fold_has_no_standard_error() -> None:
    found = CrossValidation(np.array([0.1, 0.2, 0.3]), np.array([[2.0, 1.0, 1.5]]))
    assert found.best("1se") == found.best("min") == 1


def test_strengths_that_diverged_are_not_taken() -> None:
    errors = np.array([[math.nan, 1.0, 1.1, 0.0], [0.0, 1.2, 1.1, math.inf]])
    found = CrossValidation(np.arange(4.0), errors)
    assert found.best("min") == 2
    assert found.best("1se") == 2
    with pytest.raises(InputError, match="no strength has a finite error"):
        CrossValidation(np.arange(1.0), np.full((2, 1), math.nan)).best()
    with pytest.raises(InputError, match="selection must be"):
        found.best("max")
