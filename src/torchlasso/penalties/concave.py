"""What the separable non-convex penalties share: each is a concave function of the magnitude of every entry.

A subclass says three things of one magnitude ``u = |w|``: its cost, its slope, and the minimiser.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from torchlasso.errors import InputError
from torchlasso.penalties.entrywise import Entrywise
from torchlasso.prox import Kink, at_least_float32

_WIDEST = 1e30  # of shape parameters: what float32 can still divide by


@dataclass(frozen=True, eq=False)
class Concave(Entrywise):
    """``Σ_j p(|w_j|; λ_j)`` with ``λ_j = strength·c_j`` and ``p`` concave, increasing, and zero at zero."""

    convex: ClassVar[bool] = False

    @abstractmethod
    def _cost(self, u: Tensor, level: Tensor) -> Tensor:
        """Return ``p(u; λ)``, differentiable with the derivative of ``u`` itself, and NaN where ``u`` is.

        Args:
            u: magnitudes.
            level: λ, which broadcasts against them.
        """

    @abstractmethod
    def _slope(self, u: Tensor, level: Tensor) -> Tensor:
        """Return the derivative of ``p``, at zero from the right and perhaps infinite; NaN where ``u`` is."""

    @abstractmethod
    def _minimiser(self, u: Tensor, level: Tensor, step: Tensor) -> Tensor:
        """Return the global ``argmin_{x ≥ 0} ½(x − u)² + step·p(x; λ)``; on a tie the smaller one."""

    @final
    def value(self, w: Tensor) -> Tensor:
        """Return ``Σ_j p(|w_j|; λ_j)``, with gradient 0 at zero entries; infinite outside the constraints."""
        wide = at_least_float32(w)
        level, _ = self._levels(wide)  # an excluded entry costs nothing at zero, where it is held
        total = self._cost(wide.abs(), level).sum()
        outside = self._outside(w.detach())
        return total if outside is None else torch.where(outside.any(), torch.inf, total)

    @final
    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Return the global ``argmin_x ½·Σ_j (x_j − w_j)²/step_j + p(|x_j|; λ_j)``.

        It jumps where two minima are equally good, and there it returns the one nearer to zero.

        Args:
            w: the point to map.
            step: a number or a tensor that broadcasts to ``w``.

        Returns:
            A new tensor of the dtype of ``w``, with exact zeros.
        """
        wide = at_least_float32(w)
        level, excluded = self._levels(wide)
        most = torch.finfo(wide.dtype).max
        if isinstance(step, Tensor):
            size = at_least_float32(step).clamp_max(most)
        else:
            size = wide.new_full((), min(step, most))
        size = torch.where(level > 0, size, 0.0)  # where nothing is penalised nothing moves
        # p increases, so with x ≥ 0 a negative w ends at zero; else the minimiser has the sign of w.
        u = wide.clamp_min(0.0) if self.nonnegative else wide.abs()
        result = self._minimiser(u, level, size) * wide.sign()
        if excluded is not None:
            result = torch.where(excluded, 0.0, result)
        return result.to(w.dtype) + 0.0  # never -0.0

    @final
    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return ``|g + p'(|w|)·sign(w)|`` where ``w ≠ 0``, else ``max(|g| − p'(0), 0)``.

        With ``nonnegative`` the second case is ``max(−g − p'(0), 0)``.  Where ``p'(0)`` is infinite zero
        holds against every gradient.  Entries outside the constraints have an infinite residual.

        Args:
            w: the current weights.
            grad: the gradient of the data loss at ``w``.

        Returns:
            A tensor of the shape of ``w``.
        """
        w, grad = at_least_float32(w), at_least_float32(grad)
        level, excluded = self._levels(w)
        slope = self._slope(w.abs(), level)
        on = (grad + slope * w.sign()).abs()
        off = ((-grad if self.nonnegative else grad.abs()) - slope).clamp_min(0.0)
        result = torch.where(w == 0, off, on)
        if excluded is not None:
            result = torch.where(excluded & (w == 0), 0.0, result)
        outside = self._outside(w)
        return result if outside is None else torch.where(outside, torch.inf, result)

    def _levels(self, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return ``λ_j`` (0 for the excluded entries), and which entries are excluded or None."""
        most = torch.finfo(like.dtype).max
        strength = min(self.current_strength, most)
        c, excluded = self._weights(like)
        return (like.new_full((), strength) if c is None else (strength * c).clamp_max(most)), excluded


@dataclass(frozen=True, eq=False)
class FiniteSlope(Concave):
    """A concave penalty that is λ|w| near zero, so that it selects what the lasso would."""

    @final
    def strength_max(self, grad: Tensor) -> float:
        """Return ``max_j |g_j| / c_j`` over the penalised entries (``−g_j`` if ``nonnegative``).

        Args:
            grad: the gradient of the data loss at ``w = 0``.

        Returns:
            The smallest strength that makes zero stationary, as for the lasso; another point may be better.
        """
        return self._largest_pull(grad)

    def kink(self, w: Tensor) -> Kink:
        """Return ``λc``, infinite for the excluded entries; the penalty has this slope at zero only."""
        c, excluded = self._weights(w)
        slope: float | Tensor = self.current_strength
        if c is not None and excluded is not None:
            slope = torch.where(excluded, torch.inf, slope * c)
        return Kink(slope, nonnegative=self.nonnegative, everywhere=False)


@dataclass(frozen=True, eq=False)
class InfiniteSlope(Concave):
    """A concave penalty with an infinite slope at zero: a zero never leaves by a gradient."""

    @final
    def strength_max(self, grad: Tensor) -> float:
        """Return 0, because zero is stationary at every positive strength, whatever the gradient.

        There is thus no largest strength to take a fraction of, or to begin a path at; give a number.

        Args:
            grad: the gradient of the data loss at ``w = 0``.
        """
        return 0.0


def check_above(value: float, limit: float, name: str, why: str) -> None:
    """Raise ``InputError`` unless a shape parameter is finite and above its limit.

    Args:
        value: what the user gave.
        limit: the largest number that is too small.
        name: how to name it in the message.
        why: what it would mean at the limit.

    Raises:
        InputError: it is too small, infinite or NaN.
    """
    if not max(limit, 1 / _WIDEST) < value <= _WIDEST:
        msg = f"{name} must be above {limit:g} ({why}) and at most {_WIDEST:g}, got {value}"
        raise InputError(msg)
