"""Turns a table into a matrix: learnt from the training rows only, replayed on any other table.

The way from a table to numbers; every position is a row of the table as it was read, also after a split:

>>> import polars as pl
>>> from torchlasso.tabular.encoding import Encoder
>>> from torchlasso.tabular.targets import split_rows, usable_rows
>>> people = {"age": [31, 54, 47, 31], "job": ["cook", "smith", "cook", "cook"], "sick": [0, 1, 1, 0]}
>>> frame = pl.concat([pl.DataFrame(people)] * 5)
>>> usable = usable_rows(frame, "sick")
>>> learn, test = split_rows(frame["sick"][usable.rows], usable.task, fraction=0.2, seed=0)
>>> encoder = Encoder.fit(frame, "sick", usable.task, rows=usable.rows[learn])
>>> encoder.encode(frame).matrix[usable.rows[test]].shape
(4, 3)
>>> encoder.column_names
('age', 'job=cook', 'job=smith')
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self, cast

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from torchlasso.errors import InputError, ModelFileError, TableError
from torchlasso.tabular.cells import (
    FloatArray,
    IntArray,
    listing,
    pick_column,
    plain,
    read_numbers,
    require_columns,
)
from torchlasso.tabular.columns import Column, column_from_config
from torchlasso.tabular.features import fit_feature
from torchlasso.tabular.fields import Fields, is_text
from torchlasso.tabular.targets import Label, Task, class_codes, class_labels, quantities, resolve_task

MAX_MATRIX_BYTES = 2 * 2**30
"""The most that a table may take as numbers."""


class Encoded(NamedTuple):
    """A table as numbers: float32 of shape [rows, matrix columns], and notes on what training never saw."""

    matrix: NDArray[np.float32]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Encoder:
    """How a table becomes a matrix and its target becomes codes or numbers.

    Attributes:
        target: the column that is predicted.
        task: ``"classification"`` or ``"regression"``.
        classes: the labels in the order of their codes; empty for a regression.
        columns: the features, in the order of the training table.
        dropped: columns of the training table that are not used.
        notes: readable lines on what was left out or cut short.
    """

    target: str
    task: Task
    classes: tuple[Label, ...]
    columns: tuple[Column, ...]
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def fit(
        cls, frame: pl.DataFrame, target: str, task: Task | None = None, *, rows: ArrayLike | None = None
    ) -> Self:
        """Learn the features from the training rows, and the class labels from the whole table.

        Give the whole table and the positions of its training rows rather than a part of the table: messages
        then count rows as the file does, and a bad cell outside the training rows is found as well.

        Args:
            frame: the table as it was read.
            target: the column to predict.
            task: None infers it from the whole column.
            rows: positions of the training rows; None takes all. Rows without a target are passed over.

        Raises:
            InputError: the task is unknown, or the rows are not positions in the table.
            TableError: the target cannot be predicted, a column holds a bad value, or no feature is left.

        Example:
            >>> frame = pl.DataFrame({"x": [0.5, None, 1.5], "unit": ["m"] * 3, "y": [1.0, 2.5, 3.0]})
            >>> encoder = Encoder.fit(frame, "y")
            >>> encoder.column_names, encoder.groups, encoder.notes
            (('x', 'x (missing)'), [[0, 1]], ("left out 'unit': it is 'm' in every training row",))
        """
        answer = pick_column(frame, target, "target")
        task = resolve_task(answer, task)
        classes = class_labels(answer) if task == "classification" else ()
        if len(classes) == 1:
            message = f"target column {target!r} is {classes[0]!r} in every row: nothing to predict"
            raise TableError(message)
        if not classes:
            read_numbers(answer)  # refuses text and infinite values
        training = _training_rows(answer, rows)
        names = [name for name in frame.columns if name != target]
        fitted = {name: fit_feature(pick_column(frame, name, "feature"), training) for name in names}
        columns = tuple(found.column for found in fitted.values() if found.column is not None)
        notes = tuple(found.note for found in fitted.values() if found.note is not None)
        if not columns:
            reason = f": {notes[0]}" if notes else ": it has no column but the target"
            message = f"the table has no column to predict {target!r} from{reason}"
            raise TableError(message)
        dropped = tuple(name for name, found in fitted.items() if found.column is None)
        return cls(target, task, classes, columns, dropped, notes)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The columns of the table that are used, one for each feature."""
        return tuple(column.name for column in self.columns)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each feature: numeric, boolean, categorical or date."""
        return tuple(column.kind for column in self.columns)

    @property
    def column_names(self) -> tuple[str, ...]:
        """A distinct readable name for each matrix column."""
        names: dict[str, None] = {}
        for label in (label for column in self.columns for label in column.labels):
            name, copy = label, 1
            while name in names:
                copy += 1
                name = f"{label} #{copy}"
            names[name] = None
        return tuple(names)

    @property
    def groups(self) -> list[list[int]]:
        """The matrix columns of each feature."""
        groups, start = [], 0
        for column in self.columns:
            stop = start + len(column.labels)
            groups.append(list(range(start, stop)))
            start = stop
        return groups

    def encode(self, frame: pl.DataFrame) -> Encoded:
        """Turn a table into a matrix; columns are found by name, in any order.

        Args:
            frame: any table with the columns of the features; others are ignored.

        Returns:
            The matrix and notes: ignored columns, unseen categories, values missing for the first time.

        Raises:
            TableError: a column is absent or of another type, or a number is infinite or far out of range.

        Example:
            >>> encoder = Encoder.fit(pl.DataFrame({"job": ["a", "b"] * 2, "y": [0.5, 1.0, 1.5, 2.0]}), "y")
            >>> encoder.encode(pl.DataFrame({"job": ["b", "z"]}))
            Encoded(matrix=array([[0., 1.],
                   [0., 0.]], dtype=float32), notes=("'job': 1 value never seen in training ('z'); ...",))
        """
        require_columns(frame, self.feature_names, "feature")
        used = {self.target, *self.feature_names, *self.dropped}
        extra = [name for name in frame.columns if name not in used]
        notes = [f"ignored columns that training did not have: {listing(extra)}"] if extra else []
        groups = self.groups
        width = groups[-1][-1] + 1
        if 4 * len(frame) * width > MAX_MATRIX_BYTES:
            size = f"{len(frame):,} rows of {width:,} numbers, over {MAX_MATRIX_BYTES >> 20:,} MiB"
            message = f"the table would become {size}; use fewer rows, columns or categories"
            raise TableError(message)
        matrix = np.empty((len(frame), width), np.float32)
        for column, group in zip(self.columns, groups, strict=True):
            block = column.encode(pick_column(frame, column.name, "feature"))
            matrix[:, group[0] : group[-1] + 1] = block.values
            notes.extend(block.notes)
        return Encoded(matrix, tuple(notes))

    def transform(self, frame: pl.DataFrame) -> NDArray[np.float32]:
        """Return the matrix of `encode` without its notes."""
        return self.encode(frame).matrix

    def encode_target(self, target: pl.DataFrame | pl.Series) -> IntArray | FloatArray:
        """Turn the target into int64 codes of the classes, or float64 numbers.

        Args:
            target: a table that has the target column, or that column.

        Raises:
            TableError: the column is absent, or a value is missing, infinite or of no known class.

        Example:
            >>> encoder = Encoder.fit(pl.DataFrame({"x": [1.0, 2.0], "y": ["no", "yes"]}), "y")
            >>> encoder.encode_target(pl.Series("y", ["yes", "no"]))
            array([1, 0])
        """
        if isinstance(target, pl.DataFrame):
            column = pick_column(target, self.target, "target")
        else:
            column = plain(target)
        return class_codes(column, self.classes) if self.classes else quantities(column)

    def decode_target(self, codes: ArrayLike) -> NDArray[Any]:
        """Turn codes back into labels of their own type: text, whole numbers, numbers or true/false.

        Args:
            codes: positions among the classes; for a regression, numbers, which come back as float64.

        Raises:
            InputError: a code is not the position of a class.

        Example:
            >>> encoder = Encoder.fit(pl.DataFrame({"x": [1.0, 2.0], "y": ["no", "yes"]}), "y")
            >>> encoder.decode_target([1, 0]).tolist()
            ['yes', 'no']
        """
        if not self.classes:
            return np.asarray(codes, np.float64)
        positions = np.asarray(codes)
        if not _are_positions(positions, len(self.classes)):
            message = f"codes must be whole numbers from 0 to {len(self.classes) - 1}"
            raise InputError(message)
        labels: NDArray[Any] = np.asarray(self.classes)[positions.astype(np.int64)]
        return labels

    def to_config(self) -> dict[str, Any]:
        """Return everything as JSON types, for a model file."""
        return {
            "target": self.target,
            "task": self.task,
            "classes": list(self.classes),
            "columns": [column.to_config() for column in self.columns],
            "dropped": list(self.dropped),
            "notes": list(self.notes),
        }

    @classmethod
    def from_config(cls, config: object) -> Self:
        """Read back what `to_config` gave, from a source that is not trusted.

        Args:
            config: what a model file holds.

        Raises:
            ModelFileError: anything about it is not as it was written; the message is one line.

        Example:
            >>> encoder = Encoder.fit(pl.DataFrame({"x": [1.0, 2.0], "y": [0.5, 1.5]}), "y")
            >>> Encoder.from_config(encoder.to_config()) == encoder
            True
        """
        fields = Fields(config, "the encoder", ("target", "task", "classes", "columns", "dropped", "notes"))
        if fields.text("task") not in ("classification", "regression"):
            fields.refuse("task", "'classification' or 'regression'")
        task = cast("Task", fields.text("task"))
        columns = tuple(column_from_config(column) for column in fields.items("columns"))
        dropped = fields.texts("dropped")
        names = [fields.text("target"), *(column.name for column in columns), *dropped]
        if not columns or len(set(names)) != len(names):
            message = (
                "the encoder must have at least one column, and every column and its target a name of its own"
            )
            raise ModelFileError(message)
        if not all(note.isprintable() for note in fields.texts("notes")):
            fields.refuse("notes", "a list of single printable lines")
        return cls(names[0], task, _read_classes(fields, task), columns, dropped, fields.texts("notes"))


def _training_rows(target: pl.Series, rows: ArrayLike | None) -> IntArray:
    labelled = target.is_not_null().to_numpy()
    positions = np.arange(len(target)) if rows is None else np.asarray(rows)
    if positions.ndim != 1 or not positions.size or not _are_positions(positions, len(target)):
        message = f"rows must be at least one position from 0 to {len(target) - 1} in the table"
        raise InputError(message)
    positions = np.unique(positions.astype(np.int64))
    training: IntArray = positions[labelled[positions]]
    if not training.size:
        message = f"no training row has a target {target.name!r}"
        raise TableError(message)
    return training


def _are_positions(values: NDArray[Any], count: int) -> bool:
    return values.dtype.kind in "iu" and bool(((values >= 0) & (values < count)).all())


def _read_classes(fields: Fields, task: Task) -> tuple[Label, ...]:
    classes = fields.items("classes")
    if task == "regression":
        if classes:
            fields.refuse("classes", "an empty list for a regression")
        return ()
    kinds = {type(label) for label in classes}
    uniform = len(kinds) == 1 and kinds <= {str, int, float, bool}
    if not uniform or len(set(classes)) != len(classes) or len(classes) < 2:
        fields.refuse("classes", "a list of at least two distinct labels of one type")
    if kinds == {float} and not np.isfinite(classes).all():
        fields.refuse("classes", "a list of finite labels")
    if kinds == {str} and not all(map(is_text, classes)):
        fields.refuse("classes", "a list of texts that can be written")
    if kinds == {int} and np.asarray(classes).dtype.kind not in "iu":  # beyond 64 bits
        fields.refuse("classes", "a list of whole numbers of 64 bits")
    return tuple(classes)
