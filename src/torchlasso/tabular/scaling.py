"""Standardises a column of numbers with what was learnt from the training rows."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from torchlasso.errors import TableError
from torchlasso.tabular.cells import FloatArray
from torchlasso.tabular.fields import Fields

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Scale:
    """Fills the gaps of a column of numbers and standardises it.

    Attributes:
        median: replaces a missing value.
        mean: is subtracted after that.
        sd: divides the difference; positive.
    """

    median: float
    mean: float
    sd: float

    @classmethod
    def fit(cls, values: FloatArray) -> Self | None:
        """Learn from the training values, NaN where missing; None if they do not vary.

        Example:
            >>> Scale.fit(np.array([1.0, 3.0, np.nan]))
            Scale(median=2.0, mean=2.0, sd=0.816...)
        """
        present = values[~np.isnan(values)]
        if not present.size or present.min() == present.max():
            return None
        # Divided by the largest first, so that neither a sum nor a square leaves the range of floats.
        largest = float(np.abs(present).max())
        median = float(np.median(present / largest))
        filled = np.where(np.isnan(values), median, values / largest)
        mean = float(filled.mean())
        spread = float(np.abs(filled - mean).max())
        if not spread:
            return None
        sd = spread * math.sqrt(float((((filled - mean) / spread) ** 2).mean()))
        scale = cls(median * largest, mean * largest, sd * largest)
        return scale if scale.sd > 0 else None

    @classmethod
    def from_config(cls, config: object, what: str) -> Self:
        """Read back what `dataclasses.asdict` gave."""
        fields = Fields(config, what, ("median", "mean", "sd"))
        return cls(fields.number("median"), fields.number("mean"), fields.number("sd", positive=True))

    def apply(self, values: FloatArray, name: str) -> FloatArray:
        """Fill and standardise the values of the column called ``name``, NaN where missing."""
        with np.errstate(over="ignore"):
            scaled: FloatArray = (np.where(np.isnan(values), self.median, values) - self.mean) / self.sd
        far = ~(np.abs(scaled) <= _LARGEST)
        if far.any():
            row = int(far.argmax())
            learnt = f"the training mean {self.mean:g} (standard deviation {self.sd:g})"
            message = f"column {name!r} holds {values[row]:g} in data row {row + 1}, too far from {learnt}"
            raise TableError(message)
        return scaled
