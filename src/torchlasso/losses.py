"""Losses of rows of outputs: usable as ``loss_fn(output, target)``, with weights of rows and classes.

Every loss is a mean, so that a strength keeps its meaning.  Weighted, it is
``Σ_i w_i·ℓ_i / Σ_i w_i``; ``rows`` gives the terms ``w_i·ℓ_i``.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from torchlasso.errors import InputError
from torchlasso.loss_base import (
    Loss,
    Quantity,
    RowByRow,
    check_class_weights,
    check_codes,
    check_probabilities,
    checked_weights,
    require,
    shape_message,
    shaped,
)
from torchlasso.survival import Ties, check_survival, cox_rows


@final
@dataclass(frozen=True)
class SquaredLoss(Quantity):
    """Half the squared error, ``½·(z − y)²``, summed over the outputs of a row.

    Example:
        >>> SquaredLoss()(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
        tensor(1.)
    """

    def check(self, target: Tensor) -> None:
        """Take any number."""

    def _each(self, z: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (z - y).square()


@final
@dataclass(frozen=True)
class HuberLoss(Quantity):
    """Huber's loss: ``½·r²`` for ``|r| ≤ δ``, else ``δ·|r| − ½·δ²``, with ``r = z − y``.

    Args:
        delta: δ > 0, in units of the target, above which an error counts linearly.

    Raises:
        InputError: a delta that is not a positive number.

    Example:
        >>> HuberLoss(1.0).rows(torch.tensor([0.5, -3.0]), torch.zeros(2))
        tensor([0.1250, 2.5000])

    References:
        Huber, "Robust estimation of a location parameter", Ann. Math. Statist. 35 (1964).
    """

    delta: float = 1.35

    def __post_init__(self) -> None:
        """Check delta."""
        require(0 < self.delta < math.inf, "delta", "a number above 0", self.delta)

    def check(self, target: Tensor) -> None:
        """Take any number."""

    def _each(self, z: Tensor, y: Tensor) -> Tensor:
        error = (z - y).abs()
        inner = error.clamp(max=self.delta)
        return inner * (error - 0.5 * inner)


@final
@dataclass(frozen=True)
class QuantileLoss(Quantity):
    """The pinball loss of a quantile: ``q·(y − z)`` where the target is above, ``(1 − q)·(z − y)`` below.

    It has a kink, which gradient methods on all rows at once do not like.  With ``smoothing = h`` the
    errors within ``h`` count by a parabola; the loss then lies between the pinball loss and ``h/4``
    above it, and so does its minimum.

    Args:
        quantile: q between 0 and 1; 0.5 gives half the absolute error.
        smoothing: h ≥ 0, in units of the target.

    Raises:
        InputError: a quantile or a smoothing out of range.

    Example:
        >>> QuantileLoss(0.9).rows(torch.zeros(2), torch.tensor([1.0, -1.0]))
        tensor([0.9000, 0.1000])

    References:
        Koenker and Bassett, "Regression quantiles", Econometrica 46 (1978).  Smoothed: Nesterov, "Smooth
        minimization of non-smooth functions", Math. Program. 103 (2005).
    """

    quantile: float = 0.5
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        require(0 < self.quantile < 1, "quantile", "a number between 0 and 1", self.quantile)
        require(0 <= self.smoothing < math.inf, "smoothing", "a number of 0 or more", self.smoothing)

    def check(self, target: Tensor) -> None:
        """Take any number."""

    def _each(self, z: Tensor, y: Tensor) -> Tensor:
        error = y - z
        if self.smoothing == 0:
            return torch.maximum(self.quantile * error, (self.quantile - 1) * error)
        size, h = error.abs(), self.smoothing
        # |r| from above: (r² + h²)/(2h) within h
        rounded = torch.where(size < h, 0.5 * (size.clamp(max=h).square() / h + h), size)
        return (self.quantile - 0.5) * error + 0.5 * rounded


@final
@dataclass(frozen=True)
class PoissonLoss(Quantity):
    """Half the Poisson deviance with the log link: ``exp(z) − y·z + y·log y − y``, zero at ``exp(z) = y``.

    Beyond the root of the largest number (``z`` of 44 in float32, 354 in float64) the exponential is
    continued by its tangent, so that loss and gradient stay finite.

    Example:
        >>> PoissonLoss()(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]))
        tensor(0.5000)

    References:
        Nelder and Wedderburn, "Generalized linear models", J. R. Stat. Soc. A 135 (1972).
    """

    def check(self, target: Tensor) -> None:
        """Refuse a target that is negative or infinite."""
        if bool((target < 0).any()) or bool(target.isinf().any()):
            msg = "a Poisson loss needs counts or rates that are zero or more and finite; got others"
            raise InputError(msg)

    def _each(self, z: Tensor, y: Tensor) -> Tensor:
        top = 0.5 * math.log(torch.finfo(z.dtype).max)
        rate = z.clamp(max=top).exp() * (1 + (z - top).clamp_min(0.0))
        return rate - y * z + torch.xlogy(y, y) - y


@final
@dataclass(frozen=True)
class BinaryLoss(RowByRow):
    """The logistic loss of one output, ``log(1 + exp(z)) − y·z``.

    Args:
        class_weights: of class 0 and class 1; they multiply the rows' weights.

    Raises:
        InputError: not two weights of zero or more.

    Example:
        >>> BinaryLoss((1.0, 3.0))(torch.zeros(2, 1), torch.tensor([0.0, 1.0]))
        tensor(0.6931)
    """

    class_weights: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Check the weights."""
        check_class_weights(self.class_weights, 2)

    def check(self, target: Tensor) -> None:
        """Refuse a target outside 0 to 1."""
        check_probabilities(target)

    def weights(self, target: Tensor, sample_weight: Tensor | None) -> Tensor | None:
        """Return the weight of each row; a target between 0 and 1 has a weight in between."""
        given = checked_weights(target, sample_weight)
        if self.class_weights is None:
            return given
        none, one = self.class_weights
        of_class = none + (one - none) * target.reshape(len(target))
        return of_class if given is None else of_class * given

    def _losses(self, output: Tensor, target: Tensor) -> Tensor:
        z = shaped(output, target)
        loss = functional.binary_cross_entropy_with_logits(z, target.to(z), reduction="none")
        return loss.reshape(len(target))


