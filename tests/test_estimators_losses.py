"""The estimators minimise every loss that they name, with weights, and over rows that are stored sparse."""

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.optimize import minimize
from sklearn.linear_model import Lasso, LogisticRegression, QuantileRegressor
from sklearn.metrics import mean_pinball_loss
from sklearn.multiclass import OneVsRestClassifier

import torchlasso as tl
from torchlasso.errors import InputError
from torchlasso.fit.settings import Budget
from torchlasso.losses import CoxLoss, HuberLoss, PoissonLoss
from torchlasso.survival import concordance_index

QUICK = Budget(dense=100, points=8, point=15, settle=150, refit=30, iterations=500)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 6))
SIGNAL = 1.5 * X[:, 0] - X[:, 1]
Y = SIGNAL + 0.5 * RNG.standard_t(2, size=90) + 5
COUNTS = RNG.poisson(np.exp(0.5 * SIGNAL)).astype(float)
TIMES = np.column_stack([RNG.exponential(np.exp(-SIGNAL)), RNG.random(90) < 0.7])
WEIGHTS = RNG.uniform(0.2, 2, size=90)


def _minimum(loss: Callable[[torch.Tensor], torch.Tensor], strength: float) -> np.ndarray:
    """Return the weights with ``w = u − v``, ``u, v ≥ 0``, for which L-BFGS-B needs no proximal map."""

    def objective(parts: np.ndarray) -> tuple[float, np.ndarray]:
        z = torch.tensor(parts, requires_grad=True)
        value = loss(torch.tensor(X) @ (z[:6] - z[6:12]) + z[12]) + strength * z[:12].sum()
        value.backward()
        return float(value.detach()), z.grad.numpy()

    bounds = [(0, None)] * 12 + [(None, None)]
    options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-10}
    found = minimize(objective, np.zeros(13), jac=True, bounds=bounds, method="L-BFGS-B", options=options)
    return found.x[:6] - found.x[6:12]


@pytest.mark.parametrize(
    ("name", "loss", "target"),
    [("huber", HuberLoss(0.8), Y), ("poisson", PoissonLoss(), COUNTS), ("cox", CoxLoss(), TIMES)],
)
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_a_linear_model_minimises_the_loss_that_it_names(name, loss, target, weights) -> None:
    model = tl.LassoMLPRegressor((), loss=name, delta=0.8, strength=0.05).fit(X, target, weights)
    given = None if weights is None else torch.tensor(weights)
    expected = _minimum(lambda z: loss(z, torch.tensor(target), given), 0.05)
    np.testing.assert_allclose(model.coef_, expected, atol=2e-5)
    assert 0 < len(model.selected_features_) < 6


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
def test_a_linear_quantile_is_within_its_bound_of_scikit_learns(quantile: float) -> None:
    strength = 0.03
    ours = tl.LassoMLPRegressor((), loss="quantile", quantile=quantile, strength=strength).fit(X, Y)
    theirs = QuantileRegressor(quantile=quantile, alpha=strength).fit(X, Y)

    def objective(model) -> float:
        return mean_pinball_loss(Y, model.predict(X), alpha=quantile) + strength * np.abs(model.coef_).sum()

    assert -1e-9 <= objective(ours) - objective(theirs) <= 0.0025 * Y.std()
    assert float(np.mean(ours.predict(X) >= Y)) == pytest.approx(quantile, abs=0.06)


def test_hubers_delta_follows_the_units_of_the_target() -> None:
    small = tl.LassoMLPRegressor((), loss="huber", strength=0.05).fit(X, Y)
    large = tl.LassoMLPRegressor((), loss="huber", strength=50.0).fit(X, 1000 * Y)
    np.testing.assert_allclose(large.coef_, 1000 * small.coef_, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "target"), [("huber", Y), ("quantile", Y), ("poisson", COUNTS), ("cox", TIMES)]
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # a small budget
def test_a_network_learns_every_loss(name: str, target: np.ndarray) -> None:
    model = tl.LassoMLPRegressor((8,), loss=name, strength=0.01, budget=QUICK, random_state=0).fit(X, target)
    assert np.corrcoef(model.predict(X), SIGNAL)[0, 1] > 0.8
    assert (model.predict(X) > 0).all() or name != "poisson"
    assert model.score(X, target) > (0.7 if name == "cox" else 0.3)


def test_a_cox_score_is_the_concordance() -> None:
    model = tl.LassoMLPRegressor((), loss="cox", strength=0.05).fit(X, TIMES)
    risk = torch.tensor(model.predict(X))
    assert model.score(X, TIMES) == concordance_index(risk, torch.tensor(TIMES)) > 0.75


