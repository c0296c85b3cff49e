"""A requested sparsity, met: the table of strengths that are found as training goes.

    OMP_NUM_THREADS=1 python benchmarks/bench_target.py [--quick]

Small problems of scikit-learn, trained with an L1 penalty whose strength is driven to a requested part of
exact zeros, by ``TargetSparsity`` and by two other ways: dual ascent on the constraint (Gallego-Posada and
others, arXiv 2208.04425), and at every step the strength at which the proximal map makes as many zeros as the
plan says, a quantile of ``|w|/D`` (plain steps only: it knows of no evidence). All follow the same plan.
"""

import argparse
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

import torchlasso as tl
from torchlasso.gradients import LossFn
from torchlasso.optim.attach import attach
from torchlasso.optim.evidence import MemorySteps
from torchlasso.optim.metric import Metric
from torchlasso.optim.metrics import metric_of
from torchlasso.target import TargetSparsity
from torchlasso.training import Batches, constant, cosine, train

REQUESTS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
RAMP = 0.6


@dataclass(frozen=True, eq=False)
class Problem:
    """Rows, a model and its loss."""

    x: Tensor
    y: Tensor
    model: Callable[[], nn.Module]
    loss_fn: LossFn


@dataclass(frozen=True)
class Setting:
    """One way to train."""

    problem: str
    optimizer: str
    steps: int
    batch: int | None = None
    memory: MemorySteps = "auto"
    decay: Callable[[float], float] = constant


def standardised(x: object) -> Tensor:
    return torch.from_numpy(StandardScaler().fit_transform(x)).float()


def problems() -> dict[str, Problem]:
    digits, cancer = load_digits(return_X_y=True), load_breast_cancer(return_X_y=True)
    diabetes = load_diabetes(return_X_y=True)
    pixels, label = standardised(digits[0]), torch.from_numpy(digits[1]).long()
    sick = torch.from_numpy(cancer[1]).float()[:, None]
    bce = nn.functional.binary_cross_entropy_with_logits
    return {
        "digits, 64-100-10": Problem(
            pixels,
            label,
            lambda: nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10)),
            nn.functional.cross_entropy,
        ),
        "digits, linear": Problem(pixels, label, lambda: nn.Linear(64, 10), nn.functional.cross_entropy),
        "breast cancer, linear": Problem(standardised(cancer[0]), sick, lambda: nn.Linear(30, 1), bce),
        "diabetes, linear": Problem(
            standardised(diabetes[0]),
            standardised(diabetes[1][:, None]),
            lambda: nn.Linear(10, 1),
            nn.functional.mse_loss,
        ),
    }


OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "Adam": lambda model: Adam(model.parameters(), lr=2e-3),
    "Adam, lr 0.01": lambda model: Adam(model.parameters(), lr=1e-2),
    "SGD, momentum 0.9": lambda model: SGD(model.parameters(), lr=0.05, momentum=0.9),
    "SGD": lambda model: SGD(model.parameters(), lr=0.1),
    "Adafactor": lambda model: torch.optim.Adafactor(model.parameters(), lr=1e-2),
}

SETTINGS = (
    Setting("digits, 64-100-10", "Adam", 1000, 64),
    Setting("digits, 64-100-10", "Adam", 1000, 64, decay=cosine),
    Setting("digits, 64-100-10", "Adam", 1000, 64, memory=0),
    Setting("digits, 64-100-10", "SGD, momentum 0.9", 1000, 64),
    Setting("digits, 64-100-10", "SGD, momentum 0.9", 1000, 64, decay=cosine),
    Setting("digits, 64-100-10", "Adafactor", 1000, 64),
    Setting("digits, linear", "SGD", 500, 64),
    Setting("digits, linear", "Adam, lr 0.01", 300),
    Setting("breast cancer, linear", "SGD, momentum 0.9", 100),
    Setting("breast cancer, linear", "Adam, lr 0.01", 500),
    Setting("diabetes, linear", "Adam, lr 0.01", 500),
)


class Other:
    """A strength that another way than ours sets; ``update`` is called around every step."""

    def __init__(self, sparsity: float, steps: int) -> None:
        self.sparsity, self.steps, self.now = sparsity, steps, 0.0

    def __call__(self, step: int) -> float:
        """Return the strength now."""
        return self.now

    def plan(self, step: int) -> float:
        """Return the part that is to be zero after a number of steps."""
        return self.sparsity * (1 - (1 - min(1.0, step / (RAMP * self.steps))) ** 3)


