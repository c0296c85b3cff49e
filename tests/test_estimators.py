"""The estimators keep scikit-learn's contract and minimise what they say."""

import copy
import math
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import torchlasso as tl
from torchlasso.errors import InputError
from torchlasso.mlp import linear_layers

# --- the linear models are the convex problems ---------------------------------------------------------


def _quantities(rows: int = 80) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 6)) * [1.0, 5.0, 0.2, 1.0, 1.0, 1.0] + [0.0, 10.0, 0.0, -3.0, 0.0, 0.0]
    return x, 3 * x[:, 0] - 0.5 * x[:, 1] + x[:, 3] + 0.5 * rng.normal(size=rows) + 20


def _classes(rows: int = 90, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(rows, 6))
    scores = 2 * x[:, :count] + rng.normal(size=(rows, count))
    return x, scores.argmax(axis=1)


def _logistic(x: np.ndarray, y: np.ndarray, strength: float) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn is renaming its penalty argument
        model = LogisticRegression(
            penalty="l1", solver="saga", C=1 / (len(y) * strength), tol=1e-12, max_iter=100_000
        )
        return model.fit(x, y)


@pytest.mark.parametrize("alpha", [0.01, 0.3, 2.0])
def test_a_linear_regressor_is_scikit_learns_lasso(alpha: float) -> None:
    x, y = _quantities()
    ours = tl.LassoMLPRegressor((), strength=alpha).fit(x, y)
    theirs = Lasso(alpha=alpha, tol=1e-13, max_iter=100_000).fit(x, y)
    np.testing.assert_allclose(ours.module_.weight.detach().numpy()[0], theirs.coef_, atol=1e-6)
    np.testing.assert_allclose(ours.predict(x), theirs.predict(x), atol=1e-5)
    assert np.array_equal(ours.selected_features_, np.flatnonzero(theirs.coef_))
    assert ours.strength_ == alpha
    assert ours.path_ is None


@pytest.mark.parametrize("count", [2, 3])
def test_a_linear_classifier_is_scikit_learns_l1_logistic(count: int) -> None:
    x, y = _classes(count=count)
    ours = tl.LassoMLPClassifier((), strength=0.03).fit(x, y)
    theirs = _logistic(x, y, 0.03)
    np.testing.assert_allclose(ours.module_.weight.detach().numpy(), theirs.coef_, atol=2e-5)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=2e-5)
    assert np.array_equal(ours.predict(x), theirs.predict(x))


def test_one_number_is_one_hidden_layer() -> None:
    x, y = _classes()
    assert len(linear_layers(tl.LassoMLPClassifier(4, strength=0.1).fit(x, y).module_)) == 2


# --- names, labels, groups ------------------------------------------------------------------------------


def test_selected_features_are_the_names_of_a_data_frame() -> None:
    x, y = _quantities()
    frame = pd.DataFrame(x, columns=list("abcdef"))
    by_name = tl.LassoMLPRegressor((), strength=2.0).fit(frame, y)
    by_index = tl.LassoMLPRegressor((), strength=2.0).fit(x, y)
    assert 0 < len(by_index.selected_features_) < 6
    assert list(by_name.selected_features_) == [frame.columns[i] for i in by_index.selected_features_]
    with pytest.raises(ValueError, match="feature names"):
        by_name.predict(frame[list("fedcba")])


def test_labels_may_be_strings() -> None:
    x, y = _classes(count=3)
    names = np.array(["cherry", "apple", "banana"])[y]
    model = tl.LassoMLPClassifier((), strength=0.01).fit(x, names)
    assert list(model.classes_) == ["apple", "banana", "cherry"]
    assert set(model.predict(x)) <= set(names)
    assert model.score(x, names) > 0.7


