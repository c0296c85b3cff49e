"""The metric of each torch optimizer: how far a constant unit gradient would move a weight at this step.

The proximal step in this metric makes ``0 ∈ ∇loss + strength · ∂R`` the fixed point whatever the
optimizer; with any other threshold the strength means something else under each of them.
"""

from abc import ABC, abstractmethod
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from torchlasso.errors import UnsupportedOptimizerError

Memory = dict[str, float]
"""What a metric remembers for one parameter between steps, beyond the optimizer's own state."""


class Metric(ABC):
    """The displacement that a constant unit gradient would cause, read after each step."""

    @abstractmethod
    def displacement(self, group: dict[str, Any], state: dict[str, Any], memory: Memory) -> float | Tensor:
        """Return the metric of one parameter at the step just taken.

        Args:
            group: the parameter's group in the optimizer.
            state: the parameter's state in the optimizer, after the step.
            memory: the metric's own memory for this parameter, updated in place.

        Returns:
            A number, or a tensor shaped like the parameter.
        """

    @abstractmethod
    def resume(self, group: dict[str, Any], state: dict[str, Any]) -> Memory:
        """Return the memory for a parameter whose optimizer state began before the metric watched it."""


@final
class SGDMetric(Metric):
    """``lr · a_t``, with ``a_t`` the momentum buffer of a constant unit gradient.

    torch starts the buffer at the first gradient and then runs ``a ← μ·a + (1 − τ)`` (momentum μ,
    dampening τ), so ``a_t`` rises from 1 to ``(1 − τ)/(1 − μ)``; Nesterov moves by ``1 + μ·a_t``.
    """

    def displacement(self, group: dict[str, Any], state: dict[str, Any], memory: Memory) -> float | Tensor:
        """Return ``lr · a_t``."""
        lr, momentum = float(group["lr"]), float(group["momentum"])
        if momentum == 0:
            return lr
        gain = momentum * memory["gain"] + 1 - float(group["dampening"]) if "gain" in memory else 1.0
        memory["gain"] = gain
        return lr * (1 + momentum * gain) if group["nesterov"] else lr * gain

    def resume(self, group: dict[str, Any], state: dict[str, Any]) -> Memory:
        """Return the steady state of the recurrence if there is a momentum buffer already."""
        momentum = float(group["momentum"])
        if state.get("momentum_buffer") is None or not 0 < momentum < 1:
            return {}
        return {"gain": (1 - float(group["dampening"])) / (1 - momentum)}


@final
class AdamMetric(Metric):
    """``lr / (√v̂ + ε)`` with the bias-corrected second moment (amsgrad: its running maximum).

    The bias-corrected first moment of a constant unit gradient is 1 at every step.  A weight that has only
    received zero gradients has ``v̂ = 0`` and so the metric ``lr/ε``: it vanishes at once.  That is its place
    if it never gets another; where gradients are rare or tiny, an ε of the size of the strength bounds the
    shrinkage of a step by ``lr`` and moves no stationary point.
    """

    def displacement(self, group: dict[str, Any], state: dict[str, Any], memory: Memory) -> float | Tensor:
        """Return ``lr / (√v̂ + ε)``."""
        second = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
        correction = 1 - float(group["betas"][1]) ** float(state["step"])
        # In float16 the usual epsilon of 1e-8 would be 0.
        wide = second.to(torch.promote_types(second.dtype, torch.float32))
        denominator = (wide / correction).sqrt_().add_(group["eps"])
        result: Tensor = float(group["lr"]) / denominator
        return result

    def resume(self, group: dict[str, Any], state: dict[str, Any]) -> Memory:
        """Return nothing: all that Adam's metric needs is in Adam's state."""
        return {}


_METRICS: dict[type[Optimizer], Metric] = {SGD: SGDMetric(), Adam: AdamMetric(), AdamW: AdamMetric()}


def metric_of(optimizer: Optimizer) -> Metric:
    """Return the metric of an optimizer, by its exact type (a subclass may step differently).

    Args:
        optimizer: a torch optimizer.

    Raises:
        UnsupportedOptimizerError: the metric of this type is not known.

    Example:
        >>> import torch
        >>> type(metric_of(SGD([torch.zeros(1, requires_grad=True)], lr=0.1))).__name__
        'SGDMetric'
    """
    kind = type(optimizer)
    if kind not in _METRICS:
        known = ", ".join(sorted(k.__name__ for k in _METRICS))
        msg = (
            f"the metric of {kind.__module__}.{kind.__qualname__} is not known, so the strength would not "
            f"mean the same as elsewhere; use one of torch.optim's {known}"
        )
        raise UnsupportedOptimizerError(msg)
    return _METRICS[kind]