@final
@dataclass(frozen=True)
class MultinomialLoss(RowByRow):
    """The cross-entropy of one output a class, ``log Σ_k exp(z_k) − z_y``.

    Args:
        class_weights: one a class; they multiply the rows' weights, and the mean divides by their sum, as
            in ``nn.CrossEntropyLoss``.

    Raises:
        InputError: a weight that is negative or not finite.

    Example:
        >>> MultinomialLoss()(torch.zeros(2, 4), torch.tensor([3, 0]))
        tensor(1.3863)
    """

    class_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check the weights."""
        check_class_weights(self.class_weights, None)

    def check(self, target: Tensor) -> None:
        """Refuse what is no vector of class numbers."""
        if target.ndim != 1 or target.is_floating_point() or bool((target < 0).any()):
            msg = (
                "a multinomial loss needs a vector of class numbers (0, 1, …) of an integer type, got "
                f"{target.dtype} of shape {tuple(target.shape)}"
            )
            raise InputError(msg + (" with negative numbers" if bool((target < 0).any()) else ""))

    def weights(self, target: Tensor, sample_weight: Tensor | None) -> Tensor | None:
        """Return the weight of each row."""
        given = checked_weights(target, sample_weight)
        if self.class_weights is None:
            return given
        check_codes(target, len(self.class_weights))
        of_class = torch.tensor(self.class_weights, dtype=torch.float64, device=target.device)[target]
        return of_class if given is None else of_class * given

    def _losses(self, output: Tensor, target: Tensor) -> Tensor:
        if output.ndim != 2 or len(output) != len(target):
            raise InputError(shape_message(output, target, "[n, classes]"))
        if self.class_weights is not None and len(self.class_weights) != output.shape[1]:
            msg = f"class_weights must be one a class, {output.shape[1]}, got {len(self.class_weights)}"
            raise InputError(msg)
        check_codes(target, output.shape[1])
        return functional.cross_entropy(output, target.long(), reduction="none")


@final
@dataclass(frozen=True)
class MultilabelLoss(RowByRow):
    """The logistic losses of several labels that do not exclude one another, summed over the labels.

    Summed, a linear model is one L1 logistic regression a label, all at the strength given.

    Args:
        label_weights: a factor of each label's loss, or None for 1.

    Raises:
        InputError: a weight that is negative or not finite.

    Example:
        >>> MultilabelLoss()(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 1.0]]))
        tensor(2.0794)
    """

    label_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check the weights."""
        check_class_weights(self.label_weights, None)

    def check(self, target: Tensor) -> None:
        """Refuse a target outside 0 to 1, and one that is no matrix."""
        if target.ndim != 2:
            msg = f"a multilabel loss needs a target [n, labels], got {tuple(target.shape)}"
            raise InputError(msg)
        check_probabilities(target)

    def weights(self, target: Tensor, sample_weight: Tensor | None) -> Tensor | None:
        """Return the sample weights."""
        return checked_weights(target, sample_weight)

    def _losses(self, output: Tensor, target: Tensor) -> Tensor:
        z = shaped(output, target)
        losses = functional.binary_cross_entropy_with_logits(z, target.to(z), reduction="none")
        if self.label_weights is None:
            return losses.sum(1)
        if len(self.label_weights) != z.shape[1]:
            msg = f"label_weights must have one entry a label ({z.shape[1]}), got {len(self.label_weights)}"
            raise InputError(msg)
        return losses @ torch.tensor(self.label_weights).to(z)


