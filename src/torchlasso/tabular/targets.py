"""Looks at what is to be predicted: classes or quantities, which rows have it, and a fair split of them."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from torchlasso.errors import InputError, TableError
from torchlasso.tabular.cells import (
    FloatArray,
    IntArray,
    counted,
    pick_column,
    plain,
    read_numbers,
    refuse_text_among_numbers,
)

Task = Literal["classification", "regression"]
Label = str | int | float | bool

MIN_ROWS = 10
"""Fewest rows with a target that anything is learnt from."""
MIN_CLASS_ROWS = 3
"""Fewest rows of a class: one each to train, validate and test, if each split takes a quarter or less."""
MAX_WHOLE_CLASSES = 20
"""Most distinct whole numbers that are taken for classes."""
_LARGEST_QUANTITY = 1e30  # networks compute in float32, whose numbers end at 3e38
_SMALLEST_VARIATION = 1e-5  # of the largest: float32 tells numbers apart that differ by 1e-7 of their size


@dataclass(frozen=True)
class UsableRows:
    """The rows of a table that can be learnt from.

    Attributes:
        rows: their positions in the table, ascending.
        task: what there is to learn.
        notes: readable lines on what was inferred and what was left out.
    """

    rows: IntArray
    task: Task
    notes: tuple[str, ...]


def infer_task(target: pl.Series) -> Task:
    """Tell whether a target column holds classes or quantities.

    Text, categories and true/false are classes. Whole numbers, stored as integers or floats, are classes if
    at most 20 are different and the table is long enough to believe it: two at any length, up to five at ten
    rows a value, up to twenty at twenty rows a value. Everything else is a quantity.

    Args:
        target: the column; missing values are passed over.

    Raises:
        TableError: the column has no value, or a type (dates, lists) that is not predicted.

    Example:
        >>> infer_task(pl.Series("sick", [0, 1] * 10)), infer_task(pl.Series("age", range(30)))
        ('classification', 'regression')
    """
    values = plain(target).drop_nulls()
    if values.is_empty():
        message = f"target column {target.name!r} holds no value; choose another target"
        raise TableError(message)
    if values.dtype in (pl.String, pl.Boolean):
        return "classification"
    if not values.dtype.is_numeric():
        advice = "choose a target of numbers, text or true/false"
        message = f"target column {target.name!r} has the type {values.dtype}; {advice}"
        raise TableError(message)
    if values.dtype.is_float() and not (values == values.floor()).all():
        return "regression"
    believable = max(2, min(5, len(values) // 10), len(values) // 20)
    return "classification" if values.n_unique() <= min(MAX_WHOLE_CLASSES, believable) else "regression"


def usable_rows(frame: pl.DataFrame, target: str, task: Task | None = None) -> UsableRows:
    """Check the target over the whole table, before any split, and find the rows that have one.

    Args:
        frame: the table as it was read.
        target: the column to predict.
        task: None infers it.

    Returns:
        The rows that have a target, the task, and notes.

    Raises:
        InputError: the task is unknown.
        TableError: the target is absent, all missing, constant, infinite, or text that differs in every row;
            fewer than 10 rows have it; or a class has fewer than 3, one each to train, validate and test.

    Example:
        >>> usable_rows(pl.DataFrame({"sick": [True, False, None] * 10}), "sick").notes
        ("left out 10 of 30 rows, whose target 'sick' is missing",)
    """
    column = pick_column(frame, target, "target")
    chosen = resolve_task(column, task)
    rows = column.is_not_null().arg_true().to_numpy().astype(np.int64)
    if len(rows) < MIN_ROWS:
        known = counted(len(rows), "row")
        message = f"the target {target!r} is known in {known}; at least {MIN_ROWS} rows are needed"
        raise TableError(message)
    if chosen == "regression":
        _check_quantities(column)
    else:
        _check_classes(column)
    notes = []
    if len(rows) < len(column):
        missing = len(column) - len(rows)
        notes.append(f"left out {missing} of {len(column)} rows, whose target {target!r} is missing")
    if task is None and chosen == "classification" and column.dtype.is_numeric():
        found = column.drop_nulls().n_unique()
        notes.append(
            f"took the {found} different whole numbers of {target!r} for classes, not for quantities"
        )
    return UsableRows(rows, chosen, tuple(notes))


def resolve_task(column: pl.Series, task: Task | None) -> Task:
    """Infer the task if it is not given, and refuse a target column that cannot be predicted at all."""
    if task not in (None, "classification", "regression"):
        message = f"unknown task {task!r}: expected 'classification' or 'regression'"
        raise InputError(message)
    refuse_text_among_numbers(column)
    inferred = infer_task(column)
    return task or inferred


def _check_quantities(column: pl.Series) -> None:
    values = read_numbers(column)
    if np.nanmin(values) == np.nanmax(values):
        message = f"target column {column.name!r} is {np.nanmin(values):g} in every row: nothing to predict"
        raise TableError(message)
    largest = float(np.nanmax(np.abs(values)))
    spread = largest * float(np.nanstd(values / largest))  # no square leaves the range of floats
    if not (largest <= _LARGEST_QUANTITY and spread >= 1 / _LARGEST_QUANTITY):
        advice = "give it in other units"
        message = (
            f"target column {column.name!r} goes up to {largest:g}, with a spread of {spread:g}; {advice}"
        )
        raise TableError(message)
    if spread < _SMALLEST_VARIATION * largest:
        advice = "subtract a constant from it"
        found = f"varies by {spread:g} only, around {np.nanmean(values):g}"
        message = f"target column {column.name!r} {found}; {advice}"
        raise TableError(message)


def _check_classes(column: pl.Series) -> None:
    class_labels(column)  # refuses infinite values
    values = column.drop_nulls()
    counts = values.alias("label").value_counts(name="rows").sort("rows", "label")
    if len(counts) == 1:
        message = f"target column {column.name!r} is {values[0]!r} in every row: nothing to predict"
        raise TableError(message)
    if len(counts) == len(values):
        advice = "choose a target whose values repeat"
        message = f"target column {column.name!r} differs in every row, like an identifier; {advice}"
        raise TableError(message)
    rare = counts.filter(pl.col("rows") < MIN_CLASS_ROWS).rows()
    if rare:
        shown = ", ".join(f"{label!r} ({rows})" for label, rows in rare[:5])
        more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
        message = (
            f"some classes of {column.name!r} have too few rows: {shown}{more}; each needs {MIN_CLASS_ROWS}, "
            "one each to train, validate and test: add rows, merge classes or remove them"
        )
        raise TableError(message)


def class_labels(column: pl.Series) -> tuple[Label, ...]:
    """Return the distinct labels of a target column in sorted order, in their own type, all finite."""
    if column.dtype.is_float():
        read_numbers(column)  # refuses infinite values
    return tuple(column.drop_nulls().unique().sort().to_list())


def class_codes(column: pl.Series, classes: tuple[Label, ...]) -> IntArray:
    """Return the position of each label among the classes.

    Args:
        column: what `torchlasso.tabular.cells.pick_column` returned.
        classes: the labels, in the order of their codes.

    Raises:
        TableError: a label is missing or is not among the classes; the message names its row.

    Example:
        >>> class_codes(pl.Series("size", ["S", "L", "S"]), ("L", "S"))
        array([1, 0, 1])
    """
    _require_all(column)
    labels = column.cast(pl.String) if isinstance(classes[0], str) else column
    code = {label: position for position, label in enumerate(classes)}
    codes = np.fromiter((code.get(label, -1) for label in labels.to_list()), np.int64, len(column))
    if (codes < 0).any():
        row = int((codes < 0).argmax())
        known = ", ".join(repr(label) for label in classes[:10]) + (", ..." if len(classes) > 10 else "")
        message = (
            f"target column {column.name!r} holds {column[row]!r} in data row {row + 1}; "
            f"its classes are {known}"
        )
        raise TableError(message)
    return codes


def quantities(column: pl.Series) -> FloatArray:
    """Return the numbers of a target column.

    Args:
        column: what `torchlasso.tabular.cells.pick_column` returned.

    Raises:
        TableError: a value is missing, infinite or not a number; the message names its row.
    """
    _require_all(column)
    return read_numbers(column)


def _require_all(column: pl.Series) -> None:
    if column.null_count():
        row = int(column.is_null().arg_true()[0]) + 1
        message = f"target column {column.name!r} is missing in data row {row}; leave such rows out"
        raise TableError(message)


def split_rows(
    target: pl.Series | NDArray[Any], task: Task, *, fraction: float, seed: int
) -> tuple[IntArray, IntArray]:
    """Split rows at random in two, each class in proportion.

    Args:
        target: the target of each row, as labels or codes or numbers, none missing.
        task: a classification is stratified.
        fraction: share of the rows in the second part, between 0 and 1.
        seed: the same seed gives the same split.

    Returns:
        The positions of the first part and of the second, each ascending; together every position once.

    Raises:
        InputError: the fraction is not between 0 and 1.
        TableError: there are too few rows, or too few of a class, for two such parts.

    Example:
        >>> codes = np.array([0, 0, 0, 1, 1, 1] * 2)
        >>> first, second = split_rows(codes, "classification", fraction=0.25, seed=0)
        >>> len(first), len(second)
        (9, 3)
    """
    if not 0 < fraction < 1:
        message = f"fraction must be between 0 and 1, not {fraction!r}"
        raise InputError(message)
    labels = target.to_numpy() if isinstance(target, pl.Series) else target
    second = math.ceil(fraction * len(labels))
    codes = None
    needed = 1
    if task == "classification":
        names, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        needed = max(1, len(names))
        if len(names) and counts.min() < 2:
            lonely = names.tolist()[counts.argmin()]
            message = (
                f"class {lonely!r} has one row, which cannot be in both parts of a split; add rows of it"
            )
            raise TableError(message)
    if min(second, len(labels) - second) < needed:
        parts = f"{len(labels) - second} and {second}"
        rows = counted(len(labels), "row")
        message = f"{rows} split into {parts}, but each part needs {needed} or more; add rows"
        raise TableError(message)
    positions = np.arange(len(labels))
    halves = train_test_split(positions, test_size=second, random_state=seed, stratify=codes)
    return np.sort(halves[0]), np.sort(halves[1])
