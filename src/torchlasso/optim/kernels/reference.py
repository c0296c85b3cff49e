"""What the fast kernels compute, in plain torch on one tensor: to be read, and to be tested against.

A step is two halves.  ``adam`` and ``sgd`` say where torch's optimizer moves the weights and in which metric;
``settle`` takes the proximal step from there.  All arithmetic is in ``at_least_float32``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchlasso.optim.evidence import begin, is_alive, narrowed, step_with_evidence, widened
from torchlasso.prox import Kink, at_least_float32, soft_threshold, soft_threshold_nonnegative
from torchlasso.proximal.nonconvex import firm_threshold, log_threshold


@dataclass(frozen=True, eq=False)
class Row:
    """The penalty ``Σ c·(slope·|w| + ridge·w²/2)`` of a tensor, as in a row of the table.

    Attributes:
        slope: λa.
        ridge: λb.
        knee: where the slope has fallen to 0, in units of ``c``; 0 if it does not fall.
        epsilon: where the slope has halved; 0 if it does not.
        limit: the largest threshold ``D·slope·c``.
        memory: ``N``; 0 for the plain proximal step.
        nonnegative: whether the weights are held at zero or above.
        c: the penalty's weights, or None for 1.
    """

    slope: float = 0.0
    ridge: float = 0.0
    knee: float = 0.0
    epsilon: float = 0.0
    limit: float = torch.inf
    memory: float = 0.0
    nonnegative: bool = False
    c: Tensor | None = None


def adam(
    w: Tensor,
    grad: Tensor,
    group: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    decoupled: bool,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Update Adam's state and return where it moves the weights, and the metric ``lr/(√v̂ + ε)``.

    Args:
        w: the weights, in float32 or wider.
        grad: their gradient.
        group: the optimizer's parameter group.
        state: the optimizer's state of the tensor, updated in place.
        decoupled: whether the weight decay is AdamW's.
        scale: multiplies the gradient.
    """
    lr, (beta1, beta2), decay = float(group["lr"]), group["betas"], group["weight_decay"]
    state["step"].add_(1)
    step = float(state["step"])
    grad = _oriented(grad, group, scale)
    if decoupled:
        w = w * (1 - lr * decay)
    elif decay != 0:
        grad = grad + decay * w
    mean = torch.lerp(at_least_float32(state["exp_avg"]), grad, 1 - beta1)
    square = beta2 * at_least_float32(state["exp_avg_sq"]) + (1 - beta2) * grad * grad
    state["exp_avg"].copy_(mean)
    state["exp_avg_sq"].copy_(square)
    if group["amsgrad"]:
        square = torch.maximum(at_least_float32(state["max_exp_avg_sq"]), square)
        state["max_exp_avg_sq"].copy_(square)
    metric = lr / ((square / (1 - beta2**step)).sqrt() + group["eps"])
    return w - metric * mean / (1 - beta1**step), metric


def sgd(
    w: Tensor, grad: Tensor, group: Mapping[str, Any], state: dict[str, Tensor], *, scale: float = 1.0
) -> Tensor:
    """Update SGD's momentum buffer and return where it moves the weights.

    Args:
        w: the weights, in float32 or wider.
        grad: their gradient.
        group: the optimizer's parameter group.
        state: the optimizer's state of the tensor; a momentum buffer is begun if there is none.
        scale: multiplies the gradient.
    """
    stored = grad.dtype
    grad = _oriented(grad, group, scale)
    if group["weight_decay"] != 0:
        grad = grad + group["weight_decay"] * w
    momentum = group["momentum"]
    if momentum != 0:
        known = state.get("momentum_buffer")
        mean = grad if known is None else momentum * at_least_float32(known)
        if known is not None:
            mean = mean + (1 - group["dampening"]) * grad
        state["momentum_buffer"] = mean.to(stored)
        grad = grad + momentum * mean if group["nesterov"] else mean
    return w - float(group["lr"]) * grad


