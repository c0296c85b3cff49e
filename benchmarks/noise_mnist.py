"""MNIST for bench_noise.py: LeNet-300-100 with a plain lasso and a refit, all methods at one budget."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

import torchlasso as tl
from torchlasso.gradients import LossFn
from torchlasso.optim.attach import attach
from torchlasso.optim.evidence import MemorySteps
from torchlasso.optim.fused import ProxAdamW
from torchlasso.training import Batches, cosine, train

NEAR = 1e-3  # what "near zero" means for the penalty in the loss
PRUNE_EVERY, PRUNE_UNTIL = 100, 0.8  # steps, and the part of the epochs before the refit
GOAL = 25.0
HELD, SELECTION_SEED = 5_000, 100  # the last training rows, for the choice of the strength
STRENGTHS = {"attach": (5e-5, 6.5e-5), "attach, memory=0": (7e-4, 1e-3)}
PRUNED = 27.6  # the compression of the baseline

Rows = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Plan:
    """The budget of a run, the same for every method."""

    epochs: int = 30
    refit_epochs: int = 12
    batch: int = 128
    lr: float = 2e-3
    refit_lr: float = 1e-3


@dataclass(frozen=True)
class Outcome:
    """What a run ended with.

    Attributes:
        zeros: the part of the weights that was exactly zero before anything else than the penalty acted.
        compression: all weights over those that are not zero in the end; biases do not count.
        accuracy: in percent.
    """

    zeros: float
    compression: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class Riding:
    """A method under way: the optimizer, what it adds to the loss or does after a step, and how it refits."""

    optimizer: Optimizer
    refit: Callable[[], None]
    loss_fn: LossFn = nn.functional.cross_entropy
    on_step: Callable[[], None] = lambda: None


Method = Callable[[nn.Module, float, int], Riding]


def attached(model: nn.Module, strength: float, steps: int, *, memory: MemorySteps) -> Riding:
    optimizer = Adam(model.parameters())
    handle = attach(optimizer, tl.Regularizer(model, tl.L1(strength)), memory=memory)
    return Riding(optimizer, handle.freeze_zeros)


def fused(model: nn.Module, strength: float, steps: int) -> Riding:
    regularizer = tl.Regularizer(model, tl.L1(strength))
    optimizer = ProxAdamW(model.parameters(), regularizer, weight_decay=0.0)
    return Riding(optimizer, optimizer.handle.freeze_zeros)


def in_the_loss(model: nn.Module, strength: float, steps: int) -> Riding:
    optimizer, regularizer = Adam(model.parameters()), tl.Regularizer(model, tl.L1(strength))

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target) + regularizer()

    @torch.no_grad()
    def refit() -> None:
        for w in weights(model):
            w[w.abs() < NEAR] = 0.0
        attach(optimizer, regularizer).freeze_zeros()

    return Riding(optimizer, refit, loss_fn)


def pruned(model: nn.Module, compression: float, steps: int) -> Riding:
    """Set ever more of the smallest weights of the whole net to zero and hold them there.

    The part that is zero grows as ``1 − (1 − t)³`` (Zhu and Gupta, "To prune, or not to prune", arXiv
    1710.01878).
    """
    optimizer = Adam(model.parameters())
    handle = attach(optimizer, tl.Regularizer(model, tl.L1(0.0)), memory=0)
    count = sum(w.numel() for w in weights(model))
    done = 0

    @torch.no_grad()
    def on_step() -> None:
        nonlocal done
        done += 1
        if done % PRUNE_EVERY and done != steps:
            return
        part = (1 - 1 / compression) * (1 - (1 - min(1.0, done / (PRUNE_UNTIL * steps))) ** 3)
        sizes = torch.cat([w.abs().flatten() for w in weights(model)])
        least = sizes.kthvalue(max(1, round(part * count))).values
        for w in weights(model):
            w[w.abs() <= least] = 0.0
        handle.freeze_zeros()

    return Riding(optimizer, handle.freeze_zeros, on_step=on_step)


METHODS: dict[str, Method] = {
    "attach": partial(attached, memory="auto"),
    "attach, memory=0": partial(attached, memory=0),
    "ProxAdamW": fused,
    "L1 in the loss": in_the_loss,
    "magnitude pruning": pruned,
}


def lenet(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach() for p in model.parameters() if p.ndim == 2]


def zeros(model: nn.Module) -> float:
    parts = weights(model)
    return sum(int((w == 0).sum()) for w in parts) / sum(w.numel() for w in parts)


def run(method: str, amount: float, seed: int, data: Rows, judge: Rows, plan: Plan) -> Outcome:
    """Train with the penalty, refit what is left, and judge once.

    Args:
        method: a name in ``METHODS``.
        amount: the strength, or the compression to prune to.
        seed: of the initial weights and of the shuffling.
        data: to train on.
        judge: to measure the accuracy on.
        plan: the budget.
    """
    model = lenet(seed)
    stream = Batches(*data, plan.batch, seed).stream()
    per_epoch = len(data[1]) // plan.batch
    riding = METHODS[method](model, amount, plan.epochs * per_epoch)
    phases = ((plan.epochs, plan.lr), (plan.refit_epochs, plan.refit_lr))
    exact = 0.0
    for number, (epochs, lr) in enumerate(phases):
        for group in riding.optimizer.param_groups:
            group["lr"] = lr
        if number == 1:
            exact = zeros(model)
            riding.refit()
        loss_fn = nn.functional.cross_entropy if number else riding.loss_fn
        on_step = (lambda: None) if number else riding.on_step
        steps = epochs * per_epoch
        train(model, loss_fn, stream, riding.optimizer, steps=steps, decay=cosine, on_step=on_step)
    with torch.no_grad():
        accuracy = float((model(judge[0]).argmax(dim=1) == judge[1]).double().mean())
    return Outcome(exact, 1 / (1 - zeros(model)), 100 * accuracy)


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
            self.done[name] = run(method, amount, seed, *rows, self.plan)
            if self.keep is not None:
                with self.keep.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"run": name, "outcome": asdict(self.done[name])}) + "\n")
        return self.done[name]

    def choose(self, method: str) -> float:
        """Return the smallest strength that reaches the goal's compression on a part of the training data."""
        tried = {s: self.outcome(method, s, SELECTION_SEED, final=False) for s in STRENGTHS[method]}
        return min((s for s, o in tried.items() if o.compression >= GOAL), default=max(tried))


def spread(values: Sequence[float], digits: int) -> str:
    """Return the mean and the standard deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


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
