"""A small least-squares problem, and a user's own training loop on it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import ExponentialLR

import torchlasso as tl
from torchlasso.penalties.base import Penalty

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "momentum": lambda p: SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: Adam(p, lr=0.05),
}
STEPS = 1200


def problem(rank: int, inputs: int = 12, outputs: int = 8) -> tuple[Tensor, Tensor]:
    """Return 100 rows of inputs, and outputs whose true weights have a rank (0: half of them are zero)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, inputs))
    true = rng.normal(size=(inputs, outputs)) * (np.arange(inputs) < inputs // 2)[:, None]
    if rank:
        true = rng.normal(size=(inputs, rank)) @ rng.normal(size=(rank, outputs)) / 2
    return torch.tensor(x), torch.tensor(x @ true + 0.3 * rng.normal(size=(100, outputs)))


def trained(kind: str, penalty: Penalty, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Train a linear layer on ``½·Σ(x·Wᵀ − y)²`` a row, and return its weights and their gradient.

    Args:
        kind: of the optimizer; Adam's learning rate falls.
        penalty: on the weights.
        x: inputs.
        y: outputs.
    """
    torch.manual_seed(0)
    layer = nn.Linear(x.shape[1], y.shape[1], bias=False, dtype=torch.float64)

    def loss() -> Tensor:
        return 0.5 * (layer(x) - y).square().sum() / len(x)

    optimizer = OPTIMIZERS[kind](layer.parameters())
    schedule = ExponentialLR(optimizer, 1.0 if kind == "momentum" else 1e-2 ** (1 / STEPS))
    tl.attach(optimizer, tl.Regularizer(layer, penalty))
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    (grad,) = torch.autograd.grad(loss(), layer.weight)
    return layer.weight.detach(), grad
