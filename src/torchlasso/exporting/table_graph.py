"""The whole way from the columns of a table to predictions as one module of tensor operations.

Numbers come in as one float64 matrix, NaN where a value is missing: numbers as they are, true and false as 1
and 0, moments in time as days since 1970-01-01 in UTC.  Texts come in as the position of their category.
"""

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from torchlasso.tabular.columns import Boolean, Categorical, Dates, Numeric
from torchlasso.tabular.encoding import Encoder
from torchlasso.tabular.predictor import Predictor
from torchlasso.tabular.scaling import Scale

CODED = Categorical.kind
"""The kind of column that comes in as codes; all others are numbers."""

_MINUTES = 1440.0
_HALF_MILLISECOND = 0.5e-3 / 60  # in minutes: a float64 day is that far from the minute at most


class TableGraph(nn.Module):
    """From raw columns to predictions and, for classes, the probability of each.

    Args:
        predictor: what was fitted to a table.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.module = copy.deepcopy(predictor.module).requires_grad_(False)
        self.dtype = next(predictor.module.parameters()).dtype
        self.columns = predictor.encoder.columns
        self.task = predictor.task
        self.classified = bool(predictor.encoder.classes)

    def forward(self, first: Tensor, second: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the predicted numbers, or the codes of the classes and their probabilities.

        Args:
            first: the numbers, ``[rows, columns]``; where no column is a number, the codes.
            second: the codes where ``first`` are numbers and there are any.
        """
        coded = [column.kind == CODED for column in self.columns]
        numbers, codes = (first, second) if not all(coded) else (first, first)
        parts: list[Tensor] = []
        seen = [0, 0]
        for column, is_coded in zip(self.columns, coded, strict=True):
            source = cast("Tensor", codes) if is_coded else numbers
            parts += _WAYS[column.kind](column, source[:, seen[is_coded]])
            seen[is_coded] += 1
        # To float32 first, as in a table that is predicted without this graph.
        matrix = torch.cat(parts, dim=1).to(torch.float32).to(self.dtype)
        outputs = self.module(matrix).double()
        if not self.classified:
            return (outputs.squeeze(1),)
        probabilities = self.task.probabilities(outputs)
        return probabilities.argmax(dim=1), probabilities


def names_of(encoder: Encoder, *, coded: bool) -> list[str]:
    """Return the columns that come in as codes, or those that come in as numbers, in their order.

    Args:
        encoder: of the table.
        coded: which of the two.
    """
    return [column.name for column in encoder.columns if (column.kind == CODED) is coded]


def codes_of(column: Categorical) -> tuple[dict[str, int], int]:
    """Return the code of each text, the empty text for a missing value, and the code of every other text.

    Args:
        column: the column of texts.

    Example:
        >>> codes_of(Categorical("size", ("L", "S"), other=False, missing=True))
        ({'L': 0, 'S': 1, '': 2}, -1)
    """
    codes = {text: code for code, text in enumerate(column.categories)}
    other = len(codes) if column.other else -1
    codes.setdefault("", len(column.categories) + column.other if column.missing else -1)
    return codes, other


def description(predictor: Predictor) -> dict[str, Any]:
    """Return in JSON types what a program needs to know to use the graph.

    Args:
        predictor: what was fitted to a table.
    """
    encoder = predictor.encoder
    texts = {column.name: codes_of(column) for column in encoder.columns if isinstance(column, Categorical)}
    return {
        "target": encoder.target,
        "task": encoder.task,
        "classes": list(encoder.classes),
        "numbers": names_of(encoder, coded=False),
        "kinds": dict(zip(encoder.feature_names, encoder.kinds, strict=True)),
        "codes": {name: codes for name, (codes, _) in texts.items()},
        "other_code": {name: other for name, (_, other) in texts.items()},
    }


# ---- one column ---------------------------------------------------------------------------------------


def _numeric(column: Numeric, x: Tensor) -> list[Tensor]:
    return [_scaled(x, column.scale), *_gaps(x, column.indicator)]


def _boolean(column: Boolean, x: Tensor) -> list[Tensor]:
    return [torch.where(x.isnan(), float(column.filler), x)[:, None], *_gaps(x, column.indicator)]


def _categorical(column: Categorical, codes: Tensor) -> list[Tensor]:
    return [(codes[:, None] == torch.arange(len(column.labels))).double()]


def _dates(column: Dates, x: Tensor) -> list[Tensor]:
    parts = {"day": x, "month": _month(x), "weekday": _weekday(x), "hour": _hour(x)}
    scaled = [_scaled(parts[part], scale) for part, scale in zip(column.parts, column.scales, strict=True)]
    return [*scaled, *_gaps(x, column.indicator)]


_WAYS: dict[str, Callable[[Any, Tensor], list[Tensor]]] = {
    Numeric.kind: _numeric,
    Boolean.kind: _boolean,
    Categorical.kind: _categorical,
    Dates.kind: _dates,
}


def _scaled(x: Tensor, scale: Scale) -> Tensor:
    return ((torch.where(x.isnan(), scale.median, x) - scale.mean) / scale.sd)[:, None]


def _gaps(x: Tensor, indicator: bool) -> list[Tensor]:
    return [x.isnan().double()[:, None]] if indicator else []


def _weekday(days: Tensor) -> Tensor:
    """Return 1 for Monday to 7 for Sunday; the first day of 1970 was a Thursday."""
    later = days.floor() + 3
    return later - 7 * (later / 7).floor() + 1


def _hour(days: Tensor) -> Tensor:
    """Return the hour with its minutes as a fraction; seconds do not count."""
    return ((days - days.floor()) * _MINUTES + _HALF_MILLISECOND).floor() / 60


def _month(days: Tensor) -> Tensor:
    """Return the month of the Gregorian calendar.

    References:
        Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms" (``civil_from_days``), 2013: years
        begin in March, so that the leap day is the last, and repeat every 400 years of 146,097 days.
    """
    day = days.floor() + 719_468  # since 0000-03-01
    of_era = day - 146_097 * (day / 146_097).floor()
    leaps = (of_era / 1_460).floor() - (of_era / 36_524).floor() + (of_era / 146_096).floor()
    year = ((of_era - leaps) / 365).floor()
    of_year = of_era - (365 * year + (year / 4).floor() - (year / 100).floor())
    from_march = ((5 * of_year + 2) / 153).floor()
    return torch.where(from_march < 10, from_march + 3, from_march - 9)
