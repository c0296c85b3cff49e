"""The benchmark tables of docs/benchmarks.md, made by anyone: `make bench`.

(a) One meaning of the strength: where a fixed strength ends under three optimizers and three ways to use
it, beside scikit-learn's optimum. (b) What the penalty adds to the time of a training step.

Set OMP_WAIT_POLICY=passive (`make bench` does): with spinning threads and any other load on the machine, the
many small parallel regions of an optimizer step take far longer than they need.
"""

import argparse
import os
import platform
import statistics
import time
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


class Step:
    """One way to train the timed network, one step a call."""

    def __init__(self, way: str, width: int, batch: int) -> None:
        torch.manual_seed(0)
        self.way = way
        self.model = nn.Sequential(
            nn.Linear(256, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
        self.x, self.y = torch.randn(batch, 256), torch.randint(10, (batch,))
        self.seconds: list[float] = []
        if way == "attach":
            tl.attach(self.optimizer, tl.Regularizer(self.model, tl.L1(1e-6)))

    def __call__(self) -> None:
        """Take one training step."""
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(self.x), self.y)
        if self.way == "L1 loop in the loss":
            for parameter in self.model.parameters():
                loss = loss + 1e-6 * parameter.abs().sum()
        loss.backward()
        self.optimizer.step()

    def timed(self) -> None:
        """Take one training step and note how long it took."""
        start = time.perf_counter()
        self()
        self.seconds.append(time.perf_counter() - start)


def cost_table(width: int, batch: int, repeats: int) -> str:
    """Time the ways in turn, again and again, so that a change of the machine's load hits all of them."""
    steps = [Step(way, width, batch) for way in ("no penalty", "attach", "L1 loop in the loss")]
    for step in steps:
        for _ in range(3):
            step()
    for _ in range(repeats):
        for step in steps:
            step.timed()
    count = sum(p.numel() for p in steps[0].model.parameters())
    base = statistics.median(steps[0].seconds)
    lines = [
        f"**MLP of {count / 1e6:.2f}M parameters**, batch {batch}, fused AdamW, float32, "
        f"{torch.get_num_threads()} threads, {repeats} interleaved repeats",
        "",
        "| way | median step, ms | ratio |",
        "|---|---:|---:|",
    ]
    for step in steps:
        median = statistics.median(step.seconds)
        lines.append(f"| {step.way} | {1e3 * median:.2f} | {median / base:.2f} |")
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
    print("### The cost of a training step\n")
    for batch in (32,) if quick else (32, 512):
        print(cost_table(64 if quick else 880, batch, 3 if quick else 200), end="\n\n")


if __name__ == "__main__":
    main()