@pytest.mark.parametrize(
    ("arguments", "target", "message"),
    [
        ({"loss": "absolute"}, Y, "loss must be one of"),
        ({"loss": "poisson"}, -COUNTS - 1, "zero or more"),
        ({"loss": "cox"}, Y, "time and event"),
        ({"loss": "cox"}, TIMES * 2, "censored"),
        ({"loss": "huber", "delta": -1.0}, Y, "delta"),
        ({"loss": "quantile", "quantile": 1.5}, Y, "quantile"),
    ],
)
def test_a_loss_and_its_target_must_fit(arguments: dict, target: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tl.LassoMLPRegressor((), **arguments).fit(X, target)


# --- several labels -------------------------------------------------------------------------------------

LABELS = np.column_stack([SIGNAL > 0, X[:, 2] + 0.3 * X[:, 0] > 0.5, X[:, 5] > 0]).astype(int)


def test_a_linear_model_of_several_labels_is_one_logistic_lasso_a_label() -> None:
    ours = tl.LassoMLPClassifier((), strength=0.05).fit(X, LABELS)
    each = LogisticRegression(l1_ratio=1.0, solver="saga", C=1 / (len(X) * 0.05), tol=1e-10, max_iter=100_000)
    theirs = OneVsRestClassifier(each).fit(X, LABELS)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-4)
    assert np.array_equal(ours.predict(X), theirs.predict(X))
    assert ours.decision_function(X).shape == (90, 3)
    assert ours.score(X, LABELS) > 0.7


def test_a_network_of_several_labels_chooses_its_strength() -> None:
    model = tl.LassoMLPClassifier((8,), budget=QUICK, random_state=0).fit(X, LABELS)
    assert (model.predict(X) == LABELS).mean() > 0.85
    with pytest.raises(InputError, match="class_weight belongs to one label"):
        tl.LassoMLPClassifier((), class_weight="balanced").fit(X, LABELS)


# --- weights --------------------------------------------------------------------------------------------


def test_weights_are_scikit_learns() -> None:
    ours = tl.LassoMLPRegressor((), strength=0.1).fit(X, Y, WEIGHTS)
    theirs = Lasso(alpha=0.1, tol=1e-12, max_iter=100_000).fit(X, Y, WEIGHTS)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)
    assert ours.intercept_ == pytest.approx(theirs.intercept_, abs=1e-6)


@pytest.mark.parametrize("weight", ["balanced", {0: 0.2, 2: 3.0}], ids=["balanced", "dict"])
def test_class_weights_are_scikit_learns(weight) -> None:
    labels = np.digitize(SIGNAL, [-1.0, 2.0])
    ours = tl.LassoMLPClassifier((), strength=0.05, class_weight=weight).fit(X, labels)
    of_row = {0: 0.2, 1: 1.0, 2: 3.0} if weight != "balanced" else dict(enumerate(30 / np.bincount(labels)))
    sums = sum(of_row[label] for label in labels)
    theirs = LogisticRegression(
        l1_ratio=1.0, solver="saga", C=1 / (sums * 0.05), class_weight=weight, tol=1e-10, max_iter=100_000
    ).fit(X, labels)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-4)


@pytest.mark.parametrize("weight", ["even", {7: 1.0}, {0: -1.0}, {0: np.nan}])
def test_class_weights_that_cannot_be_are_an_error(weight) -> None:
    with pytest.raises(InputError, match="class_weight"):
        tl.LassoMLPClassifier((), strength=0.1, class_weight=weight).fit(X, SIGNAL > 0)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # a small budget
def test_a_network_with_whole_weights_is_nearly_one_with_copies() -> None:
    copies = RNG.integers(0, 3, size=90)
    arguments = {"strength": 0.01, "random_state": 0, "budget": QUICK}
    weighted = tl.LassoMLPClassifier((4,), **arguments).fit(X, SIGNAL > 0, copies)
    repeated = tl.LassoMLPClassifier((4,), **arguments).fit(X.repeat(copies, 0), (SIGNAL > 0).repeat(copies))
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), atol=0.02)


def test_weights_steer_the_choice_of_the_strength_too() -> None:
    model = tl.LassoMLPRegressor((), budget=QUICK, random_state=0).fit(X, Y, WEIGHTS)
    assert {0, 1} <= set(model.selected_features_)
    with pytest.raises(InputError, match="sample_weight"):
        tl.LassoMLPRegressor(()).fit(X, Y, -WEIGHTS)
    with pytest.raises(InputError, match="two rows or more"):
        tl.LassoMLPRegressor(()).fit(X, Y, np.eye(90)[0])


