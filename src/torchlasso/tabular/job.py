"""The main job: from a table of data to a sparse model, an honest score and everything worth reporting."""

import math
import time
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchlasso.devices import resolve_device
from torchlasso.errors import InputError, TableError
from torchlasso.estimators_rows import Rows
from torchlasso.fit.fitter import Fit
from torchlasso.fit.run import fit_mlp
from torchlasso.fit.settings import Progress, Settings
from torchlasso.tabular.cells import IntArray, listing, plain
from torchlasso.tabular.encoding import Encoder
from torchlasso.tabular.folding import fit_folds
from torchlasso.tabular.predictor import Predictor
from torchlasso.tabular.scoring import Part, Scorer
from torchlasso.tabular.summary import path_rows, summarise
from torchlasso.tabular.targets import UsableRows, split_rows, usable_rows
from torchlasso.tasks import Task

MAX_WEIGHTS = 20_000_000
"""The largest network that is fitted to a table."""

_VALID_SHARE = 0.25  # of the rows that are not for testing
_ROLES = ("train", "valid", "test")


@dataclass(frozen=True)
class Request:
    """What is asked of a fit to a table.

    Attributes:
        target: the column to predict.
        source: how to call the table.
        hidden: widths of the hidden layers; none for a linear model.
        penalty: ``"l1"``, ``"features"`` or ``"neurons"``.
        strength: λ, a fraction such as ``"0.1max"``, or None to choose it.
        folds: choose it by so many folds of the rows that are not for testing; None for one validation split.
        test: the share of the rows to test on, or another table.
        test_source: how to call that table.
        seed: of the splits, the weights and the shuffling.
        device: where to train.
    """

    target: str
    source: str = "table"
    hidden: tuple[int, ...] = (100,)
    penalty: str = "l1"
    strength: float | str | None = None
    folds: int | None = None
    test: float | pl.DataFrame = 0.2
    test_source: str = "test table"
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True, eq=False)
class TableFit:
    """What a fit to a table learnt.

    Attributes:
        predictor: the sparse model with its encoding.
        metrics: everything worth reporting, in JSON types.
        path: the strengths tried, dense to sparse, one dict each; empty for a given strength.
    """

    predictor: Predictor
    metrics: dict[str, Any]
    path: list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A table as numbers, and how a model is to be fitted to it.

    Attributes:
        encoder: learnt from the training rows.
        task: the loss.
        settings: the shape and the penalty.
        parts: ``"train"`` and ``"test"``, and ``"valid"`` where one split chooses the strength.
        test_frame: the table to test on, if it is another.
        notes: readable lines on what was inferred and what was left out.
    """

    encoder: Encoder
    task: Task
    settings: Settings
    parts: dict[str, Part]
    test_frame: pl.DataFrame | None
    notes: tuple[str, ...]

    def tensors(self, part: str) -> tuple[Tensor, Tensor]:
        """Return the inputs and the target of a part.

        Args:
            part: its name.
        """
        inputs, target = self.parts[part]
        return torch.from_numpy(inputs), torch.from_numpy(target)


@dataclass(frozen=True)
class _Rows:
    """Which rows are for what; the test rows are those of the table itself if there is no test table."""

    fitted: IntArray
    valid: IntArray
    test: IntArray
    test_frame: pl.DataFrame | None
    notes: tuple[str, ...]


def fit_table(frame: pl.DataFrame, request: Request, progress: Progress | None = None) -> TableFit:
    """Fit a sparse model to a table, and the unregularised one of the same shape beside it.

    Args:
        frame: the table.
        request: what to do with it.
        progress: whom to tell.

    Raises:
        TableError: nothing can be learnt from the table.
        InputError: the request cannot be met.
    """
    started = time.perf_counter()
    prepared = prepare(frame, request)
    encoder, task = prepared.encoder, prepared.task
    fit = _fit(prepared, request.folds, progress)
    if not all(bool(weights.isfinite().all()) for weights in fit.module.parameters()):
        msg = "the training diverged to infinite weights; look for extreme values in the table"
        raise TableError(msg)

    train = prepared.tensors("train")
    scorer = Scorer(encoder, prepared.parts)
    metrics: dict[str, Any] = {"torchlasso": version("torchlasso")}
    metrics |= summarise(fit, encoder, task, train, seed=request.seed)
    metrics["table"] = {
        "source": request.source,
        "rows": frame.height,
        "columns": frame.width,
        "target": request.target,
        "task": encoder.task,
        "classes": [str(label) for label in encoder.classes] or None,
        "notes": list(prepared.notes),
    }
    metrics["split"] = _roles(prepared, request)
    if request.folds is not None:
        metrics["strength"]["chosen_by"] = f"{request.folds}-fold cross-validation, {fit.chosen_by}"
    metrics["model"] |= {"hidden": list(request.hidden), "penalty": request.penalty}
    metrics["scores"] = {
        "sparse": scorer.scores(fit.module),
        "dense": scorer.scores(fit.dense),
        "difference_se": scorer.difference_se(fit.module, fit.dense),
    }
    metrics["metric"] = scorer.metric
    metrics["seconds"] = round(time.perf_counter() - started, 2)
    return TableFit(Predictor(encoder, fit.module), _finite(metrics), path_rows(fit.path, fit.chosen))


def prepare(frame: pl.DataFrame, request: Request) -> Prepared:
    """Split a table into rows for training, choosing and testing, and bring them to numbers.

    Args:
        frame: the table.
        request: what to do with it.

    Raises:
        TableError: nothing can be learnt from the table.
        InputError: the request cannot be met.
    """
    if request.folds is not None and request.strength is not None:
        msg = f"folds (--cv) choose the strength, but --strength {request.strength} is given; leave one out"
        raise InputError(msg)
    device = resolve_device(request.device)
    usable = usable_rows(frame, request.target)
    rows = _split(frame, usable, request)
    encoder = Encoder.fit(frame, request.target, usable.task, rows=rows.fitted)
    _check_size(len(encoder.column_names), request.hidden)
    parts, unseen = _encode(encoder, frame, rows)
    settings = Settings(
        request.hidden,
        request.penalty,
        request.strength,
        groups=tuple(map(tuple, encoder.groups)) if request.penalty == "features" else None,
        seed=request.seed,
        device=device,
    )
    task = _task(encoder, parts["train"][1], request.hidden)
    notes = (*usable.notes, *encoder.notes, *rows.notes, *unseen)
    return Prepared(encoder, task, settings, parts, rows.test_frame, notes)


def _fit(prepared: Prepared, folds: int | None, progress: Progress | None) -> Fit:
    task, settings = prepared.task, prepared.settings
    if folds is not None:
        return fit_folds(Rows(*prepared.parts["train"]), task, settings, folds, progress)
    valid = prepared.tensors("valid") if "valid" in prepared.parts else None
    return fit_mlp(prepared.tensors("train"), valid, task, settings, progress)


def _roles(prepared: Prepared, request: Request) -> dict[str, Any]:
    """Return how many rows were for what."""
    counts = {name: len(prepared.parts[name][1]) if name in prepared.parts else 0 for name in _ROLES}
    shared = prepared.test_frame is None
    source = f"{request.test:.0%} of the rows" if shared else request.test_source
    folds = {} if request.folds is None else {"folds": request.folds}
    return counts | folds | {"seed": request.seed, "test_source": source}


def _split(frame: pl.DataFrame, usable: UsableRows, request: Request) -> _Rows:
    """Decide which rows train, which choose the strength and which test; each row has one role."""
    labels = frame[request.target]

    def split(rows: IntArray, fraction: float) -> tuple[IntArray, IntArray]:
        first, second = split_rows(labels[rows], usable.task, fraction=fraction, seed=request.seed)
        return rows[first], rows[second]

    rest, test_frame, notes = usable.rows, None, tuple[str, ...]()
    if isinstance(request.test, pl.DataFrame):
        test_frame = request.test
        test, notes = _test_rows(test_frame, request.target)
    elif 0 < request.test < 1:
        rest, test = split(rest, request.test)
    else:
        msg = f"the share of test rows must be between 0 and 1, got {request.test}"
        raise InputError(msg)
    if request.strength is not None or request.folds is not None:  # no row chooses and does nothing else
        return _Rows(rest, rest[:0], test, test_frame, notes)
    return _Rows(*split(rest, _VALID_SHARE), test, test_frame, notes)


def _test_rows(frame: pl.DataFrame, target: str) -> tuple[IntArray, tuple[str, ...]]:
    """Return the positions of the rows of a test table that have a target, and a note on the others."""
    if target not in frame.columns:
        msg = f"the test table has no column {target!r}; it has {listing(frame.columns)}"
        raise TableError(msg)
    found = plain(frame[target]).is_not_null().arg_true().to_numpy().astype(np.int64)
    if not len(found):
        msg = f"no row of the test table has a value in {target!r}, so nothing can be scored"
        raise TableError(msg)
    left_out = frame.height - len(found)
    note = f"left out {left_out} of {frame.height} rows of the test table, whose target {target!r} is missing"
    return found, (note,) if left_out else ()


def _encode(encoder: Encoder, frame: pl.DataFrame, rows: _Rows) -> tuple[dict[str, Part], list[str]]:
    """Return the rows of each part as numbers, and notes on what a test table has that training had not."""
    matrix, target = encoder.encode(frame).matrix, _target(encoder, frame)
    parts: dict[str, Part] = {"train": (matrix[rows.fitted], target[rows.fitted])}
    if len(rows.valid):
        parts["valid"] = matrix[rows.valid], target[rows.valid]
    if rows.test_frame is None:
        return parts | {"test": (matrix[rows.test], target[rows.test])}, []
    try:
        tested = encoder.encode(rows.test_frame)
        answers = _target(encoder, rows.test_frame)
    except TableError as error:
        msg = f"test table: {error}"
        raise TableError(msg) from None
    parts["test"] = tested.matrix[rows.test], answers[rows.test]
    return parts, [f"test table: {note}" for note in tested.notes]


def _target(encoder: Encoder, frame: pl.DataFrame) -> NDArray[Any]:
    """Return the target of every row of the table; where it is missing, some other row's."""
    column = plain(frame[encoder.target])
    return encoder.encode_target(column.fill_null(column.drop_nulls()[0]))


def _check_size(inputs: int, hidden: tuple[int, ...]) -> None:
    """Raise if the network would take gigabytes: a path keeps the weights of every point."""
    weights = sum(math.prod(pair) for pair in pairwise((inputs, *hidden, 1)))
    if weights > MAX_WEIGHTS:
        msg = (
            f"{inputs:,} inputs and hidden layers of {', '.join(map(str, hidden))} make {weights:,} weights, "
        )
        msg += f"more than the limit of {MAX_WEIGHTS:,}; use narrower layers"
        raise InputError(msg)


def _task(encoder: Encoder, target: NDArray[Any], hidden: tuple[int, ...]) -> Task:
    if encoder.task == "regression":
        return Task("regression", unit=float(target.std()) or 1.0) if hidden else Task("regression")
    return Task("binary") if len(encoder.classes) == 2 else Task("multiclass", len(encoder.classes))


def _finite(value: Any) -> Any:
    """Return JSON-like data with None for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
