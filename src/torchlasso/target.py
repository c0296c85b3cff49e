"""A strength that is not given but found: the one at which as many weights are zero as was asked for."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from torchlasso.errors import InputError
from torchlasso.layouts import GroupLayout
from torchlasso.schedules import whole
from torchlasso.steering import Steering
from torchlasso.terms import Term, real

TOLERANCE = 0.005
"""How near the zeros must be to the request, as a part of all, to count as reached."""

LOOK_EVERY = 10
"""Most steps between two counts of the zeros: a count reads all weights once."""

LOOKS = 100  # at least so many until ``by_step``, if it has so many steps
MEASURE_EVERY = 5  # counts between two measurements of the gradients, which cost more
_AMPLE = 8.0  # what a weight costs where any strength would zero it, in units of what its gradient promises
_UNITS = ("weights", "groups")


@final
class TargetSparsity:
    """A strength that is driven until a requested part of the weights is exactly zero.

    It takes the place of the number in a penalty.  All of the lasso stays: zeros come from the proximal step
    alone, any of them may return, and the model ends at a stationary point of the strength that was found.
    After ``by_step`` the strength goes on holding the request; ``handle.freeze_zeros()`` then refits without
    a penalty.

    One object in several penalties is one strength and one request for all of them together; give each its
    own object for a request each.  Use an object with one optimizer at a time.

    The zeros follow ``1 − (1 − u)³`` and reach the request at 0.6 of ``by_step``, so that the rest settles.
    Weights stand still where the learning rate is 0: ``by_step`` may be the last step of a cosine decay, or
    lie before the end of a steeper one, but not after it.  The zeros are counted every 10 steps (at least a
    hundred times until ``by_step``), which reads the weights once and on an accelerator waits for them.

    With minibatches and ``memory=0`` each noisy batch revives and kills weights, several points of them
    where the request is low, and no strength can steady them; the default memory does.  A small number of
    weights or groups may end one off; let the learning rate decay where it has to be exact.

    Args:
        sparsity: the part that is to be zero, from 0 to below 1.
        keep: instead of it, how many are not to be zero.
        of: what is counted: ``"weights"``, or the ``"groups"`` of group penalties; a group is zero where all
            of its entries are.
        by_step: the optimizer step, counted from ``attach``, by which the request is met.

    Attributes:
        strength: λ now.
        driven: whether an optimizer moves the strength; until one is attached nobody does.
        kept: how many were not zero at the last count, None before the first.
        total: of how many.

    Raises:
        InputError: not exactly one of ``sparsity`` and ``keep``, or one of them out of its range.

    Example:
        >>> import torchlasso as tl
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> x, model = torch.randn(50, 10), nn.Linear(10, 1)
        >>> target = TargetSparsity(0.8, by_step=300)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        >>> handle = tl.attach(optimizer, tl.Regularizer(model, tl.L1(target)))
        >>> for _ in range(300):
        ...     optimizer.zero_grad()
        ...     nn.functional.mse_loss(model(x), x @ torch.arange(10.0)[:, None]).backward()
        ...     optimizer.step()
        >>> int((model.weight == 0).sum()), target.reached
        (8, True)

    References:
        The problem: Gallego-Posada et al., "Controlled sparsity via constrained optimization",
        arXiv 2208.04425; their dual ascent is an integral controller of λ, this is a proportional-integral
        one of log λ.  The way: Zhu and Gupta, "To prune, or not to prune", arXiv 1710.01878.
    """

    def __init__(
        self, sparsity: float | None = None, *, keep: int | None = None, of: str = "weights", by_step: int
    ) -> None:
        if (sparsity is None) == (keep is None):
            msg = "give either the part that is to be zero, such as 0.9, or keep=, how many are not to be"
            raise InputError(msg)
        if of not in _UNITS:
            msg = f"of must be one of {', '.join(map(repr, _UNITS))}, got {of!r}"
            raise InputError(msg)
        self.sparsity = None if sparsity is None else _part(sparsity)
        self.keep = None if keep is None else whole(keep, "keep", 1, "weights or groups")
        self.of, self.by_step = of, whole(by_step, "by_step", 1)
        self.driven = False
        self.restart()

    def restart(self) -> None:
        """Forget what was seen, as at the begin of a run."""
        self.kept: int | None = None
        self.total = 0
        self._steering: Steering | None = None
        self._size: float | None = None
        self._looks = 0
        self._judged = False

    def __call__(self, step: int) -> float:
        """Return the strength now, whatever the step."""
        return self.strength

    @property
    def strength(self) -> float:
        """The strength now; 0 until a gradient was seen, and where no zeros are asked for."""
        return 0.0 if self._steering is None else self._steering.strength

    @property
    def sparsity_now(self) -> float | None:
        """The part that was zero at the last count, or None before the first."""
        return None if self.kept is None else 1 - self.kept / max(1, self.total)

    @property
    def reached(self) -> bool:
        """Whether the last count was within half a point of the request, or one weight or group."""
        return self.kept is not None and self._missed(self.kept) <= max(TOLERANCE * self.total, 1)

    def blocks(self, terms: Iterable[Term]) -> tuple["Block", ...]:
        """Return the blocks whose zeros are counted.

        Args:
            terms: those whose strength this is.

        Raises:
            InputError: groups are to be counted and there are none, or fewer than are to be kept.
        """
        blocks = tuple(Block(term, _layout(term) if self.of == "groups" else None) for term in terms)
        total = sum(block.total for block in blocks)
        if self.keep is not None and self.keep > total:
            msg = f"keep={self.keep} is more than the {total} {self.of} that {self!r} controls"
            raise InputError(msg)
        return blocks

    def advance(self, step: int, blocks: Sequence["Block"], scale: float | Tensor = 1.0) -> None:
        """Take note of an optimizer step, and now and then count the zeros and move the strength.

        Args:
            step: how many steps were taken.
            blocks: what ``blocks`` returned.
            scale: what the gradients are multiplied with.
        """
        if self.kept is not None and step != self.by_step and not self._due(step):
            return
        counts = [
            block.kept() for block in blocks
        ]  # all of them are under way before the first is waited for
        before, self.kept = self.kept, sum(map(int, counts))
        self.total = sum(block.total for block in blocks)
        still = self._stands_still(blocks, self.kept == before)
        capped = self._steering is not None and self._steering.capped
        if self._wanted() > 0 and (capped or self._looks % MEASURE_EVERY == 0):
            self._measure(step, blocks, scale)
        if self._steering is not None:
            self._looks += 1
            self._steering.look(step, self.total - self.kept, still=still)
        if step >= self.by_step and not self._judged:
            self._judge()

    def _due(self, step: int) -> bool:
        return (
            step % LOOK_EVERY == 0 if self._steering is None else self._steering.due(step, LOOK_EVERY, LOOKS)
        )

    def _measure(self, step: int, blocks: Sequence["Block"], scale: float | Tensor) -> None:
        """Look at the strength that would make everything zero, by the gradients as they are now."""
        reaches = [block.reach() / float(scale) for block in blocks]
        reaches = [reach for reach in reaches if 0 < reach < math.inf]
        if reaches and self._steering is None and self.kept is not None:
            zeros = self.total - self.kept
            self._steering = Steering(step, self.by_step, self._wanted(), self.total, zeros)
        if reaches and self._steering is not None:
            self._steering.bound(max(reaches))

    def _stands_still(self, blocks: Sequence["Block"], unchanged: bool) -> bool:
        """Return whether no weight has moved since the last count, as where the learning rate is 0."""
        before, self._size = self._size, sum(block.size() for block in blocks) if unchanged else None
        return unchanged and before == self._size

    def _wanted(self) -> int:
        """Return how many are to be zero."""
        return round((self.sparsity or 0.0) * self.total) if self.keep is None else self.total - self.keep

    def _missed(self, kept: int) -> int:
        return abs(self.total - kept - self._wanted())

    def _judge(self) -> None:
        """Warn, once, if the time is over and the request not met."""
        self._judged = True
        if not self.reached:
            message = (
                f"{self!r} is at its end with {self.sparsity_now:.2%} zeros, {self.kept} of {self.total} "
                f"{self.of} kept, at strength {self.strength:.3g}. Weights that no penalty shrinks "
                "(weights=0) or no gradient moves stay as they are; otherwise allow more steps or a larger "
                "learning rate until then, or ask for less"
            )
            warnings.warn(message, stacklevel=2)

    # ---- saved and restored ------------------------------------------------------------------------------

    def saved(self) -> dict[str, Any]:
        """Return what it has seen, as numbers."""
        steering = self._steering
        return {
            "kept": self.kept,
            "total": self.total,
            "size": self._size,
            "looks": self._looks,
            "judged": self._judged,
            "steering": None if steering is None else steering.saved(),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take back what ``saved`` returned.

        Args:
            saved: the same numbers.
        """
        self.kept, self.total, self._size = saved["kept"], saved["total"], saved["size"]
        self._looks, self._judged = saved["looks"], saved["judged"]
        self._steering = None if saved["steering"] is None else Steering(**saved["steering"])

    def __repr__(self) -> str:
        request = f"{self.sparsity:g}" if self.keep is None else f"keep={self.keep}"
        of = "" if self.of == "weights" else f", of={self.of!r}"
        return f"TargetSparsity({request}{of}, by_step={self.by_step})"

    def __str__(self) -> str:
        if self.kept is None:
            return f"{self!r}: not begun"
        return (
            f"{self!r}: {self.sparsity_now:.2%} zeros, {self.kept} of {self.total} {self.of} kept, "
            f"at strength {self.strength:.3g}"
        )


