"""The cross-validated estimators keep scikit-learn's contract and choose what scikit-learn's own choose."""

import math
import pickle

import numpy as np
import pandas as pd
import pytest
from joblib import parallel_config
from sklearn.base import clone
from sklearn.linear_model import LassoCV
from sklearn.metrics import log_loss
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    RepeatedKFold,
    ShuffleSplit,
    StratifiedKFold,
    TimeSeriesSplit,
)
from sklearn.utils.estimator_checks import parametrize_with_checks

from tests.test_estimators import _classes, _logistic, _quantities
from torchlasso.errors import InputError
from torchlasso.estimators import LassoMLPClassifier, LassoMLPRegressor
from torchlasso.estimators_cv import LassoMLPClassifierCV, LassoMLPRegressorCV
from torchlasso.fit.settings import Budget
from torchlasso.importance import feature_importance

SHORT = Budget(dense=40, point=10, settle=40)


# Strengths that select something in data of noise alone, or `transform` would warn of it.
BRIEF = {"cv": 2, "strengths": [1e-3, 1e-2], "budget": Budget(iterations=50)}
# A row that is repeated may fall into two folds, and a row of weight two only into one: other errors, and
# so another strength. scikit-learn expects the same of its own searches.
FOLDS_DIFFER = {
    f"check_sample_weight_equivalence_on_{kind}_data": "folds of repeated rows are other folds"
    for kind in ("dense", "sparse")
}


@pytest.mark.slow
@parametrize_with_checks(
    [LassoMLPClassifierCV((), **BRIEF), LassoMLPRegressorCV((), **BRIEF)],
    expected_failed_checks=lambda _: FOLDS_DIFFER,
)
def test_scikit_learns_checks(estimator, check) -> None:
    check(estimator)


# --- against scikit-learn -------------------------------------------------------------------------------


@pytest.mark.parametrize("cv", [KFold(4, shuffle=True, random_state=0), 3], ids=["shuffled", "3"])
def test_the_linear_regressor_is_lasso_cv(cv: object) -> None:
    x, y = _quantities()
    ours = LassoMLPRegressorCV((), cv=cv, strengths=12, selection="min").fit(x, y)
    theirs = LassoCV(cv=cv, alphas=ours.strengths_, tol=1e-10, max_iter=100_000).fit(x, y)
    assert ours.strength_ == theirs.alpha_
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)
    assert ours.intercept_ == pytest.approx(theirs.intercept_, abs=1e-4)
    np.testing.assert_allclose(2 * ours.cv_errors_.errors[:, ::-1].T, theirs.mse_path_, rtol=2e-3)
    np.testing.assert_allclose(ours.strengths_[-1], np.abs((x - x.mean(0)).T @ (y - y.mean())).max() / 80)
    assert ours.strengths_[0] == pytest.approx(1e-3 * ours.strengths_[-1])
    # The rule of one standard error, from scikit-learn's errors.
    means = theirs.mse_path_.mean(axis=1)
    low = means.argmin()
    edge = means[low] + theirs.mse_path_[low].std(ddof=1) / math.sqrt(theirs.mse_path_.shape[1])
    sparse = LassoMLPRegressorCV((), cv=cv, strengths=ours.strengths_).fit(x, y)
    assert sparse.strength_ == theirs.alphas_[means <= edge].max()


def test_the_linear_classifier_is_a_loop_over_l1_logistic_regressions() -> None:
    x, y = _classes(60)
    strengths = [0.01, 0.05, 0.2]
    ours = LassoMLPClassifierCV((), cv=3, strengths=strengths, selection="min").fit(x, y)
    for fold, (train, test) in enumerate(StratifiedKFold(3).split(x, y)):
        for place, strength in enumerate(strengths):
            theirs = _logistic(x[train], y[train], strength)
            error = log_loss(y[test], theirs.predict_proba(x[test]))
            assert ours.cv_errors_.errors[fold, place] == pytest.approx(error, rel=1e-3)
    final = _logistic(x, y, ours.strength_)
    np.testing.assert_allclose(ours.coef_, final.coef_, atol=1e-4)
    assert ours.certificate_.residual < 1e-5


