"""One strength, one answer: every optimizer of torch ends at the reference optimum of every convex case."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LRScheduler

import torchlasso as tl
from tests.oracles.cases import Problem, problems

CASES = (
    "lasso_diabetes",
    "logistic_breast_cancer",
    "multinomial_l1_wine",
    "group_logistic_breast_cancer",
    "elasticnet_diabetes_l1ratio0.5",
)
PROBLEMS = {p.name: p for p in problems() if p.fraction == 0.1 and p.name in CASES}
Build = Callable[[Iterable[Tensor], float, float], Optimizer]
"""From the parameters, ``1/L`` and the size of the solution."""


class SignFree(Optimizer):
    """A third party's optimizer that torchlasso has never heard of: gradient descent."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=group["lr"])


@dataclass(frozen=True)
class Way:
    """How to run an optimizer.

    Attributes:
        build: makes it.
        steps: the most steps it takes.
        schedule: of its learning rate, or None.
    """

    build: Build
    steps: int
    schedule: Callable[[Optimizer, int], LRScheduler] | None = None


def cosine(optimizer: Optimizer, steps: int) -> LRScheduler:
    return CosineAnnealingLR(optimizer, steps)


def geometric(optimizer: Optimizer, steps: int) -> LRScheduler:
    return ExponentialLR(optimizer, 1e-9 ** (1 / steps))


O = torch.optim  # noqa: E741
NEVER_STOP: dict[str, Any] = {"tolerance_grad": 0.0, "tolerance_change": 0.0}
WAYS: dict[str, Way] = {
    "SGD": Way(lambda p, r, s: O.SGD(p, lr=1.9 * r), 8_000),
    "SGD momentum": Way(lambda p, r, s: O.SGD(p, lr=r, momentum=0.9), 3_000),
    "SGD dampened": Way(lambda p, r, s: O.SGD(p, lr=5 * r, momentum=0.9, dampening=0.8), 4_000),
    "SGD Nesterov": Way(lambda p, r, s: O.SGD(p, lr=r, momentum=0.9, nesterov=True), 3_000),
    "Adam": Way(lambda p, r, s: O.Adam(p, lr=s), 4_000, cosine),
    "Adam amsgrad": Way(lambda p, r, s: O.Adam(p, lr=s, amsgrad=True), 6_000),
    "AdamW": Way(lambda p, r, s: O.AdamW(p, lr=s, weight_decay=0), 4_000, cosine),
    "AdamW fused": Way(lambda p, r, s: O.AdamW(p, lr=s, weight_decay=0, fused=True), 4_000, cosine),
    "AdamW foreach": Way(lambda p, r, s: O.AdamW(p, lr=s, weight_decay=0, foreach=True), 4_000, cosine),
    "NAdam": Way(lambda p, r, s: O.NAdam(p, lr=s), 4_000, cosine),
    "RAdam": Way(lambda p, r, s: O.RAdam(p, lr=s / 3), 4_000, cosine),
    "Adamax": Way(lambda p, r, s: O.Adamax(p, lr=s), 4_000, cosine),
    "Adagrad": Way(lambda p, r, s: O.Adagrad(p, lr=3 * s), 8_000),
    "RMSprop": Way(lambda p, r, s: O.RMSprop(p, lr=s / 10, eps=s / 15, alpha=0.9), 8_000),
    "RMSprop momentum": Way(
        lambda p, r, s: O.RMSprop(p, lr=s / 60, eps=s / 15, alpha=0.9, momentum=0.9), 4_000
    ),
    "RMSprop centered": Way(lambda p, r, s: O.RMSprop(p, lr=s / 10, centered=True), 6_000, cosine),
    "Adadelta": Way(lambda p, r, s: O.Adadelta(p, lr=3 * s, eps=1e-4), 5_000),
    "ASGD": Way(lambda p, r, s: O.ASGD(p, lr=1.9 * r, lambd=0.0), 8_000),
    "Muon": Way(
        lambda p, r, s: O.Muon([q for q in p if q.ndim == 2], lr=s, weight_decay=0), 4_000, geometric
    ),
    "Adafactor": Way(
        lambda p, r, s: O.Adafactor(p, lr=s, beta2_decay=-0.5, weight_decay=0), 7_000, geometric
    ),
    "LBFGS": Way(lambda p, r, s: O.LBFGS(p, line_search_fn="strong_wolfe", **NEVER_STOP), 30),
    "LBFGS without line search": Way(lambda p, r, s: O.LBFGS(p, lr=0.5, max_iter=5, **NEVER_STOP), 60),
    "Rprop": Way(lambda p, r, s: O.Rprop(p, lr=s, step_sizes=(1e-9, 50)), 3_000),
    "third party": Way(lambda p, r, s: SignFree(p, lr=r), 12_000),
    "ProxSGD": Way(lambda p, r, s: tl.optim.ProxSGD(p, _regularizer(p), lr=r, momentum=0.9), 3_000),
    "ProxAdamW": Way(
        lambda p, r, s: tl.optim.ProxAdamW(p, _regularizer(p), lr=s, weight_decay=0), 4_000, cosine
    ),
}


