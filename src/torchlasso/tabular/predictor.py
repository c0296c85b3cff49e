"""A fitted model together with the encoding of its table: saved, loaded and applied."""

import os
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torchlasso.errors import ModelFileError
from torchlasso.files import pack_tensors, read_tensors, write_tensors
from torchlasso.mlp import build_mlp, linear_layers
from torchlasso.tabular.encoding import Encoder
from torchlasso.tasks import Task

MAX_BYTES = 2**30
"""The largest model file that is read."""

_KIND = "table model"
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True, eq=False)
class Predictor:
    """From the rows of a table to predictions with the original labels.

    Attributes:
        encoder: how the table becomes a matrix.
        module: from the matrix to outputs.
    """

    encoder: Encoder
    module: nn.Module

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file with the configuration in its metadata; no pickle anywhere.

        Args:
            path: the file to write.

        Raises:
            OutputError: it cannot be written there.
        """
        write_tensors(path, *self._content())

    def to_bytes(self) -> bytes:
        """Return the content of the file that ``save`` writes."""
        return pack_tensors(*self._content())

    def _content(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        hidden = [layer.out_features for _, layer in linear_layers(self.module)[:-1]]
        config = {"kind": _KIND, "hidden": hidden, "encoder": self.encoder.to_config()}
        return dict(self.module.state_dict()), config

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what ``save`` wrote.

        Args:
            path: the model file.

        Raises:
            ModelFileError: the file is damaged, foreign or hostile.
        """
        size = os.path.getsize(path) if os.path.isfile(path) else 0
        if size > MAX_BYTES:
            sizes = f"{size >> 20:,} MiB, more than the limit of {MAX_BYTES >> 20:,} MiB"
            msg = f"the model file {os.fspath(path)!r} has {sizes}"
            raise ModelFileError(msg)
        tensors, config = read_tensors(path)
        if config.get("kind") != _KIND:
            msg = (
                f"{os.fspath(path)!r} is a torchlasso file, but no model of a table; expected one from 'fit'"
            )
            raise ModelFileError(msg)
        encoder = Encoder.from_config(config.get("encoder"))
        return cls(encoder, _rebuild(tensors, config.get("hidden"), encoder))

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns that hold text, which a table of prediction rows may not show by itself."""
        named = zip(self.encoder.feature_names, self.encoder.kinds, strict=True)
        return tuple(name for name, kind in named if kind == "categorical")

    @property
    def task(self) -> Task:
        """What the outputs mean."""
        if self.encoder.task == "regression":
            return Task("regression")
        classes = len(self.encoder.classes)
        return Task("binary") if classes == 2 else Task("multiclass", classes)

    @torch.no_grad()
    def outputs(self, matrix: NDArray[np.float32]) -> Tensor:
        """Return the outputs for encoded rows, in float64."""
        module = self.module.eval()
        dtype = next(module.parameters()).dtype
        rows = torch.from_numpy(matrix)
        starts = range(0, len(rows), _ROWS_AT_ONCE)
        return torch.cat([module(rows[i : i + _ROWS_AT_ONCE].to(dtype)).double() for i in starts])

    def decide(self, outputs: Tensor) -> NDArray[Any]:
        """Return the predicted quantity of each row, or the code of its most probable class."""
        task = self.task
        if task.kind == "regression":
            return outputs.squeeze(1).numpy()
        return task.probabilities(outputs).argmax(dim=1).numpy()

    def predict(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, tuple[str, ...]]:
        """Return a prediction for every row, and the probability of each class.

        Args:
            frame: a table with the columns of the training table, in any order.

        Returns:
            A table with the column ``prediction`` and, for classes, one ``probability of <class>`` each; and
            notes on what was ignored or never seen in training.

        Raises:
            TableError: a column is missing or of another type.
        """
        encoded = self.encoder.encode(frame)
        outputs = self.outputs(encoded.matrix)
        columns: dict[str, Any] = {"prediction": self.encoder.decode_target(self.decide(outputs))}
        if self.encoder.classes:
            probabilities = self.task.probabilities(outputs).numpy()
            for position, label in enumerate(self.encoder.classes):
                columns[f"probability of {label}"] = probabilities[:, position]
        return pl.DataFrame(columns), encoded.notes


def _rebuild(tensors: dict[str, Tensor], hidden: object, encoder: Encoder) -> nn.Module:
    """Return the module that the tensors belong to; nothing larger than they are is ever allocated."""
    largest = max((tensor.numel() for tensor in tensors.values()), default=0)
    if (
        not isinstance(hidden, list)
        or len(hidden) > len(tensors)
        or not all(type(width) is int and 0 < width <= largest for width in hidden)
    ):
        msg = "the model file does not say how wide its hidden layers are, so it is damaged or not ours"
        raise ModelFileError(msg)
    outputs = len(encoder.classes) if len(encoder.classes) > 2 else 1
    rescale = (1.0, 0.0) if encoder.task == "regression" and hidden else None
    with torch.device("meta"):
        module = build_mlp(len(encoder.column_names), hidden, outputs, rescale=rescale)
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        wrong = next(name for name in [*expected, *found] if expected.get(name) != found.get(name))
        shapes = f"{wrong[:80]!r} has the shape {found.get(wrong)}, not {expected.get(wrong)}"
        msg = f"the model file holds other tensors than its configuration says: {shapes}"
        raise ModelFileError(msg)
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if dtypes not in ({torch.float32}, {torch.float64}):
        found_types = ", ".join(sorted(map(str, dtypes)))
        msg = f"the model file must hold float32 or float64 throughout, not {found_types}"
        raise ModelFileError(msg)
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        msg = "the model file holds weights that are infinite or not numbers, so it is damaged or not ours"
        raise ModelFileError(msg)
    module.load_state_dict(tensors, assign=True)
    return module.eval()