# --- folds ----------------------------------------------------------------------------------------------

SPLITTERS = {
    "repeated": (RepeatedKFold(n_splits=2, n_repeats=2, random_state=0), 4),
    "time": (TimeSeriesSplit(3), 3),
    "one split": (ShuffleSplit(1, random_state=0), 1),
    "listed": ([(np.arange(40), np.arange(40, 80)), (np.arange(40, 80), np.arange(40))], 2),
}


@pytest.mark.parametrize("name", SPLITTERS)
def test_any_splitter_of_scikit_learn(name: str) -> None:
    x, y = _quantities()
    cv, count = SPLITTERS[name]
    model = LassoMLPRegressorCV((), cv=cv, strengths=3).fit(x, y)
    assert model.n_splits_ == count
    assert model.cv_errors_.errors.shape == (count, 3)


def test_groups_of_rows_stay_together() -> None:
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(12), 6)  # six copies each: only memory can tell their values
    x = rng.normal(size=(12, 20))[people]
    y = rng.normal(size=12)[people]
    together = LassoMLPRegressorCV((), cv=GroupKFold(4), strengths=5, selection="min").fit(
        x, y, groups=people
    )
    apart = LassoMLPRegressorCV(
        (), cv=KFold(4, shuffle=True, random_state=0), strengths=5, selection="min"
    ).fit(x, y)
    assert together.cv_errors_.mean[0] > 2 * apart.cv_errors_.mean[0]
    assert together.strength_ > apart.strength_
    with pytest.raises(InputError, match="groups need rows of a weight above zero, but 1 have none"):
        together.fit(x, y, np.array([0.0] + [1.0] * 71), groups=people)


def test_rows_of_weight_zero_are_in_no_fold() -> None:
    x, y = _quantities()
    weights = np.ones(80)
    weights[60:] = 0.0
    with_zeros = LassoMLPRegressorCV((), cv=3, strengths=3).fit(x, y, weights)
    without = LassoMLPRegressorCV((), cv=3, strengths=3).fit(x[:60], y[:60])
    np.testing.assert_allclose(with_zeros.cv_errors_.errors, without.cv_errors_.errors, rtol=1e-4)
    np.testing.assert_allclose(with_zeros.coef_, without.coef_, atol=1e-5)


# --- what comes out -------------------------------------------------------------------------------------


def test_the_model_is_that_of_all_rows_at_the_chosen_strength() -> None:
    x, y = _classes(count=3)
    names = np.array(["b", "c", "a"])[y]
    chosen = LassoMLPClassifierCV((), cv=3, strengths=5).fit(x, names)
    plain = LassoMLPClassifier((), strength=chosen.strength_).fit(x, names)
    assert list(chosen.classes_) == ["a", "b", "c"]
    np.testing.assert_allclose(chosen.predict_proba(x), plain.predict_proba(x), atol=1e-5)
    assert np.array_equal(chosen.selected_features_, plain.selected_features_)
    assert chosen.strength_ in chosen.strengths_


def test_the_path_holds_all_rows_models_and_the_folds_errors() -> None:
    x, y = _quantities()
    model = LassoMLPRegressorCV((), cv=4, strengths=6, selection="min").fit(x, y)
    points = model.path_.points
    assert [point.strength for point in points] == list(model.strengths_)
    np.testing.assert_allclose([point.valid_loss for point in points], model.cv_errors_.mean)
    np.testing.assert_allclose([point.valid_se for point in points], model.cv_errors_.se)
    assert model.path_.best("min").strength == model.strength_
    assert feature_importance(model.path_).entry[[0, 1, 3]].min() > 0


def test_a_network_with_named_columns_and_a_scorer() -> None:
    x, y = _classes(80)
    frame = pd.DataFrame(x, columns=list("abcdef"))
    model = LassoMLPClassifierCV(
        (4,), cv=2, strengths=4, penalty="features", scoring="accuracy", budget=SHORT, random_state=0
    ).fit(frame, np.where(y == 1, "yes", "no"))
    assert set(model.selected_features_) <= set("abcdef")
    assert ((model.cv_errors_.errors <= 0) & (model.cv_errors_.errors >= -1)).all()
    assert model.cv_errors_.errors.min() < -0.7
    copied = pickle.loads(pickle.dumps(model))
    assert np.array_equal(copied.selected_features_, model.selected_features_)
    assert copied.strength_ == model.strength_


