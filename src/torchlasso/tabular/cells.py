"""Reads one column of a table as numbers or as moments in time, and names the row of a value that is neither.

Rows are counted as "data rows" from 1, the line of column names left out.
"""

import difflib
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from torchlasso.errors import TableError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MOSTLY = 0.95
"""Share of the values of a text column that must read as numbers, or as dates, for it to count as such."""

_DECIMAL_COMMA = r"^[+-]?\d+,\d+$"
_ISO = (
    r"^(?<date>\d{4}-\d{2}-\d{2})"
    r"(?:[T ](?<hour>[01]\d|2[0-3]):(?<minute>[0-5]\d)(?::(?<second>[0-5]\d(?:\.\d+)?))?"
    r"(?:Z|(?<sign>[+-])(?<off_hour>[01]\d|2[0-3]):?(?<off_minute>[0-5]\d))?)?$"
)


def pick_column(frame: pl.DataFrame, name: str, role: str) -> pl.Series:
    """Take a column by name, with its type simplified by `plain`.

    Args:
        frame: the table.
        name: the column.
        role: what a message calls it, such as ``"target"``.

    Raises:
        TableError: there is no such column; the message lists the names that are there, close ones first.

    Example:
        >>> pick_column(pl.DataFrame({"age": [1.0, float("nan")]}), "age", "feature").to_list()
        [1.0, None]
        >>> pick_column(pl.DataFrame({"age": [1.0]}), "Age", "target")
        Traceback (most recent call last):
        torchlasso.errors.TableError: the table has no target column 'Age'; did you mean 'age'? ...
    """
    require_columns(frame, [name], role)
    return plain(frame[name])


def require_columns(frame: pl.DataFrame, names: Sequence[str], role: str) -> None:
    """Refuse a table that lacks any of these columns.

    Args:
        frame: the table.
        names: the columns that it must have.
        role: what a message calls them, such as ``"feature"``.

    Raises:
        TableError: some are absent; the message names them and what is there.
    """
    there = frame.columns
    absent = [name for name in names if name not in frame.schema]
    if not absent:
        return
    lowered = {column.lower(): column for column in reversed(there) if column not in names}
    close = [lowered[match] for match in difflib.get_close_matches(absent[0].lower(), lowered, n=3)]
    guess = f" did you mean {' or '.join(map(repr, close))}?" if close and len(absent) == 1 else ""
    plural = "s" if len(absent) > 1 else ""
    message = (
        f"the table has no {role} column{plural} {listing(absent)};{guess} its columns are {listing(there)}"
    )
    raise TableError(message)


def listing(names: Sequence[str], most: int = 20) -> str:
    """Join names for a message, the first of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


def plain(column: pl.Series) -> pl.Series:
    """Bring a column to one of few types, its values unchanged.

    NaN becomes missing, categories and enums become text, decimals and durations (in seconds) become floats,
    and a column without any value has no type.

    Args:
        column: any column.

    Example:
        >>> plain(pl.Series("size", ["S", "L"], dtype=pl.Enum(["S", "L"]))).dtype
        String
    """
    if is_empty(column):
        return pl.Series(column.name, [None] * len(column), dtype=pl.Null)
    if column.dtype.is_float():
        return column.fill_nan(None)
    if isinstance(column.dtype, pl.Categorical | pl.Enum):
        return column.cast(pl.String)
    if isinstance(column.dtype, pl.Decimal):
        return column.cast(pl.Float64)
    if isinstance(column.dtype, pl.Duration):
        return column.dt.total_microseconds() / 1e6
    return column


def counted(count: int, what: str) -> str:
    """Return "1 row" or "2 rows"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def is_empty(column: pl.Series) -> bool:
    """Tell whether a column holds no value at all, whatever its type."""
    return column.null_count() == len(column)


