"""The sorted L1 norm (SLOPE): larger weights are penalised more, and weights of equal size tie."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from sklearn.isotonic import isotonic_regression
from torch import Tensor

from torchlasso.errors import InputError
from torchlasso.penalties.base import Penalty
from torchlasso.prox import at_least_float32
from torchlasso.proximal.ordered import Vector, sorted_l1_prox


@final
@dataclass(frozen=True, eq=False)
class SLOPE(Penalty):
    """The sorted L1 norm ``strength · Σ_i s_i |w|_(i)`` with ``|w|_(1) ≥ |w|_(2) ≥ …``.

    The largest weight pays the highest price.  Entries become exactly zero, and others exactly equal in size.
    The prox is exact for every step, elementwise ones too; it runs on the CPU in float64.

    Args:
        strength: λ ≥ 0 in units of the mean data loss per unit of ``w``, or a function of the step.
        sequence: ``s``, one entry a weight, positive first, not negative, never rising; or ``"bh"`` for the
            quantiles ``Φ⁻¹(1 − i·q/(2p))`` of Benjamini and Hochberg, ``p`` being the number of weights.
        q: of ``"bh"``, between 0 and 1: the false discovery rate it aims at for orthogonal inputs, with the
            strength at the noise level of a weight.

    Raises:
        InputError: a negative or non-finite strength, another sequence, or ``q`` outside (0, 1).

    Example:
        >>> penalty = SLOPE(1.0, torch.tensor([2.0, 1.0, 1.0]))
        >>> penalty.prox(torch.tensor([3.0, -2.9, 0.5]), 1.0)
        tensor([ 1.4500, -1.4500,  0.0000])
        >>> penalty.value(torch.tensor([1.0, -3.0, 0.0]))
        tensor(7.)

    References:
        Bogdan, van den Berg, Sabatti, Su and Candès, "SLOPE: adaptive variable selection via convex
        optimization", Ann. Appl. Stat. 9 (2015).
    """

    sequence: Tensor | str = "bh"
    q: float = 0.1

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        if not 0.0 < self.q < 1.0:
            msg = f"q must lie between 0 and 1, both excluded, got {self.q}"
            raise InputError(msg)
        if isinstance(self.sequence, Tensor):
            _check_sequence(self.sequence)
        elif self.sequence != "bh":
            msg = f"sequence must be 'bh' or a tensor of one entry a weight, got {self.sequence!r}"
            raise InputError(msg)

    def validate(self, shape: torch.Size) -> None:
        """Raise ``InputError`` if the sequence does not have one entry a weight."""
        if isinstance(self.sequence, Tensor) and self.sequence.numel() != shape.numel():
            got = self.sequence.numel()
            msg = f"sequence must hold one entry a weight ({shape.numel()} in {tuple(shape)}), got {got}"
            raise InputError(msg)

    def value(self, w: Tensor) -> Tensor:
        """Return ``strength · Σ_i s_i |w|_(i)``, with gradient 0 at a zero entry."""
        wide = at_least_float32(w)
        ranked: Tensor = wide.abs().reshape(-1).sort(descending=True).values
        return self.current_strength * (self._levels(wide).to(wide.dtype) * ranked).sum()

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Return the shrunk weights, with exact zeros and exact ties.

        Args:
            w: the point to map.
            step: a number, or a tensor that broadcasts to ``w``; an entry with step 0 is held where it is.

        Returns:
            A new tensor of the shape and dtype of ``w``, all NaN where anything is NaN or infinite.
        """
        return sorted_l1_prox(w, step, self.current_strength * self._levels(w))

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return ``|g + z|`` for the ``z`` in ``strength · ∂R(w)`` that makes its norm smallest.

        Weights of one size share a stretch of the sequence.  Their subgradients are the averages of its
        rearrangements, and what projecting onto those leaves is an isotonic regression; zeros may have less.

        Args:
            w: the current weights.
            grad: the gradient of the data loss at ``w``.

        Returns:
            A tensor of the shape of ``w``; its norm is the distance of ``−g`` to the subdifferential.
        """
        wide = at_least_float32(w)
        if w.numel() == 0:
            return wide.clone()
        if not bool((w.isfinite() & grad.isfinite()).all()):
            return torch.full_like(wide, torch.nan)
        point = w.detach().double().reshape(-1).cpu().numpy()
        slope = grad.detach().double().reshape(-1).cpu().numpy()
        levels = (self.current_strength * self._levels(w)).cpu().numpy()
        pull = np.where(point == 0, np.abs(slope), -slope * np.sign(point))
        rest = torch.from_numpy(np.abs(_unbalanced(np.abs(point), pull, levels)))
        return rest.reshape(w.shape).to(w.device, wide.dtype)

    def strength_max(self, grad: Tensor) -> float:
        """Return ``max_k Σ_{i≤k} |g|_(i) / Σ_{i≤k} s_i``.

        Args:
            grad: the gradient of the data loss at ``w = 0``.

        Returns:
            The smallest strength at which zero is stationary.
        """
        if grad.numel() == 0:
            return 0.0
        ranked = grad.double().abs().reshape(-1).sort(descending=True).values  # NaN comes first
        return float((ranked.cumsum(0) / self._levels(grad).cumsum(0)).max())

    def support(self, w: Tensor) -> Tensor:
        """Return where ``w`` is not zero."""
        return w != 0

    def slack(self, w: Tensor, grad: Tensor) -> float | None:
        """Return ``1 − max_j Σ_{i≤j} |g|_(i) / (λ·Σ_{i≤j} s_{k+i})`` over the zeros beside ``k`` others.

        Args:
            w: the current weights.
            grad: the gradient of the data loss at ``w``.

        Returns:
            None if nothing is zero, or without a strength.
        """
        zero, strength = w == 0, self.current_strength
        if strength == 0 or not bool(zero.any()):
            return None
        ranked = grad.double()[zero].abs().sort(descending=True).values
        room = strength * self._levels(w)[int((~zero).sum()) :].cumsum(0)
        return 1 - float((ranked.cumsum(0) / room).nan_to_num(0.0, torch.inf).max())

    def describe(self) -> str:
        """Return the penalty without its strength."""
        return "SLOPE" if isinstance(self.sequence, Tensor) else f"SLOPE(bh, q={self.q:g})"

    def _levels(self, like: Tensor) -> Tensor:
        """Return ``s`` as a float64 vector."""
        if isinstance(self.sequence, Tensor):
            return self.sequence.reshape(-1).to(like.device, torch.float64)
        ranks = torch.arange(1, like.numel() + 1, dtype=torch.float64, device=like.device)
        tails: Tensor = torch.special.ndtri(ranks * (self.q / (2 * max(like.numel(), 1))))
        return -tails


def _check_sequence(sequence: Tensor) -> None:
    flat = sequence.reshape(-1)
    falling = bool((flat.diff() <= 0).all()) and bool(flat.isfinite().all()) and bool((flat >= 0).all())
    if not falling or (flat.numel() and float(flat[0]) == 0):
        msg = (
            "sequence must be finite, begin above zero, never rise and never be negative; "
            "sort it with sequence.sort(descending=True).values"
        )
        raise InputError(msg)


def _unbalanced(size: Vector, pull: Vector, levels: Vector) -> Vector:
    """Return what is left of ``pull`` by the nearest point of the subdifferential at ``size``.

    Args:
        size: of the weights.
        pull: of each, away from zero.
        levels: of the ranks.
    """
    ranked = np.lexsort((-pull, -size))
    excess = pull[ranked] - levels
    starts = np.flatnonzero(np.append(True, np.diff(size[ranked]) != 0))
    for first, last in zip(starts, np.append(starts[1:], size.size), strict=True):
        if last - first > 1:
            excess[first:last] = isotonic_regression(excess[first:last], increasing=False)
    zero = size[ranked] == 0
    excess[zero] = np.maximum(excess[zero], 0.0)
    found = np.empty_like(excess)
    found[ranked] = excess
    return found
