"""The one training loop for networks, and the exact solve for linear models."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchlasso.gradients import LossFn
from torchlasso.optim.fista import Solution, fista
from torchlasso.regularizer import Regularizer
from torchlasso.sparse_rows import centred_product, column_moments, split_rows, take_rows


@dataclass(frozen=True)
class Batches:
    """Rows in memory, read in order for measuring and as an endless shuffled stream for training.

    Attributes:
        inputs: ``[n, p]``, dense or in torch's CSR form.
        target: ``[n]`` or ``[n, outputs]``.
        batch_size: rows a batch; with ``n`` or more, every batch is the whole.
        seed: of the shuffling.
    """

    inputs: Tensor
    target: Tensor
    batch_size: int
    seed: int = 0

    def __len__(self) -> int:
        return math.ceil(len(self.target) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(split_rows(self.inputs, self.batch_size), self.target.split(self.batch_size), strict=True)

    def stream(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches for ever, each pass in a new order and without the rest that fills no batch."""
        rows = len(self.target)
        if self.batch_size >= rows:
            while True:
                yield self.inputs, self.target
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            order = torch.randperm(rows, generator=generator).to(self.inputs.device)
            for chosen in order[: rows - rows % self.batch_size].split(self.batch_size):
                yield take_rows(self.inputs, chosen), self.target[chosen]


def cosine(progress: float) -> float:
    """Return the factor of the learning rate that falls from 1 to 0 as ``progress`` goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def constant(progress: float) -> float:
    """Return 1: the learning rate stays."""
    return 1.0


def train(
    model: nn.Module,
    loss_fn: LossFn,
    stream: Iterator[tuple[Any, Any]],
    optimizer: Optimizer,
    *,
    steps: int,
    decay: Callable[[float], float] = constant,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Take optimizer steps on a stream of batches.

    Args:
        model: trained in place.
        loss_fn: the mean data loss of a batch.
        stream: endless pairs of input and target.
        optimizer: of the model's parameters; a penalty rides on it through ``attach``.
        steps: how many.
        decay: from the fraction of steps taken to a factor of the learning rate.
        on_step: called after every step.

    Returns:
        The loss of every batch before its step, a vector.
    """
    losses: list[Tensor] = []
    rates = [group["lr"] for group in optimizer.param_groups]
    model.train()
    try:
        for step in range(steps):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * decay(step / steps)
            inputs, target = next(stream)
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), target)
            loss.backward()
            losses.append(loss.detach())
            optimizer.step()
            on_step()
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
    return torch.stack(losses) if losses else torch.empty(0)


def raise_eps(groups: Iterable[dict[str, Any]], strength: float) -> None:
    """Give the parameters that Adam or one of its relatives shrinks an ε of at least the strength.

    Adam divides by √v̂ + ε.  A dense network that fits its rows has gradients far below the strength, so
    with the usual tiny ε its first proximal steps would be huge and wipe out what matters.  At a
    penalised optimum the gradients of the nonzero weights are as large as the strength; taking ε of
    that size bounds a step's shrinkage by the learning rate and changes no stationary point.  What is
    not shrunk keeps its small ε: it must follow at any strength.

    Args:
        groups: of the optimizer.
        strength: λ.
    """
    for group in groups:
        group["eps"] = max(strength, group["eps"])


def solve_linear(
    layer: nn.Linear,
    regularizer: Regularizer,
    loss_fn: LossFn,
    inputs: Tensor,
    target: Tensor,
    *,
    tolerance: float,
    max_iterations: int,
    weights: Tensor | None = None,
) -> Solution:
    """Solve a penalised linear model with a convex loss to its optimum, from where it stands.

    The problem is the one given; only the walk to its solution uses centred inputs (the intercept takes
    up the difference) and the inverse variances as the metric, so that columns of any scale converge.

    What has no strength is solved relative to the largest gradient of the weights at zero, in standard
    deviations of the inputs: it does not depend on the start, on the intercept or on any units.

    Args:
        layer: the model, with a bias; changed in place.
        regularizer: the penalties on it.
        loss_fn: the mean loss, convex in the outputs.
        inputs: ``[n, p]``, dense or in torch's CSR form.
        target: what the loss takes.
        tolerance: the KKT residual to reach, relative to the strength.
        max_iterations: when to give up.
        weights: of the rows in the loss, of mean 1; they weigh the moments of the inputs too.

    Raises:
        InputError: the loss or its gradient is not finite.
    """
    mean, scale, largest = column_moments(inputs, weights)
    flat = scale <= 1e-12 * largest.clamp_min(1e-300)
    variance = torch.where(flat, 1.0, scale.square())
    product = centred_product(inputs, mean, flat)
    metric = {layer.weight: (1 / variance).expand_as(layer.weight), layer.bias: torch.ones_like(layer.bias)}
    of_weight, of_bias = _gradients_at_zero(product, variance.sqrt(), target, layer, loss_fn)
    shift = layer.weight.detach() @ mean
    layer.bias.data.add_(shift)
    try:
        return fista(
            lambda: loss_fn(product(layer.weight, layer.bias), target),
            regularizer,
            [layer.weight, layer.bias],
            metric=metric,
            tolerance=tolerance,
            max_iterations=max_iterations,
            unit=max(of_weight, 1e-6 * of_bias) or 1.0,  # never what rounding leaves of the intercept's
            noise=64 * torch.finfo(inputs.dtype).eps * max(of_weight, of_bias),
        )
    finally:
        layer.bias.data.sub_(layer.weight.detach() @ mean)


def _gradients_at_zero(
    product: Callable[[Tensor, Tensor], Tensor],
    scale: Tensor,
    target: Tensor,
    layer: nn.Linear,
    loss_fn: LossFn,
) -> tuple[float, float]:
    """Return the largest gradients of the weights and of the intercepts where all of them are zero."""
    weight = torch.zeros_like(layer.weight, requires_grad=True)
    bias = torch.zeros_like(layer.bias, requires_grad=True)
    with torch.enable_grad():
        loss = loss_fn(product(weight, bias), target)
    of_weight, of_bias = torch.autograd.grad(loss, [weight, bias])
    return float((of_weight / scale).abs().max()), float(of_bias.abs().max())
