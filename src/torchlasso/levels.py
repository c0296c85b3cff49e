"""The strengths of a path: one level for all penalties, each of which keeps its share of it."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

from torch import nn

from torchlasso.errors import InputError
from torchlasso.gradients import Batches, LossFn, largest_strength
from torchlasso.path import strength_grid
from torchlasso.penalties.base import Strength, check_strength, fraction_of_max
from torchlasso.regularizer import Regularizer
from torchlasso.terms import Term

SMALLEST = 1e-4
"""A path of so many strengths begins at this fraction of the largest, as glmnet's does for many rows."""

Strengths = int | Sequence[float | str]
"""A number of strengths, or the strengths: numbers, or fractions such as ``"0.1max"`` of the largest."""


@final
class Level:
    """λ of a path as it is now, which the penalties read at every step.

    Attributes:
        value: λ.
    """

    def __init__(self) -> None:
        self.value = 0.0

    def share(self, part: float) -> Strength:
        """Return the strength that is always this part of the level.

        Args:
            part: of the level, from 0 to 1.
        """
        return lambda step: self.value * part


@final
@dataclass(frozen=True, eq=False)
class Ladder:
    """The penalties of a path on one level.

    Attributes:
        level: λ.
        parts: of it that each block carries; None for a constraint, which has no strength.
        regularizer: of all blocks, reading the level.
    """

    level: Level
    parts: tuple[float | None, ...]
    regularizer: Regularizer

    @property
    def shrunk(self) -> tuple[Term, ...]:
        """The blocks that grow sparser along the path."""
        return tuple(term for term, part in zip(self.regularizer.terms, self.parts, strict=True) if part)

    @property
    def part_of(self) -> dict[nn.Parameter, float]:
        """The part of the level that each parameter carries, where that is not nothing."""
        pairs = zip(self.regularizer.terms, self.parts, strict=True)
        return {parameter: part for term, part in pairs if part for parameter in term.parameters}

    def at(self, strength: float) -> Regularizer:
        """Return the penalties where the level is at a strength.

        Args:
            strength: λ.
        """
        pairs = zip(self.regularizer.terms, self.parts, strict=True)
        return Regularizer.from_terms(
            t if p is None else replace(t, penalty=t.penalty.with_strength(p * strength)) for t, p in pairs
        )

    def largest(self, model: nn.Module, loss_fn: LossFn, batches: Batches) -> float:
        """Return the smallest level at which every block alone is zero, the rest of the model as it is.

        Args:
            model: left as it was.
            loss_fn: the mean loss of a batch.
            batches: pairs of input and target.

        Raises:
            InputError: there is no such level.
        """
        pairs = [(t, p) for t, p in zip(self.regularizer.terms, self.parts, strict=True) if p]
        found = {t.name: largest_strength(model, t, loss_fn, batches) / p for t, p in pairs}
        limit = max(found.values())
        if not 0 < limit < math.inf:
            msg = (
                f"the strengths cannot be placed below strength_max, as that is {found}: the loss must "
                "depend on a penalised block where it is zero, and penalties must have an L1 or group part; "
                "give the strengths as numbers"
            )
            raise InputError(msg)
        return limit


def own_strengths(regularizer: Regularizer) -> list[float | None]:
    """Return the strength of every block as a number; None for a constraint, which has none.

    Args:
        regularizer: whose fractions of ``strength_max`` are resolved.
    """
    return [t.penalty.current_strength if t.penalty.has_strength else None for t in regularizer.terms]


def ladder(regularizer: Regularizer, own: Sequence[float | None]) -> Ladder:
    """Return the penalties of a regularizer on one level, each at its strength relative to the largest.

    Args:
        regularizer: what is penalised.
        own: the strength of every block, as ``own_strengths`` returned them.

    Raises:
        InputError: none is above zero.
    """
    top = max((strength for strength in own if strength is not None), default=0.0)
    if top == 0:
        msg = "a path needs a penalty whose strength is above zero; the others are taken relative to it"
        raise InputError(msg)
    parts = tuple(None if strength is None else strength / top for strength in own)
    level = Level()
    terms = [_on(term, level, part) for term, part in zip(regularizer.terms, parts, strict=True)]
    return Ladder(level, parts, Regularizer.from_terms(terms))


def check_relative(regularizer: Regularizer) -> None:
    """Raise ``InputError`` if a strength is a schedule or is driven by the zeros, which a path cannot scale.

    Args:
        regularizer: what is penalised.
    """
    for term in regularizer.terms:
        if callable(term.penalty.strength):
            msg = (
                f"the strength of {term.name} changes by step; on a path give each rule a number or a "
                "fraction such as '1max': the path scales them all together"
            )
            raise InputError(msg)


def check_strengths(strengths: object) -> Strengths:
    """Return a number of strengths, or a list of numbers and fractions.

    Args:
        strengths: what the user gave.

    Raises:
        InputError: it is neither.
    """
    if isinstance(strengths, int) and not isinstance(strengths, bool):
        if strengths < 1:
            msg = f"strengths must be one or more, or a list of them, got {strengths}"
            raise InputError(msg)
        return strengths
    if isinstance(strengths, str | bytes) or not isinstance(strengths, Iterable):
        msg = (
            "strengths must be a number of strengths such as 50, or a list such as [1e-3, 1e-2] or "
            f"['0.01max', '0.1max'], got {strengths!r}"
        )
        raise InputError(msg)
    listed = [s if fraction_of_max(s) is not None else check_strength(s, "a strength") for s in strengths]
    if not listed:
        msg = "strengths is empty; give a number of strengths such as 50, or at least one strength"
        raise InputError(msg)
    return listed


def needs_largest(strengths: Strengths) -> bool:
    """Return whether the strengths are placed by the largest one that has an effect.

    Args:
        strengths: as ``check_strengths`` returned them.
    """
    return isinstance(strengths, int) or any(isinstance(strength, str) for strength in strengths)


def planned(strengths: Strengths, largest: float) -> list[float]:
    """Return the strengths of a path in growing order, none twice.

    Args:
        strengths: as ``check_strengths`` returned them.
        largest: what the fractions are of.
    """
    if isinstance(strengths, int):
        return strength_grid(largest, SMALLEST, strengths)
    numbers = ((fraction_of_max(s), s) for s in strengths)
    return sorted({f * largest if f is not None else float(s) for f, s in numbers})


def beyond(strengths: Sequence[float], count: int) -> Iterator[float]:
    """Yield ``count`` strengths that go on where a geometric grid ends.

    Args:
        strengths: in growing order, at least two if any are to follow.
        count: how many.
    """
    ratio = strengths[-1] / strengths[-2] if count else 1.0
    return (strengths[-1] * ratio**n for n in range(1, count + 1))


def _on(term: Term, level: Level, part: float | None) -> Term:
    if part is None:
        return term
    return replace(term, penalty=term.penalty.with_strength(level.share(part) if part else 0.0))
