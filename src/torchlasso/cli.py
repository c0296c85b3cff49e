"""The command line: parse, call, print."""

import io
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import torch
import typer
from rich.console import Console
from torch import Tensor
from typer.exceptions import TyperException

from torchlasso.bench.inference import main as bench_inference
from torchlasso.bench.step import main as bench_step
from torchlasso.checkpoints import read_checkpoint
from torchlasso.errors import InputError, TorchlassoError
from torchlasso.export import export_model
from torchlasso.files import AnyPath, results_folder, write_files
from torchlasso.monitor.console import FitProgress, print_summary
from torchlasso.monitor.formats import clean
from torchlasso.penalties.base import check_strength, fraction_of_max
from torchlasso.sparsity import SparsityTable, count_zeros
from torchlasso.structure import PENALTIES
from torchlasso.tabular.compacting import compact_model_file
from torchlasso.tabular.data import bundled, read_table
from torchlasso.tabular.job import Request, fit_table
from torchlasso.tabular.outputs import (
    check_table_file,
    is_same_file,
    predict_command,
    table_bytes,
    write_fit,
)
from torchlasso.tabular.predictor import Predictor
from torchlasso.tabular.walking import walk_table

_INTERRUPTED = "interrupted; no file was left half-written"
_TYPER_INTERRUPTED = 130

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Sparse models with exact zeros, the strength chosen for you.",
)

bench = typer.Typer(no_args_is_help=True, help="Measure on this machine what the documentation claims.")
app.add_typer(bench, name="bench")

TableFile = Annotated[Path, typer.Argument(help="CSV, TSV, Parquet, Arrow, Feather or JSON lines.")]
Target = Annotated[str, typer.Option("--target", help="The column to predict.")]
Hidden = Annotated[
    str, typer.Option(help="Widths of the hidden layers, such as 64,32; 'none' for a linear model.")
]
PenaltyName = Annotated[
    str, typer.Option(help="What vanishes together: l1 (single weights), features or neurons.")
]
StrengthName = Annotated[
    str,
    typer.Option(
        help="A number, a fraction such as 0.1max of the one that zeros everything, or 'auto' to choose it "
        "on validation rows, or on folds with --cv."
    ),
]
TestName = Annotated[str, typer.Option(help="The share of the rows to test on, or another table.")]
Cv = Annotated[
    int | None, typer.Option(help="Choose the strength by so many folds instead of one validation split.")
]
OutFolder = Annotated[Path | None, typer.Option(help="Folder for the results; default torchlasso-<table>.")]
Seed = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Of the splits, the weights and the shuffling.")
]
ModelFile = Annotated[Path, typer.Argument(help="The model.safetensors of a fit.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, …")]


@app.command()
def fit(
    table: TableFile,
    target: Target,
    hidden: Hidden = "100",
    penalty: PenaltyName = "l1",
    strength: StrengthName = "auto",
    cv: Cv = None,
    test: TestName = "0.2",
    out: OutFolder = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Fit a sparse model to a table: scores, selected features, a report and a model file."""
    request = Request(
        target=target,
        source=str(table),
        hidden=_widths(hidden),
        penalty=_penalty(penalty),
        strength=_strength(strength),
        folds=cv,
        seed=seed,
        device=device,
    )
    frame = read_table(table)
    share = _share(test)
    if share is not None:
        request = replace(request, test=share)
    elif is_same_file(Path(test), table):
        msg = f"--test {test!r} is the table itself, and would score what was learnt by heart; give another"
        raise InputError(msg)
    else:
        texts = [name for name, dtype in frame.schema.items() if dtype == pl.String]
        request = replace(request, test=read_table(test, texts=texts), test_source=test)
    _run(frame, request, out or Path(f"torchlasso-{table.name.split('.')[0]}"), table)


@app.command()
def path(
    table: TableFile,
    target: Target,
    hidden: Hidden = "100",
    penalty: PenaltyName = "l1",
    cv: Cv = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Where the strengths go too: .csv, .parquet, …")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Walk the strengths from dense to sparse: losses, weights and features, on the rows of a fit."""
    if out is not None:
        check_table_file(out, table, "strengths")
    request = Request(
        target=target, hidden=_widths(hidden), penalty=_penalty(penalty), folds=cv, seed=seed, device=device
    )
    frame = read_table(table)
    with FitProgress() as progress:
        walk = walk_table(frame, request, progress)
    typer.echo(str(walk))
    if out is not None:
        write_files({out: table_bytes(walk.frame(), out)})
        typer.echo(f"wrote {len(walk.rows):,} strengths to {out}")


@app.command()
def demo(
    name: Annotated[str, typer.Argument(help="breast_cancer, digits, wine or diabetes.")] = "breast_cancer",
    hidden: Hidden = "100",
    penalty: PenaltyName = "l1",
    out: OutFolder = None,
    seed: Seed = 0,
) -> None:
    """Fit a sparse model to one of scikit-learn's own data sets."""
    frame, target = bundled(name)
    request = Request(
        target=target, source=name, hidden=_widths(hidden), penalty=_penalty(penalty), seed=seed
    )
    folder = out or Path(f"torchlasso-{name}")
    table = folder / f"{name}.csv"
    # Written with the results, so that the printed command to predict can be run as it is.
    _run(frame, request, folder, table, {table: table_bytes(frame, table)})


@app.command()
def predict(
    model: ModelFile,
    table: Annotated[Path, typer.Argument(help="A table with the columns of the training table.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Where the predictions go: .csv, .parquet, .jsonl, …")
    ],
) -> None:
    """Predict every row of a table, with probabilities and the original labels."""
    check_table_file(out, table)
    predictor = Predictor.load(model)
    predictions, notes = predictor.predict(read_table(table, texts=predictor.texts))
    write_files({out: table_bytes(predictions, out)})
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"wrote {predictions.height:,} predictions of {predictor.encoder.target!r} to {out}")


