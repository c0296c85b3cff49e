"""A fitted model together with the encoding of its table: saved, loaded and applied."""

import os
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torchlasso.encoding import Encoder
from torchlasso.errors import ModelFileError
from torchlasso.files import read_tensors, write_tensors
from torchlasso.mlp import build_mlp, linear_layers
from torchlasso.tasks import Task

_KIND = "table model"


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
        hidden = [layer.out_features for _, layer in linear_layers(self.module)[:-1]]
        config = {"kind": _KIND, "hidden": hidden, "encoder": self.encoder.to_config()}
        write_tensors(path, dict(self.module.state_dict()), config)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what ``save`` wrote.

        Args:
            path: the model file.

        Raises:
            ModelFileError: the file is damaged, foreign or hostile.
        """
        tensors, config = read_tensors(path)
        if config.get("kind") != _KIND:
            msg = f"{os.fspath(path)!r} is a torchlasso file, but not a model of a table; expected one from 'fit'"
            raise ModelFileError(msg)
        encoder = Encoder.from_config(config.get("encoder"))
        return cls(encoder, _rebuild(tensors, config.get("hidden"), encoder))

    @torch.no_grad()
    def outputs(self, matrix: NDArray[np.float32]) -> Tensor:
        """Return the outputs for encoded rows, in float64."""
        dtype = next(self.module.parameters()).dtype
        result: Tensor = self.module.eval()(torch.as_tensor(matrix, dtype=dtype))
        return result.double()

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
        if self.encoder.task == "regression":
            return pl.DataFrame({"prediction": outputs.squeeze(1).numpy()}), encoded.notes
        task = Task("binary") if len(self.encoder.classes) == 2 else Task("multiclass")
        probabilities = task.probabilities(outputs).numpy()
        columns: dict[str, Any] = {"prediction": self.encoder.decode_target(probabilities.argmax(axis=1))}
        for position, label in enumerate(self.encoder.classes):
            columns[f"probability of {label}"] = probabilities[:, position]
        return pl.DataFrame(columns), encoded.notes


def _rebuild(tensors: dict[str, Tensor], hidden: object, encoder: Encoder) -> nn.Module:
    """Return the module that the tensors belong to; nothing larger than they are is ever allocated."""
    if not isinstance(hidden, list) or not all(type(width) is int and width > 0 for width in hidden):
        msg = "the model file does not say how wide its hidden layers are, so it is damaged or not ours"
        raise ModelFileError(msg)
    outputs = len(encoder.classes) if len(encoder.classes) > 2 else 1
    rescale = (1.0, 0.0) if encoder.task == "regression" and hidden else None
    with torch.device("meta"):
        module = build_mlp(len(encoder.column_names), hidden, outputs, rescale=rescale)
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found or not all(tensor.is_floating_point() for tensor in tensors.values()):
        msg = f"the model file holds tensors of other shapes than its configuration says: {found}, not {expected}"
        raise ModelFileError(msg)
    module.load_state_dict(tensors, assign=True)
    return module.eval()
