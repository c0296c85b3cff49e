"""How short an optimizer's steps are beside its longest: evidence counts by what a step moves."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

_MOST = 1e6  # where the learning rate is 0 nothing moves, and a finite number is enough


class Pace:
    """The learning rate of each group of an optimizer, beside the largest that the group has had.

    A step at a tenth of the learning rate moves a weight by a tenth.  If it counted as a whole step of
    evidence, weights would return from zero late in a decay, when no time is left for the proximal step to
    bring them back.

    Attributes:
        largest: the largest learning rate of each group so far.
        stretch: of each group, the largest over the present one: 1 or more.

    Example:
        >>> pace = Pace()
        >>> pace.note([{"params": [], "lr": 0.1}])
        >>> pace.note([{"params": [], "lr": 0.05}])
        >>> pace.stretch
        [2.0]
    """

    def __init__(self) -> None:
        self.largest: list[float] = []
        self.stretch: list[float] = []
        self._number: dict[nn.Parameter, int] = {}
        self._count = -1

    def note(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Read the learning rates of the coming step.

        Args:
            groups: the optimizer's ``param_groups``.  A learning rate that lives on an accelerator is not
                followed, since to read it would wait for the device.
        """
        rates = [_rate(group) for group in groups]
        self.largest += rates[len(self.largest) :]
        self.largest = [max(pair) for pair in zip(self.largest, rates, strict=False)]
        self.stretch = [
            min(most / rate, _MOST) if rate > 0 else _MOST if most > 0 else 1.0
            for most, rate in zip(self.largest, rates, strict=True)
        ]
        count = sum(len(group["params"]) for group in groups)
        if count != self._count:
            self._count = count
            self._number = {p: number for number, group in enumerate(groups) for p in group["params"]}

    def of(self, parameter: nn.Parameter) -> float:
        """Return by how much the memory of a parameter is to be stretched (1 before the first step).

        Args:
            parameter: of the optimizer.
        """
        return self.each([self._number.get(parameter, len(self.stretch))])[0]

    def each(self, numbers: Sequence[int]) -> list[float]:
        """Return by how much the memory is to be stretched in some groups (1 before the first step).

        Args:
            numbers: of the groups.
        """
        return [self.stretch[number] if number < len(self.stretch) else 1.0 for number in numbers]


def _rate(group: Mapping[str, Any]) -> float:
    """Return a group's learning rate; 0, which is no rate, where there is none to be read."""
    rate = group.get("lr", 0.0)
    return 0.0 if isinstance(rate, Tensor) and rate.device.type != "cpu" else float(rate)