def _regularizer(parameters: Iterable[Tensor]) -> tl.Regularizer:
    """Return the regularizer that ``solve`` has made for the parameters' model."""
    return CURRENT[0]


CURRENT: list[tl.Regularizer] = []


def begin(problem: Problem) -> nn.Linear:
    """Return a random model; the intercept of a regression begins at the mean, whatever its units."""
    model = problem.model()
    if "diabetes" in problem.name:
        nn.init.constant_(model.bias, float(problem.target.mean()))
    return model


def solve(problem: Problem, way: Way, tolerance: float) -> tuple[nn.Linear, float]:
    """Train until the KKT residual and the support are right, and return the model and the residual."""
    model = begin(problem)
    regularizer = tl.Regularizer(model, problem.penalty)
    CURRENT[:] = [regularizer]
    ridge = problem.penalty.current_strength if "elasticnet" in problem.name else 0.0
    size = 3.0 if "diabetes" in problem.name else 0.3
    optimizers = [way.build(list(model.parameters()), 1 / (problem.lipschitz + ridge), size)]
    if len(optimizers[0].param_groups[0]["params"]) == 1:  # Muon takes matrices only
        optimizers.append(torch.optim.SGD([model.bias], lr=1 / problem.lipschitz))
    if not isinstance(optimizers[0], (tl.optim.ProxAdamW, tl.optim.ProxSGD)):
        tl.attach(optimizers[0], regularizer)
    schedule = way.schedule and way.schedule(optimizers[0], way.steps)

    def closure() -> Tensor:
        model.zero_grad()
        loss = problem.loss(model)
        torch.autograd.backward(loss)
        return loss

    residual = float("inf")
    for step in range(1, way.steps + 1):
        if not isinstance(optimizers[0], torch.optim.LBFGS):
            closure()
        for optimizer in optimizers:
            optimizer.step(closure) if isinstance(optimizer, torch.optim.LBFGS) else optimizer.step()
        if schedule is not None:
            schedule.step()
        if step % max(1, way.steps // 20) == 0:
            residual = tl.certificate(
                model, regularizer, problem.loss_fn, [(problem.inputs, problem.target)]
            ).residual
            if residual <= tolerance and problem.same_support(model):
                break
    return model, residual


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", WAYS)
def test_full_batches_end_at_the_optimum_with_its_support(kind: str, name: str) -> None:
    problem = PROBLEMS[name]
    model, residual = solve(problem, WAYS[kind], 1e-6)
    assert residual <= 1e-6
    assert problem.same_support(model)
    assert abs(problem.excess(model)) < 1e-3  # the intercept, which is not penalised, may lag behind
