"""The training loop feeds every row once, and the linear solve is the problem in the data's own units."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso, LinearRegression, LogisticRegression
from torch import Tensor, nn

import torchlasso as tl
from torchlasso.tasks import Task
from torchlasso.training import Batches, constant, cosine, raise_eps, solve_linear, train


def _numbered(rows: int, size: int, seed: int = 0) -> Batches:
    numbers = torch.arange(rows, dtype=torch.float64)
    return Batches(numbers[:, None] * 10, numbers, size, seed)


@pytest.mark.parametrize(("rows", "size"), [(10, 3), (10, 5), (10, 10), (10, 99), (1, 1)])
def test_iteration_covers_every_row_once_in_order(rows: int, size: int) -> None:
    batches = _numbered(rows, size)
    pairs = list(batches)
    assert len(pairs) == len(batches) == math.ceil(rows / size)
    assert torch.cat([y for _, y in pairs]).tolist() == list(range(rows))
    assert all(torch.equal(x[:, 0], y * 10) for x, y in pairs)


def _passes(batches: Batches, count: int) -> list[list[float]]:
    steps = len(batches.target) // batches.batch_size
    stream = batches.stream()
    return [torch.cat([y for _, y in itertools.islice(stream, steps)]).tolist() for _ in range(count)]


def test_a_stream_covers_each_row_once_a_pass_in_new_orders() -> None:
    first, second = _passes(_numbered(12, 4), 2)
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    assert first != list(range(12))


def test_a_stream_drops_the_rest_that_fills_no_batch() -> None:
    seen = [y for _, y in itertools.islice(_numbered(10, 4).stream(), 20)]
    assert all(len(y) == 4 for y in seen)
    assert all(len(set(a.tolist() + b.tolist())) == 8 for a, b in zip(seen[::2], seen[1::2], strict=True))
    assert set(torch.cat(seen).tolist()) == set(range(10))  # not always the same ones


def test_a_stream_pairs_inputs_with_their_targets() -> None:
    assert all(torch.equal(x[:, 0], y * 10) for x, y in itertools.islice(_numbered(9, 2).stream(), 30))


def test_a_stream_is_a_function_of_its_seed_alone() -> None:
    reference = _passes(_numbered(12, 4, seed=5), 3)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert _passes(_numbered(12, 4, seed=5), 3) == reference
    assert torch.equal(before, torch.get_rng_state())
    assert _passes(_numbered(12, 4, seed=6), 3) != reference


def test_one_batch_streams_the_whole_in_order() -> None:
    for _, y in itertools.islice(_numbered(5, 8).stream(), 3):
        assert y.tolist() == [0, 1, 2, 3, 4]


def test_cosine_falls_from_one_to_zero() -> None:
    assert cosine(0.0) == 1.0
    assert cosine(0.5) == pytest.approx(0.5)
    assert cosine(1.0) == pytest.approx(0.0)
    values = [cosine(i / 50) for i in range(51)]
    assert values == sorted(values, reverse=True)
    assert constant(0.0) == constant(1.0) == 1.0


def test_train_is_plain_sgd_with_the_decay_and_restores_the_rates() -> None:
    model, twin = nn.Linear(3, 1), nn.Linear(3, 1)
    twin.load_state_dict(model.state_dict())
    x, y = torch.randn(8, 3), torch.randn(8, 1)
    groups = [{"params": [model.weight], "lr": 0.3}, {"params": [model.bias], "lr": 0.1}]
    optimizer = torch.optim.SGD(groups)
    told: list[int] = []
    train(
        model.eval(),
        nn.functional.mse_loss,
        itertools.repeat((x, y)),
        optimizer,
        steps=4,
        decay=cosine,
        on_step=lambda: told.append(1),
    )
    for step in range(4):
        loss = nn.functional.mse_loss(twin(x), y)
        weight, bias = torch.autograd.grad(loss, [twin.weight, twin.bias])
        factor = 0.5 * (1 + math.cos(math.pi * step / 4))
        with torch.no_grad():
            twin.weight -= 0.3 * factor * weight
            twin.bias -= 0.1 * factor * bias
    assert torch.allclose(model.weight, twin.weight, atol=1e-6)
    assert torch.allclose(model.bias, twin.bias, atol=1e-6)
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.1]
    assert len(told) == 4
    assert model.training


def test_train_returns_the_loss_before_every_step() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    stream = itertools.repeat((torch.ones(1, 1), torch.zeros(1, 1)))
    losses = train(model, nn.functional.mse_loss, stream, optimizer, steps=3)
    assert losses.tolist() == [4.0, 1.0, 0.25]  # w halves: the gradient is 2w
    assert not losses.requires_grad
    assert len(train(model, nn.functional.mse_loss, stream, optimizer, steps=0)) == 0


def test_eps_is_raised_and_never_lowered() -> None:
    groups = [{"eps": 1e-8}, {"eps": 0.5}]
    raise_eps(groups, 0.1)
    assert groups == [{"eps": 0.1}, {"eps": 0.5}]
    raise_eps(groups, 0.01)
    assert groups == [{"eps": 0.1}, {"eps": 0.5}]


def test_train_restores_the_rates_if_a_step_fails() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    with pytest.raises(StopIteration):
        train(
            model,
            nn.functional.mse_loss,
            iter([(torch.ones(2, 3), torch.ones(2, 1))] * 2),
            optimizer,
            steps=4,
            decay=cosine,
        )
    assert optimizer.param_groups[0]["lr"] == 0.3


SCALES = np.array([1e-4, 1e-2, 1.0, 10.0, 1e3, 1e6, 1.0, 1.0])
MEANS = np.array([1e-2, 3.0, 1e3, -50.0, 1e5, 3e7, 7.0, 0.0])
CONSTANT = 6


def _raw(rows: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Columns of very different scales, with large means and a constant one; and their standardisation."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((rows, len(SCALES)))
    z[:, 3] += 0.7 * z[:, 2]
    z[:, CONSTANT] = 0.0
    return MEANS + SCALES * z, z


def _fitted(task: Task, strength: float, x: np.ndarray, y: np.ndarray, tolerance: float = 1e-9) -> nn.Linear:
    layer = nn.Linear(x.shape[1], task.outputs, dtype=torch.float64)
    if task.kind != "regression":
        nn.init.zeros_(layer.weight)  # logits of a million are a long way from anywhere
    target = torch.tensor(y)
    solution = solve_linear(
        layer,
        tl.Regularizer(layer, tl.L1(strength)),
        task.loss,
        torch.tensor(x),
        target,
        tolerance=tolerance,
        max_iterations=5_000,
    )
    assert solution.converged
    return layer


def _weights(layer: nn.Linear) -> tuple[np.ndarray, np.ndarray]:
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()


@pytest.mark.parametrize("strength", [1e-3, 0.3, 1e3])
def test_raw_data_give_the_lasso_of_scikit_learn(strength: float) -> None:
    x, z = _raw()
    y = (
        1e4
        + z @ np.array([3.0, 0.0, -2.0, 1.0, 0.5, 1.0, 0.0, 0.0])
        + np.random.default_rng(1).normal(size=120)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of the last digit of its duality gap
        reference = Lasso(alpha=strength, tol=1e-12, max_iter=100_000).fit(x, y)
    weight, bias = _weights(_fitted(Task("regression"), strength, x, y))
    np.testing.assert_allclose(weight[0] * SCALES, reference.coef_ * SCALES, atol=1e-6)
    assert np.array_equal(weight[0] != 0, reference.coef_ != 0)
    assert bias[0] == pytest.approx(reference.intercept_, rel=1e-6)
    residuals = y - x @ weight[0] - bias[0]
    assert abs(residuals.mean()) < 1e-6


def test_raw_data_without_a_strength_give_least_squares() -> None:
    x, z = _raw()
    y = 1e4 + z.sum(axis=1) + np.random.default_rng(1).normal(size=120)
    reference = LinearRegression().fit(z, y)
    layer = _fitted(Task("regression"), 0.0, x, y)
    weight, bias = _weights(layer)
    varies = np.arange(len(SCALES)) != CONSTANT
    np.testing.assert_allclose((weight[0] * SCALES)[varies], reference.coef_[varies], atol=1e-6)
    np.testing.assert_allclose(x @ weight[0] + bias[0], reference.predict(z), atol=1e-6)


def _logistic(x: np.ndarray, y: np.ndarray, strength: float) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn is renaming its penalty argument
        model = LogisticRegression(
            penalty="l1",
            C=1 / (len(y) * strength),
            solver="saga",
            tol=1e-12,
            max_iter=100_000,
            random_state=0,
        )
        return model.fit(x, y)


def _objective(
    task: Task, strength: float, x: np.ndarray, y: np.ndarray, w: np.ndarray, b: np.ndarray
) -> float:
    output: Tensor = torch.tensor(x @ w.T + b)
    return float(task.loss(output, torch.tensor(y))) + strength * float(np.abs(w).sum())


@pytest.mark.parametrize("strength", [0.003, 0.03])
def test_logistic_is_that_of_scikit_learn(strength: float) -> None:
    _, z = _raw(200)
    signal = z @ np.array([2.0, 0.0, -1.0, 1.0, 0.5, 0.0, 0.0, 0.0]) + 0.5
    y = (signal + np.random.default_rng(1).logistic(size=200) > 0).astype(float)
    reference = _logistic(z, y, strength)
    weight, bias = _weights(_fitted(Task("binary"), strength, z, y))
    np.testing.assert_allclose(weight, reference.coef_, atol=1e-6)
    assert bias[0] == pytest.approx(reference.intercept_[0], abs=1e-6)


def test_raw_logistic_beats_and_certifies_against_its_own_conditions() -> None:
    """No solver of scikit-learn copes with these scales, so the optimality conditions are the oracle."""
    x, z = _raw(200)
    y = (z @ np.array([2.0, 0.0, -1.0, 1.0, 0.5, 1.0, 0.0, 0.0]) > 0.3).astype(float)
    strength = 0.02
    weight, bias = _weights(_fitted(Task("binary"), strength, x, y, tolerance=1e-7))
    p = 1 / (1 + np.exp(-(x @ weight[0] + bias[0])))
    gradient = x.T @ (p - y) / len(y)  # the means multiply what is left of the intercept's own
    on = weight[0] != 0
    assert abs((p - y).mean()) < 1e-7
    centred = (x - x.mean(axis=0)).T @ (p - y) / len(y)
    np.testing.assert_allclose(centred[on], -strength * np.sign(weight[0][on]), rtol=1e-6)
    assert (np.abs(centred[~on]) <= strength * (1 + 1e-6)).all()
    assert np.isfinite(gradient).all()
    assert 0 < on.sum() < len(on)


def test_multinomial_is_that_of_scikit_learn() -> None:
    _, z = _raw(150)
    y = np.argmax(z[:, :3] + 0.5 * np.random.default_rng(1).normal(size=(150, 3)), axis=1)
    strength, task = 0.02, Task("multiclass", 3)
    reference = _logistic(z, y, strength)
    weight, bias = _weights(_fitted(task, strength, z, y))
    ours = _objective(task, strength, z, y, weight, bias)
    theirs = _objective(task, strength, z, y, reference.coef_, reference.intercept_)
    assert ours <= theirs + 1e-12
    np.testing.assert_allclose(weight, reference.coef_, atol=1e-5)


def test_a_linear_solve_from_its_own_solution_takes_no_iterations() -> None:
    x, z = _raw()
    y = z.sum(axis=1) + np.random.default_rng(1).normal(size=120)
    for strength in (0.0, 0.1):
        layer = _fitted(Task("regression"), strength, x, y, tolerance=1e-8)
        regularizer = tl.Regularizer(layer, tl.L1(strength))
        batch = (torch.tensor(x), torch.tensor(y))
        again = solve_linear(
            layer, regularizer, Task("regression").loss, *batch, tolerance=1e-6, max_iterations=1000
        )
        assert again.iterations <= 10


def test_a_failed_solve_leaves_the_model_in_the_coordinates_of_the_data() -> None:
    x, _ = _raw()
    inputs = torch.tensor(x)
    layer = nn.Linear(8, 1, dtype=torch.float64)
    before = layer(inputs).detach()

    def broken(output: Tensor, target: Tensor) -> Tensor:
        msg = "no loss today"
        raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="no loss today"):
        solve_linear(
            layer,
            tl.Regularizer(layer, tl.L1(0.1)),
            broken,
            inputs,
            torch.zeros(120),
            tolerance=1e-6,
            max_iterations=10,
        )
    torch.testing.assert_close(layer(inputs).detach(), before, rtol=1e-9, atol=1e-9)


def test_a_target_without_variation_needs_only_the_intercept() -> None:
    x, _ = _raw()
    weight, bias = _weights(_fitted(Task("regression"), 0.1, x, np.full(120, 1e6), tolerance=1e-6))
    assert (weight == 0).all()
    assert bias[0] == pytest.approx(1e6, rel=1e-9)
