"""Decides what kind of feature a column is, learns it from the training rows, or says why it is left out.

The kind is a matter of type and is decided on every row of the table, so that a bad cell is refused wherever
it is; everything that is learnt (means, categories, what is constant) comes from the training rows alone.
"""

import re
from typing import NamedTuple

import polars as pl

from torchlasso.tabular.cells import (
    IntArray,
    counted,
    is_empty,
    read_moments,
    read_numbers,
    refuse_text_among_numbers,
)
from torchlasso.tabular.columns import DATE_PARTS, Boolean, Categorical, Column, Dates, Numeric, date_parts
from torchlasso.tabular.scaling import Scale

MAX_CATEGORIES = 50
"""Most categories that all get a matrix column; beyond, the frequent ones do and the rest share one."""
KEPT_CATEGORIES = 30
"""How many categories get a matrix column of their own when the rest share one."""
MIN_IDENTIFIERS = 20
"""Fewest values, all different, that are taken for an identifier."""

_IDENTIFIER = re.compile(r"(^|[\W_])(id|ids|index|idx|uuid|guid)([\W_]|$)|[a-z](Id|ID|Index)$", re.ASCII)


class Fitted(NamedTuple):
    """A feature, or None if the column is left out, and a readable line if there is something to say."""

    column: Column | None
    note: str | None = None


def fit_feature(column: pl.Series, rows: IntArray) -> Fitted:
    """Turn one column of a table into a feature.

    Args:
        column: the whole column, as `torchlasso.tabular.cells.pick_column` returned it.
        rows: the positions of the training rows, ascending.

    Raises:
        TableError: text among numbers, or an infinite number, anywhere in the column.

    Example:
        >>> import numpy as np
        >>> fit_feature(pl.Series("size", ["S", "L", "S", "L"]), np.arange(4)).column
        Categorical(name='size', categories=('L', 'S'), other=False, missing=False)
        >>> fit_feature(pl.Series("unit", ["cm", "cm", "m"]), np.arange(2)).note
        "left out 'unit': it is 'cm' in every training row"
    """
    refuse_text_among_numbers(column)
    training = column[rows]
    if is_empty(training):
        return _left_out(column, "it is missing in every training row")
    if column.dtype == pl.Boolean:
        return _fit_boolean(training)
    if column.dtype.is_numeric():
        return _fit_numeric(column, rows)
    moments = read_moments(column)
    if moments is not None:
        return _fit_dates(moments, column, rows)
    if column.dtype == pl.String:
        return _fit_categorical(training)
    return _left_out(column, f"its type {column.dtype} is not supported")


def _left_out(column: pl.Series, reason: str) -> Fitted:
    return Fitted(None, f"left out {column.name!r}: {reason}")


def _fit_boolean(training: pl.Series) -> Fitted:
    present = training.drop_nulls()
    if present.n_unique() == 1:
        return _left_out(training, f"it is {str(present[0]).lower()} in every training row that has it")
    filler = bool(2 * int(present.sum()) > len(present))
    return Fitted(Boolean(training.name, filler, training.null_count() > 0))


def _fit_numeric(column: pl.Series, rows: IntArray) -> Fitted:
    values = read_numbers(column)[rows]
    training = column[rows]
    if training.dtype.is_integer() and _is_identifier(training.drop_nulls()):
        return _left_out(column, "its whole numbers all differ, like a row number or an identifier")
    scale = Scale.fit(values)
    if scale is None:
        known = "every training row" + (" that has it" if training.null_count() else "")
        return _left_out(column, f"it is {training.drop_nulls()[0]!r} in {known}")
    return Fitted(Numeric(column.name, scale, training.null_count() > 0))


def _is_identifier(values: pl.Series) -> bool:
    if len(values) < MIN_IDENTIFIERS or values.n_unique() < len(values):
        return False
    ordered = values.is_sorted() or values.is_sorted(descending=True)
    return ordered or _IDENTIFIER.search(values.name) is not None


def _fit_dates(moments: pl.Series, column: pl.Series, rows: IntArray) -> Fitted:
    training = moments[rows]
    values = date_parts(training)
    scales = {part: Scale.fit(values[part]) for part in DATE_PARTS}
    kept = {part: scale for part, scale in scales.items() if scale is not None}
    if not kept:
        return _left_out(column, "its date never changes in the training rows")
    note = None
    bad = training.null_count() - column[rows].null_count()
    if bad:
        note = f"{column.name!r}: {counted(bad, 'value')} not an ISO date; taken for missing"
    dates = Dates(column.name, tuple(kept), tuple(kept.values()), training.null_count() > 0)
    return Fitted(dates, note)


def _fit_categorical(training: pl.Series) -> Fitted:
    present = training.drop_nulls()
    missing = len(present) < len(training)
    counts = present.alias("text").value_counts(name="rows").sort("rows", "text", descending=[True, False])
    if len(counts) == 1 and not missing:
        return _left_out(training, f"it is {present[0]!r} in every training row")
    if len(counts) == len(present) >= MIN_IDENTIFIERS:
        return _left_out(training, f"its texts all differ, like an identifier{_number_hint(present)}")
    texts = counts["text"].to_list()
    if len(counts) <= MAX_CATEGORIES and 2 * len(counts) <= len(present):
        return Fitted(Categorical(training.name, tuple(sorted(texts)), other=False, missing=missing))
    repeated = counts.filter(pl.col("rows") > 1)["text"].to_list()
    kept = tuple(sorted(repeated[:KEPT_CATEGORIES]))
    if not kept:
        return _left_out(training, f"its texts never repeat{_number_hint(present)}")
    note = (
        f"{training.name!r}: kept the {len(kept)} most frequent of {len(texts)} texts, the rest is '(other)'"
    )
    return Fitted(Categorical(training.name, kept, other=True, missing=missing), note)


def _number_hint(present: pl.Series) -> str:
    numbers = present.str.strip_chars().cast(pl.Float64, strict=False)
    return " (they read as numbers: store them as numbers to use them)" if not numbers.null_count() else ""
