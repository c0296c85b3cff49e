"""Where the results of a fit go: the folder of a fit, and tables of predictions."""

import csv
import io
import json
import shlex
from pathlib import Path

import polars as pl

from torchlasso.errors import InputError, OutputError
from torchlasso.files import output_folder, write_bytes, write_text
from torchlasso.monitor.report import render_report
from torchlasso.tabular import TableFit

MODEL = "model.safetensors"
_PATH_COLUMNS = ("strength", "train_loss", "valid_loss", "valid_se", "nonzero", "features", "best", "chosen")


def predict_command(folder: Path, table: Path) -> str:
    """Return the command that predicts with the model in a folder.

    Args:
        folder: where the model is.
        table: the table to name in the command.
    """
    return shlex.join(["torchlasso", "predict", str(folder / MODEL), str(table), "-o", "predictions.csv"])


def write_fit(fit: TableFit, folder: Path, command: str) -> None:
    """Write the model, the report, the metrics and the path, each file whole or not at all.

    Args:
        fit: what was learnt.
        folder: an existing folder.
        command: how to predict, for the report.

    Raises:
        OutputError: a file cannot be written.
    """
    report = render_report(fit.metrics, fit.path, command)
    metrics = json.dumps(fit.metrics, indent=2, ensure_ascii=False, allow_nan=False)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _PATH_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(fit.path)
    fit.predictor.save(output_folder(folder) / MODEL)
    write_text(folder / "metrics.json", metrics + "\n")
    write_text(folder / "path.csv", buffer.getvalue())
    write_text(folder / "report.html", report)


def check_prediction_file(path: Path) -> None:
    """Raise if predictions cannot go to this file, before any work is done.

    Args:
        path: the file.

    Raises:
        InputError: the ending is not one that can be written.
        OutputError: its folder does not exist, or it is a folder.
    """
    if path.suffix.lower() not in (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson"):
        msg = f"predictions go to .csv, .tsv, .parquet, .jsonl or .ndjson, got {path.name!r}"
        raise InputError(msg)
    if path.is_dir() or not path.parent.is_dir():
        what = "it is a folder" if path.is_dir() else f"the folder {str(path.parent)!r} does not exist"
        msg = f"cannot write {str(path)!r}: {what}"
        raise OutputError(msg)


def write_table(frame: pl.DataFrame, path: Path) -> None:
    """Write a table in the format of the file's ending, whole or not at all.

    Args:
        frame: any table.
        path: the file.

    Raises:
        OutputError: it cannot be written.
    """
    buffer = io.BytesIO()
    kind = path.suffix.lower()
    if kind == ".parquet":
        frame.write_parquet(buffer)
    elif kind in (".jsonl", ".ndjson"):
        frame.write_ndjson(buffer)
    else:
        frame.write_csv(buffer, separator="\t" if kind == ".tsv" else ",")
    write_bytes(path, buffer.getvalue())
