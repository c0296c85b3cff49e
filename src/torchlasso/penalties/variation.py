"""Total variation along a dimension: neighbours become equal, so the weights are piecewise constant."""

import math
import operator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from torchlasso.errors import InputError
from torchlasso.penalties.base import Penalty
from torchlasso.prox import at_least_float32
from torchlasso.proximal.variation import Chains, total_variation_prox


@final
@dataclass(frozen=True, eq=False)
class TotalVariation(Penalty):
    """The fused penalty ``strength · Σ_i |w_{i+1} − w_i|`` along one dimension.

    The prox is exact for every step, elementwise ones too, and its pieces are exactly constant.  Nothing
    becomes zero by it, so count the pieces instead of the zeros.

    Args:
        strength: λ ≥ 0 in units of the mean data loss per unit of ``w``, or a function of the step.
        dim: along which neighbours are compared; every line along it stands alone.

    Raises:
        InputError: a negative or non-finite strength, or a dimension that is no whole number.

    Example:
        >>> penalty = TotalVariation(1.0)
        >>> penalty.prox(torch.tensor([0.0, 1.0, 5.0, 6.0]), 1.0)
        tensor([1., 1., 5., 5.])
        >>> penalty.value(torch.tensor([0.0, 1.0, 5.0, 6.0]))
        tensor(6.)

    References:
        Tibshirani, Saunders, Rosset, Zhu and Knight, "Sparsity and smoothness via the fused lasso",
        J. R. Stat. Soc. B 67 (2005).
    """

    dim: int = -1

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        try:
            object.__setattr__(self, "dim", operator.index(self.dim))
        except TypeError:
            msg = f"dim must be a whole number, got {self.dim!r}"
            raise InputError(msg) from None

    def validate(self, shape: torch.Size) -> None:
        """Raise ``InputError`` if ``shape`` has no dimension ``dim``."""
        if not -len(shape) <= self.dim < len(shape):
            msg = f"a tensor of shape {tuple(shape)} has no dimension {self.dim} to compare neighbours along"
            raise InputError(msg)

    def value(self, w: Tensor) -> Tensor:
        """Return ``strength · Σ_i |w_{i+1} − w_i|``, with gradient 0 within a constant piece."""
        jumps: Tensor = at_least_float32(w).diff(dim=self.dim)
        return self.current_strength * jumps.abs().sum()

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Return the piecewise constant minimiser, computed in float64.

        Args:
            w: the point to map.
            step: a number, or a tensor that broadcasts to ``w``; an entry with step 0 is held where it is.

        Returns:
            A new tensor of the shape and dtype of ``w``.
        """
        wide = step.double() if isinstance(step, Tensor) else step
        return total_variation_prox(w, wide * self.current_strength, self.dim)

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return ``|g + z|`` for the ``z`` in ``strength · ∂R(w)`` that makes its norm smallest.

        Between two jumps the subgradients are those of a shorter chain, whose ends feel the jumps; the
        remainder of a projection onto them is that chain's proximal map at ``−g``.

        Args:
            w: the current weights.
            grad: the gradient of the data loss at ``w``.

        Returns:
            A tensor of the shape of ``w``; its norm is the distance of ``−g`` to the subdifferential.
        """
        if w.numel() == 0:
            return at_least_float32(w).clone()
        lines, slopes = w.movedim(self.dim, -1), grad.movedim(self.dim, -1)
        jump = lines.diff(dim=-1).sign().double()
        start = torch.ones_like(lines, dtype=torch.bool)
        start[..., 1:] = jump != 0
        edge = torch.zeros_like(lines, dtype=torch.float64)
        edge[..., 1:] += jump
        edge[..., :-1] -= jump
        edge = edge * self.current_strength
        free = -slopes.double().reshape(-1)
        chains = Chains(
            free, torch.ones_like(free), start.reshape(-1), edge.reshape(-1), self.current_strength
        )
        rest = chains.solve().abs().reshape(lines.shape).movedim(-1, self.dim)
        return torch.where(w.isfinite() & grad.isfinite(), rest, torch.nan).to(at_least_float32(w).dtype)

    def strength_max(self, grad: Tensor) -> float:
        """Return the largest ``|Σ_{j≤i} g_j|`` along ``dim``, or infinity if ``w = 0`` is never stationary.

        The penalty does not see a constant, so zero is stationary only if the gradient sums to zero on every
        line; sums within rounding of zero count as zero.

        Args:
            grad: the gradient of the data loss at ``w = 0``.

        Returns:
            The smallest strength at which zero is stationary.
        """
        if grad.numel() == 0:
            return 0.0
        wide = at_least_float32(grad)
        sums = wide.double().cumsum(self.dim)
        noise = wide.double().abs().sum(self.dim) * torch.finfo(grad.dtype).eps
        if bool((sums.select(self.dim, -1).abs() > noise).any()):
            return math.inf
        return float(sums.abs().max())

    def slack(self, w: Tensor, grad: Tensor) -> None:
        """Return None: it is differences that vanish, and no entry is zero on its own account.

        Args:
            w: the current weights.
            grad: the gradient of the data loss at ``w``.
        """

    def support(self, w: Tensor) -> Tensor:
        """Return where ``w`` is not zero; no entry is zero by this penalty."""
        return w != 0

    def describe(self) -> str:
        """Return the penalty without its strength."""
        return f"TotalVariation(dim={self.dim})"
