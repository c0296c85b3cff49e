"""Stability selection counts what it says, errs less than its bound, whoever computes it."""

import numpy as np
import pandas as pd
import pytest
from joblib import parallel_config
from sklearn.base import BaseEstimator
from sklearn.linear_model import Lasso, LassoLars, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import torchlasso as tl
from torchlasso.errors import InputError
from torchlasso.stability import StabilitySelection, stability_selection


def _data(seed: int = 0, rows: int = 100, columns: int = 30, true: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, 11])
    x = rng.normal(size=(rows, columns))
    return x, x[:, :true].sum(axis=1) + rng.normal(size=rows)


class _Recorder(BaseEstimator):
    """Selects the columns whose mean on the rows is positive, and remembers the rows."""

    seen: list[np.ndarray]

    def __init__(self, log: list | None = None) -> None:
        self.log = log

    def __sklearn_clone__(self) -> "_Recorder":
        return _Recorder(self.log)

    def fit(self, X: np.ndarray, y: np.ndarray) -> "_Recorder":
        self.log.append((X.copy(), y.copy()))
        self.coef_ = (X.mean(axis=0) > 0).astype(float)
        return self


def test_halves_are_disjoint_random_and_counted() -> None:
    x = np.random.default_rng(0).normal(size=(21, 6))
    x[:, 0] = np.arange(21) + 1.0  # always selected, and it tells the rows apart
    recorder = _Recorder([])
    found = stability_selection(recorder, x, np.arange(21), pairs=5, random_state=0)
    assert len(recorder.log) == 10
    for (first, y1), (second, y2) in zip(recorder.log[::2], recorder.log[1::2], strict=True):
        assert len(first) == len(second) == 10
        assert not set(first[:, 0]) & set(second[:, 0])
        np.testing.assert_array_equal(
            np.concatenate([first[:, 0], second[:, 0]]), np.concatenate([y1, y2]) + 1
        )
    assert len({tuple(rows[:, 0]) for rows, _ in recorder.log}) == 10
    selected = np.stack([rows.mean(axis=0) > 0 for rows, _ in recorder.log])
    np.testing.assert_array_equal(found.probabilities, selected.mean(axis=0))
    assert found.average == selected.sum(axis=1).mean()
    assert found.probabilities[0] == 1.0


def test_true_features_are_found_and_the_bound_is_stated() -> None:
    x, y = _data()
    found = stability_selection(LassoLars(alpha=0.0), x, y, first=4, random_state=0)
    assert list(found.selected) == [0, 1, 2]
    assert found.average == 4.0
    assert found.pfer == pytest.approx(16 / (0.5 * 30))
    assert found.pfer_r_concave < found.pfer
    strict = found.at(1.0)
    assert set(strict.selected) <= {0, 1, 2}
    assert strict.pfer == pytest.approx(16 / 30)


def test_the_first_on_the_path_are_those_of_lars() -> None:
    x, y = _data(1)
    recorded = stability_selection(LassoLars(alpha=0.0), x, y, first=5, pairs=4, random_state=3)
    generator = np.random.RandomState(3)
    counts = np.zeros(30)
    for _ in range(4):
        order = generator.permutation(100)
        for half in (np.sort(order[:50]), np.sort(order[50:])):
            counts[LassoLars(alpha=0.0).fit(x[half], y[half]).active_[:5]] += 1
    np.testing.assert_allclose(recorded.probabilities, counts / 8)


@pytest.mark.slow
@pytest.mark.parametrize("first", [4, 8])
def test_fewer_false_selections_than_the_bound(first: int) -> None:
    false, bounds = [], []
    for seed in range(20):
        x, y = _data(seed, rows=100, columns=40, true=4)
        found = stability_selection(
            LassoLars(alpha=0.0, max_iter=40), x, y, first=first, threshold=0.6, pairs=15, random_state=seed
        )
        false.append((found.selected >= 4).sum())
        bounds.append(found.pfer)
    assert np.mean(false) <= np.mean(bounds)


def test_at_a_fixed_strength_ours_selects_what_scikit_learn_selects() -> None:
    x, y = _data(2, columns=12)
    ours = stability_selection(tl.LassoMLPRegressor((), strength=0.3), x, y, pairs=5, random_state=0)
    theirs = stability_selection(Lasso(alpha=0.3, tol=1e-12), x, y, pairs=5, random_state=0)
    np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)
    assert ours.average == theirs.average