@final
@dataclass(frozen=True)
class CoxLoss(Loss):
    """The negative log partial likelihood of Cox's proportional hazards, divided by the number of rows.

    The output is the logarithm of the hazard; a constant added to it changes nothing.  A row's loss is its
    event's term, 0 if it was censored.  It depends on the other rows: on a batch the risk sets are those
    of the batch, an estimate that gets better the larger the batch; the losses of single rows are not
    independent either, so their standard error is a guide, not a confidence interval.  A factor that all
    weights share adds its logarithm to every event's term.

    Args:
        ties: ``"efron"`` or ``"breslow"``: what events at the same time do.

    Raises:
        InputError: other ties.

    Example:
        >>> target = torch.tensor([[1.0, 1.0], [2.0, 0.0], [3.0, 1.0]])  # time, event
        >>> CoxLoss().rows(torch.zeros(3), target)
        tensor([1.0986, 0.0000, 0.0000])

    References:
        Cox, "Regression models and life-tables", J. R. Stat. Soc. B 34 (1972); Efron, "The efficiency of
        Cox's likelihood function for censored data", J. Am. Stat. Assoc. 72 (1977).
    """

    ties: Ties = "efron"

    def __post_init__(self) -> None:
        """Check the ties."""
        require(self.ties in ("efron", "breslow"), "ties", "'efron' or 'breslow'", self.ties)

    def check(self, target: Tensor) -> None:
        """Refuse what is not time and event."""
        check_survival(target)

    def weights(self, target: Tensor, sample_weight: Tensor | None) -> Tensor | None:
        """Return the sample weights."""
        return checked_weights(target, sample_weight)

    def _rows(self, output: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        time, event = target.unbind(1)
        risk = shaped(output, time)
        if weights is None:
            return cox_rows(risk, time, event, None, self.ties)
        kept = (weights != 0).nonzero()[:, 0]  # a row of weight 0 is in no risk set, and has no logarithm
        rows = cox_rows(risk[kept], time[kept], event[kept], weights[kept], self.ties)
        return torch.zeros_like(risk).index_copy(0, kept, rows)