@app.command()
def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="A .safetensors or .pt file of anybody's.")],
) -> None:
    """Print the zeros of every tensor in a checkpoint; nothing in it is executed."""
    tensors = read_checkpoint(checkpoint)
    rows = (count_zeros(clean(name), _countable(tensor)) for name, tensor in tensors.items())
    typer.echo(str(SparsityTable(tuple(rows))))


@app.command()
def compact(
    model: ModelFile,
    out: Annotated[Path, typer.Option("-o", "--out", help="The smaller model.safetensors.")],
) -> None:
    """Take out of a model what changes no prediction: dead units, and columns that it does not use."""
    typer.echo(f"{compact_model_file(model, out)}\nwrote {out}")


@app.command()
def export(
    model: ModelFile,
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write.")],
    format: Annotated[
        str | None, typer.Option("--format", help="onnx, pt2 or safetensors; else by the name of the file.")
    ] = None,
) -> None:
    """Write a model for other programs, its preprocessing and labels included."""
    typer.echo(str(export_model(model, out, format=format)))


@bench.command()
def inference(
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes: that it runs, no result.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Of every measurement.")] = 25,
) -> None:
    """Time dense, sparse and compacted networks side by side, as Markdown tables."""
    bench_inference([*(["--quick"] if quick else []), "--repeats", str(repeats)])


@bench.command()
def step(
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes: that it runs, no result.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Of every measurement.")] = 25,
) -> None:
    """Time optimizer steps with and without a penalty, as Markdown tables of medians and ratios."""
    bench_step([*(["--quick"] if quick else []), "--repeats", str(repeats)])


def main() -> None:
    """Run the command line: one clear line and exit code 2 for whatever cannot be done."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a file name or a box that it cannot show is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    sys.exit(_guarded(lambda: app(standalone_mode=False)))


def _guarded(run: Callable[[], Any]) -> int:
    """Return the exit code of a command, its errors told in one line."""
    try:
        result = run()
    except TyperException as error:
        message = error.format_message()  # empty where no command was given and the help was shown
        return _fail(message) if message else 2
    except TorchlassoError as error:
        return _fail(str(error))
    except (MemoryError, torch.OutOfMemoryError):
        return _fail("not enough memory for this table; use fewer rows or columns")
    except (KeyboardInterrupt, typer.Abort):
        return _fail(_INTERRUPTED)
    # Typer answers Ctrl-C with the code 130 instead of the exception.
    return _fail(_INTERRUPTED) if result == _TYPER_INTERRUPTED else 0


def _fail(message: str) -> int:
    print("torchlasso: error:", " ".join(message.split()), file=sys.stderr)
    return 2


def _run(
    frame: pl.DataFrame,
    request: Request,
    out: Path,
    table: Path,
    extra: Mapping[AnyPath, bytes] | None = None,
) -> None:
    """Fit, print and write; the folder is tried first, so that no work is lost to a bad one."""
    command = predict_command(out, table)
    with results_folder(out) as folder:
        with FitProgress() as progress:
            result = fit_table(frame, request, progress)
        write_fit(result, folder, command, extra or {})
    print_summary(result.metrics, result.path, Console(highlight=False))
    typer.echo(f"\nReport:  {folder / 'report.html'}\nPredict: {command}")


def _countable(tensor: Tensor) -> Tensor:
    """Return a tensor of a type that has magnitudes: torch knows none of booleans, say, or of float8."""
    return tensor if tensor.is_complex() or tensor.dtype == torch.float64 else tensor.float()


def _strength(strength: str) -> float | str | None:
    if strength == "auto":
        return None
    if fraction_of_max(strength) is not None:
        return strength
    try:
        number = float(strength)
    except ValueError:
        msg = f"--strength must be 'auto', a number or a fraction such as 0.1max, got {strength!r}"
        raise InputError(msg) from None
    return check_strength(number, "--strength")


def _share(test: str) -> float | None:
    try:
        return float(test)
    except ValueError:
        return None


def _widths(hidden: str) -> tuple[int, ...]:
    if hidden.strip().lower() == "none":
        return ()
    try:
        widths = tuple(int(width) for width in hidden.split(","))
    except ValueError:
        widths = (0,)
    if not all(0 < width <= 100_000 for width in widths):
        msg = f"--hidden must be widths such as 64,32 (1 to 100,000 each) or 'none', got {hidden!r}"
        raise InputError(msg)
    return widths


def _penalty(name: str) -> str:
    if name not in PENALTIES:
        msg = f"--penalty must be one of {', '.join(PENALTIES)}, got {name!r}"
        raise InputError(msg)
    return name
