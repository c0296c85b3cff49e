"""Penalties that act on every entry alone: the lasso and the elastic net.

Both may be weighted (the adaptive lasso): ``R(w) = Σ_j c_j · ρ(w_j)`` with ``weights = c``.  An entry
with weight zero is never penalised ("always keep"), one with infinite weight is held at zero
("exclude"), whatever the strength.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from torchlasso.errors import InputError
from torchlasso.penalties.base import Penalty, check_ratio
from torchlasso.penalties.entrywise import Entrywise
from torchlasso.penalties.structured import GroupLasso
from torchlasso.prox import Kink, at_least_float32, soft_threshold, soft_threshold_nonnegative


@dataclass(frozen=True, eq=False)
class _AbsoluteAndSquare(Entrywise):
    """``strength · Σ_j c_j (a·|w_j| + b·w_j²/2)``; the subclasses say what ``a`` and ``b`` are."""

    @property
    @abstractmethod
    def _shares(self) -> tuple[float, float]:
        """The factors ``(a, b)`` of the absolute value and of half the square."""

    def value(self, w: Tensor) -> Tensor:
        """Return ``strength · Σ_j c_j (a·|w_j| + b·w_j²/2)``; infinite outside the constraints."""
        a, b = self._shares
        wide = at_least_float32(w)
        c, _ = self._weights(wide)  # an excluded entry costs nothing at zero, where it is held
        terms = a * wide.abs() if b == 0 else a * wide.abs() + 0.5 * b * wide.square()
        total = self.current_strength * (terms if c is None else c * terms).sum()
        outside = self._outside(w.detach())
        return total if outside is None else torch.where(outside.any(), torch.inf, total)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Return ``soft(w, step·λ·c·a) / (1 + step·λ·c·b)``, clipped at zero if ``nonnegative``.

        Args:
            w: the point to map.
            step: a number or a tensor that broadcasts to ``w``.

        Returns:
            A new tensor of the dtype of ``w``, with exact zeros.
        """
        a, b = self._shares
        wide = at_least_float32(w)
        c, excluded = self._weights(wide)
        scaled: float | Tensor = step * self.current_strength
        if c is not None:
            scaled = torch.where(c > 0, scaled * c, 0.0)  # also where the step overflowed: 0·∞ is NaN
        shrink = soft_threshold_nonnegative if self.nonnegative else soft_threshold
        result = shrink(wide, scaled * a if a > 0 else 0.0)  # 0·∞ is NaN here too
        if b > 0:
            result = result / (1 + scaled * b)
        if excluded is not None:
            result = torch.where(excluded, 0.0, result)
        # A division or a narrower dtype can round a negative number to -0.0; the sum turns it into 0.0.
        return result if result.dtype == w.dtype and b == 0 else result.to(w.dtype) + 0.0

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return ``|g + λc(a·sign(w) + b·w)|`` where ``w ≠ 0``, else ``max(|g| − λca, 0)``.

        With ``nonnegative`` the second case is ``max(−g − λca, 0)``.  Entries outside the constraints
        have an infinite residual.

        Args:
            w: the current weights.
            grad: the gradient of the data loss at ``w``.

        Returns:
            A tensor of the shape of ``w``.
        """
        a, b = self._shares
        w, grad = at_least_float32(w), at_least_float32(grad)
        c, excluded = self._weights(w)
        scaled = self.current_strength * (1.0 if c is None else c)
        on = (grad + scaled * (a * w.sign() + b * w)).abs()
        off = ((-grad if self.nonnegative else grad.abs()) - scaled * a).clamp_min(0.0)
        result = torch.where(w == 0, off, on)
        if excluded is not None:
            result = torch.where(excluded & (w == 0), 0.0, result)
        outside = self._outside(w)
        return result if outside is None else torch.where(outside, torch.inf, result)

    def strength_max(self, grad: Tensor) -> float:
        """Return ``max_j |g_j| / (a·c_j)`` over the penalised entries (``−g_j`` if ``nonnegative``).

        Args:
            grad: the gradient of the data loss at ``w = 0``.

        Returns:
            The smallest strength that makes zero stationary: 0 if nothing is penalised, infinite if
            there is no L1 part.
        """
        a, _ = self._shares
        largest = self._largest_pull(grad)
        if largest == 0.0:
            return 0.0
        return largest / a if a > 0 else math.inf

    def kink(self, w: Tensor) -> Kink:
        """Return ``λca`` and ``λcb``, infinite slopes for the excluded entries."""
        a, b = self._shares
        c, excluded = self._weights(w)
        strength = self.current_strength
        if c is None or excluded is None:
            return Kink(strength * a, strength * b, nonnegative=self.nonnegative)
        slope = torch.where(excluded, torch.inf, strength * a * c)
        return Kink(slope, strength * b * c, nonnegative=self.nonnegative)


@final
@dataclass(frozen=True, eq=False)
class L1(_AbsoluteAndSquare):
    """The lasso ``strength · Σ_j c_j |w_j|``: exact zeros, element by element.

    Prox: ``sign(w)·max(|w| − step·strength·c, 0)``.

    Args:
        strength: λ ≥ 0 in units of the mean data loss per unit of ``w``, or a function of the step.
        weights: ``c ≥ 0``, broadcast to ``w`` (adaptive lasso); 0 keeps an entry, infinity excludes it.
        nonnegative: also hold every entry at zero or above.

    Raises:
        InputError: a negative or non-finite strength, or negative weights.

    Example:
        >>> penalty = L1(0.5)
        >>> penalty.prox(torch.tensor([2.0, -0.1]), 1.0)
        tensor([1.5000, 0.0000])
        >>> penalty.value(torch.tensor([2.0, -0.1]))
        tensor(1.0500)

    References:
        Tibshirani, "Regression shrinkage and selection via the lasso", J. R. Stat. Soc. B 58 (1996).
        Zou, "The adaptive lasso and its oracle properties", J. Am. Stat. Assoc. 101 (2006).
    """

    @property
    def _shares(self) -> tuple[float, float]:
        return 1.0, 0.0

    def for_complex(self, shape: torch.Size) -> Penalty:
        """Return the group lasso whose groups are the two parts of each weight."""
        if self.nonnegative:
            msg = "nonnegative=True has no meaning for complex weights"
            raise InputError(msg)
        c = None if self.weights is None else self.weights.expand(shape).reshape(-1)
        return GroupLasso(self.strength, groups="pairs", weights=c)


@final
@dataclass(frozen=True, eq=False)
class ElasticNet(_AbsoluteAndSquare):
    """The elastic net ``strength · Σ_j c_j (ρ|w_j| + (1 − ρ)/2 · w_j²)`` with ``ρ = l1_ratio``.

    Prox: ``soft(w, step·strength·c·ρ) / (1 + step·strength·c·(1 − ρ))``.  The same convention as
    scikit-learn's ``ElasticNet`` (``strength`` is its ``alpha`` for the loss ½·MSE).

    Args:
        strength: λ ≥ 0, or a function of the step.
        l1_ratio: ρ, from 0 (ridge, no exact zeros) to 1 (lasso).
        weights: ``c ≥ 0``, broadcast to ``w``; applies to both parts, like glmnet's penalty factor.
        nonnegative: also hold every entry at zero or above.

    Raises:
        InputError: a negative or non-finite strength, a ratio outside [0, 1], or negative weights.

    Example:
        >>> ElasticNet(1.0, l1_ratio=0.5).prox(torch.tensor([2.0, -0.1]), 1.0)
        tensor([1., 0.])

    References:
        Zou and Hastie, "Regularization and variable selection via the elastic net",
        J. R. Stat. Soc. B 67 (2005).
    """

    l1_ratio: float = 0.5

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        check_ratio(self.l1_ratio)

    @property
    def _shares(self) -> tuple[float, float]:
        return self.l1_ratio, 1.0 - self.l1_ratio

    def describe(self) -> str:
        """Return the penalty without its strength."""
        return f"ElasticNet(l1_ratio={self.l1_ratio:g})"
