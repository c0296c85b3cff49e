"""The metric of an optimizer: how far a constant unit gradient would move a weight at this step.

The proximal step in this metric makes ``0 ∈ ∇loss + strength · ∂R`` the fixed point whatever the
optimizer; with any other threshold the strength means something else under each of them.  Here is what a
metric offers; the metrics of torch's optimizers are in the modules beside this one.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

Memory = dict[str, float | Tensor]
"""What a metric remembers for one parameter, beyond the optimizer's own state.

Between steps it holds numbers only; a tensor stays no longer than from ``before`` to ``displacement``.
"""


class Metric(ABC):
    """The displacement that a constant unit gradient would cause, read after each step.

    For an optimizer that divides by what the gradients were, the divisor is held fixed.  One metric serves
    all parameters of an optimizer: what differs between them is in the arguments.

    In every method ``group`` is the parameter's group in the optimizer, ``state`` its state there, and
    ``memory`` the metric's own memory for it.
    """

    def before(self, group: dict[str, Any], state: dict[str, Any], memory: Memory) -> None:  # noqa: B027
        """Note what the coming step will overwrite and ``displacement`` needs; most metrics need nothing.

        Args:
            group: the parameter's group.
            state: its state before the step, empty before the first.
            memory: updated in place.
        """

    @abstractmethod
    def displacement(
        self, group: dict[str, Any], state: dict[str, Any], grad: Tensor, memory: Memory
    ) -> float | Tensor:
        """Return the metric of one parameter at the step just taken.  Call it once a step.

        Args:
            group: the parameter's group.
            state: its state after the step.
            grad: its gradient, as the step left it; only its sparsity is read.
            memory: updated in place.

        Returns:
            A number, a 0-d tensor on an accelerator, or a real tensor in float32 or wider, shaped like the
            parameter.  For a complex parameter it is shaped like ``torch.view_as_real`` of it, as torch's
            optimizers treat the two parts as two weights.
        """

    @abstractmethod
    def limit(self, group: dict[str, Any], memory: Memory) -> float | Tensor | None:
        """Return the largest displacement that any constant gradient can cause at the step just taken.

        ``|grad|·D ≤ limit`` while the gradient is constant, however large or small it is.  A threshold
        ``t·D`` of more than that is of no use, and it is huge where hardly any gradient came (``D = lr/ε``).
        To bound it by *twice* the limit moves no fixed point of a separable convex penalty: a nonzero weight
        has ``|grad| ≥ t`` there, so ``t·D ≤ limit``, and a zero weight moves by no more than the limit.  Nor
        does it add one: it acts where ``|grad| < t/2`` and still shrinks such a weight.  The limit itself
        as the bound would: a gradient that is constant below ``t`` moves a weight by all of the limit, as
        far as the threshold would take it back.

        In a group ``t`` is compared with the norm of a gradient and not with its entries, and where a
        concave penalty is flat a nonzero weight has ``|grad| < t``: do not bound those.

        Args:
            group: the parameter's group.
            memory: as ``displacement`` left it.

        Returns:
            A number (0-d tensor where ``lr`` is one on an accelerator), or None where there is no bound.
        """

    def resume(self, group: dict[str, Any], state: dict[str, Any]) -> Memory:
        """Return the memory for a parameter whose optimizer state began before the metric watched it.

        Args:
            group: the parameter's group.
            state: its state, not empty.
        """
        return {}


def scalar(value: float | Tensor) -> float | Tensor:
    """Return a hyperparameter or a counter as a number, unless reading it would stall an accelerator.

    Args:
        value: a number or a tensor of one element.

    Returns:
        A float; for a tensor on an accelerator a 0-d tensor there.

    Example:
        >>> scalar(torch.tensor([0.5]))
        0.5
    """
    if isinstance(value, Tensor) and value.device.type != "cpu":
        return value.detach().reshape(())
    return float(value)


def wide(moment: Tensor) -> Tensor:
    """Return an optimizer's second moment as a real tensor in float32 or wider, not copied if it is one.

    In float16 a small square, or the usual ε of 1e-8 added to its root, would be 0.

    Args:
        moment: any floating-point tensor.  Of a complex parameter it is complex, with the squares of the
            two parts in its two parts.

    Returns:
        A tensor shaped like ``moment``, or like ``torch.view_as_real`` of a complex one.

    Example:
        >>> wide(torch.tensor([1 + 4j])).sqrt()
        tensor([[1., 2.]])
    """
    real = torch.view_as_real(moment) if moment.is_complex() else moment
    return real.to(torch.promote_types(real.dtype, torch.float32))
