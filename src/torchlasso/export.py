"""A model in a format that other programs run: ONNX, PyTorch's exported program, plain safetensors."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from torchlasso.errors import InputError
from torchlasso.exporting.calls import Call, call_of, check_difference, difference, refuse_export
from torchlasso.exporting.onnx_file import onnx_bytes, onnx_difference, onnx_graph, run_onnx
from torchlasso.exporting.pt2_file import pt2_bytes
from torchlasso.exporting.table_columns import with_columns
from torchlasso.exporting.table_graph import TableGraph, description
from torchlasso.exporting.table_probe import probe, reference
from torchlasso.files import AnyPath, write_files
from torchlasso.sparsification import densify
from torchlasso.tabular.predictor import Predictor

FORMATS = ("onnx", "pt2", "safetensors")
"""The formats, which are also the endings of the files."""


@dataclass(frozen=True)
class Exported:
    """What was written; ``print`` it for one line.

    Attributes:
        path: the file.
        format: ``"onnx"``, ``"pt2"`` or ``"safetensors"``.
        size: of the file in bytes.
        max_difference: the largest difference between what the file and the model gave for the same rows,
            relative to the largest output.
    """

    path: str
    format: str
    size: int
    max_difference: float

    def __str__(self) -> str:
        checked = f"differs from the model by {self.max_difference:.1e} at most"
        return f"wrote {self.path} ({self.format}, {self.size:,} bytes; {checked}, relative)"


def export_model(
    model: nn.Module | Predictor | AnyPath,
    path: AnyPath,
    *,
    format: str | None = None,
    example_inputs: Tensor | tuple[Tensor, ...] | None = None,
) -> Exported:
    """Write a model in a format that other programs run, and check the file against the model first.

    The model of a table (what ``torchlasso fit`` wrote) takes its raw columns along: missing values, scales
    and categories are handled inside the graph.  In ONNX each column is an input ``[rows, 1]`` of its own
    name, float64 (NaN is missing; true and false are 1 and 0; moments are days since 1970 in UTC) or text
    (empty is missing), and ``prediction`` holds the original labels.  In ``pt2`` the numbers are one float64
    matrix and the texts are codes, which the extra file ``torchlasso.json`` explains.

    Any other module is exported as it computes ``example_inputs``, for any number of rows.  Sparse layers are
    written dense: the engines that read these files gain nothing from zeros, so compact the model first.

    Args:
        model: a module, a predictor, or the path of a model that ``torchlasso fit`` wrote.
        path: the file to write.
        format: ``"onnx"``, ``"pt2"`` or ``"safetensors"`` (the weights alone, with a description of a table
            in the metadata); None reads it from the ending of the path.
        example_inputs: for a module, a tensor or a tuple of tensors with the batch in their first dimension.

    Returns:
        What was written, with the largest difference that was found.

    Raises:
        InputError: the format is unknown, the model cannot be exported, packages for ONNX are not installed,
            or the file would differ from the model by more than 1e-4 of its largest output.
        ModelFileError: the model file cannot be read.
        OutputError: the file cannot be written there.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_model(model, f"{folder}/m.safetensors").max_difference
        0.0
    """
    kind = _format(path, format)
    if isinstance(model, str | os.PathLike):
        model = Predictor.load(model)
    if isinstance(model, Predictor):
        data, worst = _TABLES[kind](model)
    else:
        data, worst = _MODULES[kind](model, example_inputs)
    check_difference(worst, kind)
    write_files({path: data})
    return Exported(os.fspath(path), kind, len(data), worst)


def _format(path: AnyPath, format: str | None) -> str:
    kind = format or Path(path).suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        msg = f"format must be one of {', '.join(FORMATS)}, got {kind or 'a path without an ending'!r}"
        raise InputError(msg)
    return kind


# ---- any module ---------------------------------------------------------------------------------------


def _module_onnx(model: nn.Module, example_inputs: object) -> tuple[bytes, float]:
    call = call_of(model, example_inputs)
    data = onnx_bytes(onnx_graph(call), "{}")
    return data, onnx_difference(data, call)


def _module_pt2(model: nn.Module, example_inputs: object) -> tuple[bytes, float]:
    return pt2_bytes(call_of(model, example_inputs), "{}")


def _module_weights(model: nn.Module, example_inputs: object) -> tuple[bytes, float]:
    return _weights(model, {})


_MODULES: dict[str, Callable[[nn.Module, object], tuple[bytes, float]]] = {
    "onnx": _module_onnx,
    "pt2": _module_pt2,
    "safetensors": _module_weights,
}


# ---- the model of a table -----------------------------------------------------------------------------


def _table_onnx(predictor: Predictor) -> tuple[bytes, float]:
    rows = probe(predictor)
    call = Call(TableGraph(predictor).eval(), rows.tensors)
    graph = onnx_graph(call)
    try:
        data = onnx_bytes(with_columns(graph, predictor.encoder), _described(predictor))
        found = run_onnx(data, rows.arrays)
    except Exception as error:  # onnx and onnxruntime have error types of their own
        refuse_export("ONNX", error)
    return data, difference([torch.from_numpy(found[-1])], reference(predictor, rows.frame))


def _table_pt2(predictor: Predictor) -> tuple[bytes, float]:
    rows = probe(predictor)
    call = Call(TableGraph(predictor).eval(), rows.tensors)
    data, worst = pt2_bytes(call, _described(predictor))
    return data, max(worst, difference(call.outputs()[-1:], reference(predictor, rows.frame)))


def _table_weights(predictor: Predictor) -> tuple[bytes, float]:
    config = json.dumps(predictor.encoder.to_config())
    return _weights(predictor.module, {"torchlasso.json": _described(predictor), "encoder.json": config})


_TABLES: dict[str, Callable[[Predictor], tuple[bytes, float]]] = {
    "onnx": _table_onnx,
    "pt2": _table_pt2,
    "safetensors": _table_weights,
}


def _described(predictor: Predictor) -> str:
    return json.dumps(description(predictor), ensure_ascii=False)


def _weights(model: nn.Module, metadata: dict[str, str]) -> tuple[bytes, float]:
    """Return the tensors of a model by name; a shared one is written under each of its names."""
    state: dict[str, Any] = densify(model).state_dict()
    tensors = {name: x.detach().cpu().contiguous().clone() for name, x in state.items()}
    data: bytes = save(tensors, metadata=metadata or None)
    back = load(data)
    same = back.keys() == tensors.keys() and all(torch.equal(back[n], x) for n, x in tensors.items())
    return data, 0.0 if same else float("inf")
