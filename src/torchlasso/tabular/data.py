"""Reads a table from a file of any common format, or refuses it in one clear line; and the bundled sets."""

import bz2
import gzip
import importlib
import io
import json
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn, cast

import numpy as np
import polars as pl
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine

from torchlasso.errors import InputError, TableError
from torchlasso.tabular.delimited import read_delimited

MAX_BYTES = 512 * 2**20
"""The most that is read: of the file, of what it unpacks to, of a columnar table at 8 bytes a value."""

_CHUNK = 2**20
_Parser = Callable[[io.BytesIO, str, Collection[str]], pl.DataFrame]
_Opener = Callable[[Path], IO[bytes]]


def read_table(path: str | os.PathLike[str], *, texts: Collection[str] = ()) -> pl.DataFrame:
    r"""Read the table in a file; the format is decided by the suffix.

    Comma- and tab-separated text (``.csv``, ``.tsv``, ``.tab``) and JSON (``.jsonl``, ``.ndjson``, ``.json``:
    an object a line, or one list of objects) may be packed (``.gz``, ``.bz2``, ``.xz``, and ``.zst`` from
    Python 3.14 on); Parquet (``.parquet``, ``.pq``) and Arrow files (``.arrow``, ``.feather``, ``.ipc``) pack
    themselves.

    Args:
        path: The file.
        texts: Columns that stay text, even where every cell of a file without types is a number.

    Returns:
        A table of at least one row and one column, with distinct column names.

    Raises:
        TableError: If the file is absent, unreadable, empty, too large, corrupt or of an unknown format; the
            message is one line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "people.csv")
        ...     _ = file.write_text("age,job\n31,cook\nNA,smith\n")
        ...     read_table(file).rows()
        [(31, 'cook'), (None, 'smith')]
    """
    file = Path(path)
    shown = repr(str(file))
    parse, unpack = _format(file, shown)
    buffer = _content(file, shown, unpack)
    if not buffer.getbuffer().nbytes:
        message = f"{shown} is empty: expected a table with a row of column names and rows of values"
        raise TableError(message)
    frame = parse(buffer, shown, texts)
    if not frame.width or not frame.height:
        found = f"{frame.width} column names but no rows" if frame.width else "no columns"
        message = f"{shown} has {found}: expected at least one row of values"
        raise TableError(message)
    return frame


def _format(file: Path, shown: str) -> tuple[_Parser, _Opener]:
    suffix = file.suffix.lower()
    if suffix in _PACKINGS:
        inner = Path(file.stem).suffix.lower()
        if inner in _TEXT_FORMATS:
            return _TEXT_FORMATS[inner], _PACKINGS[suffix]
    elif suffix in _TEXT_FORMATS:
        return _TEXT_FORMATS[suffix], _open
    elif suffix in _COLUMNAR_FORMATS:
        return _COLUMNAR_FORMATS[suffix], _open
    message = (
        f"{shown} has no suffix of a known table format: expected {', '.join(_TEXT_FORMATS)} "
        f"(each may be followed by {', '.join(_PACKINGS)}), {', '.join(_COLUMNAR_FORMATS)}"
    )
    raise TableError(message)


def _content(file: Path, shown: str, unpack: _Opener) -> io.BytesIO:
    """Unpack the bytes, and stop as soon as the limit is passed, whatever the file claims."""
    try:
        _require_small_file(file, shown)
        buffer = io.BytesIO()
        with unpack(file) as stream:
            while chunk := stream.read(_CHUNK):
                buffer.write(chunk)
                if buffer.tell() > MAX_BYTES:
                    size = f"{_mebibytes(file.stat().st_size)} unpacks to more"
                    message = (
                        f"{shown} of {size} than the limit of {_mebibytes(MAX_BYTES)}; use a smaller table"
                    )
                    raise TableError(message)
    except TableError:
        raise
    except FileNotFoundError:
        reason = "does not exist; check the path"
    except PermissionError:
        reason = "may not be read by this user; check its permissions"
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        reason = f"is not a whole {file.suffix.lower()} file ({_first_line(error)})"
    except (OSError, ValueError) as error:
        reason = f"cannot be read ({_first_line(error)})"
    else:
        buffer.seek(0)
        return buffer
    message = f"{shown} {reason}"
    raise TableError(message) from None


def _require_small_file(file: Path, shown: str) -> None:
    info = file.stat()
    if not stat.S_ISREG(info.st_mode):
        what = "a directory" if stat.S_ISDIR(info.st_mode) else "not a regular file"
        message = f"{shown} is {what}: expected a file that holds one table"
        raise TableError(message)
    if info.st_size > MAX_BYTES:
        sizes = f"has {_mebibytes(info.st_size)}, more than the limit of {_mebibytes(MAX_BYTES)}"
        message = f"{shown} {sizes}; use a smaller table"
        raise TableError(message)


def _open(file: Path) -> IO[bytes]:
    return file.open("rb")


def _open_gzip(file: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(file))


def _open_zstd(file: Path) -> IO[bytes]:
    try:
        zstd: Any = importlib.import_module("compression.zstd")
    except ImportError:
        message = (
            f"{str(file)!r} is packed with zstd, which needs Python 3.14; unpack it or pack it with gzip"
        )
        raise TableError(message) from None
    stream: IO[bytes] = zstd.open(file)
    return stream


