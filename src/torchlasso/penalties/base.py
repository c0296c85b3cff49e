"""The interface of every penalty ``strength · R(w)``.

A penalty is a frozen object on *one* tensor.  Groups that span several parameters reach it as one
virtual tensor (see ``terms.py``), and a strength that changes by step is resolved by ``at`` before
anything is computed, so no penalty ever needs to know about either.
"""

import copy
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from torchlasso.errors import InputError
from torchlasso.layouts import GroupLayout
from torchlasso.prox import Kink

Strength = float | str | Callable[[int], float]
"""λ: a number, a function from the optimizer's step (0, 1, 2, …) to one, or a fraction such as ``"0.1max"``.

A fraction is of the parameter's ``strength_max``; ``Regularizer.resolve`` turns it into a number.
"""

_FRACTION = re.compile(r"((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?) ?max", re.ASCII)


@dataclass(frozen=True, eq=False)
class Penalty(ABC):
    """A sparsity-inducing term ``strength · R(w)`` of the objective.

    Attributes:
        convex: whether ``R`` is, so that a stationary point of a convex loss is the optimum.
        separable: whether every entry stands alone.
        has_strength: whether there is one; a constraint has none.
    """

    convex: ClassVar[bool] = True
    separable: ClassVar[bool] = False
    has_strength: ClassVar[bool] = True

    strength: Strength

    def __post_init__(self) -> None:
        """Check the strength as far as it can be checked."""
        if not callable(self.strength) and fraction_of_max(self.strength) is None:
            object.__setattr__(self, "strength", check_strength(self.strength))

    def at(self, step: int) -> Self:
        """Return this penalty with the strength that holds at an optimizer step.

        Args:
            step: number of optimizer steps taken so far.

        Raises:
            InputError: the schedule returned a negative or non-finite strength.

        Example:
            >>> from torchlasso import L1
            >>> L1(lambda step: 0.1 * step).at(3).prox(torch.tensor([1.0]), 1.0)
            tensor([0.7000])
        """
        if callable(self.strength):
            resolved = copy.copy(self)  # not `replace`, which would check all arguments again at every step
            strength = check_strength(self.strength(step), f"the schedule at step {step}")
            object.__setattr__(resolved, "strength", strength)
            return resolved
        return self

    def with_strength(self, strength: Strength) -> Self:
        """Return this penalty at another strength; a constraint, which has none, is returned as it is.

        Args:
            strength: as the class takes it.

        Raises:
            InputError: the strength is negative or not finite.
        """
        return replace(self, strength=strength)

    @property
    def current_strength(self) -> float:
        """The strength as a number.

        Raises:
            InputError: the strength is a schedule that was not resolved with ``at(step)``, or a fraction
                that was not resolved with ``Regularizer.resolve``.
        """
        if isinstance(self.strength, str):
            msg = (
                f"the strength {self.strength!r} is a fraction of strength_max and needs data; use "
                "regularizer = regularizer.resolve(model, loss_fn, batches)"
            )
            raise InputError(msg)
        if callable(self.strength):
            msg = "this penalty's strength is a schedule; resolve it first with penalty.at(step)"
            raise InputError(msg)
        return self.strength

    @abstractmethod
    def validate(self, shape: torch.Size) -> None:
        """Raise ``InputError`` if the penalty cannot act on a tensor of this shape."""

    @abstractmethod
    def value(self, w: Tensor) -> Tensor:
        """Return ``strength · R(w)`` as a differentiable 0-d tensor (subgradient 0 at kinks)."""

    @abstractmethod
    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Return ``argmin_x ½·Σ_i (x_i − w_i)²/step_i + strength · R(x)``.

        Args:
            w: the point to map.
            step: the step size ``≥ 0``: one number, or a tensor that broadcasts to ``w`` (the metric).
        """

    @abstractmethod
    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return the distance of ``−grad`` to ``strength · ∂R(w)``, per entry or per group.

        Zero exactly where ``w`` is stationary for ``loss + strength · R``.

        Args:
            w: the current weights.
            grad: the gradient of the data loss at ``w``.
        """

    @abstractmethod
    def strength_max(self, grad: Tensor) -> float:
        """Return the smallest strength at which ``w = 0`` is stationary.

        Args:
            grad: the gradient of the data loss at ``w = 0``.
        """

    @abstractmethod
    def support(self, w: Tensor) -> Tensor:
        """Return a boolean tensor, True where the entry (or its whole group) is not zero."""

    def slack(self, w: Tensor, grad: Tensor) -> float | None:
        """Return ``1 − max |g|/λ`` over what is zero: how far the zeros are from returning.

        Args:
            w: the current weights.
            grad: the gradient of the data loss at ``w``.

        Returns:
            None if nothing is zero, or without a strength.
        """
        support, strength = self.support(w), self.current_strength
        if strength == 0 or bool(support.all()):
            return None
        return 1 - self.strength_max(grad.masked_fill(support, 0.0)) / strength

    def kink(self, w: Tensor) -> Kink | None:
        """Return the slopes of the penalty at zero, or None if it has none.

        With it an optimizer can weigh the evidence of many noisy steps before a zero moves, shrink in its
        own pass, and go without a metric; without it every step is the plain proximal map.

        Args:
            w: a tensor shaped like the weights, in float32 or wider; only its shape, type and device count.
        """
        return None

    def layout(self, shape: torch.Size) -> GroupLayout | None:
        """Return the groups that vanish whole, or None if the penalty has none.

        Args:
            shape: of the weights.
        """
        return None

    def for_complex(self, shape: torch.Size) -> "Penalty":
        """Return the penalty on the modulus of complex weights as one on ``torch.view_as_real`` of them.

        Args:
            shape: of the complex weights.

        Raises:
            InputError: the penalty has no such form.
        """
        msg = (
            f"{self.describe()} is not defined for complex weights; use L1 or GroupLasso, or map them to None"
        )
        raise InputError(msg)

    def describe(self) -> str:
        """Return the penalty without its strength, for tables."""
        return type(self).__name__