@pytest.mark.parametrize(("hidden", "strength"), [((), 0.1), ((6,), 0.02)], ids=["linear", "network"])
def test_groups_are_selected_together(hidden: tuple[int, ...], strength: float) -> None:
    x, y = _classes()
    groups = [[0, 5], [1, 4], [2], [3]]
    model = tl.LassoMLPClassifier(
        hidden, penalty="features", strength=strength, groups=groups, random_state=0
    )
    chosen = set(model.fit(x, y).selected_features_)
    assert 0 < len(chosen) < 6
    assert all(set(group) <= chosen or not set(group) & chosen for group in groups)


@pytest.mark.parametrize("count", [2, 3])
def test_the_prediction_is_the_most_probable_class(count: int) -> None:
    x, y = _classes(count=count)
    model = tl.LassoMLPClassifier((5,), strength=0.02, random_state=0).fit(x, y)
    p = model.predict_proba(x)
    assert p.shape == (90, count)
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-12)
    assert np.array_equal(model.predict(x), model.classes_[p.argmax(axis=1)])


# --- scikit-learn's machinery ---------------------------------------------------------------------------

ESTIMATORS = [
    tl.LassoMLPClassifier((4,), strength=0.05, random_state=0),
    tl.LassoMLPRegressor((), strength=0.5),
]


def _fitted(model: BaseEstimator) -> tuple[BaseEstimator, np.ndarray]:
    x, y = _classes() if isinstance(model, tl.LassoMLPClassifier) else _quantities()
    return clone(model).fit(x, y), x