def test_a_scorer_gives_the_errors_of_the_loss_it_is() -> None:
    x, y = _quantities()
    loss = LassoMLPRegressorCV((), cv=3, strengths=4).fit(x, y)
    score = LassoMLPRegressorCV((), cv=3, strengths=4, scoring="neg_mean_squared_error").fit(x, y)
    np.testing.assert_allclose(score.cv_errors_.errors, 2 * loss.cv_errors_.errors, rtol=1e-6)
    assert score.strength_ == loss.strength_


@pytest.mark.slow
def test_workers_and_backends_do_not_change_a_bit() -> None:
    x, y = _quantities(40)
    model = LassoMLPRegressorCV((3,), cv=3, strengths=3, budget=SHORT, batch_size=16, random_state=0)
    alone = clone(model).fit(x, y)
    with parallel_config("loky", n_jobs=2):
        workers = clone(model).fit(x, y)
    for other in (workers, clone(model).set_params(n_jobs=1).fit(x, y)):
        assert np.array_equal(other.cv_errors_.errors, alone.cv_errors_.errors)
        assert other.strength_ == alone.strength_
        assert np.array_equal(other.predict(x), alone.predict(x))
    assert not np.array_equal(
        clone(model).set_params(random_state=1).fit(x, y).cv_errors_.errors, alone.cv_errors_.errors
    )


@pytest.mark.slow
def test_other_losses_and_several_labels() -> None:
    x, _ = _quantities()
    counts = np.random.default_rng(0).poisson(np.exp(0.3 * (x[:, 0] - 1)))
    assert LassoMLPRegressorCV((), loss="poisson", cv=2, strengths=3).fit(x, counts).predict(x).min() > 0
    survival = np.column_stack([np.exp(-x[:, 0]), np.ones(80)])
    assert (
        LassoMLPRegressorCV((), loss="cox", cv=2, strengths=3, selection="min")
        .fit(x, survival)
        .score(x, survival)
        > 0.8
    )
    several = np.column_stack([x[:, 0] > 0, x[:, 3] > -3]).astype(int)
    labelled = LassoMLPClassifierCV((), cv=2, strengths=3, selection="min").fit(x, several)
    assert (labelled.predict(x) == several).mean() > 0.9


WRONG = {
    "cv": [0, 1, 2.5, "five", []],
    "strengths": [0, -1, True, "many", [], [-1.0], [math.nan], [math.inf], None],
    "selection": ["max", None],
    "hidden_layer_sizes": [(0,)],
    "penalty": ["lasso"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_wrong_parameters_are_told_in_fit(name: str, value: object) -> None:
    x, y = _quantities()
    model = LassoMLPRegressorCV(**({"hidden_layer_sizes": ()} | {name: value}))
    with pytest.raises(ValueError, match="cv|k-fold|split" if name == "cv" else name):
        model.fit(x, y)


def test_parameters_are_those_of_the_plain_estimators_and_the_folds() -> None:
    own = {"cv", "strengths", "selection", "scoring", "n_jobs"}
    for chosen, plain in (
        (LassoMLPClassifierCV, LassoMLPClassifier),
        (LassoMLPRegressorCV, LassoMLPRegressor),
    ):
        theirs = set(plain().get_params()) - {"strength", "validation_fraction"}
        assert set(chosen().get_params()) == theirs | own
        assert not hasattr(chosen(), "partial_fit")


@pytest.mark.parametrize("labels", [np.repeat(["a", "b"], 20), np.r_[["a", "b"] * 10, ["c", "a"] * 10]])
def test_a_fold_without_one_of_the_classes_is_named(labels) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3))
    with pytest.raises(InputError, match=r"fold \d lack one of the classes"):
        LassoMLPClassifierCV((), cv=KFold(2), strengths=3).fit(x, labels)
