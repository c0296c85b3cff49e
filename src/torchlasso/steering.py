"""How a strength is steered by the number of zeros that it causes: numbers only, nothing of a model.

The logarithm of the strength is moved by a proportional-integral controller.  Its error is the difference
of log-odds between the zeros that there should be by now and those that there are: in these units a net of
half zeros and one of 99 % answer a change of log λ about equally.  How fast zeros answer is not known: at
once under a plain proximal step, after hundreds of steps where evidence is weighed.  So the gain begins
high, which suits the slow ones (overshoot would take long to return), and falls with every swing to and fro.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, final

RAMP = 0.6
"""The part of the steps after which the request is to be met; the rest is for settling."""

START = 1e-3
"""The first strength, relative to the one that would make everything zero."""

LEAST = 1e-6
"""The least strength, likewise: where too much is zero for reasons of its own, λ goes down no further."""

_GAIN, _LEAST_GAIN, _LEAST_INTEGRAL = 20.0, 0.5, 1.0
_INTEGRAL_TIME = 0.04  # of the steps until the request is met
_LEAST_SPAN = 100  # steps: with fewer there is not much to steer by
_MOST = 0.3  # change of log λ by either part in one look
_PER_COUNT = 0.25  # most change of log λ for one weight more or less
_SWING = 0.05  # log-odds that are more than noise
_AFTER_SWING, _AFTER_TURN = 0.6, 0.7  # what is left of the gain
_BAND = 1e-3  # of all: what is near enough to be left alone
_CAP, _SETTLED_CAP = 2.0, 1.2  # times the strength that would make everything zero
_CAP_MEMORY = 0.6  # of that strength, from measurement to measurement


@final
@dataclass
class Steering:
    """One strength on its way to a number of zeros.

    Attributes:
        begin: the step of the first look.
        end: the step by which the request is to be met.
        wanted: how many are to be zero.
        total: of how many.
        first: how many were zero at the first look.
        level: log λ, minus infinity before the first ``bound``.
        top: the strength that would make everything zero, of late.
        last: the step of the last look.
        gain: of the proportional part.
        error: at the last look.
        swing: the side of the last error that was more than noise.
        turn: the last change of the error that was.
        capped: whether the strength is as large as the last ``bound`` lets it be.
    """

    begin: int
    end: int
    wanted: int
    total: int
    first: int
    level: float = -math.inf
    top: float = 0.0
    last: int = field(default=-1)
    gain: float = _GAIN
    error: float | None = None
    swing: int = 0
    turn: float = 0.0
    capped: bool = False

    @property
    def strength(self) -> float:
        """λ."""
        return math.exp(self.level)

    @property
    def span(self) -> int:
        """The number of steps that there are."""
        return max(self.end - self.begin, _LEAST_SPAN)

    def due(self, step: int, every: int, looks: int) -> bool:
        """Return whether to look at a step.

        Args:
            step: how many were taken.
            every: most steps between two looks.
            looks: how many there are to be, if there are so many steps.
        """
        return (step - self.begin) % max(1, min(every, self.span // looks)) == 0

    def bound(self, reach: float) -> None:
        """Take in a measurement of the strength that would make everything zero.

        Args:
            reach: that strength, by the gradients of one batch.
        """
        self.top = max(reach, _CAP_MEMORY * self.top)
        if self.level == -math.inf:
            self.level = math.log(START * self.top)

    def look(self, step: int, zeros: int, *, still: bool) -> None:
        """Move the strength by a count of the zeros.

        Args:
            step: how many were taken.
            zeros: that there are.
            still: whether no weight has moved: then nothing can be learnt, and nothing is added up.
        """
        before, self.last = self.last, step
        if still or before < 0:
            return
        settled = step - self.begin >= RAMP * (self.end - self.begin)
        quantum = self._odds(zeros + 0.5) - self._odds(zeros - 0.5)
        error = self._error(step, zeros, settled=settled)
        change = 0.0 if self.error is None else error - self.error
        self._calm(error, change, max(_SWING, 1.5 * quantum))
        self.error = error
        proportional = min(self.gain, _PER_COUNT / quantum) * change
        integral = max(self.gain, _LEAST_INTEGRAL) * error * (step - before) / (_INTEGRAL_TIME * self.span)
        cap = math.log((_SETTLED_CAP if settled else _CAP) * self.top)
        level = self.level + _limited(proportional) + _limited(integral)
        self.capped = level >= cap
        self.level = max(min(level, cap), math.log(LEAST * self.top))

    def _error(self, step: int, zeros: int, *, settled: bool) -> float:
        """Return by how much log-odds there are too few zeros, at most 1; 0 near the request."""
        if settled:
            near = abs(zeros - self.wanted) <= max(_BAND * self.total, 0.5)
            planned = float(zeros if near else self.wanted)
        else:
            done = (step - self.begin) / (RAMP * (self.end - self.begin))
            planned = self.wanted + (self.first - self.wanted) * (1 - done) ** 3
        return max(-1.0, min(1.0, self._odds(planned) - self._odds(zeros)))

    def _odds(self, zeros: float) -> float:
        """Return the log-odds of a number of zeros, finite for none and for all."""
        inside = min(max(zeros, 0.0), float(self.total))
        return math.log((inside + 0.02 * self.total) / (self.total - inside + 0.5))

    def _calm(self, error: float, change: float, noise: float) -> None:
        """Lower the gain where the zeros swing about the plan, or turn at every look."""
        factor = 1.0
        if abs(error) > noise:
            side = 1 if error > 0 else -1
            factor = _AFTER_SWING if self.swing == -side else 1.0
            self.swing = side
        if abs(change) > noise:
            factor = min(factor, _AFTER_TURN if change * self.turn < 0 else 1.0)
            self.turn = change
        self.gain = max(_LEAST_GAIN, factor * self.gain)

    def saved(self) -> dict[str, Any]:
        """Return everything as numbers."""
        return asdict(self)


def _limited(change: float) -> float:
    return max(-_MOST, min(_MOST, change))