def check_strength(strength: object, source: str = "strength") -> float:
    """Return ``strength`` as a float that is finite and not negative.

    Args:
        strength: what the user gave.
        source: how to name it in the message.

    Raises:
        InputError: it is no number, negative, infinite or NaN.

    Example:
        >>> check_strength(1)
        1.0
    """
    try:
        if isinstance(strength, (str, bytes)):  # float() would read them
            raise TypeError
        number = float(strength)  # type: ignore[arg-type]  # what is no number raises
    except (TypeError, ValueError, RuntimeError):
        got = repr(strength) if isinstance(strength, str) else type(strength).__name__
        msg = f"{source} must be a number, a function of the step or a fraction such as '0.1max', got {got}"
        raise InputError(msg) from None
    if not math.isfinite(number) or number < 0:
        msg = f"{source} must be finite and zero or more, got {number}"
        raise InputError(msg)
    return number


def fraction_of_max(strength: object) -> float | None:
    """Return the fraction that a strength such as ``"0.1max"`` stands for, or None for any other strength.

    Args:
        strength: what the user gave.

    Raises:
        InputError: the fraction is infinite.

    Example:
        >>> fraction_of_max("0.1max")
        0.1
    """
    found = _FRACTION.fullmatch(strength) if isinstance(strength, str) else None
    return None if found is None else check_strength(float(found[1]), f"the fraction in {strength!r}")


def check_ratio(l1_ratio: float) -> None:
    """Raise ``InputError`` unless ``0 ≤ l1_ratio ≤ 1``."""
    if not 0.0 <= l1_ratio <= 1.0:
        msg = f"l1_ratio must lie between 0 (no L1 part) and 1 (all L1), got {l1_ratio}"
        raise InputError(msg)


def check_weights(weights: object) -> None:
    """Raise ``InputError`` unless the weights are None, or a tensor of numbers from zero to infinity."""
    if weights is None:
        return
    if not isinstance(weights, Tensor):
        msg = f"weights must be a tensor or None, got {type(weights).__name__}; use torch.as_tensor(...)"
        raise InputError(msg)
    if bool((weights < 0).any()) or bool(weights.isnan().any()):
        msg = "weights must be zero ('always keep'), positive, or infinite ('exclude'); got negative or NaN"
        raise InputError(msg)


def split_weights(weights: Tensor, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the weights in another dtype with 0 for the infinite ones, and where those are.

    Which are infinite is decided before the conversion: a weight that is too large for the new dtype
    is a large weight still, and excludes nothing.

    Args:
        weights: zero, positive or infinite.
        device: of the result.
        dtype: of the result, at least float32.
    """
    excluded = weights.isinf().to(device)
    finite = weights.to(device, dtype).clamp(max=torch.finfo(dtype).max)
    return torch.where(excluded, 0.0, finite), excluded
