"""A user's batches, as an endless stream whose place can be saved and found again."""

from collections.abc import Iterable, Iterator, Sized
from typing import Any, final

import torch

from torchlasso.errors import InputError
from torchlasso.gradients import Batches


@final
class Stream:
    """Batches for ever, one pass after the other.

    A pass is found again by going back to the random state at its start and reading on to the same place.
    That holds for lists, for a ``DataLoader`` with and without shuffling, and for whatever else draws
    from torch's generator only.

    Args:
        batches: pairs of input and target, readable again and again.
    """

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._generators = _generators(batches)
        self._pass: Iterator[tuple[Any, Any]] = iter(())
        self._start: list[torch.Tensor] = []
        self._taken = 0

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> tuple[Any, Any]:
        """Return the next batch.

        Raises:
            InputError: a pass holds none.
        """
        pair = next(self._pass, None)
        if pair is None:
            self._begin()
            pair = next(self._pass, None)
        if pair is None:
            msg = "train_batches holds no batch; a DataLoader with drop_last needs at least batch_size rows"
            raise InputError(msg)
        self._taken += 1
        return pair

    def saved(self) -> dict[str, Any]:
        """Return the place as plain containers and tensors."""
        return {"taken": self._taken, "start": self._start, "now": [g.get_state() for g in self._generators]}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go to the place that ``saved`` returned, and set torch's random state to what it was there."""
        if saved["taken"]:
            self._set(saved["start"])
            self._begin()
            for _ in range(saved["taken"]):
                next(self)
        self._set(saved["now"])

    def _begin(self) -> None:
        self._start = [generator.get_state() for generator in self._generators]
        self._pass, self._taken = iter(self._batches), 0

    def _set(self, states: Iterable[torch.Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)


def check_batches(name: str, batches: object) -> None:
    """Raise ``InputError`` unless these are batches that can be read again and again.

    Args:
        name: of the argument.
        batches: what the user gave.
    """
    if not isinstance(batches, Iterable):
        msg = f"{name} must be a DataLoader or a list of (input, target), got {type(batches).__name__}"
        raise InputError(msg)
    if iter(batches) is batches:
        msg = f"{name} is a generator, which can be read once only; give a DataLoader or list({name})"
        raise InputError(msg)
    if isinstance(batches, Sized) and len(batches) == 0:
        msg = f"{name} is empty; it must hold at least one (input, target)"
        raise InputError(msg)


def count_batches(batches: Batches) -> int:
    """Return the number of batches of a pass.

    Args:
        batches: pairs of input and target, readable again and again.
    """
    return len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches)


def _generators(batches: Batches) -> list[torch.Generator]:
    """Return torch's generator, and the own ones of a ``DataLoader`` and its samplers."""
    sampler = getattr(batches, "sampler", None)
    inner = getattr(getattr(batches, "batch_sampler", None), "sampler", None)
    own = [getattr(each, "generator", None) for each in (batches, sampler, inner)]
    found = [torch.default_generator, *(g for g in own if isinstance(g, torch.Generator))]
    return list(dict.fromkeys(found))
