"""Reads comma-, tab-, semicolon- or bar-separated text, and says which line is wrong when one is.

The standard library's reader splits the rows, because only a reader that counts lines can name the bad one;
the columns are built in blocks and typed by polars from every row, so that a late value cannot surprise.
"""

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterator

import polars as pl

from torchlasso.errors import TableError

MISSING_MARKERS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?")
"""Cells of a text table that mean "no value here", after blanks around them are removed."""

_SNIFFED = (";", "\t", "|")
_BLOCK_ROWS = 20_000
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_delimited(
    buffer: io.BytesIO, shown: str, texts: Collection[str] = (), *, separator: str | None = None
) -> pl.DataFrame:
    r"""Parse separated text whose first line names the columns.

    Blanks around a cell are removed, blank lines are skipped, and a column without a name is called
    ``unnamed_`` and its position. A column is whole numbers, numbers or true/false only if every cell is.

    Args:
        buffer: The bytes of the file, UTF-8 with or without a byte-order mark.
        shown: How messages call the file.
        texts: Columns that stay text even where every cell is a number.
        separator: The character between cells; None takes the comma, or where the header has none the most
            frequent of semicolon, tab and bar.

    Returns:
        The table; it may have no rows.

    Raises:
        TableError: If the bytes are not UTF-8 text, a row is longer or shorter than the header, a quote is
            never closed, or two columns share a name.

    Example:
        >>> read_delimited(io.BytesIO(b"age;job\n31;cook\n?; smith\n"), "people.csv").rows()
        [(31, 'cook'), (None, 'smith')]
    """
    separator = separator or _sniff(buffer, shown)
    buffer.seek(0)
    rows = _rows(buffer, shown, separator)
    header = next(rows, None)
    if header is None:
        message = f"{shown} is empty: expected a line of column names and a line for each row"
        raise TableError(message)
    names = _names(header, shown)
    blocks = [pl.DataFrame({name: [] for name in names}, schema=dict.fromkeys(names, pl.String))]
    block: list[list[str]] = []
    for row in rows:
        block.append(row)
        if len(block) == _BLOCK_ROWS:
            blocks.append(_block(names, block))
            block = []
    if block:
        blocks.append(_block(names, block))
    table = pl.concat(blocks)
    return pl.DataFrame([_typed(column, text=column.name in texts) for column in table.get_columns()])


def _block(names: list[str], rows: list[list[str]]) -> pl.DataFrame:
    columns = zip(names, zip(*rows, strict=True), strict=True)
    return pl.DataFrame([pl.Series(name, cells, dtype=pl.String) for name, cells in columns])


def _lines(buffer: io.BytesIO, shown: str) -> Iterator[str]:
    """Decode line by line, which is what lets the message name the line."""
    for number, raw in enumerate(buffer, start=1):
        if number == 1 and raw.startswith(_UTF16):
            message = f"{shown} is UTF-16 text: expected UTF-8; save it again as UTF-8"
            raise TableError(message)
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            byte = raw[error.start]
            message = (
                f"{shown}: line {number} is not UTF-8 text (byte 0x{byte:02x}); save the file again as UTF-8"
            )
            raise TableError(message) from None
        if "\0" in line:
            message = f"{shown}: line {number} holds a zero byte: this is not a text table"
            raise TableError(message)
        yield line


def _sniff(buffer: io.BytesIO, shown: str) -> str:
    header = next((line for line in _lines(buffer, shown) if line.strip()), "")
    counts = Counter(header)
    if counts[","]:
        return ","
    best = max(_SNIFFED, key=lambda separator: counts[separator])
    return best if counts[best] else ","


def _rows(buffer: io.BytesIO, shown: str, separator: str) -> Iterator[list[str]]:
    """Yield the header and the rows, blank lines left out, each as wide as the header."""
    reader = csv.reader(_lines(buffer, shown), delimiter=separator, skipinitialspace=True, strict=True)
    width = 0
    while True:
        start = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            reason = f"cannot be split into cells ({error}); check its quotes"
            message = f"{shown}: the row that starts on line {start} {reason}"
            raise TableError(message) from None
        if row is None:
            return
        if not row or (len(row) == 1 and width != 1 and not row[0].strip()):
            continue
        width = width or len(row)
        if len(row) != width:
            found = "1 cell" if len(row) == 1 else f"{len(row)} cells"
            message = f"{shown}: line {start} has {found} where the header has {width}; mend that line"
            raise TableError(message)
        yield row


def _names(header: list[str], shown: str) -> list[str]:
    names = [name.strip() or f"unnamed_{position}" for position, name in enumerate(header, start=1)]
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        message = f"{shown}: {count} columns are called {name!r}; give every column its own name"
        raise TableError(message)
    return names


def _typed(cells: pl.Series, *, text: bool) -> pl.Series:
    """Take the narrowest of int, float, bool and text that holds every cell, or leave it ``text``."""
    stripped = cells.str.strip_chars()
    found = stripped.set(stripped.is_in(MISSING_MARKERS), None)
    missing = found.null_count()
    if text or missing == len(found):
        return found
    for dtype in (pl.Int64(), pl.Float64()):
        numbers = found.cast(dtype, strict=False)
        if numbers.null_count() == missing:
            return numbers
    lowered = found.str.to_lowercase()
    if lowered.drop_nulls().is_in(("true", "false")).all():
        return lowered == "true"
    return found