@final
@dataclass(frozen=True, eq=False)
class Block:
    """A term whose zeros are counted.

    Attributes:
        term: any term; its strength plays no part.
        layout: the groups that are counted, or None for single weights.
    """

    term: Term
    layout: GroupLayout | None

    @property
    def total(self) -> int:
        """The number of weights or groups."""
        return sum(p.numel() for p in self.term.parameters) if self.layout is None else self.layout.count

    def kept(self) -> Tensor:
        """Return how many of them are not zero, a 0-d tensor."""
        parameters = [p.detach() for p in self.term.parameters]
        if self.layout is None:
            first = parameters[0].device
            return torch.stack([p.count_nonzero().to(first) for p in parameters]).sum()
        return self.layout.sum((self.term.gather(parameters) != 0).to(torch.float32)).count_nonzero()

    def size(self) -> float:
        """Return the sum of the absolute values, which tells whether anything has moved."""
        return sum(float(torch.linalg.vector_norm(real(p.detach()), 1)) for p in self.term.parameters)

    def reach(self) -> float:
        """Return the strength at which the gradients would leave all of it at zero; 0 without gradients.

        Where any strength does, as that of ℓ0, it is one that outweighs what the gradients promise for the
        weights that there are.
        """
        grads = [p.grad for p in self.term.parameters]
        if any(grad is None for grad in grads):
            return 0.0
        dense = [grad.to_dense() if grad.is_sparse else grad for grad in grads if grad is not None]
        unit, grad = self.term.penalty.with_strength(1.0), self.term.gather(dense)
        largest = unit.strength_max(grad)
        if largest != 0:
            return largest
        w = self.term.gather([p.detach() for p in self.term.parameters])
        mean = float(unit.value(w)) / max(1, int(w.count_nonzero()))
        return _AMPLE * float((grad * w).abs().max()) / mean if mean > 0 else 0.0


def _layout(term: Term) -> GroupLayout:
    layout = term.penalty.layout(term.shape)
    if layout is None:
        msg = (
            f"{term.penalty.describe()} on {term.name} has no groups to count; use a penalty such as "
            "GroupLasso, or TargetSparsity(of='weights')"
        )
        raise InputError(msg)
    return layout


def _part(sparsity: object) -> float:
    try:
        if isinstance(sparsity, (str, bytes)):  # float() would read them
            raise TypeError
        number = float(sparsity)  # type: ignore[arg-type]  # what is no number raises
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not 0 <= number < 1:
        msg = (
            f"sparsity must be the part that is to be zero, from 0 to below 1, got {sparsity!r}; 90 % is "
            "0.9, and keep= takes a number of weights"
        )
        raise InputError(msg)
    return number
