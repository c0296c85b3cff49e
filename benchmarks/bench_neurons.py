"""Inputs and neurons removed from a network on MNIST: the error against the operations that are left.

    OMP_WAIT_POLICY=passive python benchmarks/bench_neurons.py --mnist mnist.npz

``mnist.npz`` is the file that Keras distributes.  Every column of every layer is a group: a column of the
first layer is an input, those of the others are neurons.  After training with the penalty the zeros are
frozen, the rest is refit, and ``tl.compact`` builds the smaller network, of which the operations (two a
multiplication) and the latency are reported.  A run takes about three minutes of one core.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from bench_accuracy import npz
from sparse_runs import Plan, Riding, Rows, mlp, run, spread
from torch import nn
from torch.optim import Adam

import torchlasso as tl

SIZES = (784, 300, 100, 10)
RAMP, FREEZE = 0.6, 0.9  # parts of the steps: until the strength is full, and until the zeros are frozen
GAMMA = 200.0  # of the concave penalty on the columns
PLAN = Plan(smoothing=0.05)
STRENGTHS = (1e-4, 2e-4)
CALLS = 300  # of the network, for its latency
HELD_OUT = 5000  # of the training rows, with --validate


@dataclass(frozen=True)
class Small:
    """What a run ended with: widths, operations, error in percent, and milliseconds of a batch of 64."""

    widths: tuple[int, ...]
    operations: int
    error: float
    before: float
    after: float


def columns(strength: float, model: nn.Module, _: float, steps: int) -> Riding:
    """Penalise the columns of all layers, the strength growing along a ramp."""
    optimizer = Adam(model.parameters())

    def ramp(step: int) -> float:
        return strength * min(1.0, step / (RAMP * steps))

    penalty = tl.GroupMCP(ramp, gamma=GAMMA, groups="columns")
    handle = tl.attach(optimizer, tl.Regularizer(model, penalty))

    def on_step() -> None:
        if handle.steps == round(FREEZE * steps):
            handle.freeze_zeros()

    return Riding(optimizer, handle.freeze_zeros, on_step=on_step)


def shrunk(strength: float, seed: int, train: Rows, judge: Rows, plan: Plan) -> Small:
    """Train, refit, compact, and judge the compacted network."""
    model = mlp(SIZES, seed)
    run(partial(columns, strength), 0.0, model, seed, train, judge, plan)
    small = tl.compact(model.eval(), judge[0][:64]).model
    layers = [layer for layer in small.modules() if isinstance(layer, nn.Linear)]
    widths = (*(layer.in_features for layer in layers), SIZES[-1])
    with torch.no_grad():
        wrong = float((small(judge[0]).argmax(dim=1) != judge[1]).double().mean())
    before, after = latencies(model, small, judge[0][:64])
    operations = 2 * sum(layer.in_features * layer.out_features for layer in layers)
    return Small(widths, operations, 100 * wrong, before, after)


@torch.no_grad()
def latencies(model: nn.Module, small: nn.Module, batch: torch.Tensor) -> tuple[float, float]:
    """Return the median milliseconds of both networks, called in turn."""
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(CALLS):
        for way, seconds in zip((model, small), found, strict=True):
            start = time.perf_counter()
            way(batch)
            seconds.append(time.perf_counter() - start)
    first, second = (1000 * median(seconds) for seconds in found)
    return first, second


def table(runs: dict[float, Sequence[Small]]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| strength | seeds | widths, first seed | KFLOPs | error, % | ms, batch 64 | of the full network |",
        "|---:|---:|---|---:|---:|---:|---:|",
    ]
    for strength, same in runs.items():
        cells = (
            f"{strength:g}",
            len(same),
            "-".join(map(str, same[0].widths)),
            spread([one.operations / 1000 for one in same], 1),
            spread([one.error for one in same], 2),
            spread([one.after for one in same], 3),
            spread([one.before for one in same], 3),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mnist", type=Path, required=True, help="the .npz file")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS)
    parser.add_argument("--validate", action="store_true", help="judge on the last training rows, to choose")
    parser.add_argument("--quick", action="store_true", help="one epoch each, to see that it runs")
    given = parser.parse_args()
    train, judge = npz(given.mnist)
    if given.validate:
        judge = (train[0][-HELD_OUT:], train[1][-HELD_OUT:])
        train = (train[0][:-HELD_OUT], train[1][:-HELD_OUT])
    plan = Plan(epochs=1, refit_epochs=1) if given.quick else PLAN
    runs = {
        strength: [shrunk(strength, seed, train, judge, plan) for seed in range(given.seeds)]
        for strength in given.strengths
    }
    print(table(runs))


if __name__ == "__main__":
    main()
