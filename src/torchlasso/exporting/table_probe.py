"""Rows that were never seen, to compare an exported table model with the predictor itself.

Every column comes in both forms: as the predictor reads it, and as the file takes it.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchlasso.exporting.table_graph import CODED, codes_of, names_of
from torchlasso.tabular.columns import Boolean, Categorical, Dates, Numeric
from torchlasso.tabular.predictor import Predictor

_ROWS = 64
_MISSING = 0.1  # share of the cells
_DAY = 86_400_000_000  # microseconds


@dataclass(frozen=True, eq=False)
class Probe:
    """Rows of a table in the forms that they can take.

    Attributes:
        frame: as the predictor reads them.
        arrays: for an ONNX file, ``[rows, 1]`` each: float64, or texts.
        tensors: for the graph: the numbers, the codes, or both.
    """

    frame: pl.DataFrame
    arrays: dict[str, NDArray[Any]]
    tensors: tuple[Tensor, ...]


def probe(predictor: Predictor, seed: int = 0) -> Probe:
    """Return random rows of the kind that the predictor was fitted to, with missing and unknown values.

    Args:
        predictor: what was fitted to a table.
        seed: the same seed gives the same rows.
    """
    generator = np.random.default_rng(seed)
    series: list[pl.Series] = []
    arrays: dict[str, NDArray[Any]] = {}
    codes: dict[str, NDArray[np.int64]] = {}
    for column in predictor.encoder.columns:
        missing = generator.random(_ROWS) < _MISSING
        read, array = _WAYS[column.kind](column, missing, generator)
        series.append(read)
        arrays[column.name] = array[:, None]
        if column.kind == CODED:
            known, other = codes_of(cast("Categorical", column))
            codes[column.name] = np.array([known.get(text, other) for text in array], np.int64)
    numbers = names_of(predictor.encoder, coded=False)
    tensors = []
    if numbers:
        tensors.append(torch.from_numpy(np.concatenate([arrays[name] for name in numbers], axis=1)))
    if codes:
        tensors.append(torch.from_numpy(np.column_stack(list(codes.values()))))
    return Probe(pl.DataFrame(series), arrays, tuple(tensors))


def reference(predictor: Predictor, frame: pl.DataFrame) -> list[Tensor]:
    """Return what the predictor itself gives: the probabilities, or for a regression the numbers.

    Args:
        predictor: what was fitted to a table.
        frame: rows of a table.
    """
    predictions, _ = predictor.predict(frame)
    wanted = predictions.drop("prediction") if predictor.encoder.classes else predictions
    values = torch.from_numpy(wanted.to_numpy().astype(np.float64))
    return [values if predictor.encoder.classes else values.squeeze(1)]


_Both = tuple[pl.Series, NDArray[Any]]


def _with_gaps(values: NDArray[Any], missing: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.where(missing, np.nan, values.astype(np.float64))


def _numeric(column: Numeric, missing: NDArray[np.bool_], generator: np.random.Generator) -> _Both:
    values = column.scale.mean + column.scale.sd * generator.standard_normal(_ROWS)
    array = _with_gaps(values, missing)
    return pl.Series(column.name, array).fill_nan(None), array


def _boolean(column: Boolean, missing: NDArray[np.bool_], generator: np.random.Generator) -> _Both:
    array = _with_gaps(generator.integers(0, 2, _ROWS), missing)
    return pl.Series(column.name, array).fill_nan(None).cast(pl.Boolean), array


def _categorical(column: Categorical, missing: NDArray[np.bool_], generator: np.random.Generator) -> _Both:
    unknown = "".join(column.categories) + "?"
    texts = generator.choice(np.array([*column.categories, unknown], object), _ROWS)
    array = np.where(missing, "", texts).astype(object)
    empty = "" in column.categories  # then it is a text like any other
    return pl.Series(column.name, [t if t or empty else None for t in array], pl.String), array


def _dates(column: Dates, missing: NDArray[np.bool_], generator: np.random.Generator) -> _Both:
    moments = generator.integers(-200 * 365 * 1440, 200 * 365 * 1440, _ROWS) * (_DAY // 1440)
    array = _with_gaps(moments / _DAY, missing)
    read = [None if gap else int(moment) for gap, moment in zip(missing, moments, strict=True)]
    return pl.Series(column.name, read, pl.Int64).cast(pl.Datetime("us")), array


_WAYS: dict[str, Any] = {
    Numeric.kind: _numeric,
    Boolean.kind: _boolean,
    Categorical.kind: _categorical,
    Dates.kind: _dates,
}
