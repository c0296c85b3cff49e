"""The estimators keep scikit-learn's contract: all of its checks, and life among its other tools."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.feature_selection import SelectFromModel
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import torchlasso as tl
from torchlasso.errors import InputError
from torchlasso.fit.settings import Budget

QUICK = Budget(dense=60, points=5, point=10, settle=60, refit=20, iterations=100)
SOLVED = Budget(iterations=300)

ESTIMATORS = [
    tl.LassoMLPClassifier((), strength=0.1, budget=SOLVED),
    tl.LassoMLPClassifier((8,), learning_rate=0.05, budget=QUICK),
    tl.LassoMLPRegressor((), strength=0.1, budget=SOLVED),
    tl.LassoMLPRegressor((8,), penalty="features", learning_rate=0.05, budget=QUICK),
]


def _expected(estimator: object) -> dict[str, str]:
    """Weights are repeated rows, but not the same rows to hold out, nor the same roundings."""
    linear = not len(np.atleast_1d(estimator.hidden_layer_sizes))
    if linear and estimator.strength != "auto":
        return {}
    why = (
        "rows are held out at random" if estimator.strength == "auto" else "a network's steps are in float32"
    )
    return {
        "check_sample_weight_equivalence_on_dense_data": why,
        "check_sample_weight_equivalence_on_sparse_data": why,
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:No features were selected:UserWarning")  # some of the data are noise
@parametrize_with_checks(ESTIMATORS, expected_failed_checks=_expected)
def test_scikit_learns_checks(estimator, check) -> None:
    check(estimator)


# --- among scikit-learn's tools -------------------------------------------------------------------------

RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 6))
Y = (X[:, 1] - 2 * X[:, 4] > 0).astype(int)
NAMES = [f"x{j}" for j in range(6)]


@pytest.mark.parametrize("frame", [pd.DataFrame(X, columns=NAMES), pl.DataFrame(X, schema=NAMES)])
def test_frames_keep_their_names(frame) -> None:
    library = "pandas" if isinstance(frame, pd.DataFrame) else "polars"
    model = tl.LassoMLPClassifier((), strength=0.1).set_output(transform=library).fit(frame, Y)
    assert list(model.selected_features_) == list(model.get_feature_names_out()) == ["x1", "x4"]
    assert list(model.transform(frame).columns) == ["x1", "x4"]
    assert isinstance(model.transform(frame), type(frame))


def test_a_selector_stands_before_another_model() -> None:
    selector = tl.LassoMLPClassifier((), strength=0.1)
    for first in (selector, SelectFromModel(selector)):
        pipeline = make_pipeline(StandardScaler(), first, LogisticRegression()).fit(X, Y)
        assert pipeline[-1].coef_.shape == (1, 2)
        assert pipeline.score(X, Y) > 0.9


@pytest.mark.parametrize("hidden", [(), (6,)], ids=["linear", "network"])
def test_importances_are_zero_where_a_feature_is_not_used(hidden: tuple[int, ...]) -> None:
    model = tl.LassoMLPClassifier(hidden, penalty="features", strength=0.02, random_state=0).fit(X, Y)
    importances = model.feature_importances_
    assert importances.max() == 1.0
    assert np.array_equal(importances > 0, model.get_support())
    assert set(importances.argsort()[-2:]) == {1, 4}
    assert np.array_equal(SelectFromModel(model, prefit=True).get_support(), model.get_support())
    assert hasattr(model, "coef_") == hasattr(model, "intercept_") == (not hidden)


@pytest.mark.parametrize("penalty", ["l1", "features"])
@pytest.mark.parametrize("keep", [[0, 3], ["x0", "x3"]], ids=["indices", "names"])
def test_what_is_always_kept_is_never_penalised(penalty: str, keep: list) -> None:
    frame = pd.DataFrame(X, columns=NAMES)
    model = tl.LassoMLPClassifier((), penalty=penalty, strength="1.001max", always_keep=keep).fit(frame, Y)
    assert list(model.selected_features_) == ["x0", "x3"]
    free = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(X[:, [0, 3]], Y)
    np.testing.assert_allclose(model.coef_[:, [0, 3]], free.coef_, atol=1e-4)
    with pytest.raises(InputError, match="always_keep belongs"):
        tl.LassoMLPClassifier(penalty="neurons", always_keep=[0]).fit(X, Y)


def test_a_group_with_a_kept_column_is_kept_whole() -> None:
    groups = [[0, 1], [2, 3], [4, 5]]
    model = tl.LassoMLPClassifier((), penalty="features", strength=10.0, groups=groups, always_keep=[2])
    assert list(model.fit(X, Y).selected_features_) == [2, 3]


def test_columns_are_sent_through_and_folds_run_side_by_side() -> None:
    frame = pd.DataFrame(X, columns=NAMES)
    columns = ColumnTransformer([("scaled", StandardScaler(), NAMES[:3])], remainder="passthrough")
    pipeline = make_pipeline(columns, tl.LassoMLPClassifier((), strength=0.05))
    alone, together = (cross_val_score(pipeline, frame, Y, cv=3, n_jobs=jobs) for jobs in (1, 2))
    assert np.array_equal(alone, together)
    assert alone.mean() > 0.85


def test_strongly_correlated_features_do_no_harm() -> None:
    x = np.repeat(X, 3, axis=1) + 0.01 * RNG.normal(size=(90, 18))
    model = tl.LassoMLPClassifier((6,), penalty="features", strength=0.02, random_state=0).fit(x, Y)
    assert {int(j) // 3 for j in model.selected_features_} >= {1, 4}
    assert len(model.selected_features_) < 18
    assert model.score(x, Y) > 0.9
