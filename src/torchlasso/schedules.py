"""Strengths that follow a fixed plan: functions of the optimizer's step."""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

from torchlasso.errors import InputError

Shape = Callable[[float], float]


@dataclass(frozen=True)
class Schedule:
    """A strength that goes from one value to another and stays there.

    ``end + (start − end)·shape(u)``, ``u`` the part of the steps that is done, from 0 to 1.  Two schedules
    with the same numbers are equal, and they can be pickled.

    Attributes:
        kind: the name of the function that made it.
        start: the strength up to the step ``begin``.
        end: the strength from the step ``begin + steps`` on.
        steps: how many steps the way takes.
        begin: the step at which it begins.
    """

    kind: str
    start: float
    end: float
    steps: int
    begin: int = 0

    def __call__(self, step: int) -> float:
        """Return the strength at an optimizer step (0, 1, 2, …)."""
        done = min(max((step - self.begin) / self.steps, 0.0), 1.0)
        rest = _RESTS[self.kind](done)
        return self.start * rest + self.end * (1.0 - rest)

    def __repr__(self) -> str:
        begin = f", begin={self.begin}" if self.begin else ""
        return f"{self.kind}({self.start:g}, {self.end:g}, steps={self.steps}{begin})"


def linear(start: float, end: float, steps: int, *, begin: int = 0) -> Schedule:
    """Return a strength that goes from one value to another in a straight line.

    Args:
        start: the strength up to the step ``begin``, zero or more.
        end: the strength ``steps`` later and from then on, zero or more.
        steps: how many optimizer steps the way takes, one or more.
        begin: the step at which it begins.

    Raises:
        InputError: a strength is negative or not finite, or a step is no whole number in its range.

    Example:
        >>> schedule = linear(0.0, 0.1, steps=100)
        >>> schedule(0), schedule(50), schedule(1000)
        (0.0, 0.05, 0.1)
    """
    return _checked("linear", start, end, steps, begin)


def warmup(strength: float, steps: int, *, begin: int = 0) -> Schedule:
    """Return a strength that grows from zero in a straight line and then stays.

    Args:
        strength: from the step ``begin + steps`` on, zero or more.
        steps: how many optimizer steps the way takes, one or more.
        begin: the step at which it begins; the strength is zero until then.

    Raises:
        InputError: as for ``linear``.

    Example:
        >>> warmup(0.2, steps=10)(5)
        0.1
    """
    return linear(0.0, strength, steps, begin=begin)


def cosine(start: float, end: float, steps: int, *, begin: int = 0) -> Schedule:
    """Return a strength that follows half a period of a cosine: ``end + (start − end)·(1 + cos πu)/2``.

    Args:
        start: the strength up to the step ``begin``, zero or more.
        end: the strength ``steps`` later and from then on, zero or more.
        steps: how many optimizer steps the way takes, one or more.
        begin: the step at which it begins.

    Raises:
        InputError: as for ``linear``.

    Example:
        >>> schedule = cosine(0.0, 0.1, steps=100)
        >>> round(schedule(25), 4), round(schedule(75), 4)
        (0.0146, 0.0854)
    """
    return _checked("cosine", start, end, steps, begin)


def cubic(start: float, end: float, steps: int, *, begin: int = 0) -> Schedule:
    """Return a strength that changes fast at first and slowly in the end: ``end + (start − end)·(1 − u)³``.

    Args:
        start: the strength up to the step ``begin``, zero or more.
        end: the strength ``steps`` later and from then on, zero or more.
        steps: how many optimizer steps the way takes, one or more.
        begin: the step at which it begins.

    Raises:
        InputError: as for ``linear``.

    Example:
        >>> round(cubic(0.0, 0.8, steps=100)(50), 4)
        0.7

    References:
        The curve is that of Zhu and Gupta for the sparsity, "To prune, or not to prune", arXiv 1710.01878.
    """
    return _checked("cubic", start, end, steps, begin)


def _checked(kind: str, start: float, end: float, steps: int, begin: int) -> Schedule:
    ends = _strength(start, "start"), _strength(end, "end")
    return Schedule(kind, *ends, whole(steps, "steps", 1), whole(begin, "begin", 0))


def _strength(value: object, name: str) -> float:
    number = math.nan if isinstance(value, (str, bytes)) else _float(value)
    if not math.isfinite(number) or number < 0:
        msg = f"{name} must be a strength, a finite number of zero or more; got {value!r}"
        raise InputError(msg)
    return number


def _float(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]  # what is no number raises
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def whole(value: object, name: str, least: int, of: str = "optimizer steps") -> int:
    """Return a whole number that is not below a bound.

    Args:
        value: what the user gave.
        name: how to call it in the message.
        least: the bound.
        of: what is counted.

    Raises:
        InputError: it is no whole number, or is below the bound.

    Example:
        >>> whole(3, "steps", 1)
        3
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # what is no whole number raises
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        msg = f"{name} must be a whole number of {of}, {least} or more; got {value!r}"
        raise InputError(msg)
    return number


_RESTS: dict[str, Shape] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "cubic": lambda done: (1.0 - done) ** 3,
}
"""What is left of the way, from 1 to 0, by the part of the steps that is done."""
