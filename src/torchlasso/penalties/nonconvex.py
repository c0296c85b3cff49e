"""Penalties with the slope of the lasso at zero and less of it, or none, for large weights.

The lasso shrinks every weight that it keeps by the same amount.  These do not: what is clearly not zero is
left (nearly) where the data put it, at the price of an objective with more than one minimum.
"""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from torchlasso.penalties.concave import FiniteSlope, check_above
from torchlasso.prox import Kink
from torchlasso.proximal.nonconvex import firm_threshold, log_threshold, scad_threshold


@final
@dataclass(frozen=True, eq=False)
class MCP(FiniteSlope):
    """The minimax concave penalty: ``λ|w| − w²/(2γ)`` up to ``|w| = γλ``, and ``γλ²/2`` from there on.

    Prox for ``step < γ``: the firm threshold ``min(|w|, max(|w| − step·λ, 0)/(1 − step/γ))·sign(w)``;
    for larger steps: ``w`` if ``|w| > λ·√(step·γ)``, else 0.

    Args:
        strength: λ ≥ 0 in units of the mean data loss per unit of ``w``, or a function of the step.
        gamma: γ > 0; weights above γλ are not shrunk at all.  The lasso is γ → ∞.
        weights: ``c ≥ 0``, broadcast to ``w``; λ is ``strength·c``; 0 keeps an entry, infinity excludes it.
        nonnegative: also hold every entry at zero or above.

    Raises:
        InputError: a negative or non-finite strength, a γ that is not positive, or negative weights.

    Example:
        >>> penalty = MCP(0.5, gamma=3.0)
        >>> penalty.prox(torch.tensor([2.0, 1.0, -0.1]), 1.0)
        tensor([2.0000, 0.7500, 0.0000])
        >>> penalty.value(torch.tensor([2.0, 1.0]))
        tensor(0.7083)

    References:
        Zhang, "Nearly unbiased variable selection under minimax concave penalty", Ann. Stat. 38 (2010).
    """

    gamma: float = 3.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        check_above(self.gamma, 0.0, "gamma", "where nothing would be penalised")

    def describe(self) -> str:
        """Return the penalty without its strength."""
        return f"MCP(gamma={self.gamma:g})"

    def kink(self, w: Tensor) -> Kink:
        """Return ``λc`` and ``γ``, which say all there is to know of it."""
        return replace(super().kink(w), gamma=self.gamma, everywhere=True)

    def _cost(self, u: Tensor, level: Tensor) -> Tensor:
        return _mcp_cost(u, level, self.gamma)

    def _slope(self, u: Tensor, level: Tensor) -> Tensor:
        return (level - u / self.gamma).clamp_min(0.0)

    def _minimiser(self, u: Tensor, level: Tensor, step: Tensor) -> Tensor:
        return firm_threshold(u, level, step, self.gamma)


