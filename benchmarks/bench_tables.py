"""One meaning of the strength, as tables of docs/benchmarks.md: `make bench`.

Where a fixed strength ends under three optimizers and three ways to use it, beside scikit-learn's optimum.
What the penalty adds to the time of a step is in bench_step.py, what gradient noise does in bench_noise.py.
"""

import argparse
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import sklearn
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import Lasso, LogisticRegression
from torch import Tensor, nn

import torchlasso as tl

LossFn = Callable[[Tensor, Tensor], Tensor]
FRACTION = 0.1  # of strength_max


@dataclass(frozen=True, eq=False)
class Problem:
    """A convex problem with a known optimum.

    Attributes:
        name: how to call it.
        x: ``[n, p]``, standardised, float64.
        y: ``[n, 1]``.
        loss: the mean loss.
        fit: from a strength to scikit-learn's weights and intercept.
        rates: the learning rate of SGD, of SGD with momentum and of Adam.
    """

    name: str
    x: Tensor
    y: Tensor
    loss: LossFn
    fit: Callable[[float], tuple[Tensor, float]]
    rates: tuple[float, float, float]


def half_mse(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * nn.functional.mse_loss(output, target)


def standardised(values: Tensor) -> Tensor:
    return (values - values.mean(dim=0)) / values.std(dim=0, correction=0)


def diabetes() -> Problem:
    x, y = load_diabetes(return_X_y=True)
    inputs, target = standardised(torch.tensor(x)), standardised(torch.tensor(y)).unsqueeze(1)

    def fit(strength: float) -> tuple[Tensor, float]:
        model = Lasso(alpha=strength, tol=1e-14, max_iter=1_000_000).fit(inputs.numpy(), target[:, 0].numpy())
        return torch.tensor(model.coef_), float(model.intercept_)

    return Problem("lasso, diabetes", inputs, target, half_mse, fit, (0.1, 0.02, 0.02))


def breast_cancer() -> Problem:
    x, y = load_breast_cancer(return_X_y=True)
    inputs, target = standardised(torch.tensor(x)), torch.tensor(y, dtype=torch.float64).unsqueeze(1)

    def fit(strength: float) -> tuple[Tensor, float]:
        # saga leaves the intercept alone; liblinear would penalise it.
        c = 1 / (len(y) * strength)
        model = LogisticRegression(l1_ratio=1, C=c, solver="saga", tol=1e-12, max_iter=200_000)
        model.fit(inputs.numpy(), y)
        return torch.tensor(model.coef_[0]), float(model.intercept_[0])

    loss = nn.functional.binary_cross_entropy_with_logits
    return Problem("logistic, breast cancer", inputs, target, loss, fit, (0.2, 0.05, 0.02))


def optimizers(problem: Problem) -> dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]]:
    plain, momentum, adam = problem.rates
    return {
        "SGD": lambda p: torch.optim.SGD(p, lr=plain),
        "SGD, momentum 0.9": lambda p: torch.optim.SGD(p, lr=momentum, momentum=0.9),
        "Adam": lambda p: torch.optim.Adam(p, lr=adam),
    }


def empty_model(problem: Problem) -> nn.Linear:
    """Return the linear model with zero weights and the intercept that is best with them."""
    model = nn.Linear(problem.x.shape[1], 1, dtype=torch.float64)
    mean = problem.y.mean()
    binary = problem.loss is not half_mse
    nn.init.zeros_(model.weight)
    nn.init.constant_(model.bias, float(mean.logit() if binary else mean))
    return model


def objective(problem: Problem, weights: Tensor, bias: float | Tensor, strength: float) -> float:
    output = problem.x @ weights.unsqueeze(1) + bias
    return float(problem.loss(output, problem.y) + strength * weights.abs().sum())


def train(
    problem: Problem, way: str, make: Callable[..., torch.optim.Optimizer], strength: float, steps: int
) -> nn.Linear:
    model = empty_model(problem)
    optimizer = make(model.parameters())
    lr = optimizer.param_groups[0]["lr"]
    if way == "attach":
        tl.attach(optimizer, tl.Regularizer(model, tl.L1(strength)))
    for _ in range(steps):
        optimizer.zero_grad()
        loss = problem.loss(model(problem.x), problem.y)
        if way == "L1 in the loss":
            loss = loss + strength * model.weight.abs().sum()
        loss.backward()
        optimizer.step()
        if way == "step, then soft":
            with torch.no_grad():
                w = model.weight
                w.copy_(w.sign() * (w.abs() - lr * strength).clamp_min(0.0))
    return model


def strength_table(problem: Problem, steps: int) -> str:
    model = empty_model(problem)
    regularizer = tl.Regularizer(model, tl.L1(1.0))
    limit = tl.strength_max(model, regularizer, problem.loss, [(problem.x, problem.y)])["weight"]
    strength = FRACTION * limit
    coef, intercept = problem.fit(strength)
    optimum = objective(problem, coef, intercept, strength)
    lines = [
        f"**{problem.name}**, {problem.x.shape[0]} rows, {problem.x.shape[1]} inputs, strength "
        f"{FRACTION:g} · strength_max = {strength:.5f}, {steps:,} full-batch steps, float64; "
        f"scikit-learn: {int((coef != 0).sum())} nonzero, objective {optimum:.10f}",
        "",
        "| way | optimizer | nonzero | objective excess, relative |",
        "|---|---|---:|---:|",
    ]
    for way in ("attach", "L1 in the loss", "step, then soft"):
        for name, make in optimizers(problem).items():
            model = train(problem, way, make, strength, steps)
            weights = model.weight.detach()[0]
            value = objective(problem, weights, model.bias.detach(), strength)
            excess = (value - optimum) / optimum
            shown = f"{excess:.1e}" if abs(excess) >= 1e-12 else "below 1e-12"
            lines.append(f"| {way} | {name} | {int((weights != 0).sum())} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the benchmark tables as Markdown.")
    parser.add_argument("--quick", action="store_true", help="few steps: a test that it runs, no result")
    quick = parser.parse_args().quick
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    print(
        f"torchlasso {tl.__version__}, torch {torch.__version__}, scikit-learn {sklearn.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}, "
        f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'unset')}, {datetime.now(UTC):%Y-%m-%d}"
    )
    print("\n### One meaning of the strength\n")
    for problem in (diabetes(), breast_cancer()):
        print(strength_table(problem, 50 if quick else 10_000), end="\n\n")


if __name__ == "__main__":
    main()
