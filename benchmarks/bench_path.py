"""The path of strengths beside single fits, as a table of docs/benchmarks.md.

    OMP_WAIT_POLICY=passive python benchmarks/bench_path.py [--quick]

Three ways to a model of a well-chosen strength: one fit at a strength that somebody knew (from scratch, with
the penalty on all along); the warm path of ``torchlasso.lasso_path``, dense start and measuring included; and
a cold path, every strength trained from scratch on the budget of a single fit. Times are of the processor,
which on one thread is what the clock shows on an idle machine.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import Adam

import torchlasso as tl
from torchlasso.gradients import LossFn
from torchlasso.lasso_path import LassoPath, default_optimizer, lasso_path
from torchlasso.path import standard_error
from torchlasso.training import Batches, cosine, raise_eps, train
from torchlasso.validation import Validation

EVERY = 8  # the cold path is trained at every so many strengths, and its time is multiplied


@dataclass(frozen=True, eq=False)
class Data:
    """A problem: rows to train on, to choose on, and a network."""

    name: str
    train: Batches
    valid: list[tuple[Tensor, Tensor]]
    loss_fn: LossFn
    build: Callable[[], nn.Sequential]
    steps: int

    def regularizer(self, model: nn.Module, strength: float = 1.0) -> tl.Regularizer:
        """Return an L1 on all weights."""
        return tl.Regularizer(model, tl.L1(strength))


class Shuffled:
    """Batches in a new order each pass, as a DataLoader gives them."""

    def __init__(self, rows: Batches) -> None:
        self.rows, self.stream = rows, rows.stream()

    def __len__(self) -> int:
        return len(self.rows.target) // self.rows.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (next(self.stream) for _ in range(len(self)))


def mlp(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def digits(steps: int) -> Data:
    inputs, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(inputs, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
    return Data(
        "digits, 64-100-50-10",
        Batches(x[:1200], y[:1200], 64),
        [(x[1200:], y[1200:])],
        nn.functional.cross_entropy,
        lambda: mlp(64, 100, 50, 10),
        steps,
    )


def synthetic(steps: int) -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8000, 300, generator=generator)
    signal = (x[:, 0] * x[:, 1]) + x[:, 2:6].sum(dim=1).tanh() + x[:, 6].abs() + (2 * x[:, 7]).sin()
    y = (signal + 0.5 * torch.randn(8000, generator=generator))[:, None]
    return Data(
        "synthetic, 8 of 300 inputs, 300-512-256-1",
        Batches(x[:6000], y[:6000], 128),
        [(x[6000:], y[6000:])],
        nn.functional.mse_loss,
        lambda: mlp(300, 512, 256, 1),
        steps,
    )


@dataclass(frozen=True, eq=False)
class Outcome:
    """A model at a strength: its losses on the validation rows, its nonzeros, the seconds it took."""

    strength: float
    losses: Tensor
    nonzero: int
    seconds: float

    @property
    def loss(self) -> float:
        """The mean over the rows."""
        return float(self.losses.mean())


def cold(data: Data, strength: float) -> Outcome:
    """Train from scratch at a strength, with the penalty on and the learning rate falling to zero."""
    model = data.build()
    regularizer = data.regularizer(model, strength)
    weights = [p for term in regularizer.terms for p in term.parameters]
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    began = time.process_time()
    optimizer = default_optimizer([{"params": weights}, {"params": biases}])
    if isinstance(optimizer, Adam):
        raise_eps(optimizer.param_groups[:1], strength)
    tl.attach(optimizer, regularizer)
    train(model, data.loss_fn, data.train.stream(), optimizer, steps=data.steps, decay=cosine)
    seconds = time.process_time() - began
    losses = Validation(data.loss_fn, data.valid).losses(model).values
    return Outcome(strength, losses, sum(int(w.count_nonzero()) for w in weights), seconds)


def warm(data: Data, strengths: int) -> tuple[LassoPath, float]:
    model = data.build()
    began = time.process_time()
    path = lasso_path(
        model,
        data.regularizer(model),
        data.loss_fn,
        Shuffled(data.train),
        data.valid,
        strengths,
        steps=data.steps,
    )
    return path, time.process_time() - began


def rows(data: Data, strengths: int) -> Iterator[str]:
    """Yield the rows of a problem."""
    path, seconds = warm(data, strengths)
    least, chosen = path.best("min"), path.best("1se")
    single = cold(data, chosen.strength)
    points = path.points[::EVERY]
    colds = [cold(data, point.strength) for point in points]
    cold_seconds = sum(c.seconds for c in colds) * len(path.points) / len(colds)
    best = min(colds, key=lambda c: c.loss)
    unit, count = single.seconds, len(path.points)
    yield row(data.name, "one fit at 1se's strength", 1, unit, unit, spread(single.losses), single.nonzero)
    yield row("", "**warm path**, min", count, seconds, unit, spread(least.valid_losses), least.nonzero)
    yield row("", "**warm path**, 1se", "", None, unit, spread(chosen.valid_losses), chosen.nonzero)
    yield row("", "cold path, min", count, cold_seconds, unit, spread(best.losses), best.nonzero)
    yield row("", "min, warm less cold", "", None, unit, spread(least.valid_losses - best.losses), "")
    for point, other in zip(points, colds, strict=True):
        nonzeros = f"{point.nonzero:,} and {other.nonzero:,}"
        excess = spread(point.valid_losses - other.losses)
        yield row("", f"at {point.strength:.1e}, warm less cold", "", None, unit, excess, nonzeros)


def spread(losses: Tensor) -> str:
    """Return the mean and its standard error; of differences, paired by rows."""
    return f"{float(losses.mean()):.4f} ± {standard_error(losses):.4f}"


def row(
    name: str, way: str, count: int | str, seconds: float | None, unit: float, loss: str, nonzero: int | str
) -> str:
    took = "|" if seconds is None else f"{seconds:.1f} s | {seconds / unit:.1f}"
    kept = nonzero if isinstance(nonzero, str) else f"{nonzero:,}"
    return f"| {name} | {way} | {count} | {took} | {loss} | {kept} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the table of the path of strengths as Markdown.")
    parser.add_argument("--quick", action="store_true", help="few steps: a test that it runs, no result")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    print(
        f"torchlasso {tl.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, one thread, OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'unset')}, "
        f"{datetime.now(UTC):%Y-%m-%d}\n"
    )
    print("| network | way | strengths | time | in single fits | validation loss, ± se | nonzero |")
    print("|---|---|---:|---:|---:|---:|---:|")
    warm(digits(20), 2)  # what is loaded on the way is no part of the times
    for data in (digits(20), synthetic(10)) if quick else (digits(1500), synthetic(600)):
        for line in rows(data, 6 if quick else 50):
            print(line, flush=True)


if __name__ == "__main__":
    main()