@final
@dataclass(frozen=True, eq=False)
class SCAD(FiniteSlope):
    """Smoothly clipped absolute deviation: slope λ up to ``|w| = λ``, falling linearly to 0 at ``aλ``.

    The value is ``λ|w|``, then ``(2aλ|w| − w² − λ²)/(2(a − 1))``, then ``λ²(a + 1)/2``.  The prox is the soft
    threshold up to ``|w| = (1 + step)·λ``, then linear, then ``w``; from ``step ≥ a − 1`` on it jumps.

    Args:
        strength: λ ≥ 0 in units of the mean data loss per unit of ``w``, or a function of the step.
        a: > 2; weights above aλ are not shrunk at all.
        weights: ``c ≥ 0``, broadcast to ``w``; λ is ``strength·c``; 0 keeps an entry, infinity excludes it.
        nonnegative: also hold every entry at zero or above.

    Raises:
        InputError: a negative or non-finite strength, an ``a`` of 2 or less, or negative weights.

    Example:
        >>> penalty = SCAD(0.5)
        >>> penalty.prox(torch.tensor([2.0, 1.5, 0.8, -0.1]), 1.0)
        tensor([2.0000, 1.2941, 0.3000, 0.0000])
        >>> penalty.value(torch.tensor([2.0, 0.5]))
        tensor(0.8375)

    References:
        Fan and Li, "Variable selection via nonconcave penalized likelihood and its oracle properties",
        J. Am. Stat. Assoc. 96 (2001).
    """

    a: float = 3.7

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        check_above(self.a, 2.0, "a", "where even the prox of step 1 would jump")

    def describe(self) -> str:
        """Return the penalty without its strength."""
        return f"SCAD(a={self.a:g})"

    def _cost(self, u: Tensor, level: Tensor) -> Tensor:
        # Beyond λ it grows like an MCP of the excess.
        beyond = level * level + _mcp_cost(u - level, level, self.a - 1)
        return torch.where(u > level, beyond, level * u)

    def _slope(self, u: Tensor, level: Tensor) -> Tensor:
        return torch.minimum(level, (self.a * level - u).clamp_min(0.0) / (self.a - 1))

    def _minimiser(self, u: Tensor, level: Tensor, step: Tensor) -> Tensor:
        return scad_threshold(u, level, step, self.a)


@final
@dataclass(frozen=True, eq=False)
class LogSum(FiniteSlope):
    """The log-sum penalty ``Σ_j λ_j·ε·log(1 + |w_j|/ε)``: the objective that reweighted L1 minimises.

    Its slope is λ at zero and ``λ·ε/(|w| + ε)`` elsewhere.  Repeated lasso fits with weights ``ε/(|w| + ε)``
    are a majorise-minimise algorithm for it; the prox takes them to their end in closed form at every step.

    Prox: the larger root of ``(x − |w|)(x + ε) + step·λε = 0``, or 0 where that has a lower objective.

    Args:
        strength: λ ≥ 0 in units of the mean data loss per unit of ``w``, or a function of the step.
        epsilon: ε > 0 in units of ``w``, the size at which the slope has halved.  The lasso is ε → ∞.
        weights: ``c ≥ 0``, broadcast to ``w``; λ is ``strength·c``; 0 keeps an entry, infinity excludes it.
        nonnegative: also hold every entry at zero or above.

    Raises:
        InputError: a negative or non-finite strength, an ε that is not positive, or negative weights.

    Example:
        >>> penalty = LogSum(0.5, epsilon=0.1)
        >>> penalty.prox(torch.tensor([2.0, 1.0, -0.1]), 1.0)
        tensor([1.9759, 0.9525, 0.0000])
        >>> penalty.value(torch.tensor([2.0, 1.0]))
        tensor(0.2721)

    References:
        Candès, Wakin and Boyd, "Enhancing sparsity by reweighted ℓ1 minimization", J. Fourier Anal. Appl. 14
        (2008).
    """

    epsilon: float

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        check_above(self.epsilon, 0.0, "epsilon", "where nothing would be penalised")

    def describe(self) -> str:
        """Return the penalty without its strength."""
        return f"LogSum(epsilon={self.epsilon:g})"

    def kink(self, w: Tensor) -> Kink:
        """Return ``λc`` and ``ε``, which say all there is to know of it."""
        return replace(super().kink(w), epsilon=self.epsilon, everywhere=True)

    def _cost(self, u: Tensor, level: Tensor) -> Tensor:
        return level * (self.epsilon * torch.log1p(u / self.epsilon))

    def _slope(self, u: Tensor, level: Tensor) -> Tensor:
        return level * (self.epsilon / (u + self.epsilon))

    def _minimiser(self, u: Tensor, level: Tensor, step: Tensor) -> Tensor:
        return log_threshold(u, level, step, self.epsilon)


def _mcp_cost(u: Tensor, level: Tensor, gamma: float) -> Tensor:
    """Return ``λu − u²/(2γ)`` up to γλ, and its value there from there on."""
    inner = torch.minimum(u, gamma * level)
    return inner * (level - inner / (2 * gamma))
