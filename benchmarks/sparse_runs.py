"""What the benchmarks of sparse training share: a budget, ways that are no part of torchlasso, and a run."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

import torchlasso as tl
from torchlasso.optim.attach import attach
from torchlasso.training import Batches, cosine, train

NEAR = 1e-3  # what "near zero" means for the penalty in the loss
PRUNE_EVERY, PRUNE_UNTIL = 100, 0.8  # steps, and the part of the epochs before the refit

Rows = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Plan:
    """The budget of a run, the same for every method.

    Attributes:
        epochs: with the penalty.
        refit_epochs: with the zeros frozen.
        batch: rows of a minibatch.
        lr: at first; it decays along a cosine.
        refit_lr: likewise, of the refit.
        smoothing: of the labels, in training.
    """

    epochs: int = 30
    refit_epochs: int = 12
    batch: int = 128
    lr: float = 2e-3
    refit_lr: float = 1e-3
    smoothing: float = 0.0


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
    loss_fn: Callable[..., Tensor] = nn.functional.cross_entropy
    on_step: Callable[[], None] = lambda: None


Method = Callable[[nn.Module, float, int], Riding]


def in_the_loss(model: nn.Module, strength: float, steps: int) -> Riding:
    optimizer, regularizer = Adam(model.parameters()), tl.Regularizer(model, tl.L1(strength))

    def loss_fn(output: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
        return nn.functional.cross_entropy(output, target, label_smoothing=label_smoothing) + regularizer()

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


def mlp(sizes: Sequence[int], seed: int) -> nn.Sequential:
    """Return a network of linear layers with ReLUs between them."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach() for p in model.parameters() if p.ndim == 2]


def zeros(model: nn.Module) -> float:
    parts = weights(model)
    return sum(int((w == 0).sum()) for w in parts) / sum(w.numel() for w in parts)


def run(
    method: Method, amount: float, model: nn.Sequential, seed: int, data: Rows, judge: Rows, plan: Plan
) -> Outcome:
    """Train with the penalty, refit what is left, and judge once.

    Args:
        method: what rides on the training.
        amount: the strength, or the compression to reach.
        model: with its initial weights.
        seed: of the shuffling.
        data: to train on.
        judge: to measure the accuracy on.
        plan: the budget.
    """
    stream = Batches(*data, plan.batch, seed).stream()
    per_epoch = len(data[1]) // plan.batch
    riding = method(model, amount, plan.epochs * per_epoch)
    phases = ((plan.epochs, plan.lr), (plan.refit_epochs, plan.refit_lr))
    exact = 0.0
    for number, (epochs, lr) in enumerate(phases):
        for group in riding.optimizer.param_groups:
            group["lr"] = lr
        if number == 1:
            exact = zeros(model)
            riding.refit()
        loss_fn = partial(
            nn.functional.cross_entropy if number else riding.loss_fn, label_smoothing=plan.smoothing
        )
        on_step = (lambda: None) if number else riding.on_step
        steps = epochs * per_epoch
        train(model, loss_fn, stream, riding.optimizer, steps=steps, decay=cosine, on_step=on_step)
    with torch.no_grad():
        accuracy = float((model(judge[0]).argmax(dim=1) == judge[1]).double().mean())
    return Outcome(exact, 1 / (1 - zeros(model)), 100 * accuracy)


def spread(values: Sequence[float], digits: int) -> str:
    """Return the mean and the standard deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean
