"""The checks of the estimators' parameters, which scikit-learn wants in ``fit`` and not before."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from torchlasso.errors import InputError
from torchlasso.fit.settings import Budget
from torchlasso.groups import normalise_groups
from torchlasso.penalties.base import check_strength, fraction_of_max


def require(holds: bool, name: str, what: str, value: object) -> None:
    """Raise ``InputError`` that names a parameter, unless a condition holds."""
    if not holds:
        msg = f"{name} must be {what}, got {value!r}"
        raise InputError(msg)


def is_real(value: object) -> TypeGuard[float]:
    """Return whether a value is a number and no truth value."""
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_))


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether a value is a whole number and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, (bool, np.bool_))


def checked_hidden(sizes: object) -> tuple[int, ...]:
    """Return the widths of the hidden layers; one number is one layer."""
    listed = [sizes] if isinstance(sizes, Real) else sizes
    widths = list(listed) if isinstance(listed, Iterable) else [None]
    good = [width for width in widths if is_whole(width) and width >= 1]
    require(len(good) == len(widths), "hidden_layer_sizes", "whole numbers of 1 or more", sizes)
    return tuple(map(int, good))


def checked_strength(strength: object) -> float | str | None:
    """Return the strength, or None if it is to be chosen."""
    if isinstance(strength, str):
        if strength == "auto":
            return None
        if fraction_of_max(strength) is not None:
            return strength
    expected = "'auto', a number of 0 or more or a fraction such as '0.1max'"
    require(is_real(strength), "strength", expected, strength)
    return check_strength(strength)


def checked_groups(
    groups: Sequence[Sequence[int]] | None, penalty: str
) -> tuple[tuple[int, ...], ...] | None:
    """Return the groups of columns in a hashable form."""
    if groups is None:
        return None
    if penalty != "features":
        msg = f"groups belong to penalty='features', got penalty={penalty!r}"
        raise InputError(msg)
    checked = normalise_groups(groups)
    require(isinstance(checked, tuple), "groups", "lists of column indices", groups)
    return checked if isinstance(checked, tuple) else ()


def checked_keep(
    keep: Sequence[int | str] | None, penalty: str, names: NDArray[Any] | None, columns: int
) -> tuple[int, ...]:
    """Return the indices of the features that are always kept.

    Args:
        keep: indices, or names of columns; None for none.
        penalty: the penalty, which must be one that can leave features out.
        names: of the columns, or None.
        columns: how many there are.

    Raises:
        InputError: an unknown column, or a penalty that knows no features.
    """
    if keep is None:
        return ()
    if penalty == "neurons":
        msg = "always_keep belongs to penalty='l1' or 'features', got penalty='neurons'"
        raise InputError(msg)
    require(
        isinstance(keep, Iterable) and not isinstance(keep, str), "always_keep", "a list of columns", keep
    )
    places = {} if names is None else {name: place for place, name in enumerate(names)}
    indices = [places.get(column, column) for column in keep]
    good = [i for i in indices if is_whole(i) and 0 <= i < columns]
    expected = f"names of columns, or indices from 0 to {columns - 1}"
    require(len(good) == len(indices), "always_keep", expected, keep)
    return tuple(sorted({int(i) for i in good}))


def checked_budget(budget: object) -> Budget:
    """Return the budget, the usual one for None."""
    require(budget is None or isinstance(budget, Budget), "budget", "None or a Budget(...)", budget)
    return budget if isinstance(budget, Budget) else Budget()


def class_weights(
    class_weight: Mapping[Any, float] | str | None,
    classes: NDArray[Any],
    codes: NDArray[Any],
    weights: NDArray[Any] | None,
) -> NDArray[Any] | None:
    """Return the weights of the rows with those of their classes in them.

    Args:
        class_weight: ``"balanced"`` (all classes weigh the same in sum), a weight for each label (1 for one
            that is not named), or None.
        classes: the labels.
        codes: the place of each row's label among them.
        weights: of the rows, or None for 1.

    Raises:
        InputError: something else, or a label that there is not.
    """
    if class_weight is None:
        return weights
    own = np.ones(len(codes)) if weights is None else weights
    if isinstance(class_weight, Mapping):
        known = set(classes.tolist())
        expected = f"a weight for labels among {known}"
        require(known.issuperset(class_weight), "class_weight", expected, class_weight)
        factors = np.array([class_weight.get(label, 1.0) for label in classes.tolist()], dtype=float)
    else:
        require(class_weight == "balanced", "class_weight", "'balanced', a dict or None", class_weight)
        totals = np.bincount(codes, weights=own, minlength=len(classes))
        factors = totals.sum() / (len(classes) * totals)
    good = bool(np.isfinite(factors).all() and (factors >= 0).all())
    require(good, "class_weight", "finite and zero or more", class_weight)
    combined: NDArray[Any] = own * factors[codes]
    return combined