def _json(buffer: io.BytesIO, shown: str, _texts: Collection[str]) -> pl.DataFrame:
    content = buffer.getvalue().removeprefix(b"\xef\xbb\xbf").lstrip()
    # Polars unpacks compressed bytes by itself, without a limit: only what starts as JSON goes on.
    if not content.startswith((b"{", b"[")):
        message = f"{shown} is not JSON: expected an object a line, or one list of objects"
        raise TableError(message)
    try:
        if content.startswith(b"["):
            return pl.read_json(io.BytesIO(content), infer_schema_length=None)
        return pl.read_ndjson(io.BytesIO(content), infer_schema_length=None)
    except (Exception, pl.exceptions.PanicException) as error:
        message = f"{shown} cannot be read as JSON: {_json_fault(content) or _first_line(error)}"
        raise TableError(message) from None


def _json_fault(content: bytes) -> str | None:
    """Name the line that is no JSON object; polars itself only counts characters."""
    if content.startswith(b"["):
        return None
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            found = json.loads(line, parse_constant=_refuse_constant) if line.strip() else {}
        except (ValueError, RecursionError) as error:
            return f"line {number} is not JSON ({_first_line(error)}); expected an object a line"
        if not isinstance(found, dict):
            return f"line {number} holds a {type(found).__name__}; expected an object a line"
    return None


def _refuse_constant(constant: str) -> NoReturn:
    message = f"{constant} is not JSON, write null"
    raise ValueError(message)


def _columnar(
    buffer: io.BytesIO,
    shown: str,
    _texts: Collection[str],
    *,
    scan: Callable[[IO[bytes]], pl.LazyFrame],
    what: str,
) -> pl.DataFrame:
    """Read Parquet or Arrow after a look at its shape: a few bytes can stand for billions of values."""
    try:
        lazy = scan(buffer)
        values = lazy.select(pl.len()).collect().item() * len(lazy.collect_schema())
        if 8 * values > MAX_BYTES:
            size = f"holds {values:,} values, {_mebibytes(8 * values)} in memory"
            message = f"{shown} {size}, more than the limit of {_mebibytes(MAX_BYTES)}; use a smaller table"
            raise TableError(message)
        return lazy.collect()
    except TableError:
        raise
    except (Exception, pl.exceptions.PanicException) as error:
        message = f"{shown} is not a whole {what} file ({_first_line(error)}); write it again"
        raise TableError(message) from None


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _first_line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).strip().splitlines()[0][:200]


_tabs = partial(read_delimited, separator="\t")
_parquet = partial(_columnar, scan=pl.scan_parquet, what="Parquet")
_arrow = partial(_columnar, scan=pl.scan_ipc, what="Arrow IPC")
_TEXT_FORMATS: dict[str, _Parser] = {
    ".csv": read_delimited,
    ".tsv": _tabs,
    ".tab": _tabs,
    ".jsonl": _json,
    ".ndjson": _json,
    ".json": _json,
}
_COLUMNAR_FORMATS: dict[str, _Parser] = {
    ".parquet": _parquet,
    ".pq": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,
    ".ipc": _arrow,
}
_PACKINGS: dict[str, _Opener] = {
    ".gz": _open_gzip,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
}


def bundled(name: str) -> tuple[pl.DataFrame, str]:
    """Load one of scikit-learn's real data sets as a table with readable names; nothing is downloaded.

    Args:
        name: ``breast_cancer``, ``digits``, ``wine`` (classification) or ``diabetes`` (regression).

    Returns:
        The table, the target in its last column, and the name of that column.

    Raises:
        InputError: If there is no such data set.

    Example:
        >>> frame, target = bundled("breast_cancer")
        >>> frame.shape, target, sorted(frame[target].unique())
        ((569, 31), 'diagnosis', ['benign', 'malignant'])
    """
    if name not in _BUNDLED:
        message = f"no bundled data set is called {name!r}: expected one of {', '.join(_BUNDLED)}"
        raise InputError(message)
    load, target, labels, readable = _BUNDLED[name]
    data = load()
    columns = {readable.get(str(old), str(old)): data.data[:, i] for i, old in enumerate(data.feature_names)}
    values = np.asarray(labels)[data.target] if labels else data.target
    return pl.DataFrame({**columns, target: values}), target


_DIABETES_NAMES = {
    "bp": "blood_pressure",
    "s1": "total_cholesterol",
    "s2": "ldl",
    "s3": "hdl",
    "s4": "cholesterol_ratio",
    "s5": "log_triglycerides",
    "s6": "glucose",
}
_BUNDLED: dict[str, tuple[Callable[[], Any], str, tuple[str, ...], dict[str, str]]] = {
    "breast_cancer": (load_breast_cancer, "diagnosis", ("malignant", "benign"), {}),
    "digits": (load_digits, "digit", (), {}),
    "wine": (load_wine, "cultivar", ("cultivar 1", "cultivar 2", "cultivar 3"), {}),
    "diabetes": (partial(load_diabetes, scaled=False), "progression", (), _DIABETES_NAMES),
}