def read_numbers(column: pl.Series) -> FloatArray:
    """Read a column of numbers or true/false as floats, NaN where a value is missing.

    Args:
        column: what `pick_column` returned.

    Raises:
        TableError: the column holds text, dates or lists, or an infinite value.

    Example:
        >>> read_numbers(pl.Series("age", [31, None]))
        array([31., nan])
    """
    if not is_empty(column) and not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
        row, value = _first(column, column.is_not_null())
        if column.dtype == pl.String:
            bad = column.cast(pl.Float64, strict=False).is_null() & column.is_not_null()
            row, value = _first(column, bad) if bad.any() else (row, value)
        message = f"column {column.name!r} must hold numbers, but holds {value!r} in data row {row}"
        raise TableError(message)
    numbers = column if column.dtype.is_numeric() else column.cast(pl.Boolean)
    values = numbers.cast(pl.Float64).fill_null(np.nan).to_numpy().astype(np.float64)
    infinite = np.isinf(values)
    if infinite.any():
        row = int(infinite.argmax()) + 1
        message = (
            f"column {column.name!r} holds an infinite value in data row {row}; correct it or leave it empty"
        )
        raise TableError(message)
    return values


def refuse_text_among_numbers(column: pl.Series) -> None:
    """Refuse a text column that is one of numbers but for a few cells, or of numbers with a decimal comma.

    To learn from it as text would silently throw its numbers away.

    Args:
        column: what `pick_column` returned; other types than text always pass.

    Raises:
        TableError: naming the column, the first cell that is no number, and its row.

    Example:
        >>> refuse_text_among_numbers(pl.Series("age", ["31", "forty", "50", "61"]))
        Traceback (most recent call last):
        torchlasso.errors.TableError: column 'age' holds numbers but for 'forty' in data row 2; ...
    """
    present = column.drop_nulls()
    if column.dtype != pl.String or present.is_empty():
        return
    cells = column.str.strip_chars()
    bad = cells.cast(pl.Float64, strict=False).is_null() & column.is_not_null()
    wrong = int(bad.sum())
    if 0 < wrong < len(present) and wrong <= max(1, (1 - MOSTLY) * len(present)) and len(present) > 2:
        row, value = _first(column, bad)
        advice = "correct it, or leave the cell empty if the value is missing"
        message = f"column {column.name!r} holds numbers but for {value!r} in data row {row}; {advice}"
        raise TableError(message)
    commas = cells.str.contains(_DECIMAL_COMMA)
    if int(commas.sum()) >= MOSTLY * len(present):
        row, value = _first(column, commas)
        message = (
            f"column {column.name!r} holds numbers with a comma, such as {value!r} in data row {row}; "
            "write them with a decimal point"
        )
        raise TableError(message)


def read_moments(column: pl.Series) -> pl.Series | None:
    """Read a column as moments in time, in UTC where a zone is given.

    Args:
        column: dates, date-times, or text of which at least 95% are ISO 8601 dates or date-times.

    Returns:
        Date-times, missing where a cell is missing or not a date; None if this is not a column of dates.

    Example:
        >>> read_moments(pl.Series("when", ["2024-02-29", "2024-03-01T12:00+02:00"])).to_list()
        [datetime.datetime(2024, 2, 29, 0, 0), datetime.datetime(2024, 3, 1, 10, 0)]
        >>> read_moments(pl.Series("when", ["2024-02-30", "soon"])) is None
        True
    """
    if isinstance(column.dtype, pl.Datetime):
        zoned = column.dtype.time_zone is not None
        local = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if zoned else column
        return local.cast(pl.Datetime("us"))
    if column.dtype == pl.Date:
        return column.cast(pl.Datetime("us"))
    if column.dtype != pl.String:
        return None
    moments = parse_moments(column)
    present = len(column) - column.null_count()
    return moments if moments.count() >= max(1, MOSTLY * present) else None


def parse_moments(column: pl.Series) -> pl.Series:
    """Parse ISO 8601 text, cell by cell; whatever is not a date or a date-time becomes missing."""
    parts = column.str.strip_chars().str.extract_groups(_ISO).struct.unnest()
    number = {
        name: pl.col(name).cast(pl.Float64).fill_null(0.0)
        for name in ("hour", "minute", "second", "off_hour", "off_minute")
    }
    clock = number["hour"] * 3600 + number["minute"] * 60 + number["second"]
    sign = pl.when(pl.col("sign") == "-").then(-1).otherwise(1)
    offset = sign * (number["off_hour"] * 3600 + number["off_minute"] * 60)
    midnight = pl.col("date").str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")).cast(pl.Int64)
    moment = midnight + ((clock - offset) * 1e6).round().cast(pl.Int64)
    return parts.select(moment.cast(pl.Datetime("us")).alias(column.name)).to_series()


def _first(column: pl.Series, mask: pl.Series) -> tuple[int, object]:
    position = int(mask.arg_true()[0])
    return position + 1, column[position]
