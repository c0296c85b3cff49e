"""The main job: from a table of data to a sparse model, an honest score and everything worth reporting."""

import math
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from torchlasso.devices import resolve_device
from torchlasso.encoding import Encoder
from torchlasso.errors import InputError
from torchlasso.fit.run import fit_mlp
from torchlasso.fit.settings import Progress, Settings
from torchlasso.predictor import Predictor
from torchlasso.scoring import Scorer
from torchlasso.summary import path_rows, summarise
from torchlasso.targets import UsableRows, split_rows, usable_rows
from torchlasso.tasks import Task

_VALID_SHARE = 0.25  # of the rows that are not for testing


@dataclass(frozen=True)
class Request:
    """What is asked of a fit to a table.

    Attributes:
        target: the column to predict.
        source: how to call the table.
        hidden: widths of the hidden layers; none for a linear model.
        penalty: ``"l1"``, ``"features"`` or ``"neurons"``.
        strength: λ, or None to choose it.
        test: the share of the rows to test on, or another table.
        test_source: how to call that table.
        seed: of the splits, the weights and the shuffling.
        device: where to train.
    """

    target: str
    source: str = "table"
    hidden: tuple[int, ...] = (100,)
    penalty: str = "l1"
    strength: float | None = None
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


@dataclass(frozen=True)
class _Rows:
    """Which rows of which table are for what."""

    train: NDArray[np.intp]
    valid: NDArray[np.intp]
    test: NDArray[np.intp]
    test_frame: pl.DataFrame
    notes: tuple[str, ...] = field(default=())


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
    device = resolve_device(request.device)
    usable = usable_rows(frame, request.target)
    rows = _split(frame, usable, request)
    fitted_on = rows.train if request.strength is None else np.sort(np.concatenate([rows.train, rows.valid]))
    encoder = Encoder.fit(frame, request.target, usable.task, rows=fitted_on)
    matrix, target = encoder.encode(frame).matrix, _target(encoder, frame, usable)
    inputs, answers = torch.tensor(matrix), torch.tensor(target)
    task = _task(encoder, target[fitted_on], request.hidden)
    settings = Settings(
        request.hidden,
        request.penalty,
        request.strength,
        groups=tuple(map(tuple, encoder.groups)) if request.penalty == "features" else None,
        seed=request.seed,
        device=device,
    )
    valid = None if request.strength is not None else (inputs[rows.valid], answers[rows.valid])
    fit = fit_mlp((inputs[fitted_on], answers[fitted_on]), valid, task, settings, progress)

    tested = encoder.encode(rows.test_frame[rows.test])
    test = (tested.matrix, encoder.encode_target(rows.test_frame[rows.test]))
    scorer = Scorer(encoder, {"train": (matrix[fitted_on], target[fitted_on]), "test": test})
    if request.strength is None:
        scorer.parts["valid"] = (matrix[rows.valid], target[rows.valid])
    metrics: dict[str, Any] = {"torchlasso": version("torchlasso")}
    metrics |= summarise(fit, encoder, task, (inputs[fitted_on], answers[fitted_on]), seed=request.seed)
    metrics["table"] = {
        "source": request.source,
        "rows": frame.height,
        "columns": frame.width,
        "target": request.target,
        "task": encoder.task,
        "classes": [str(label) for label in encoder.classes] or None,
        "notes": [*usable.notes, *encoder.notes, *rows.notes, *_test_notes(tested.notes, request)],
    }
    metrics["split"] = {
        "train": len(fitted_on),
        "valid": len(rows.valid) if request.strength is None else 0,
        "test": len(rows.test),
        "seed": request.seed,
        "test_source": _test_source(request),
    }
    metrics["model"] |= {"hidden": list(request.hidden), "penalty": request.penalty}
    metrics["scores"] = {"sparse": scorer.scores(fit.module), "dense": scorer.scores(fit.dense)}
    metrics["metric"] = scorer.metric
    metrics["seconds"] = round(time.perf_counter() - started, 2)
    return TableFit(Predictor(encoder, fit.module), _finite(metrics), path_rows(fit))


def _split(frame: pl.DataFrame, usable: UsableRows, request: Request) -> _Rows:
    """Decide which rows train, which choose the strength and which test; each row has one role."""
    labels = frame[request.target]
    if isinstance(request.test, pl.DataFrame):
        rest, test_frame = usable.rows, request.test
        test = _test_rows(test_frame, request.target)
    else:
        if not 0 < request.test < 1:
            msg = f"the share of test rows must be between 0 and 1, got {request.test}"
            raise InputError(msg)
        first, second = split_rows(labels[usable.rows], usable.task, fraction=request.test, seed=request.seed)
        rest, test, test_frame = usable.rows[first], usable.rows[second], frame
    train, valid = split_rows(labels[rest], usable.task, fraction=_VALID_SHARE, seed=request.seed)
    dropped = test_frame.height - len(test) if isinstance(request.test, pl.DataFrame) else 0
    notes = (f"{dropped} test rows without a target were left out",) if dropped else ()
    return _Rows(rest[train], rest[valid], test, test_frame, notes)


def _test_rows(frame: pl.DataFrame, target: str) -> NDArray[np.intp]:
    """Return the positions of the rows of a test table that have a target."""
    if target not in frame.columns:
        msg = f"the test table has no column {target!r}; it has: {', '.join(map(repr, frame.columns[:12]))}"
        raise InputError(msg)
    found: NDArray[np.intp] = np.flatnonzero(frame[target].is_not_null().to_numpy())
    if not len(found):
        msg = f"no row of the test table has a value in {target!r}, so nothing can be scored"
        raise InputError(msg)
    return found


def _target(encoder: Encoder, frame: pl.DataFrame, usable: UsableRows) -> NDArray[Any]:
    """Return the target of every row of the table, with zeros where it is missing."""
    encoded = encoder.encode_target(frame[usable.rows])
    target = np.zeros(frame.height, encoded.dtype)
    target[usable.rows] = encoded
    return target


def _task(encoder: Encoder, target: NDArray[Any], hidden: tuple[int, ...]) -> Task:
    if encoder.task == "regression":
        return Task("regression", unit=float(target.std()) or 1.0) if hidden else Task("regression")
    return Task("binary") if len(encoder.classes) == 2 else Task("multiclass", len(encoder.classes))


def _test_source(request: Request) -> str:
    return request.test_source if isinstance(request.test, pl.DataFrame) else f"{request.test:.0%} of the rows"


def _test_notes(notes: tuple[str, ...], request: Request) -> list[str]:
    return [f"test table: {note}" for note in notes] if isinstance(request.test, pl.DataFrame) else []


def _finite(value: Any) -> Any:
    """Return JSON-like data with None for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
