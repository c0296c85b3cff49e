"""MNIST for bench_noise.py: LeNet-300-100 with a plain lasso and a refit, all methods at one budget."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sparse_runs import Method, Outcome, Plan, Riding, in_the_loss, mlp, pruned, run, spread, weights
from torch import nn
from torch.optim import Adam

import torchlasso as tl
from torchlasso.optim.attach import attach
from torchlasso.optim.evidence import MemorySteps
from torchlasso.optim.fused import ProxAdamW

GOAL = 25.0
HELD, SELECTION_SEED = 5_000, 100  # the last training rows, for the choice of the strength
STRENGTHS = {"attach": (5e-5, 6.5e-5), "attach, memory=0": (7e-4, 1e-3)}
PRUNED = 27.6  # the compression of the baseline


def attached(model: nn.Module, strength: float, steps: int, *, memory: MemorySteps) -> Riding:
    optimizer = Adam(model.parameters())
    handle = attach(optimizer, tl.Regularizer(model, tl.L1(strength)), memory=memory)
    return Riding(optimizer, handle.freeze_zeros)


def fused(model: nn.Module, strength: float, steps: int) -> Riding:
    regularizer = tl.Regularizer(model, tl.L1(strength))
    optimizer = ProxAdamW(model.parameters(), regularizer, weight_decay=0.0)
    return Riding(optimizer, optimizer.handle.freeze_zeros)


METHODS: dict[str, Method] = {
    "attach": partial(attached, memory="auto"),
    "attach, memory=0": partial(attached, memory=0),
    "ProxAdamW": fused,
    "L1 in the loss": in_the_loss,
    "magnitude pruning": pruned,
}


def lenet(seed: int) -> nn.Sequential:
    return mlp((784, 300, 100, 10), seed)


class Runs:
    """Runs that are not repeated: with a file, finished ones are kept in it and read again.

    Args:
        data: ``x_train``, ``y_train``, ``x_test`` and ``y_test`` of the ``.npz`` file.
        plan: the budget.
        keep: the file of finished runs, or None.
    """

    def __init__(self, data: Path, plan: Plan, keep: Path | None) -> None:
        with np.load(data, allow_pickle=False) as arrays:
            mean, scale = arrays["x_train"].mean(), arrays["x_train"].std()
            self.all, self.test = (
                (
                    (torch.from_numpy(arrays[f"x_{part}"]).flatten(1).float() - mean) / scale,
                    torch.from_numpy(arrays[f"y_{part}"]).long(),
                )
                for part in ("train", "test")
            )
        x, y = self.all
        self.part, self.valid = (x[:-HELD], y[:-HELD]), (x[-HELD:], y[-HELD:])
        self.plan, self.keep = plan, keep
        self.done: dict[str, Outcome] = {}
        if keep is not None and keep.exists():
            lines = [json.loads(line) for line in keep.read_text(encoding="utf-8").splitlines()]
            self.done = {line["run"]: Outcome(**line["outcome"]) for line in lines}

    def outcome(self, method: str, amount: float, seed: int, *, final: bool) -> Outcome:
        """Return how a run ended: trained on all rows and tested, or on a part and validated."""
        name = f"{'test' if final else 'valid'}, {method}, {amount:.6g}, seed {seed}"
        if name not in self.done:
            rows = (self.all, self.test) if final else (self.part, self.valid)
            self.done[name] = run(METHODS[method], amount, lenet(seed), seed, *rows, self.plan)
            if self.keep is not None:
                with self.keep.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"run": name, "outcome": asdict(self.done[name])}) + "\n")
        return self.done[name]

    def choose(self, method: str) -> float:
        """Return the smallest strength that reaches the goal's compression on a part of the training data."""
        tried = {s: self.outcome(method, s, SELECTION_SEED, final=False) for s in STRENGTHS[method]}
        return min((s for s, o in tried.items() if o.compression >= GOAL), default=max(tried))


def mnist_table(runs: Runs, seeds: tuple[int, ...]) -> str:
    """Choose the strengths, run every method, and return the tables."""
    chosen = {method: runs.choose(method) for method in STRENGTHS}
    strength = chosen["attach"]
    rows = [
        *(("attach", each, seeds) for each in STRENGTHS["attach"]),
        ("ProxAdamW", strength, seeds[:1]),
        ("attach, memory=0", chosen["attach, memory=0"], seeds[:1]),
        ("L1 in the loss", strength, seeds[:1]),
        ("magnitude pruning", PRUNED, seeds),
    ]
    lines = [*_selection(runs), "", *_heading(runs.plan)]
    for method, amount, of in rows:
        outcomes = [runs.outcome(method, amount, seed, final=True) for seed in of]
        zero = spread([100 * o.zeros for o in outcomes], 2)
        compression = f"{spread([o.compression for o in outcomes], 1)} ×"
        accuracy = spread([o.accuracy for o in outcomes], 2)
        name = (
            "L1 in the loss, then near zeros (below 0.001) set to 0" if method == "L1 in the loss" else method
        )
        shown = f"to {amount:g} ×" if method == "magnitude pruning" else f"{amount:.2g}"
        lines.append(f"| {name} | {shown} | {len(of)} | {zero} | {compression} | {accuracy} |")
    return "\n".join(lines)


def _selection(runs: Runs) -> list[str]:
    lines = [
        f"**Choice of the strength**: trained on {len(runs.part[1]):,} rows, validated on the last "
        f"{len(runs.valid[1]):,} of the training data, seed {SELECTION_SEED}; the smallest strength that "
        f"reaches {GOAL:g} × is taken",
        "",
        "| method | strength | compression | validation accuracy, % |",
        "|---|---:|---:|---:|",
    ]
    for method, strengths in STRENGTHS.items():
        for strength in strengths:
            o = runs.outcome(method, strength, SELECTION_SEED, final=False)
            lines.append(f"| {method} | {strength:.2g} | {o.compression:.1f} × | {o.accuracy:.2f} |")
    return lines


def _heading(plan: Plan) -> list[str]:
    count = sum(w.numel() for w in weights(lenet(0)))
    return [
        f"**MNIST, LeNet-300-100**, {count:,} weights, Adam with cosine learning rate, batch {plan.batch}: "
        f"{plan.epochs} epochs with the penalty (lr {plan.lr:g}), then {plan.refit_epochs} of refit with the "
        f"zeros frozen (lr {plan.refit_lr:g}); trained on all training rows, tested once; mean ± standard "
        "deviation over seeds",
        "",
        "| method | strength | seeds | exact zeros before the refit, % | compression | test accuracy, % |",
        "|---|---:|---:|---:|---:|---:|",
    ]
