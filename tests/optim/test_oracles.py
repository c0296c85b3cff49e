"""Every optimizer reaches the reference optimum of every convex case: same objective, same support."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

import torchlasso as tl
from tests.oracles.cases import Problem, problems

PROBLEMS = problems()
BUDGET = {"sgd": 60_000, "momentum": 8_000, "nesterov": 8_000}


def _optimizer(kind: str, problem: Problem, model: torch.nn.Linear) -> torch.optim.Optimizer:
    step = 1.9 / problem.lipschitz
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), lr=step)
    return torch.optim.SGD(model.parameters(), lr=step / 2, momentum=0.9, nesterov=kind == "nesterov")


def _step(problem: Problem, model: torch.nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(problem.loss(model))
    optimizer.step()


def _solved(problem: Problem, model: torch.nn.Linear, tolerance: float) -> bool:
    return abs(problem.excess(model)) <= tolerance and problem.same_support(model)


@pytest.mark.slow
@pytest.mark.parametrize("kind", BUDGET)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"{p.name}-{p.fraction}")
def test_sgd_reaches_the_optimum(problem: Problem, kind: str) -> None:
    model = problem.model()
    optimizer = _optimizer(kind, problem, model)
    tl.attach(optimizer, tl.Regularizer(model, problem.penalty))
    for step in range(1, BUDGET[kind] + 1):
        _step(problem, model, optimizer)
        if step % 250 == 0 and _solved(problem, model, 1e-9):
            break
    assert _solved(problem, model, 1e-8)


ADAM_CASES = [(torch.optim.Adam, p) for p in PROBLEMS] + [
    (torch.optim.AdamW, p)
    for p in PROBLEMS
    if p.fraction == 0.1  # the same metric: one strength a case
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "problem"), ADAM_CASES, ids=[f"{k.__name__}-{p.name}-{p.fraction}" for k, p in ADAM_CASES]
)
def test_adam_reaches_the_optimum(kind: type[torch.optim.Adam], problem: Problem) -> None:
    model, budget = problem.model(), 4_000
    optimizer = kind(model.parameters(), lr=1.0, weight_decay=0.0)
    schedule = CosineAnnealingLR(optimizer, budget)
    tl.attach(optimizer, tl.Regularizer(model, problem.penalty))
    for step in range(1, budget + 1):
        _step(problem, model, optimizer)
        schedule.step()
        if step % 250 == 0 and _solved(problem, model, 1e-9):
            break
    assert _solved(problem, model, 1e-8)


@pytest.mark.parametrize(
    "problem", [p for p in PROBLEMS if p.fraction == 1.001], ids=lambda p: f"{p.name}-{p.fraction}"
)
def test_strength_max_is_the_largest_useful_strength(problem: Problem) -> None:
    model = problem.model()
    torch.nn.init.zeros_(model.weight)
    for _ in range(400):  # the intercept alone, as strength_max takes the rest of the model as it is
        optimizer = torch.optim.SGD([model.bias], lr=1.0 / problem.lipschitz)
        _step(problem, model, optimizer)
    regularizer = tl.Regularizer(model, problem.penalty)
    batches = [(problem.inputs, problem.target)]
    largest = tl.strength_max(model, regularizer, problem.loss_fn, batches)["weight"]
    assert largest == pytest.approx(problem.penalty.current_strength / 1.001, rel=1e-6)


def test_batches_of_unequal_size_count_by_their_size() -> None:
    problem = PROBLEMS[2]
    model = problem.model()
    regularizer = tl.Regularizer(model, problem.penalty)
    whole = tl.certificate(model, regularizer, problem.loss_fn, [(problem.inputs, problem.target)])
    x, y = problem.inputs, problem.target
    parts = [(x[:100], y[:100]), (x[100:107], y[100:107]), (x[107:], y[107:])]
    split = tl.certificate(model, regularizer, problem.loss_fn, parts)
    assert split.residual == pytest.approx(whole.residual, rel=1e-12)
    assert split.objective == pytest.approx(whole.objective, rel=1e-12)