# --- sparse rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(), (5,)], ids=["linear", "network"])
@pytest.mark.parametrize(
    ("kind", "strength"), [(sparse.csr_matrix, "auto"), (sparse.csc_array, 0.05), (sparse.coo_array, 0.05)]
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # a small budget
def test_sparse_rows_give_what_dense_rows_give(hidden, kind, strength) -> None:
    x = np.where(np.abs(X) > 0.6, X, 0.0)
    arguments = {"strength": strength, "batch_size": 32, "random_state": 0, "budget": QUICK}
    dense = tl.LassoMLPClassifier(hidden, **arguments).fit(x, SIGNAL > 0)
    stored = tl.LassoMLPClassifier(hidden, **arguments).fit(kind(x), SIGNAL > 0)
    atol = 1e-2 if hidden else 1e-4
    np.testing.assert_allclose(stored.predict_proba(kind(x)), dense.predict_proba(x), atol=atol)
    assert np.array_equal(stored.selected_features_, dense.selected_features_)
    assert stored.certificate_.duality_gap is not None


def test_sparse_rows_are_never_filled_in_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x = sparse.random_array((300, 20_000), density=0.002, format="csr", rng=np.random.default_rng(0))
    x = sparse.hstack([sparse.csr_array(np.repeat(X[:, :2], 4, axis=0)[:300]), x]).tocsr()
    y = np.asarray(x[:, [0]].toarray())[:, 0]
    largest = []
    real = torch.Tensor.to_dense

    def noted(self, *args, **kwargs):
        if self.layout != torch.strided:
            largest.append(len(self))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to_dense", noted)
    model = tl.LassoMLPRegressor((), strength=0.1, batch_size=50, budget=Budget(iterations=300)).fit(x, y)
    assert list(model.selected_features_) == [0]
    assert max(largest) <= 50  # the duality gap looks at one batch at a time


# --- rows as they come ----------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(), (6,)], ids=["linear", "network"])
def test_rows_may_come_in_parts(hidden: tuple[int, ...]) -> None:
    model = tl.LassoMLPRegressor(hidden, strength=0.01 if hidden else 0.1, learning_rate=0.02, random_state=0)
    for _ in range(150):
        for part in np.array_split(np.arange(90), 3):
            model.partial_fit(X[part], Y[part])
    assert {0, 1} <= set(model.selected_features_)
    assert len(model.selected_features_) < 6 or hidden
    assert np.corrcoef(model.predict(X), SIGNAL)[0, 1] > 0.9


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_goes_on_where_the_model_was(copied) -> None:
    model = tl.LassoMLPClassifier((4,), strength=0.05, random_state=0)
    y = (SIGNAL > 0).astype(int)
    for _ in range(5):
        model.partial_fit(X, y, classes=[0, 1])
    twin = copied(model)
    for either in (model, twin):
        for _ in range(5):
            either.partial_fit(sparse.csr_array(X), y, sample_weight=WEIGHTS)
    assert np.array_equal(twin.predict_proba(X), model.predict_proba(X))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # a small budget
def test_a_fitted_model_goes_on_from_there() -> None:
    model = tl.LassoMLPRegressor((4,), strength=0.01, budget=QUICK, random_state=0).fit(X, SIGNAL)
    before = model.score(X, SIGNAL)
    assert model.partial_fit(X, SIGNAL).score(X, SIGNAL) > before - 0.1


def test_parts_need_a_number_and_all_labels() -> None:
    with pytest.raises(AttributeError, match="partial_fit"):
        tl.LassoMLPRegressor(()).partial_fit(X, Y)
    with pytest.raises(ValueError, match="classes"):
        tl.LassoMLPClassifier((), strength=0.1).partial_fit(X, SIGNAL > 0)
    with pytest.raises(InputError, match="labels among"):
        tl.LassoMLPClassifier((), strength=0.1).partial_fit(X, SIGNAL > 0, classes=[0, 5])
    with pytest.raises(InputError, match="all rows at once"):
        tl.LassoMLPClassifier((), strength=0.1, class_weight="balanced").partial_fit(
            X, (SIGNAL > 0).astype(int), classes=[0, 1]
        )


@pytest.mark.parametrize(
    ("loss", "target", "expected"),
    [("poisson", np.zeros(30), "above zero"), ("cox", np.c_[np.arange(1.0, 31.0), np.zeros(30)], "censored")],
)
def test_a_target_without_information_is_refused(loss, target, expected) -> None:
    x = np.random.default_rng(0).normal(size=(30, 3))
    with pytest.raises(InputError, match=expected):
        tl.LassoMLPRegressor((), loss=loss, strength=0.1).fit(x, target)