def settle(
    w: Tensor,
    moved: Tensor,
    metric: float | Tensor,
    row: Row,
    rho: Tensor | None = None,
    *,
    frozen: bool = False,
) -> None:
    """Take the proximal step, in place.

    Args:
        w: the weights before the step, overwritten.
        moved: where the optimizer moves them.
        metric: ``D``.
        row: the penalty.
        rho: the evidence, overwritten, or None.
        frozen: zeros stay zero and nothing is shrunk.
    """
    # Without a metric nothing has moved, and nothing is decided.
    still = isinstance(metric, Tensor) is False and metric == 0
    if frozen or still:
        new = torch.where(w == 0, 0.0, moved.clamp_min(0.0) if row.nonnegative else moved)
        evidence = None if rho is None else torch.where(is_alive(rho), _sides(new, rho), rho)
        new = new if rho is None else torch.where(is_alive(rho), new, 0.0)
    else:
        new, evidence = _settled(moved, metric, row, rho)
    if rho is None or evidence is None:
        w.copy_(new.to(w.dtype) + 0.0)
        return
    stored, kept = narrowed(new, evidence, w.dtype) if w.dtype != new.dtype else (new, evidence)
    w.copy_(stored + 0.0)
    rho.copy_(kept)


def wide(w: Tensor, rho: Tensor | None) -> Tensor:
    """Return the weights in the type of the arithmetic, with what rounding has left in the evidence.

    Args:
        w: the weights.
        rho: the evidence, or None.
    """
    half = w.dtype in (torch.float16, torch.bfloat16)
    return widened(w, rho) if half and rho is not None else at_least_float32(w)


def _settled(
    moved: Tensor, metric: float | Tensor, row: Row, rho: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    c = torch.ones((), dtype=moved.dtype) if row.c is None else row.c
    excluded, free = c.isinf(), c == 0
    finite = torch.where(excluded, 0.0, c)
    slope = row.slope * finite
    step = torch.as_tensor(metric, dtype=moved.dtype).expand_as(moved)
    step = torch.where(slope > 0, torch.minimum(step, row.limit / slope), step)
    shrink = soft_threshold_nonnegative if row.nonnegative else soft_threshold
    shrunk = shrink(moved, torch.where(slope > 0, step * slope, 0.0))
    if row.knee > 0 or row.epsilon > 0:
        shrunk = _concave(moved, slope, torch.as_tensor(metric, dtype=moved.dtype), row)
    if row.ridge > 0:
        shrunk = torch.where(free, shrunk, shrunk / (1 + step * row.ridge * finite))
    shrunk = torch.where(excluded, 0.0, shrunk)
    if rho is None:
        return shrunk, None
    if row.memory == 0:
        return shrunk, _sides(shrunk, rho)
    kink = Kink(slope, nonnegative=row.nonnegative)
    new, evidence = step_with_evidence(moved, shrunk, kink, rho, step, row.memory)
    return torch.where(excluded, 0.0, new), evidence


def _concave(moved: Tensor, slope: Tensor, metric: Tensor, row: Row) -> Tensor:
    """Return the proximal map of a slope that falls with the weight, at most ``limit`` away."""
    if row.knee > 0:
        size = firm_threshold(moved.abs(), slope, metric, row.knee / row.slope)
    else:
        size = log_threshold(moved.abs(), slope, metric, row.epsilon)
    new = torch.where(slope > 0, torch.copysign(size, moved), moved)
    new = new.clamp(moved - row.limit, moved + row.limit)
    return new.clamp_min(0.0) if row.nonnegative else new


def _sides(new: Tensor, rho: Tensor) -> Tensor:
    """Return the evidence of alive weights, which remember the side that they are on."""
    return begin(torch.where(new == 0, rho, new))


def _oriented(grad: Tensor, group: Mapping[str, Any], scale: float) -> Tensor:
    return at_least_float32(grad) * (-scale if group["maximize"] else scale)
