"""The ONNX format: a graph that onnxruntime and most other engines run."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from torchlasso.errors import InputError
from torchlasso.exporting.calls import Call, difference, refuse_export

METADATA = "torchlasso"
"""Key of the description among the metadata of the file."""

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_MOST = 2**31 - 1  # bytes of a file in one piece


def require_onnx() -> None:
    """Raise unless the packages for ONNX are there.

    Raises:
        InputError: naming the extra to install.
    """
    for name in _PACKAGES:
        try:
            __import__(name)
        except ImportError as error:
            msg = f"ONNX needs the package {name}, which is not installed; pip install torchlasso[onnx]"
            raise InputError(msg) from error


def onnx_graph(call: Call, outputs: tuple[str, ...] | None = None) -> Any:
    """Return the ``onnx.ModelProto`` of a model, for any number of rows.

    Args:
        call: the model and its example inputs.
        outputs: names of its outputs; None leaves them to torch.

    Raises:
        InputError: torch cannot export the model, or the packages are not there.
    """
    require_onnx()
    rows = tuple({0: torch.export.Dim.DYNAMIC} for _ in call.inputs)
    try:
        with torch.no_grad(), _silent():
            program = torch.onnx.export(
                call.module,
                call.inputs,
                dynamo=True,
                dynamic_shapes=rows,
                output_names=outputs,
                verbose=False,
            )
    except Exception as error:  # torch raises of every kind for what it cannot trace
        refuse_export("ONNX", error)
    assert program is not None
    return _without_traces(program.model_proto)


def onnx_bytes(graph: Any, description: str) -> bytes:
    """Return the content of an ``.onnx`` file.

    Args:
        graph: an ``onnx.ModelProto``; the description is added to it.
        description: what is kept among its metadata.

    Raises:
        InputError: the graph is larger than one file can be.
    """
    entry = graph.metadata_props.add()
    entry.key, entry.value = METADATA, description
    if graph.ByteSize() > _MOST:
        msg = f"the model takes {graph.ByteSize() >> 20:,} MiB, more than the 2,047 MiB of an ONNX file"
        raise InputError(msg)
    data: bytes = graph.SerializeToString()
    return data


def run_onnx(data: bytes, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Return what onnxruntime computes.

    Args:
        data: content of an ``.onnx`` file.
        inputs: an array for each input.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    found: list[NDArray[Any]] = session.run(None, dict(inputs))
    return found


def onnx_difference(data: bytes, call: Call) -> float:
    """Return the largest relative difference between onnxruntime and the model.

    Args:
        data: content of an ``.onnx`` file.
        call: the model and its example inputs.

    Raises:
        InputError: onnxruntime cannot run the file.
    """
    import onnx

    names = [value.name for value in onnx.load_from_string(data).graph.input]
    worst = 0.0
    for trial in (call, call.more()):
        inputs = {name: x.numpy() for name, x in zip(names, trial.inputs, strict=True)}
        try:
            found = run_onnx(data, inputs)
        except Exception as error:  # onnxruntime has error types of its own
            refuse_export("ONNX", error)
        worst = max(worst, difference([torch.from_numpy(np.asarray(y)) for y in found], trial.outputs()))
    return worst


def _without_traces(graph: Any) -> Any:
    """Leave out where in the user's source each node comes from: it is most of a small file."""
    for part in (graph.graph, *graph.functions):
        for entry in (*part.node, *part.value_info):
            del entry.metadata_props[:]
    return graph


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep back what torch's exporter says of its own insides."""
    logger = logging.getLogger(
        "torch.onnx._internal.exporter._registration"
    )  # packages that nobody asked for
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            warnings.filterwarnings("ignore", ".*The axis name: .* will not be used", UserWarning)
            yield
    finally:
        logger.setLevel(level)