class DualAscent(Other):
    """``λ ← max(0, λ + η·(plan − zeros))``; an error of 1 moves λ by ``max|g|`` in all steps."""

    rate: float | None = None

    def update(self, optimizer: Optimizer, w: list[nn.Parameter], step: int) -> None:
        """Set the strength."""
        if self.rate is None:
            self.rate = max(float(p.grad.abs().max()) for p in w if p.grad is not None) / self.steps
        zeros = sum(int((p == 0).sum()) for p in w) / sum(p.numel() for p in w)
        self.now = max(0.0, self.now + self.rate * (self.plan(step) - zeros))


class Quantile(Other):
    """λ such that this very step makes the planned number of zeros."""

    def update(self, optimizer: Optimizer, w: list[nn.Parameter], step: int) -> None:
        """Set the strength."""
        metric = metric_of(optimizer)
        assert isinstance(metric, Metric)
        group, sizes = optimizer.param_groups[0], []
        for p in w:
            assert p.grad is not None
            d = metric.displacement(group, dict(optimizer.state.get(p, {})), p.grad, self.memory(p))
            sizes.append((p.detach().abs() / d).flatten())
        ordered = torch.cat(sizes).sort().values
        self.now = float(ordered[max(0, round(self.plan(step) * len(ordered)) - 1)])

    def memory(self, p: nn.Parameter) -> dict[str, float | Tensor]:
        """Return the metric's memory of a parameter."""
        self.memories: dict[nn.Parameter, dict[str, float | Tensor]] = getattr(self, "memories", {})
        return self.memories.setdefault(p, {})


def run(setting: Setting, problem: Problem, strength: TargetSparsity | Other) -> tuple[float, float]:
    """Return how many points of zeros too many there are in the end, and the final loss."""
    torch.manual_seed(0)
    model = problem.model()
    optimizer, regularizer = OPTIMIZERS[setting.optimizer](model), tl.Regularizer(model, tl.L1(strength))
    w = [p for term in regularizer.terms for p in term.parameters]
    taken = 0

    def before(*_: object) -> None:  # between the optimizer's step and the proximal one
        nonlocal taken
        taken += 1
        if isinstance(strength, Quantile):
            strength.update(optimizer, w, taken)

    def after() -> None:
        if isinstance(strength, DualAscent):
            strength.update(optimizer, w, taken)

    optimizer.register_step_post_hook(before)
    attach(optimizer, regularizer, memory=setting.memory)
    batches = Batches(problem.x, problem.y, setting.batch or len(problem.y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a request was missed is in the table
        train(
            model,
            problem.loss_fn,
            batches.stream(),
            optimizer,
            steps=setting.steps,
            decay=setting.decay,
            on_step=after,
        )
    count = sum(p.numel() for p in w)
    wanted = round(strength.sparsity * count)  # type: ignore[operator]  # every strength here has a sparsity
    with torch.no_grad():
        loss = float(problem.loss_fn(model(problem.x), problem.y))
    return 100 * (sum(int((p == 0).sum()) for p in w) - wanted) / count, loss


def row(name: str, setting: Setting, found: list[tuple[float, float]]) -> str:
    cells = " | ".join(f"{error:+.2f} ({loss:.3g})" if math.isfinite(loss) else "–" for error, loss in found)
    batch = "all rows" if setting.batch is None else f"batch {setting.batch}"
    decay = ", cosine" if setting.decay is cosine else ""
    memory = "" if setting.memory == "auto" else f", memory={setting.memory}"
    how = f"{setting.optimizer}{decay}{memory}, {batch}, {setting.steps} steps"
    return f"| {name} | {setting.problem} | {how} | {cells} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two settings and two requests")
    quick = parser.parse_args().quick
    requests, settings = (REQUESTS[::3], SETTINGS[-2:]) if quick else (REQUESTS, SETTINGS)
    data = problems()
    print("zeros beyond the request in points (final loss)\n")
    print("| strength by | problem | training |", " | ".join(f"{100 * r:g} %" for r in requests), "|")
    print("|---|---|---|" + "---:|" * len(requests))
    for setting in settings:
        problem = data[setting.problem]
        ours = [run(setting, problem, TargetSparsity(r, by_step=setting.steps)) for r in requests]
        print(row("TargetSparsity", setting, ours), flush=True)
        if (
            setting.decay is constant
            and setting.memory == "auto"
            and setting.optimizer in ("Adam", "SGD, momentum 0.9")
        ):
            dual = [run(setting, problem, DualAscent(r, setting.steps)) for r in requests]
            print(row("dual ascent", setting, dual), flush=True)
            plain = replace(setting, memory=0)
            quantiles = [run(plain, problem, Quantile(r, setting.steps)) for r in requests]
            print(row("quantile", plain, quantiles), flush=True)


if __name__ == "__main__":
    main()
