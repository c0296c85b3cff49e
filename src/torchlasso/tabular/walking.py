"""The strengths of a table from dense to sparse, to look at before a model is fitted."""

from dataclasses import dataclass
from typing import Any, final

import polars as pl
from torch import Tensor

from torchlasso.cross_validation import begin, make_fitter
from torchlasso.estimators_rows import Rows
from torchlasso.fit.run import threads_for
from torchlasso.fit.settings import Progress, Silent
from torchlasso.monitor.formats import number, quantity
from torchlasso.path import Path
from torchlasso.tables import render_table
from torchlasso.tabular.folding import walk_folds
from torchlasso.tabular.job import Prepared, Request, prepare
from torchlasso.tabular.summary import path_rows

_COLUMNS = ["strength", "validation loss", "±", "nonzero weights", "features", ""]


@final
@dataclass(frozen=True, eq=False)
class Walk:
    """The strengths of a path and what each of them leaves.

    Attributes:
        rows: weakest strength first, with the columns of a fit's ``path.csv``.
        judged: how the validation loss came about.
        notes: readable lines on what was inferred and what was left out.
    """

    rows: list[dict[str, Any]]
    judged: str
    notes: tuple[str, ...]

    def frame(self) -> pl.DataFrame:
        """Return the rows as a table."""
        return pl.DataFrame(self.rows)

    def __str__(self) -> str:
        """Return a readable table, and what its columns mean."""
        cells = [
            [
                number(row["strength"]),
                number(row["valid_loss"]),
                number(row["valid_se"]),
                f"{row['nonzero']:,}",
                f"{row['features']:,}",
                ", ".join(mark for key, mark in (("best", "min"), ("chosen", "1se")) if row[key]),
            ]
            for row in self.rows
        ]
        legend = (
            f"{self.judged}\n"
            "min: the lowest validation loss; 1se: the strongest within one standard error of it, which "
            "`torchlasso fit` takes"
        )
        return "\n".join([render_table(_COLUMNS, cells), legend, *(f"note: {note}" for note in self.notes)])


def walk_table(frame: pl.DataFrame, request: Request, progress: Progress | None = None) -> Walk:
    """Walk the strengths that a fit with the same request would try, on the same rows.

    Args:
        frame: the table.
        request: what to do with it; its test rows are left alone, so that they stay good to test on.
        progress: whom to tell.

    Raises:
        TableError: nothing can be learnt from the table.
        InputError: the request cannot be met.
    """
    prepared = prepare(frame, request)
    rows = Rows(*prepared.parts["train"])
    if request.folds is None:
        path = _walk_split(prepared, progress or Silent())
        chosen, held = path.best("1se"), len(prepared.parts["valid"][1])
        judged = f"validation loss: the mean over {quantity(held, 'row')}, trained on {len(rows):,}"
    else:
        found = walk_folds(rows, prepared.task, prepared.settings, request.folds, progress)
        path, chosen = found.path, found.chosen
        judged = f"validation loss: {request.folds}-fold cross-validation over {quantity(len(rows), 'row')}"
    tested = quantity(len(prepared.parts["test"][1]), "row")
    return Walk(path_rows(path, chosen), f"{judged}; {tested} left for testing", prepared.notes)


def _walk_split(prepared: Prepared, progress: Progress) -> Path:
    """Return the path of the training rows, judged on the validation rows."""
    rows, valid = (Rows(*prepared.parts[part]) for part in ("train", "valid"))
    inputs: Tensor = prepared.tensors("train")[0]
    with threads_for(inputs, prepared.settings):
        fitter = make_fitter(rows, valid, prepared.task, prepared.settings)
        fitter.progress = progress
        begin(fitter)
        return Path(tuple(fitter.walk_path()))
