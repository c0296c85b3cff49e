"""What all penalties on single entries share: adaptive weights, and non-negativity.

An entry with weight zero is never penalised ("always keep"), one with infinite weight is held at zero
("exclude"), whatever the strength.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from torchlasso.errors import InputError
from torchlasso.penalties.base import Penalty, check_weights, split_weights
from torchlasso.prox import at_least_float32


@dataclass(frozen=True, eq=False)
class Entrywise(Penalty):
    """A sum over the entries, of which each has a weight ``c_j`` and may be held at zero or above."""

    separable: ClassVar[bool] = True

    weights: Tensor | None = field(default=None, kw_only=True)
    nonnegative: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        check_weights(self.weights)

    def validate(self, shape: torch.Size) -> None:
        """Raise ``InputError`` if the weights do not broadcast to ``shape``."""
        if self.weights is None:
            return
        try:
            self.weights.expand(shape)
        except RuntimeError:
            given = tuple(self.weights.shape)
            msg = f"weights of shape {given} do not broadcast to a tensor of {tuple(shape)}"
            raise InputError(msg) from None

    def support(self, w: Tensor) -> Tensor:
        """Return where ``w`` is not zero."""
        return w != 0

    def _weights(self, like: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Return ``c`` (0 for the excluded entries) and which entries are excluded, or None and None."""
        return (None, None) if self.weights is None else split_weights(self.weights, like.device, like.dtype)

    def _outside(self, w: Tensor) -> Tensor | None:
        """Return where ``w`` violates non-negativity or an exclusion, or None if nothing can."""
        outside = w < 0 if self.nonnegative else None
        if self.weights is not None:
            excluded = self.weights.isinf().to(w.device) & (w != 0)
            outside = excluded if outside is None else outside | excluded
        return outside

    def _largest_pull(self, grad: Tensor) -> float:
        """Return ``max_j |g_j| / c_j`` over the penalised entries (``−g_j`` if ``nonnegative``)."""
        grad = at_least_float32(grad)
        c, _ = self._weights(grad)
        pull = (-grad).clamp_min(0.0) if self.nonnegative else grad.abs()
        if c is not None:
            pull = torch.where(c > 0, pull / torch.where(c > 0, c, 1.0), 0.0)
        return float(pull.max()) if pull.numel() else 0.0