@pytest.mark.slow
def test_our_path_and_classes() -> None:
    x, y = _data(3, rows=120, columns=10)
    labels = np.where(y > 0, "yes", "no")
    model = make_pipeline(StandardScaler(), tl.LassoMLPClassifier(()))
    found = stability_selection(model, x, labels, first=3, pairs=4, random_state=0)
    assert set(found.selected) == {0, 1, 2}
    assert found.average == 3.0


def test_groups_are_selected_as_wholes() -> None:
    x, y = _data(4, columns=8)
    groups = [[0, 7], [1, 6], [2, 5], [3, 4]]
    found = stability_selection(LassoLars(alpha=0.0), x, y, first=3, groups=groups, pairs=10, random_state=0)
    assert len(found.probabilities) == 4
    assert list(found.selected) == [0, 1, 2]
    assert found.pfer == pytest.approx(min(9 / (0.5 * 4), 3))
    fixed = stability_selection(Lasso(alpha=0.4), x, y, groups=groups, pairs=10, random_state=0)
    alone = stability_selection(Lasso(alpha=0.4), x, y, pairs=10, random_state=0)
    for number, group in enumerate(groups):
        assert fixed.probabilities[number] >= alone.probabilities[group].max()


def test_the_names_of_a_data_frame() -> None:
    x, y = _data(5, columns=6)
    frame = pd.DataFrame(x, columns=list("abcdef"))
    found = stability_selection(LogisticRegression(), frame, y > 0, pairs=2, random_state=0)
    assert list(found.names) == list("abcdef")
    lars = stability_selection(LassoLars(alpha=0.0), frame, y, first=3, pairs=5, random_state=0)
    assert list(lars.selected) == ["a", "b", "c"]
    assert [line.split()[2] for line in lars.table().splitlines()[2:]] == ["yes"] * 3 + ["no"] * 3


@pytest.mark.slow
def test_workers_and_backends_do_not_change_the_result() -> None:
    x, y = _data(6, rows=60, columns=6)
    network = tl.LassoMLPRegressor((3,), penalty="features", strength="0.2max", batch_size=16)
    alone = stability_selection(network, x, y, pairs=2, random_state=0)
    assert 0 < alone.average < 6
    with parallel_config("loky", n_jobs=2):
        other = stability_selection(network, x, y, pairs=2, random_state=0)
    np.testing.assert_array_equal(other.probabilities, alone.probabilities)
    again = stability_selection(network, x, y, pairs=2, random_state=0, n_jobs=1)
    np.testing.assert_array_equal(again.probabilities, alone.probabilities)


def test_a_share_right_at_the_threshold_is_enough() -> None:
    found = StabilitySelection(np.arange(3), np.array([0.6, 3 * 0.2, 0.59]), 0.6, 1.0, 50)
    assert list(found.selected) == [0, 1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"threshold": 0.5}, "threshold"),
        ({"threshold": 1.1}, "threshold"),
        ({"threshold": "high"}, "threshold"),
        ({"pairs": 1}, "pairs"),
        ({"pairs": 2.5}, "pairs"),
        ({"first": 0}, "first"),
        ({"first": 31}, "first"),
        ({"first": True}, "first"),
        ({"groups": [[0, 1]]}, "groups"),
        ({"groups": "rows"}, "groups"),
        ({"groups": [[0], [0]]}, "groups"),
    ],
)
def test_wrong_arguments_are_errors(wrong: dict[str, object], message: str) -> None:
    x, y = _data()
    with pytest.raises(InputError, match=message):
        stability_selection(LassoLars(alpha=0.0), x, y, **wrong)


def test_wrong_estimators_and_data_are_errors() -> None:
    x, y = _data()
    with pytest.raises(InputError, match="must have a path"):
        stability_selection(Lasso(), x, y, first=3)
    with pytest.raises(ValueError, match="inconsistent numbers"):
        stability_selection(Lasso(), x, y[:-1])
    with pytest.raises(ValueError, match="minimum of 4"):
        stability_selection(Lasso(), x[:3], y[:3])
    with pytest.raises(InputError, match="threshold"):
        StabilitySelection(np.arange(1), np.ones(1), 0.6, 1.0, 5).at(0.2)