@pytest.mark.parametrize("model", ESTIMATORS, ids=["classifier", "regressor"])
def test_parameters_survive_a_clone_and_fits_survive_a_copy(model: BaseEstimator) -> None:
    twin = clone(model)
    assert twin.get_params() == model.get_params()
    assert clone(model).set_params(strength=0.7).strength == 0.7
    fitted, x = _fitted(model)
    assert clone(fitted).get_params() == model.get_params()
    assert not hasattr(clone(fitted), "module_")
    for other in (copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        assert np.array_equal(other.predict(x), fitted.predict(x))
        assert np.array_equal(other.selected_features_, fitted.selected_features_)


@pytest.mark.parametrize("strength", ["auto", 0.05])
def test_a_random_state_fixes_the_fit_and_leaves_the_worlds_alone(strength: float | str) -> None:
    x, y = _classes()

    def weights(seed: int) -> np.ndarray:
        model = tl.LassoMLPClassifier((4,), strength=strength, batch_size=40, random_state=seed).fit(x, y)
        return torch.cat([p.detach().flatten() for p in model.module_.parameters()]).numpy()

    first = weights(0)
    torch.manual_seed(5)
    np.random.seed(5)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert np.array_equal(weights(0), first)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert not np.array_equal(weights(1), first)


@pytest.mark.parametrize("hidden", [(), (4,)], ids=["linear", "network"])
def test_float32_rows_give_what_float64_rows_give(hidden: tuple[int, ...]) -> None:
    x, y = _classes()
    x = x.astype(np.float32)
    narrow = tl.LassoMLPClassifier(hidden, strength=0.05, random_state=0).fit(x, y)
    wide = tl.LassoMLPClassifier(hidden, strength=0.05, random_state=0).fit(x.astype(np.float64), y)
    np.testing.assert_allclose(narrow.predict_proba(x), wide.predict_proba(x.astype(np.float64)), atol=1e-5)


def test_a_grid_search_over_the_strength_in_a_pipeline() -> None:
    x, y = _classes()
    pipeline = make_pipeline(StandardScaler(), tl.LassoMLPClassifier(()))
    search = GridSearchCV(pipeline, {"lassomlpclassifier__strength": [0.01, 10.0]}, cv=3).fit(x, y)
    assert search.best_params_ == {"lassomlpclassifier__strength": 0.01}
    assert len(search.best_estimator_[-1].selected_features_) >= 2


WRONG = {
    "hidden_layer_sizes": [(0,), (3, -1), (2.5,), ("many",), "abc", None, (math.nan,), (True,)],
    "penalty": ["L1", None, 1],
    "strength": [-1.0, "none", math.nan, math.inf, None, [0.1]],
    "learning_rate": [0.0, -1.0, math.nan, math.inf, "fast"],
    "batch_size": [0, -5, 2.5, "all"],
    "validation_fraction": [0.0, 1.0, -0.1, math.nan, "half"],
    "device": ["toaster"],
    "budget": [3, "long"],
    "always_keep": [[6], [-1], ["a"], [True], 3, "a"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
@pytest.mark.parametrize("kind", [tl.LassoMLPClassifier, tl.LassoMLPRegressor], ids=["class", "quantity"])
def test_a_wrong_parameter_is_named_in_fit_and_not_before(kind: type, name: str, value: object) -> None:
    x, y = _classes()
    model = kind(**{name: value})
    with pytest.raises(InputError, match=name):
        model.fit(x, y)


@pytest.mark.parametrize(
    "groups", [[[0, 1]], [[0, 1, 2, 3, 4, 5], [5]], [[0, 1, 2, 3, 4, 9]], [[0.5, 1, 2, 3, 4, 5]], "rows", 3]
)
def test_wrong_groups_are_an_error(groups: object) -> None:
    x, y = _classes()
    with pytest.raises(InputError, match="groups"):
        tl.LassoMLPClassifier((), penalty="features", strength=0.1, groups=groups).fit(x, y)


def test_groups_and_neurons_ask_for_what_they_need() -> None:
    x, y = _classes()
    with pytest.raises(InputError, match="groups belong to penalty='features'"):
        tl.LassoMLPClassifier(groups=[[0, 1, 2, 3, 4, 5]]).fit(x, y)
    with pytest.raises(InputError, match="hidden layer"):
        tl.LassoMLPClassifier((), penalty="neurons").fit(x, y)
    with pytest.raises(InputError, match="two classes or more"):
        tl.LassoMLPClassifier(()).fit(x, np.zeros(len(x)))


def test_a_fraction_is_of_the_strength_that_zeros_everything() -> None:
    x, y = _quantities()
    largest = np.abs((x - x.mean(axis=0)).T @ (y - y.mean())).max() / len(y)  # scikit-learn's alpha_max
    half = tl.LassoMLPRegressor((), strength="0.5max").fit(x, y)
    assert half.strength_ == pytest.approx(largest / 2, rel=1e-6)
    assert half.path_ is None
    theirs = Lasso(alpha=largest / 2, tol=1e-13, max_iter=100_000).fit(x, y)
    np.testing.assert_allclose(half.module_.weight.detach().numpy()[0], theirs.coef_, atol=1e-5)
    assert not len(tl.LassoMLPRegressor((), strength="1.001max").fit(x, y).selected_features_)


def test_a_fraction_for_a_network_is_of_the_end_of_its_path() -> None:
    x, y = _classes()
    small, large = (
        tl.LassoMLPClassifier((4,), strength=strength, random_state=0).fit(x, y).strength_
        for strength in ("0.3max", "0.9max")
    )
    assert 0 < small == pytest.approx(large / 3)


def test_a_network_far_from_a_stationary_point_says_so() -> None:
    x, y = _classes()
    with pytest.warns(ConvergenceWarning, match=r"not settled.*residual of .*raise the strength") as caught:
        tl.LassoMLPClassifier((4,), strength=1e-7, random_state=0).fit(x, y)
    assert caught[0].filename == __file__


@pytest.mark.slow
def test_a_linear_model_short_of_its_optimum_says_so() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 1)) + 1e-4 * rng.normal(size=(40, 60))  # 60 nearly equal columns
    y = x[:, 0] + 0.1 * rng.normal(size=40)
    with pytest.warns(ConvergenceWarning, match="short of its optimum"):
        tl.LassoMLPRegressor((), strength=1e-6).fit(x, y)
