"""An ONNX graph whose inputs are the raw columns of a table and whose predictions are the original labels."""

from typing import Any

import numpy as np

from torchlasso.exporting.table_graph import codes_of, names_of
from torchlasso.tabular.columns import Categorical
from torchlasso.tabular.encoding import Encoder

_ML = "ai.onnx.ml"
_ML_VERSION = 3


def output_names(encoder: Encoder) -> tuple[str, ...]:
    """Return the names of the outputs, which no column of the table has.

    Args:
        encoder: of the table.
    """
    names = []
    for name in ("prediction", "probabilities")[: 1 + bool(encoder.classes)]:
        while name in encoder.feature_names:
            name += "_"
        names.append(name)
    return tuple(names)


def with_columns(inner: Any, encoder: Encoder) -> Any:
    """Return the ``onnx.ModelProto`` that takes one input a column, ``[rows, 1]``: text or float64.

    A missing number is NaN and a missing text is empty.

    Args:
        inner: the graph of a `TableGraph`.
        encoder: of the table.
    """
    import onnx
    from onnx import TensorProto, helper

    prefix = "torchlasso/"  # of every name inside, so that columns may be called anything
    while any(name.startswith(prefix) for name in encoder.feature_names):
        prefix += "/"
    model = onnx.compose.add_prefix(inner, prefix)
    graph = model.graph
    within = iter([value.name for value in graph.input])
    nodes, inputs = [], []
    for names, kind in (
        (names_of(encoder, coded=False), TensorProto.DOUBLE),
        (names_of(encoder, coded=True), TensorProto.STRING),
    ):
        if not names:
            continue
        inputs += [helper.make_tensor_value_info(name, kind, ["rows", 1]) for name in names]
        columns = names
        if kind == TensorProto.STRING:
            columns = [f"{prefix}code {name}" for name in names]
            nodes += [_coder(encoder, name, code) for name, code in zip(names, columns, strict=True)]
        nodes.append(helper.make_node("Concat", columns, [next(within)], axis=1))
    raw = [value.name for value in graph.output]
    names_out = output_names(encoder)
    ends = _label_nodes(encoder, raw[0], names_out[0], graph, f"{prefix}labels")
    ends += [
        helper.make_node("Identity", [r], [name]) for r, name in zip(raw[1:], names_out[1:], strict=True)
    ]
    nodes += [*graph.node, *ends]
    outputs = [_output(encoder, name, place) for place, name in enumerate(names_out)]
    for field, values in ((graph.node, nodes), (graph.input, inputs), (graph.output, outputs)):
        del field[:]
        field.extend(values)
    if all(opset.domain != _ML for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_ML, _ML_VERSION))
    onnx.checker.check_model(model)
    return model


def _coder(encoder: Encoder, name: str, code: str) -> Any:
    """Return the node that turns the texts of a column into codes."""
    from onnx import helper

    column = next(column for column in encoder.columns if column.name == name)
    assert isinstance(column, Categorical)
    codes, other = codes_of(column)
    return helper.make_node(
        "LabelEncoder",
        [name],
        [code],
        domain=_ML,
        keys_strings=list(codes),
        values_int64s=list(codes.values()),
        default_int64=other,
    )


def _label_nodes(encoder: Encoder, source: str, name: str, graph: Any, labels: str) -> list[Any]:
    """Return the nodes that turn codes of classes into labels; numbers pass."""
    from onnx import helper, numpy_helper

    if not encoder.classes:
        return [helper.make_node("Identity", [source], [name])]
    graph.initializer.append(numpy_helper.from_array(_labels(encoder), labels))
    return [helper.make_node("Gather", [labels, source], [name], axis=0)]


def _labels(encoder: Encoder) -> "np.ndarray[Any, Any]":
    texts = isinstance(encoder.classes[0], str)
    return np.array(encoder.classes, dtype=object if texts else None)


def _output(encoder: Encoder, name: str, place: int) -> Any:
    """Return the declaration of an output."""
    from onnx import TensorProto, helper

    rows: list[str | int | None] = ["rows"]
    if place or not encoder.classes:
        width = [*rows, len(encoder.classes)] if place else rows
        return helper.make_tensor_value_info(name, TensorProto.DOUBLE, width)
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(_labels(encoder).dtype), rows)
