"""FISTA reaches the reference optima, in any metric, and says honestly whether it did."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchlasso as tl
from tests.oracles.cases import Problem, problems
from torchlasso.errors import InputError
from torchlasso.optim.fista import Solution, fista


def _solve(
    model: nn.Linear,
    penalty: tl.L1 | tl.GroupLasso,
    loss: Callable[[], Tensor],
    *,
    metric: Tensor | None = None,
    tolerance: float = 1e-9,
    max_iterations: int = 20_000,
) -> Solution:
    scale = torch.ones_like(model.weight) if metric is None else metric
    return fista(
        loss,
        tl.Regularizer(model, penalty),
        [model.weight, model.bias],
        metric={model.weight: scale, model.bias: torch.ones_like(model.bias)},
        tolerance=tolerance,
        max_iterations=max_iterations,
    )


@pytest.mark.parametrize("problem", problems(), ids=lambda p: f"{p.name}-{p.fraction}")
def test_fista_reaches_the_reference_optimum(problem: Problem) -> None:
    model = problem.model()
    solution = _solve(model, problem.penalty, lambda: problem.loss(model), tolerance=1e-7)
    assert solution.converged
    assert solution.residual <= 1e-7
    assert abs(problem.excess(model)) <= 1e-8
    assert problem.same_support(model)


@pytest.mark.parametrize(
    "problem", [p for p in problems() if p.fraction == 0.1], ids=lambda p: f"{p.name}-{p.fraction}"
)
def test_the_optimum_does_not_depend_on_the_metric(problem: Problem) -> None:
    model = problem.model()
    metric = torch.logspace(-2, 1, model.weight.numel(), dtype=torch.float64).reshape(model.weight.shape)
    solution = _solve(model, problem.penalty, lambda: problem.loss(model), metric=metric, tolerance=1e-6)
    assert solution.converged
    assert abs(problem.excess(model)) <= 1e-8
    assert problem.same_support(model)


def _least_squares() -> tuple[Tensor, Tensor, nn.Linear]:
    x = torch.randn(40, 5, dtype=torch.float64)
    y = x @ torch.tensor([[1.0, -2.0, 0.5, 0.0, 3.0]], dtype=torch.float64).T + 0.3 * torch.randn(40, 1) + 7
    return x, y, nn.Linear(5, 1, dtype=torch.float64)


def _reference(x: Tensor, y: Tensor) -> np.ndarray:
    design = np.hstack([x.numpy(), np.ones((len(x), 1))])
    return np.linalg.lstsq(design, y.numpy(), rcond=None)[0][:, 0]


def _loss(model: nn.Linear, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    return lambda: 0.5 * nn.functional.mse_loss(model(x), y)


@pytest.mark.parametrize("penalty", [tl.L1(0.0), tl.GroupLasso(0.0, groups="columns")], ids=["L1", "group"])
def test_zero_strength_is_least_squares(penalty: tl.L1 | tl.GroupLasso) -> None:
    x, y, model = _least_squares()
    assert _solve(model, penalty, _loss(model, x, y)).converged
    found = np.append(model.weight.detach().numpy()[0], model.bias.item())
    np.testing.assert_allclose(found, _reference(x, y), atol=1e-7)


def test_giving_up_is_not_called_converged() -> None:
    x, y, model = _least_squares()
    solution = _solve(model, tl.L1(1e-3), _loss(model, x, y), tolerance=1e-12, max_iterations=10)
    assert not solution.converged
    assert solution.iterations == 10
    assert solution.residual > 1e-12


def test_a_start_at_the_optimum_takes_no_iterations() -> None:
    x, y, model = _least_squares()
    _solve(model, tl.L1(0.1), _loss(model, x, y), tolerance=1e-9)
    before = model.weight.detach().clone()
    solution = _solve(model, tl.L1(0.1), _loss(model, x, y), tolerance=1e-6)
    # The intercept counts against its gradient at the start: one round of checks at most.
    assert solution.iterations <= 100
    assert torch.allclose(before, model.weight, atol=1e-8)


def test_a_given_unit_makes_the_start_play_no_part() -> None:
    x, y, model = _least_squares()
    _solve(model, tl.L1(0.0), _loss(model, x, y), tolerance=1e-9)
    solution = fista(
        _loss(model, x, y),
        tl.Regularizer(model, tl.L1(0.0)),
        list(model.parameters()),
        metric={p: torch.ones_like(p) for p in model.parameters()},
        tolerance=1e-6,
        unit=1.0,
    )
    assert solution.converged
    assert solution.iterations == 0


def test_infinite_weights_exclude_and_zero_weights_keep() -> None:
    x, y, model = _least_squares()
    weights = torch.tensor([torch.inf, 0.0, torch.inf, torch.inf, 0.0], dtype=torch.float64)
    assert _solve(model, tl.L1(100.0, weights=weights), _loss(model, x, y)).converged
    kept = [1, 4]
    reference = _reference(x[:, kept], y)
    found = model.weight.detach().numpy()[0]
    assert (found[[0, 2, 3]] == 0).all()
    np.testing.assert_allclose(found[kept], reference[:2], atol=1e-6)
    assert model.bias.item() == pytest.approx(reference[2], abs=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200])
def test_what_is_not_finite_raises_instead_of_turning_for_ever(bad: float) -> None:
    x, y, model = _least_squares()
    x[0, 0] = bad
    with pytest.raises(InputError, match="not finite"):
        _solve(model, tl.L1(0.1), _loss(model, x, y))
