"""Importance along a path is counted from the weights, by hand and against the fitted models."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.linear_model import Lasso, LassoLars, LogisticRegression
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import torchlasso as tl
from torchlasso.errors import InputError
from torchlasso.importance import FeatureImportance, feature_importance, fitted_entry, fitted_norms
from torchlasso.mlp import build_mlp, used_features
from torchlasso.path import Path, PathPoint


def _point(strength: float, **state: torch.Tensor) -> PathPoint:
    return PathPoint(strength, 0.0, torch.zeros(2), 0, 0, state)


def _linear(strength: float, row: list[float]) -> PathPoint:
    return _point(strength, weight=torch.tensor([row]), bias=torch.zeros(1))


PATH = Path(
    (
        _linear(0.1, [3.0, -2.0, 0.5, 0.0]),
        _linear(0.2, [2.0, -4.0, 0.0, 0.0]),
        _linear(0.4, [1.0, -2.0, 0.0, 0.0]),
        _linear(0.8, [0.0, 0.0, 0.0, 0.0]),
    )
)


def test_norms_and_entry_strengths_by_hand() -> None:
    found = feature_importance(PATH)
    np.testing.assert_array_equal(found.strengths, [0.1, 0.2, 0.4, 0.8])
    np.testing.assert_array_equal(found.norms[:2], [[3.0, 2.0, 0.5, 0.0], [2.0, 4.0, 0.0, 0.0]])
    np.testing.assert_array_equal(found.entry, [0.4, 0.4, 0.1, 0.0])
    assert list(found.order) == [1, 0, 2, 3]  # 1 before 0: both to 0.4, and the larger there
    assert found.names == ("x0", "x1", "x2", "x3")


def test_the_order_of_the_points_does_not_matter() -> None:
    backwards = feature_importance(Path(PATH.points[::-1]))
    np.testing.assert_array_equal(backwards.entry, feature_importance(PATH).entry)
    np.testing.assert_array_equal(backwards.strengths, [0.1, 0.2, 0.4, 0.8])


def test_the_table_has_a_row_for_each_feature_in_order() -> None:
    lines = feature_importance(PATH, ["a", "b", "c", "d"]).table().splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["b", "a", "c", "d"]
    assert lines[2].split() == ["b", "0.4", "2"]


def test_weights_into_units_that_nothing_reads_do_not_count() -> None:
    state = {
        "hidden1.weight": torch.tensor([[3.0, 0.0, 1.0], [0.0, 5.0, 0.0]]),
        "output.weight": torch.tensor([[2.0, 0.0]]),
    }
    found = feature_importance(Path((_point(0.3, **state),)))
    np.testing.assert_array_equal(found.norms, [[3.0, 0.0, 1.0]])


@given(st.integers(0, 2**31))
def test_a_feature_has_a_norm_where_the_network_uses_it(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    network = build_mlp(5, (4, 3), 2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(torch.rand(parameter.shape, generator=generator) < 0.35)
    found = feature_importance(Path((_point(1.0, **network.state_dict()),)))
    assert np.array_equal(found.norms[0] > 0, used_features(network).numpy())


def test_a_weight_that_is_too_small_to_be_squared_is_still_used() -> None:
    assert feature_importance(Path((_linear(1.0, [1e-40, 0.0]),))).norms[0, 0] > 0
    double = _point(1.0, weight=torch.tensor([[1e-300, 0.0]], dtype=torch.float64))
    assert list(feature_importance(Path((double,))).norms[0] > 0) == [True, False]


def test_any_parameter_can_be_named() -> None:
    kernel = torch.zeros(2, 3, 2, 2)
    kernel[:, 1] = 1.0
    path = Path((_point(0.5, **{"conv.weight": kernel, "head.weight": torch.ones(7, 9)}),))
    np.testing.assert_allclose(feature_importance(path, weight="conv.weight").norms, [[0.0, 8**0.5, 0.0]])
    with pytest.raises(InputError, match=r"weight=\.\.\."):
        feature_importance(path)
    with pytest.raises(InputError, match=r"there are conv\.weight, head\.weight"):
        feature_importance(path, weight="nothing")


def test_wrong_input_is_an_error() -> None:
    with pytest.raises(InputError, match="no points"):
        feature_importance(Path(()))
    with pytest.raises(InputError, match="4 features, got 2"):
        feature_importance(PATH, ["a", "b"])


# --- what a fitted estimator uses ------------------------------------------------------------------------


def _data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5))
    return x, 3 * x[:, 3] - 2 * x[:, 0] + 0.2 * rng.normal(size=60)


def test_norms_are_the_absolute_coefficients_of_linear_models() -> None:
    x, y = _data()
    lasso = Lasso(alpha=0.1, tol=1e-12).fit(x, y)
    np.testing.assert_allclose(fitted_norms(lasso, 5), np.abs(lasso.coef_))
    ours = tl.LassoMLPRegressor((), strength=0.1).fit(x, y)
    np.testing.assert_allclose(fitted_norms(ours, 5), np.abs(lasso.coef_), atol=1e-6)
    assert np.array_equal(fitted_norms(ours, 5) > 0, lasso.coef_ != 0)
    three = LogisticRegression().fit(x, np.digitize(y, [-1.0, 1.0]))
    np.testing.assert_allclose(fitted_norms(three, 5), np.linalg.norm(three.coef_, axis=0))
    piped = make_pipeline(StandardScaler(), Lasso(alpha=0.1)).fit(x, y)
    np.testing.assert_allclose(fitted_norms(piped, 5), np.abs(piped[-1].coef_))


def test_entry_strengths_of_lars_are_read_off_its_path() -> None:
    x, y = _data()
    lars = LassoLars(alpha=0.0).fit(x, y)
    entry, norm = fitted_entry(lars, 5)
    for j in range(5):
        first = int(np.flatnonzero(lars.coef_path_[j])[0])
        assert entry[j] == lars.alphas_[first]
        assert norm[j] == abs(lars.coef_path_[j, first])
    assert list(np.argsort(-entry)[:2]) == [3, 0]


def test_entry_strengths_of_ours_agree_with_lars_up_to_a_step_of_the_grid() -> None:
    x, y = _data()
    ours = tl.LassoMLPRegressor((), random_state=0).fit(x, y)
    entry, _ = fitted_entry(ours, 5)
    grid = [point.strength for point in ours.path_.points]
    assert set(entry) <= {0.0, *grid}
    assert list(np.argsort(-entry)[:2]) == [3, 0]


def test_estimators_without_what_is_needed_are_named() -> None:
    x, y = _data()
    with pytest.raises(InputError, match="KNeighborsRegressor"):
        fitted_norms(KNeighborsRegressor().fit(x, y), 5)
    with pytest.raises(InputError, match="Lasso has none; use strength='auto'"):
        fitted_entry(Lasso().fit(x, y), 5)
    with pytest.raises(InputError, match="LassoMLPRegressor has none"):
        fitted_entry(tl.LassoMLPRegressor((), strength=0.1).fit(x, y), 5)
    with pytest.raises(InputError, match="all 5 columns as they are, but its last step saw 2"):
        fitted_norms(make_pipeline(PCA(2), Lasso()).fit(x, y), 5)


def test_a_path_without_any_feature_in_use() -> None:
    empty = FeatureImportance(("a", "b"), np.array([1.0]), np.zeros((1, 2)))
    assert list(empty.entry) == [0.0, 0.0]
    assert list(empty.order) == [0, 1]
