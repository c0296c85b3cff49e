"""Where the results of a fit go: the folder of a fit, and tables of predictions."""

import csv
import io
import json
import shlex
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from torchlasso.errors import InputError, OutputError
from torchlasso.files import AnyPath, text_bytes, write_files
from torchlasso.monitor.report import render_report
from torchlasso.tabular.job import TableFit

MODEL = "model.safetensors"
_TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson")
_PATH_COLUMNS = ("strength", "train_loss", "valid_loss", "valid_se", "nonzero", "features", "best", "chosen")


def predict_command(folder: Path, table: Path) -> str:
    """Return the command that predicts with the model in a folder.

    Args:
        folder: where the model is.
        table: the table to name in the command.
    """
    return shlex.join(["torchlasso", "predict", str(folder / MODEL), str(table), "-o", "predictions.csv"])


def write_fit(fit: TableFit, folder: Path, command: str, extra: Mapping[AnyPath, bytes]) -> None:
    """Write the model, the report, the metrics and the path, each file whole or not at all.

    Args:
        fit: what was learnt.
        folder: an existing folder.
        command: how to predict, for the report.
        extra: more files to write along with them.

    Raises:
        OutputError: a file cannot be written; then none is.
    """
    metrics = json.dumps(fit.metrics, indent=2, ensure_ascii=False, allow_nan=False)
    path = io.StringIO()
    writer = csv.DictWriter(path, _PATH_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(fit.path)
    write_files(
        {
            **extra,
            folder / MODEL: fit.predictor.to_bytes(),
            folder / "metrics.json": text_bytes(metrics + "\n"),
            folder / "path.csv": text_bytes(path.getvalue()),
            folder / "report.html": text_bytes(render_report(fit.metrics, fit.path, command)),
        }
    )


def check_table_file(path: Path, table: Path, what: str = "predictions") -> None:
    """Raise if a table of results cannot go to this file, before any work is done.

    Args:
        path: the file.
        table: the table that is read, which must stay as it is.
        what: how a message calls the results, in the plural.

    Raises:
        InputError: the ending is not one that can be written, or it is the table itself.
        OutputError: its folder does not exist, or it is a folder.
    """
    if path.suffix.lower() not in _TABLE_SUFFIXES:
        msg = f"{what} go to {', '.join(_TABLE_SUFFIXES)}, got {path.name!r}"
        raise InputError(msg)
    if path.is_dir() or not path.parent.is_dir():
        what = "it is a folder" if path.is_dir() else f"the folder {str(path.parent)!r} does not exist"
        msg = f"cannot write {str(path)!r}: {what}"
        raise OutputError(msg)
    if is_same_file(path, table):
        msg = f"the {what} would replace their own table {str(table)!r}; give another file"
        raise InputError(msg)


def is_same_file(one: Path, other: Path) -> bool:
    """Tell whether two paths lead to one existing file.

    Args:
        one: a path.
        other: another.
    """
    try:
        return one.samefile(other)
    except OSError:
        return False


def table_bytes(frame: pl.DataFrame, path: Path) -> bytes:
    r"""Return a table in the format of a file's ending.

    Args:
        frame: any table.
        path: the file that it is for.

    Example:
        >>> table_bytes(pl.DataFrame({"x": [1]}), Path("t.csv"))
        b'x\n1\n'
    """
    buffer = io.BytesIO()
    kind = path.suffix.lower()
    if kind == ".parquet":
        frame.write_parquet(buffer)
    elif kind in (".jsonl", ".ndjson"):
        frame.write_ndjson(buffer)
    else:
        frame.write_csv(buffer, separator="\t" if kind == ".tsv" else ",")
    return buffer.getvalue()
