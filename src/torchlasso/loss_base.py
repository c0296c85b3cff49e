"""The interface of every loss of rows, and the checks that they share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from torchlasso.errors import InputError


@dataclass(frozen=True)
class Loss(ABC):
    """A mean over rows of a loss of their outputs."""

    @final
    def __call__(self, output: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the mean loss, weighted if there are weights.

        Args:
            output: ``[n, outputs]``; ``[n]`` will do for one output.
            target: as the loss takes it.
            sample_weight: weights ``[n]`` that are zero or more, or None.

        Raises:
            InputError: the target or the weights cannot be used.
        """
        rows = self.rows(output, target, sample_weight)
        weights = self.weights(target, sample_weight)
        return rows.mean() if weights is None else rows.sum() / weights.to(rows).sum()

    @final
    def rows(self, output: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return weight times loss of each row, ``[n]``, in float32 or wider.

        Args:
            output: ``[n, outputs]``; ``[n]`` will do for one output.
            target: as the loss takes it.
            sample_weight: weights ``[n]`` that are zero or more, or None.

        Raises:
            InputError: the target or the weights cannot be used.
        """
        self.check(target)
        wide = output.to(torch.promote_types(output.dtype, torch.float32))
        weights = self.weights(target, sample_weight)
        return self._rows(wide, target, None if weights is None else weights.to(wide))

    @abstractmethod
    def check(self, target: Tensor) -> None:
        """Raise ``InputError`` for a target that the loss cannot take.

        Args:
            target: as in ``rows``.  NaN is let through, and makes the loss NaN.
        """

    @abstractmethod
    def weights(self, target: Tensor, sample_weight: Tensor | None) -> Tensor | None:
        """Return the weight of each row, that of its class included, or None if all are 1.

        Args:
            target: as in ``rows``.
            sample_weight: weights ``[n]``, or None.
        """

    @abstractmethod
    def _rows(self, output: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        """Return weight times loss of each row."""


@dataclass(frozen=True)
class RowByRow(Loss):
    """A loss whose rows do not know of one another."""

    @final
    def _rows(self, output: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        losses = self._losses(output, target)
        # A row of weight 0 is no row, even where its loss overflows.
        return losses if weights is None else torch.where(weights == 0, 0.0, weights * losses)

    @abstractmethod
    def _losses(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each row."""


@dataclass(frozen=True)
class Quantity(RowByRow):
    """A loss of each output and its quantity; the outputs of a row are summed."""

    @final
    def weights(self, target: Tensor, sample_weight: Tensor | None) -> Tensor | None:
        """Return the sample weights."""
        return checked_weights(target, sample_weight)

    @final
    def _losses(self, output: Tensor, target: Tensor) -> Tensor:
        z = shaped(output, target)
        return self._each(z, target.to(z)).flatten(1).sum(1) if z.ndim > 1 else self._each(z, target.to(z))

    @abstractmethod
    def _each(self, z: Tensor, y: Tensor) -> Tensor:
        """Return the loss of every entry."""


def shaped(output: Tensor, target: Tensor) -> Tensor:
    """Return the output in the shape of the target; only a last dimension of 1 may differ.

    Args:
        output: of the model.
        target: of one entry an output.

    Raises:
        InputError: the shapes differ otherwise: broadcast, they would give a wrong loss without a word.
    """
    if output.shape == target.shape:
        return output
    if output.numel() == target.numel() and output.shape[:1] == target.shape[:1]:
        return output.reshape(target.shape)
    raise InputError(shape_message(output, target, "the shape of the target"))


def shape_message(output: Tensor, target: Tensor, expected: str) -> str:
    """Return what to say about an output of the wrong shape."""
    return f"the output must be {expected}, got {tuple(output.shape)} for a target {tuple(target.shape)}"


def checked_weights(target: Tensor, sample_weight: Tensor | None) -> Tensor | None:
    """Return the weights of the rows, or raise ``InputError`` if they are not one a row, zero or more."""
    if sample_weight is None:
        return None
    if sample_weight.shape != target.shape[:1]:
        msg = f"sample_weight must be [{len(target)}], one a row, got {tuple(sample_weight.shape)}"
        raise InputError(msg)
    if bool((sample_weight < 0).any()):
        msg = "sample_weight must be zero or more, got negative weights"
        raise InputError(msg)
    return sample_weight


def check_class_weights(weights: Sequence[float] | None, count: int | None) -> None:
    """Raise ``InputError`` unless the weights are None, or so many numbers that are zero or more."""
    if weights is None:
        return
    good = all(0 <= weight < math.inf for weight in weights) and count in (None, len(weights))
    expected = f"{'finite' if count is None else count} weights of zero or more, one a class"
    require(good, "class_weights", expected, weights)


def check_probabilities(target: Tensor) -> None:
    """Raise ``InputError`` for a target outside 0 to 1."""
    if bool(((target < 0) | (target > 1)).any()):
        msg = "the target must be 0 or 1 (or a probability in between), got numbers outside"
        raise InputError(msg)


def check_codes(target: Tensor, classes: int) -> None:
    """Raise ``InputError`` for class numbers that there are no classes for."""
    if target.numel() and int(target.max()) >= classes:
        msg = f"the target must have class numbers below {classes}, got {int(target.max())}"
        raise InputError(msg)


def require(holds: bool, name: str, expected: str, value: object) -> None:
    """Raise ``InputError`` that names an argument, unless a condition holds."""
    if not holds:
        msg = f"{name} must be {expected}, got {value!r}"
        raise InputError(msg)
