"""The losses whose convex conjugate is known: squared error, logistic and multinomial.

All three are ``ℓ(z) = A(z) − y·z`` (plus a constant) with a convex ``A`` whose gradient is the prediction
``m = ∇A(z)``.  A dual point ``θ = u − y`` is a change of the prediction from ``m`` to ``u``.
"""

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

_ROUNDING = 1e-6  # soft targets come in float32


class Loss(ABC):
    """A convex loss of rows of outputs, per row, without a factor."""

    @abstractmethod
    def target(self, target: Tensor, outputs: Tensor) -> Tensor | None:
        """Return the target shaped like the outputs, in float64, or None if this loss cannot take it.

        Args:
            target: as the user's loss takes it.
            outputs: ``[n, k]``.
        """

    @abstractmethod
    def value(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the loss of each row, summed over its outputs."""

    @abstractmethod
    def mean(self, outputs: Tensor) -> Tensor:
        """Return the prediction ``m = ∇A(z)`` of each row."""

    @abstractmethod
    def conjugate(self, u: Tensor, y: Tensor) -> Tensor:
        """Return ``ℓ*(u − y)`` of each row: finite between ``y`` and a prediction, infinite outside."""

    @abstractmethod
    def slope(self, mean: Tensor, given: Tensor) -> Tensor:
        """Return the ``a`` for which ``a·m + (given − a·mean)`` is a possible prediction for every ``m``.

        Args:
            mean: the mean prediction, ``[k]``.
            given: the mean target, ``[k]``: the mean of the changed predictions.
        """


@final
class SquaredError(Loss):
    """``ℓ(z) = ½‖z − y‖²``."""

    def target(self, target: Tensor, outputs: Tensor) -> Tensor | None:
        """Return the target; ``[n]`` for one output."""
        return _shaped(target, outputs)

    def value(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return ``½‖z − y‖²``."""
        return 0.5 * (outputs - y).square().sum(1)

    def mean(self, outputs: Tensor) -> Tensor:
        """Return the outputs."""
        return outputs

    def conjugate(self, u: Tensor, y: Tensor) -> Tensor:
        """Return ``½‖u − y‖² + (u − y)·y``."""
        theta = u - y
        return (0.5 * theta.square() + theta * y).sum(1)

    def slope(self, mean: Tensor, given: Tensor) -> Tensor:
        """Return 1: every prediction is possible."""
        return torch.ones_like(mean)


@final
class Logistic(Loss):
    """``ℓ(z) = Σ_j log(1 + e^{z_j}) − y_j·z_j`` with ``0 ≤ y ≤ 1``."""

    def target(self, target: Tensor, outputs: Tensor) -> Tensor | None:
        """Return the target if it lies between 0 and 1; ``[n]`` for one output."""
        y = _shaped(target, outputs)
        return y if y is not None and bool(((y >= 0) & (y <= 1)).all()) else None

    def value(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return ``Σ_j log(1 + e^{z_j}) − y_j·z_j``."""
        return functional.binary_cross_entropy_with_logits(outputs, y, reduction="none").sum(1)

    def mean(self, outputs: Tensor) -> Tensor:
        """Return the probabilities of 1."""
        return outputs.sigmoid()

    def conjugate(self, u: Tensor, y: Tensor) -> Tensor:
        """Return the negative entropy ``Σ_j u_j·log u_j + (1 − u_j)·log(1 − u_j)``."""
        entropies = _entropy(u) + _entropy(1 - u)
        return entropies.sum(1)

    def slope(self, mean: Tensor, given: Tensor) -> Tensor:
        """Return what keeps every probability between 0 and 1, for each output alone."""
        return torch.minimum(_ratio(given, mean), _ratio(1 - given, 1 - mean))


@final
class Multinomial(Loss):
    """``ℓ(z) = log Σ_j e^{z_j} − y·z`` with ``y`` a distribution over the classes."""

    def target(self, target: Tensor, outputs: Tensor) -> Tensor | None:
        """Return class numbers ``[n]`` as 0 and 1, or distributions ``[n, k]`` as they are."""
        count, classes = outputs.shape
        if not target.is_floating_point():
            inside = target.shape == (count,) and bool(((target >= 0) & (target < classes)).all())
            return functional.one_hot(target.long(), classes).to(outputs) if inside else None
        y = target.detach().to(outputs)
        if y.shape != outputs.shape or not bool((y >= 0).all()):
            return None
        return y if bool(((y.sum(1) - 1).abs() <= 1e-6).all()) else None

    def value(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return ``log Σ_j e^{z_j} − y·z``."""
        return outputs.logsumexp(1) - (y * outputs).sum(1)

    def mean(self, outputs: Tensor) -> Tensor:
        """Return the probabilities of the classes."""
        return outputs.softmax(1)

    def conjugate(self, u: Tensor, y: Tensor) -> Tensor:
        """Return the negative entropy ``Σ_j u_j·log u_j``."""
        total = (u.sum(1) - 1).abs()
        return torch.where(total <= _ROUNDING, _entropy(u).sum(1), torch.inf)

    def slope(self, mean: Tensor, given: Tensor) -> Tensor:
        """Return what keeps every probability from falling below 0; their sum stays 1."""
        return _ratio(given, mean).min().expand_as(mean)


LOSSES: tuple[Loss, ...] = (SquaredError(), Logistic(), Multinomial())
"""The known losses, in the order in which they are tried."""


def _entropy(u: Tensor) -> Tensor:
    """Return ``u·log u``, infinite below 0 by more than rounding."""
    return torch.where(u >= -_ROUNDING, torch.xlogy(u.clamp_min(0.0), u.clamp_min(0.0)), torch.inf)


def _shaped(target: Tensor, outputs: Tensor) -> Tensor | None:
    count, width = outputs.shape
    if target.shape != (count, width) and (target.shape != (count,) or width != 1):
        return None
    return target.detach().to(outputs).reshape(count, width)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Return ``part/whole``, at most 1 and never from a division by zero."""
    return torch.where(whole > 0, part / torch.where(whole > 0, whole, 1.0), 1.0).clamp(max=1.0)
