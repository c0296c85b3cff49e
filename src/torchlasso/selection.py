"""What every way of selecting features shares: the seeds of estimators, the names of columns, two checks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from torchlasso.errors import InputError
from torchlasso.estimators_checks import is_real, is_whole


def seeded(estimator: Any, seed: int) -> Any:
    """Give an estimator, and every part of it that takes one, a random state; return it.

    Args:
        estimator: unfitted, changed in place.
        seed: of all its parts.
    """
    names = [n for n in estimator.get_params(deep=True) if n.rsplit("__", 1)[-1] == "random_state"]
    return estimator.set_params(**dict.fromkeys(names, seed)) if names else estimator


def column_names(X: Any) -> NDArray[Any]:
    """Return the names of a DataFrame's columns if all are strings, else their indices.

    Args:
        X: ``[n, p]``: a DataFrame, an array or lists.
    """
    columns = getattr(X, "columns", None)
    if columns is not None and all(isinstance(name, str) for name in columns):
        return np.asarray(columns, dtype=object)
    shape = np.shape(X)
    return np.arange(shape[1] if len(shape) == 2 else 0)


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread of torch within.

    The fits of a repeated procedure run side by side, and sums split over threads would round otherwise.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_between(value: object, low: float, high: float, name: str, hint: str) -> float:
    """Return a number if ``low < value < high``.

    Args:
        value: what the user gave.
        low: excluded.
        high: excluded.
        name: of the argument.
        hint: what to do instead.

    Raises:
        InputError: it is not.
    """
    if is_real(value) and low < value < high:
        return float(value)
    msg = f"{name} must be a number between {low:g} and {high:g}, {hint}, got {value!r}"
    raise InputError(msg)


def check_count(value: object, low: int, high: int, name: str) -> int:
    """Return a whole number if ``low ≤ value ≤ high``.

    Args:
        value: what the user gave.
        low: the smallest allowed.
        high: the largest allowed.
        name: of the argument.

    Raises:
        InputError: it is not.
    """
    if is_whole(value) and low <= value <= high:
        return int(value)
    msg = f"{name} must be a whole number from {low} to {high}, got {value!r}"
    raise InputError(msg)
