"""Zeros under gradient noise: the tables of minibatch training in docs/benchmarks.md.

    OMP_WAIT_POLICY=passive python benchmarks/bench_noise.py [--mnist FILE.npz [--keep RUNS.jsonl]]

(a) A convex problem with a known optimum, scikit-learn's digits: how far from it every way to train with an
L1 penalty ends after 100 epochs of small batches. (b) With the user's own file of MNIST (``x_train``,
``y_train``, ``x_test``, ``y_test``): LeNet-300-100 as a plain lasso with a refit. That takes about half an
hour on one thread; ``--keep`` names a file in which finished runs are kept, so that it may be interrupted.
"""

import argparse
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import sklearn
import torch
from noise_mnist import Plan, Runs, mnist_table, spread
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

import torchlasso as tl
from torchlasso.gradients import LossFn
from torchlasso.optim.attach import attach
from torchlasso.optim.averaging import DualAveraging
from torchlasso.training import constant, cosine, solve_linear, train

FRACTION = 0.1  # of strength_max
BATCH = 128
SEEDS = (0, 1, 2)
GATE = 0.995  # of the gated way's running average of the gradient

cross_entropy = nn.functional.cross_entropy


@dataclass(frozen=True, eq=False)
class Problem:
    """The multinomial lasso on the digits, standardised, and its optimum.

    Attributes:
        x: ``[n, 64]``, float64.
        y: ``[n]``.
        strength: 0.1 of the smallest one at which all weights are zero.
        objective: the least value of the loss plus penalty.
        support: ``[10, 64]``, where the optimum is not zero.
    """

    x: Tensor
    y: Tensor
    strength: float
    objective: float
    support: Tensor


@dataclass(frozen=True, eq=False)
class Base:
    """A torch optimizer and its learning rate, which a cosine takes to zero."""

    name: str
    make: Callable[[Iterable[nn.Parameter]], Optimizer]


BASES = (
    Base("SGD, momentum 0.9, lr 0.3", partial(SGD, lr=0.3, momentum=0.9)),
    Base("Adam, lr 0.03", partial(Adam, lr=0.03)),
    Base("Adam, lr 0.1", partial(Adam, lr=0.1)),
)


@dataclass(frozen=True, eq=False)
class Riding:
    """What a way adds to the loss and does after a step."""

    loss_fn: LossFn = cross_entropy
    on_step: Callable[[], None] = lambda: None


Way = Callable[[nn.Linear, Optimizer, Problem], Riding]


def penalty(model: nn.Linear, problem: Problem) -> tl.Regularizer:
    return tl.Regularizer(model, tl.L1(problem.strength))


def in_the_loss(model: nn.Linear, optimizer: Optimizer, problem: Problem) -> Riding:
    regularizer = penalty(model, problem)
    return Riding(lambda output, target: cross_entropy(output, target) + regularizer())


def step_then_soft(model: nn.Linear, optimizer: Optimizer, problem: Problem) -> Riding:
    @torch.no_grad()
    def on_step() -> None:
        threshold = problem.strength * optimizer.param_groups[0]["lr"]
        model.weight.copy_(model.weight.sign() * (model.weight.abs() - threshold).clamp_min(0.0))

    return Riding(on_step=on_step)


def attached(model: nn.Linear, optimizer: Optimizer, problem: Problem, **options: int) -> Riding:
    attach(optimizer, penalty(model, problem), **options)
    return Riding()


def gated(model: nn.Linear, optimizer: Optimizer, problem: Problem) -> Riding:
    """Let a zero go only when a running average of its gradient exceeds the strength."""
    attach(optimizer, penalty(model, problem), memory=0)
    average, dead = torch.zeros_like(model.weight), torch.zeros_like(model.weight, dtype=torch.bool)
    weight = 0.0

    @torch.no_grad()
    def on_step() -> None:
        nonlocal weight
        assert model.weight.grad is not None
        average.lerp_(model.weight.grad, 1 - GATE)
        weight = GATE * weight + 1 - GATE
        model.weight[dead & (average.abs() <= problem.strength * weight)] = 0.0
        torch.eq(model.weight, 0.0, out=dead)

    return Riding(on_step=on_step)


def told(model: nn.Linear, optimizer: Optimizer, problem: Problem) -> Riding:
    """Hold everything off the optimum's support at zero: what is left is the noise of the optimizer alone."""
    only = torch.where(problem.support, 1.0, torch.inf).to(model.weight)
    attach(optimizer, tl.Regularizer(model, tl.L1(problem.strength, weights=only)), memory=0)
    return Riding()


WAYS: dict[str, Way] = {
    "L1 in the loss": in_the_loss,
    "step, then soft(lr · strength)": step_then_soft,
    "attach, memory=0 (last iterate)": partial(attached, memory=0),
    "**attach**": attached,
    "attach, memory=20": partial(attached, memory=20),
    "attach, memory=100": partial(attached, memory=100),
    "attach, memory=1000": partial(attached, memory=1000),
    "last iterate with a gate": gated,
    "told the support beforehand": told,
}


def digits() -> Problem:
    inputs, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(inputs, dtype=torch.float64), torch.tensor(labels)
    spread_of = x.std(dim=0, correction=0)
    x = (x - x.mean(dim=0)) / torch.where(spread_of > 0, spread_of, 1.0)
    model = empty_model(y)
    limit = tl.strength_max(model, tl.Regularizer(model, tl.L1(1.0)), cross_entropy, [(x, y)])["weight"]
    strength = FRACTION * limit
    regularizer = tl.Regularizer(model, tl.L1(strength))
    solve_linear(model, regularizer, cross_entropy, x, y, tolerance=1e-9, max_iterations=100_000)
    optimum = Problem(x, y, strength, 0.0, model.weight.detach() != 0)
    return Problem(x, y, strength, objective(model, optimum), optimum.support)


