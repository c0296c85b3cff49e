"""Reads values out of a configuration that somebody else wrote, and trusts none of them."""

import sys
from collections.abc import Mapping
from typing import Any, NoReturn, cast

from torchlasso.errors import ModelFileError


class Fields:
    """Reads typed values out of a mapping that somebody else wrote.

    Args:
        config: what should be a mapping.
        what: how messages call it.
        names: the keys that it must have, all and no others.

    Raises:
        ModelFileError: it is no mapping, or its keys are others.

    Example:
        >>> Fields({"mean": 0.5}, "the scale", ("mean",)).number("mean")
        0.5
        >>> Fields({"mean": "0.5"}, "the scale", ("mean",)).number("mean")
        Traceback (most recent call last):
        torchlasso.errors.ModelFileError: the scale: 'mean' must be a finite number, not '0.5'
    """

    def __init__(self, config: object, what: str, names: tuple[str, ...]) -> None:
        if not isinstance(config, Mapping) or set(config) != set(names):
            found = sorted(map(repr, config)) if isinstance(config, Mapping) else type(config).__name__
            message = f"{what} must have exactly the keys {', '.join(names)}, not {_short(found)}"
            raise ModelFileError(message)
        self._config = config
        self._what = what

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Raise the error that says what a value should have been."""
        message = f"{self._what}: {key!r} must be {expected}, not {_short(self._config[key])}"
        raise ModelFileError(message)

    def value(self, key: str) -> object:
        """Return whatever is there."""
        return self._config[key]

    def text(self, key: str) -> str:
        """Return a string."""
        value = self._config[key]
        if not is_text(value):
            self.refuse(key, "text")
        return cast("str", value)

    def flag(self, key: str) -> bool:
        """Return true or false."""
        value = self._config[key]
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value

    def number(self, key: str, *, positive: bool = False) -> float:
        """Return a finite number as a float."""
        value = self._config[key]
        # Compared before it is cast: a whole number of a thousand digits is legal JSON but no float.
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if not real or not abs(value) <= sys.float_info.max or (positive and value <= 0):
            self.refuse(key, "a positive finite number" if positive else "a finite number")
        return float(value)

    def items(self, key: str) -> list[Any]:
        """Return a list of anything."""
        value = self._config[key]
        if not isinstance(value, list):
            self.refuse(key, "a list")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of distinct strings."""
        values = self.items(key)
        if not all(map(is_text, values)) or len(set(values)) != len(values):
            self.refuse(key, "a list of distinct texts")
        return tuple(values)


def is_text(value: object) -> bool:
    """Tell whether a value is a string that can be written anywhere: half a surrogate pair cannot.

    Args:
        value: anything.
    """
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _short(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # numbers of thousands of digits, lists in lists in lists
        return f"what it is, a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
