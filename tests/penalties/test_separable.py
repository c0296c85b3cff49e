"""L1 and the elastic net against scikit-learn's solutions of the same problems."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import ElasticNet, Lasso
from torch import Tensor

import torchlasso as tl
from torchlasso.penalties.base import Penalty

ALPHA = 0.1


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 8))
    return x, x @ np.array([2.0, -1.5, 1.0, 0, 0, 0, 0, -0.3]) + 0.1 * rng.normal(size=60)


def _gradient(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> Tensor:
    """Return the gradient of ½·MSE, scikit-learn's loss."""
    return torch.tensor(x.T @ (x @ w - y) / len(y))


def _solve(x: np.ndarray, y: np.ndarray, ratio: float, *, positive: bool) -> np.ndarray:
    arguments = {"fit_intercept": False, "tol": 1e-14, "max_iter": 100_000, "positive": positive}
    if ratio == 1.0:
        return np.asarray(Lasso(ALPHA, **arguments).fit(x, y).coef_)
    return np.asarray(ElasticNet(ALPHA, l1_ratio=ratio, **arguments).fit(x, y).coef_)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.3])
def test_residual_vanishes_at_the_solution_of_scikit_learn(
    data: tuple[np.ndarray, np.ndarray], ratio: float, positive: bool
) -> None:
    x, y = data
    w = _solve(x, y, ratio, positive=positive)
    assert 0 < np.count_nonzero(w) < 8  # otherwise the case tests nothing
    penalties: list[Penalty] = [tl.ElasticNet(ALPHA, l1_ratio=ratio, nonnegative=positive)]
    penalties += [tl.L1(ALPHA, nonnegative=positive)] if ratio == 1.0 else []
    for penalty in penalties:
        residual = penalty.residual(torch.tensor(w), _gradient(x, y, w))
        assert float(residual.max()) < 1e-10
        moved = w + 0.01 * (w != 0)
        assert float(penalty.residual(torch.tensor(moved), _gradient(x, y, moved)).min()) >= 0.0
        assert float(penalty.residual(torch.tensor(moved), _gradient(x, y, moved)).max()) > 1e-3


def test_weighted_lasso_is_the_lasso_on_scaled_columns(data: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = data
    c = np.array([0.5, 1.0, 2.0, 1.0, 3.0, 0.1, 1.0, 0.7])
    w = _solve(x / c, y, 1.0, positive=False) / c
    residual = tl.L1(ALPHA, weights=torch.tensor(c)).residual(torch.tensor(w), _gradient(x, y, w))
    assert float(residual.max()) < 1e-10


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_strength_max_is_where_scikit_learn_finds_nothing(
    data: tuple[np.ndarray, np.ndarray], ratio: float
) -> None:
    x, y = data
    gradient = _gradient(x, y, np.zeros(8))
    largest = tl.ElasticNet(1.0, l1_ratio=ratio).strength_max(gradient)
    for factor, count in ((1.001, 0), (0.999, 1)):
        model = ElasticNet(largest * factor, l1_ratio=ratio, fit_intercept=False, tol=1e-12).fit(x, y)
        assert np.count_nonzero(model.coef_) == count


def test_nonnegative_strength_max_counts_what_pulls_upwards_only(data: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = data
    gradient = _gradient(x, y, np.zeros(8))
    assert float(gradient.max()) > 0  # some features would be negative
    largest = tl.L1(1.0, nonnegative=True).strength_max(gradient)
    assert largest == -float(gradient.min())
    assert tl.L1(1.0, nonnegative=True).strength_max(gradient.abs()) == 0.0
    for factor, count in ((1.001, 0), (0.999, 1)):
        model = Lasso(largest * factor, positive=True, fit_intercept=False, tol=1e-12).fit(x, y)
        assert np.count_nonzero(model.coef_) == count


def test_proximal_gradient_reaches_the_solution_of_scikit_learn(data: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = data
    penalty = tl.ElasticNet(ALPHA, l1_ratio=0.7, nonnegative=True)
    step = 1 / float(np.linalg.eigvalsh(x.T @ x / len(y))[-1])
    w = torch.zeros(8, dtype=torch.float64)
    for _ in range(2000):
        w = penalty.prox(w - step * _gradient(x, y, w.numpy()), step)
    expected = _solve(x, y, 0.7, positive=True)
    np.testing.assert_allclose(w.numpy(), expected, atol=1e-10)
    assert np.array_equal(w.numpy() == 0, expected == 0)


@pytest.mark.parametrize("shape", [(3,), (2, 2), (4, 2, 3), (2, 3, 1)])
def test_weights_that_do_not_broadcast_are_refused(shape: tuple[int, ...]) -> None:
    penalty = tl.L1(0.1, weights=torch.ones(shape))
    with pytest.raises(ValueError, match="do not broadcast"):
        penalty.validate(torch.Size((2, 5)))


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 1), (1, 5), (2, 5)])
def test_weights_broadcast_to_the_tensor(shape: tuple[int, ...]) -> None:
    weights = torch.rand(shape) + 0.5
    penalty = tl.L1(0.1, weights=weights)
    penalty.validate(torch.Size((2, 5)))
    w = torch.randn(2, 5)
    full = tl.L1(0.1, weights=weights.expand(2, 5))
    assert torch.equal(penalty.prox(w, 0.3), full.prox(w, 0.3))
    assert float(penalty.value(w)) == pytest.approx(0.1 * float((weights * w.abs()).sum()))


def test_zero_weight_keeps_and_infinite_weight_excludes_whatever_the_strength() -> None:
    w = torch.tensor([1.0, 1.0, 1.0])
    weights = torch.tensor([0.0, torch.inf, 1.0])
    for strength in (0.0, 1e-3, 1e3):
        kept, out, _ = tl.L1(strength, weights=weights).prox(w, 1.0).tolist()
        assert (kept, out) == (1.0, 0.0)