def empty_model(y: Tensor) -> nn.Linear:
    """Return the model with zero weights and the intercepts that are best with them."""
    model = nn.Linear(64, 10, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    with torch.no_grad():
        model.bias.copy_((torch.bincount(y).double() / len(y)).log())
    return model


@torch.no_grad()
def objective(model: nn.Linear, problem: Problem) -> float:
    penalty = problem.strength * model.weight.abs().sum()
    return float(cross_entropy(model(problem.x), problem.y) + penalty)


def batches(problem: Problem, seed: int, *, rest: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled batches for ever, with or without the few rows left over at the end of a pass."""
    generator, rows = torch.Generator().manual_seed(seed), len(problem.y)
    while True:
        order = torch.randperm(rows, generator=generator)
        for chosen in order[: rows if rest else rows - rows % BATCH].split(BATCH):
            yield problem.x[chosen], problem.y[chosen]


@dataclass(frozen=True)
class Result:
    """Where a run ended: its nonzeros, entries that are zero in one of two and not in the other, excess."""

    nonzero: int
    wrong: int
    excess: float


@dataclass(frozen=True, eq=False)
class Method:
    """A row of the table: how to make the optimizer of a model, what rides on it, how its rate falls."""

    way: str
    optimizer: str
    start: Callable[[nn.Linear, Problem], tuple[Optimizer, Riding]]
    decay: Callable[[float], float] = cosine

    def run(self, problem: Problem, seed: int, epochs: int, *, rest: bool) -> Result:
        """Train, and compare with the optimum."""
        torch.manual_seed(seed)
        model = nn.Linear(64, 10, dtype=torch.float64)
        optimizer, riding = self.start(model, problem)
        steps = epochs * (len(problem.y) // BATCH + rest)
        stream = batches(problem, seed, rest=rest)
        train(model, riding.loss_fn, stream, optimizer, steps=steps, decay=self.decay, on_step=riding.on_step)
        support = model.weight.detach() != 0
        excess = objective(model, problem) / problem.objective - 1
        return Result(int(support.sum()), int((support != problem.support).sum()), excess)


def methods() -> Iterator[Method]:
    """Yield the rows of the table."""

    def on(base: Base, way: Way, model: nn.Linear, problem: Problem) -> tuple[Optimizer, Riding]:
        optimizer = base.make(model.parameters())
        return optimizer, way(model, optimizer, problem)

    def averaging(method: str, lr: float, model: nn.Linear, problem: Problem) -> tuple[Optimizer, Riding]:
        regularizer = penalty(model, problem)
        return DualAveraging(model.parameters(), regularizer, lr, method=method), Riding()

    for name, way in WAYS.items():
        for base in BASES:
            yield Method(name, base.name, partial(on, base, way))
    # The centre of "rda" is where it began: a learning rate that falls to zero would lead back there.
    for kind, lr, decay in (("ftrl-proximal", 1.0, cosine), ("rda", 1.0, constant), ("rda", 10.0, constant)):
        yield Method("DualAveraging", f"{kind}, lr {lr:g}", partial(averaging, kind, lr), decay)


def cells(results: list[Result]) -> str:
    nonzero = ", ".join(str(r.nonzero) for r in results)
    wrong = ", ".join(str(r.wrong) for r in results)
    return f"{nonzero} | {wrong} | {spread([1e3 * r.excess for r in results], 3)}"


def digits_table(epochs: int, seeds: tuple[int, ...]) -> str:
    problem = digits()
    rows = len(problem.y)
    lines = [
        f"**Multinomial, digits**, {rows:,} rows, 64 inputs, 10 classes, strength {FRACTION:g} · "
        f"strength_max = {problem.strength:.9f}, batch {BATCH}, {epochs} epochs, cosine learning rate, "
        f"float64, seeds {', '.join(map(str, seeds))}; optimum: {int(problem.support.sum())} of "
        f"{problem.support.numel()} nonzero, objective {problem.objective:.10f}; nonzeros and wrong entries "
        "by seed; the excess of the objective is relative and in thousandths. Left: full batches only. Right "
        f"(rest): the {rows % BATCH} rows left over in each pass are a batch too.",
        "",
        "| way | optimizer | nonzero | wrong | excess, 1e-3 | nonzero, rest | wrong, rest | excess, rest |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for method in methods():
        full, rest = (
            [method.run(problem, seed, epochs, rest=rest) for seed in seeds] for rest in (False, True)
        )
        lines.append(f"| {method.way} | {method.optimizer} | {cells(full)} | {cells(rest)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the tables of training on small batches as Markdown.")
    parser.add_argument("--mnist", type=Path, help="an .npz file with x_train, y_train, x_test and y_test")
    parser.add_argument("--keep", type=Path, help="a file that keeps finished MNIST runs")
    parser.add_argument("--quick", action="store_true", help="few steps: a test that it runs, no result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"torchlasso {tl.__version__}, torch {torch.__version__}, scikit-learn {sklearn.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}, one thread, "
        f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'unset')}, {datetime.now(UTC):%Y-%m-%d}"
    )
    print("\n### The right zeros under gradient noise\n")
    seeds = SEEDS[:1] if options.quick else SEEDS
    print(digits_table(3 if options.quick else 100, seeds), end="\n\n")
    if options.mnist is not None:
        print("### A deep net at an equal budget\n")
        plan = Plan(1, 1) if options.quick else Plan()
        print(mnist_table(Runs(options.mnist, plan, options.keep), seeds))


if __name__ == "__main__":
    main()
