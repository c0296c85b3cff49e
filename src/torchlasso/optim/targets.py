"""The strengths of a regularizer that are found as training goes, and their state."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torchlasso.regularizer import Regularizer
from torchlasso.target import Block, TargetSparsity


class Targets:
    """Every ``TargetSparsity`` of a regularizer, with the blocks that it controls.

    Args:
        regularizer: what is penalised.
        restart: whether a run begins, so that nothing seen before counts.

    Raises:
        InputError: an object cannot count what it is to control.
    """

    def __init__(self, regularizer: Regularizer, *, restart: bool) -> None:
        of: dict[str, tuple[TargetSparsity, tuple[Block, ...]]] = {}
        strengths = [term.penalty.strength for term in regularizer.terms]
        for first, target in zip(regularizer.terms, strengths, strict=True):
            if isinstance(target, TargetSparsity) and all(target is not known for known, _ in of.values()):
                pairs = zip(regularizer.terms, strengths, strict=True)
                of[first.name] = target, target.blocks(t for t, strength in pairs if strength is target)
                target.driven = True
                if restart:
                    target.restart()
        self._of = of

    def advance(self, step: int, scale: float | Tensor) -> None:
        """Let every strength take note of a step.

        Args:
            step: how many were taken.
            scale: what the gradients are multiplied with.
        """
        for target, blocks in self._of.values():
            target.advance(step, blocks, scale)

    def saved(self) -> dict[str, dict[str, Any]]:
        """Return what they have seen, by the name of the first term of each."""
        return {name: target.saved() for name, (target, _) in self._of.items()}

    def restore(self, saved: Mapping[str, Mapping[str, Any]]) -> None:
        """Take back what ``saved`` returned, for those that are there.

        Args:
            saved: the same numbers.
        """
        for name, (target, _) in self._of.items():
            if name in saved:
                target.restore(saved[name])
