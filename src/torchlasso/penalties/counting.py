"""Penalties that count, or nearly count, what is not zero: their slope at zero is infinite.

A weight that such a penalty has set to zero is held there against every gradient, and returns only when one
proximal step carries it over the threshold.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from torchlasso.penalties.concave import InfiniteSlope
from torchlasso.proximal.nonconvex import half_threshold, hard_threshold


@final
@dataclass(frozen=True, eq=False)
class L0(InfiniteSlope):
    """The number of nonzero weights, ``Σ_j λ_j·1[w_j ≠ 0]``.

    Prox: the hard threshold, ``w`` if ``|w| > √(2·step·λ)``, else 0.  Nothing else is shrunk, and the value
    has gradient 0 everywhere: only the proximal step sees this penalty.

    Args:
        strength: λ ≥ 0, the mean data loss that a nonzero weight must be worth, or a function of the step.
        weights: ``c ≥ 0``, broadcast to ``w``; λ is ``strength·c``; 0 keeps an entry, infinity excludes it.
        nonnegative: also hold every entry at zero or above.

    Raises:
        InputError: a negative or non-finite strength, or negative weights.

    Example:
        >>> penalty = L0(0.5)
        >>> penalty.prox(torch.tensor([2.0, 1.0, -0.1]), 1.0)
        tensor([2., 0., 0.])
        >>> penalty.value(torch.tensor([2.0, 1.0, 0.0]))
        tensor(1.)

    References:
        Blumensath and Davies, "Iterative thresholding for sparse approximations", J. Fourier Anal. Appl. 14
        (2008).
    """

    def _cost(self, u: Tensor, level: Tensor) -> Tensor:
        return torch.where(u > 0, level, u)  # u where it is 0 or NaN

    def _slope(self, u: Tensor, level: Tensor) -> Tensor:
        at_zero = torch.where(level > 0, torch.inf, 0.0)
        return torch.where(u > 0, 0.0, torch.where(u == 0, at_zero, u))

    def _minimiser(self, u: Tensor, level: Tensor, step: Tensor) -> Tensor:
        return hard_threshold(u, level, step)


@final
@dataclass(frozen=True, eq=False)
class LHalf(InfiniteSlope):
    """The L½ penalty ``Σ_j λ_j·√|w_j|``, between the lasso and a count.

    Prox, with ``t = step·λ``: 0 up to ``|w| = 3/2·t^⅔``, else
    ``4/3·w·cos²(arccos(−√27/4 · t/|w|^{3/2}) / 3)``.

    Args:
        strength: λ ≥ 0 in units of the mean data loss per square root of ``w``, or a function of the step.
        weights: ``c ≥ 0``, broadcast to ``w``; λ is ``strength·c``; 0 keeps an entry, infinity excludes it.
        nonnegative: also hold every entry at zero or above.

    Raises:
        InputError: a negative or non-finite strength, or negative weights.

    Example:
        >>> penalty = LHalf(1.0)
        >>> penalty.prox(torch.tensor([9.0, 2.0, -1.0]), 1.0)
        tensor([8.8318, 1.6054, 0.0000])
        >>> penalty.value(torch.tensor([9.0, 0.0]))
        tensor(3.)

    References:
        Xu, Chang, Xu and Zhang, "L1/2 regularization: a thresholding representation theory and a fast
        solver", IEEE Trans. Neural Netw. Learn. Syst. 23 (2012).
    """

    def _cost(self, u: Tensor, level: Tensor) -> Tensor:
        zero = u == 0
        # sqrt has an infinite slope at 0: keep it away from the zeros instead of masking a NaN.
        return level * torch.where(zero, 0.0, torch.where(zero, 1.0, u).sqrt())

    def _slope(self, u: Tensor, level: Tensor) -> Tensor:
        priced = level > 0
        return torch.where(priced | u.isnan(), torch.where(priced, level, 1.0) / (2 * u.sqrt()), 0.0)

    def _minimiser(self, u: Tensor, level: Tensor, step: Tensor) -> Tensor:
        return half_threshold(u, level, step)
