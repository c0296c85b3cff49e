"""The kinds of feature, each a frozen object that turns one column of a table into columns of a matrix.

What a feature learnt from the training rows is plain numbers and texts, so that a model file can hold it;
`column_from_config` reads it back and trusts nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import polars as pl

from torchlasso.errors import ModelFileError, TableError
from torchlasso.tabular.cells import FloatArray, counted, is_empty, parse_moments, read_moments, read_numbers
from torchlasso.tabular.fields import Fields
from torchlasso.tabular.scaling import Scale

OTHER = "(other)"
MISSING = "(missing)"
DATE_PARTS = ("day", "month", "weekday", "hour")


class Block(NamedTuple):
    """The matrix columns of one feature, float64 of shape [rows, columns], and notes on what was unusual."""

    values: FloatArray
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Column(ABC):
    """One feature: a column of the table and how it becomes columns of the matrix.

    Attributes:
        name: the column of the table.
    """

    name: str
    kind: ClassVar[str]

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """A readable name for each matrix column."""

    @abstractmethod
    def encode(self, column: pl.Series) -> Block:
        """Encode a column of a table, new or old; a wrong type is a `TableError` that names the row."""

    @classmethod
    @abstractmethod
    def from_fields(cls, name: str, fields: Fields) -> Self:
        """Read back what `to_config` gave, and refuse everything else."""

    def to_config(self) -> dict[str, Any]:
        """Return the feature as JSON types."""
        config = {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }
        return {"kind": self.kind, **config}

    def _with_gaps(
        self, values: list[FloatArray], gaps: pl.Series, *, indicator: bool, filling: str
    ) -> Block:
        """Append the column that says where a value is missing, or a note if training had none missing."""
        notes: tuple[str, ...] = ()
        if indicator:
            values = [*values, gaps.to_numpy().astype(np.float64)]
        elif gaps.any():
            found = counted(int(gaps.sum()), "missing value")
            notes = (f"{self.name!r}: {found}, none in training; took {filling}",)
        return Block(np.column_stack(values), notes)


@dataclass(frozen=True)
class Numeric(Column):
    """A column of numbers, standardised.

    Attributes:
        scale: learnt from the training rows.
        indicator: whether a second matrix column says where a value is missing.
    """

    kind: ClassVar[str] = "numeric"
    scale: Scale
    indicator: bool

    @property
    def labels(self) -> tuple[str, ...]:
        """The name, and the name with "(missing)"."""
        return (self.name, f"{self.name} {MISSING}")[: 1 + self.indicator]

    def encode(self, column: pl.Series) -> Block:
        """Fill with the training median and standardise."""
        values = self.scale.apply(read_numbers(column), self.name)
        return self._with_gaps(
            [values], column.is_null(), indicator=self.indicator, filling="the training median"
        )

    @classmethod
    def from_fields(cls, name: str, fields: Fields) -> Self:
        """Read back what `to_config` gave, and refuse everything else."""
        scale = Scale.from_config(fields.value("scale"), f"the scale of column {name!r}")
        return cls(name, scale, fields.flag("indicator"))


@dataclass(frozen=True)
class Boolean(Column):
    """A column of true and false, as 1 and 0.

    Attributes:
        filler: the more frequent value in training, which replaces a missing one.
        indicator: whether a second matrix column says where a value is missing.
    """

    kind: ClassVar[str] = "boolean"
    filler: bool
    indicator: bool

    @property
    def labels(self) -> tuple[str, ...]:
        """The name, and the name with "(missing)"."""
        return (self.name, f"{self.name} {MISSING}")[: 1 + self.indicator]

    def encode(self, column: pl.Series) -> Block:
        """Take true/false, or the numbers 1 and 0."""
        values = read_numbers(column)
        wrong = ~np.isnan(values) & (values != 0) & (values != 1)
        if wrong.any():
            row = int(wrong.argmax())
            found = f"{values[row]:g} in data row {row + 1}"
            message = f"column {self.name!r} must hold true or false, but holds {found}"
            raise TableError(message)
        filled = np.where(np.isnan(values), float(self.filler), values)
        filling = str(self.filler).lower()
        return self._with_gaps([filled], column.is_null(), indicator=self.indicator, filling=filling)

    @classmethod
    def from_fields(cls, name: str, fields: Fields) -> Self:
        """Read back what `to_config` gave, and refuse everything else."""
        return cls(name, fields.flag("filler"), fields.flag("indicator"))


@dataclass(frozen=True)
class Categorical(Column):
    """A column of text, one matrix column for each category.

    Attributes:
        categories: the texts with a matrix column of their own, sorted.
        other: whether one more matrix column stands for every other text.
        missing: whether one more stands for a missing value.
    """

    kind: ClassVar[str] = "categorical"
    categories: tuple[str, ...]
    other: bool
    missing: bool

    @property
    def labels(self) -> tuple[str, ...]:
        """The name and the category."""
        extra = (OTHER,) * self.other + (MISSING,) * self.missing
        return tuple(f"{self.name}={category}" for category in self.categories + extra)

    def encode(self, column: pl.Series) -> Block:
        """Set a one for the category of each cell; a row of zeros is what training never saw."""
        if column.dtype.is_nested() or column.dtype in (pl.Object, pl.Binary):
            message = f"column {self.name!r} must hold text, but has the type {column.dtype}"
            raise TableError(message)
        texts = column.cast(pl.String)
        known = {category: position for position, category in enumerate(self.categories)}
        unseen = len(known) if self.other else -1
        absent = len(known) + self.other if self.missing else -1
        codes = np.fromiter(
            (absent if text is None else known.get(text, unseen) for text in texts.to_list()),
            np.int64,
            len(texts),
        )
        matrix = np.zeros((len(codes), len(self.labels)))
        rows = np.flatnonzero(codes >= 0)
        matrix[rows, codes[rows]] = 1.0
        return Block(matrix, self._notes(texts, codes))

    def _notes(self, texts: pl.Series, codes: "np.ndarray[Any, np.dtype[np.int64]]") -> tuple[str, ...]:
        notes = []
        strange = texts.filter(pl.Series(codes < 0)).drop_nulls()
        if len(strange):
            examples = ", ".join(repr(text) for text in strange.unique(maintain_order=True)[:3])
            found = f"{counted(len(strange), 'value')} never seen in training ({examples})"
            notes.append(f"{self.name!r}: {found}; encoded as zeros")
        if not self.missing and texts.null_count():
            found = counted(texts.null_count(), "missing value")
            notes.append(f"{self.name!r}: {found}, none in training; encoded as zeros")
        return tuple(notes)

    @classmethod
    def from_fields(cls, name: str, fields: Fields) -> Self:
        """Read back what `to_config` gave, and refuse everything else."""
        column = cls(name, fields.texts("categories"), fields.flag("other"), fields.flag("missing"))
        if not column.categories:
            fields.refuse("categories", "a list of at least one text")
        return column


@dataclass(frozen=True)
class Dates(Column):
    """A column of dates or date-times, as numbers that a linear model can use.

    Attributes:
        parts: which of day (since 1970), month, weekday and hour vary in training.
        scales: one for each part.
        indicator: whether one more matrix column says where a date is missing.
    """

    kind: ClassVar[str] = "date"
    parts: tuple[str, ...]
    scales: tuple[Scale, ...]
    indicator: bool

    @property
    def labels(self) -> tuple[str, ...]:
        """The name and the part."""
        missing = (f"{self.name} {MISSING}",) * self.indicator
        return (*(f"{self.name} ({part})" for part in self.parts), *missing)

    def encode(self, column: pl.Series) -> Block:
        """Standardise each part; text that is no ISO date counts as missing, with a note."""
        texts = column.dtype == pl.String or is_empty(column)
        moments = parse_moments(column.cast(pl.String)) if texts else read_moments(column)
        if moments is None:
            message = f"column {self.name!r} must hold dates, but has the type {column.dtype}"
            raise TableError(message)
        values = date_parts(moments)
        scaled = [
            scale.apply(values[part], self.name) for part, scale in zip(self.parts, self.scales, strict=True)
        ]
        block = self._with_gaps(
            scaled, moments.is_null(), indicator=self.indicator, filling="the training median"
        )
        bad = moments.null_count() - column.null_count()
        note = (f"{self.name!r}: {counted(bad, 'value')} not an ISO date; taken for missing",) if bad else ()
        return Block(block.values, note + block.notes)

    @classmethod
    def from_fields(cls, name: str, fields: Fields) -> Self:
        """Read back what `to_config` gave, and refuse everything else."""
        parts = fields.texts("parts")
        if not parts or not set(parts) <= set(DATE_PARTS):
            fields.refuse("parts", f"a list of some of {', '.join(DATE_PARTS)}")
        scales = fields.items("scales")
        if len(scales) != len(parts):
            fields.refuse("scales", f"a list of {len(parts)} scales")
        read = tuple(Scale.from_config(scale, f"a scale of column {name!r}") for scale in scales)
        return cls(name, parts, read, fields.flag("indicator"))


def date_parts(moments: pl.Series) -> dict[str, FloatArray]:
    """Split date-times into the numbers of `DATE_PARTS`, NaN where missing.

    Example:
        >>> import datetime
        >>> date_parts(pl.Series([datetime.datetime(1970, 1, 2, 12)]))
        {'day': array([1.5]), 'month': array([1.]), 'weekday': array([5.]), 'hour': array([12.])}
    """
    parts = {
        "day": moments.dt.epoch("us") / 86_400e6,
        "month": moments.dt.month(),
        "weekday": moments.dt.weekday(),
        "hour": moments.dt.hour() + moments.dt.minute() / 60,
    }
    return {name: read_numbers(part.cast(pl.Float64)) for name, part in parts.items()}


_KINDS: tuple[type[Column], ...] = (Numeric, Boolean, Categorical, Dates)


def column_from_config(config: object) -> Column:
    """Read a feature back from what `Column.to_config` gave.

    Raises:
        ModelFileError: anything about it is not as it was written.

    Example:
        >>> column = Boolean("smoker", filler=False, indicator=True)
        >>> column_from_config(column.to_config()) == column
        True
    """
    kind = config.get("kind") if isinstance(config, Mapping) else None
    for cls in _KINDS:
        if kind == cls.kind:
            fields = Fields(config, f"a {cls.kind} column", ("kind", *cls.__dataclass_fields__))
            return cls.from_fields(fields.text("name"), fields)
    known = ", ".join(cls.kind for cls in _KINDS)
    message = f"a column must be a mapping whose kind is one of {known}"
    raise ModelFileError(message)
