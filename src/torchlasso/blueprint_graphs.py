"""The graph of a traced model (``torch.fx``) as JSON, and back.

torch turns a graph into Python source and runs it.  So every name that gets into that source is checked
before: nodes and arguments are plain identifiers, modules and tensors are those that the file holds, and
functions are pure ones of ``torch.ops.aten``, ``operator`` and ``torch.sym_*``.
"""

import keyword
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.graph import CodeGen, _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from torchlasso.blueprint_layers import decode, encode
from torchlasso.files import refuse

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        f"operator.{name}": getattr(operator, name)
        for name in (
            *("abs", "add", "and_", "eq", "floordiv", "ge", "getitem", "gt", "invert", "le", "lt"),
            *("matmul", "mod", "mul", "ne", "neg", "not_", "or_", "pos", "pow", "sub", "truediv", "xor"),
        )
    },
    **{
        f"torch.{name}": getattr(torch, name)
        for name in (
            "sym_float",
            "sym_int",
            "sym_ite",
            "sym_max",
            "sym_min",
            "sym_not",
            "sym_sqrt",
            "sym_sum",
        )
    },
}
_NAMES = {function: name for name, function in _FUNCTIONS.items()}
_PRIVATE = re.compile(
    r"_(assert_tensor_metadata|adaptive_avg_pool[23]d|cdist_forward|conj|embedding_bag|fft_(c2c|c2r|r2c)|log_softmax|neg_view|"
    r"native_batch_norm_legit_no_training|pdist_forward|prelu_kernel|safe_softmax|scaled_dot_product_\w+|"
    r"shape_as_tensor|softmax|to_copy|trilinear|unsafe_view|upsample_\w+_aa|weight_norm)"
)
_UNSAFE = re.compile(
    r"\w*(backward|nested|sparse)\w*|(cudnn|fbgemm|miopen|mkldnn|quantized)_\w+|"
    r"from_file|record_stream|resize(_as)?|set(_data)?"
)
"""Operators that read files, or trust indices, sizes and packed weights without looking."""

_CONSTANTS: dict[str, type] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}
_VALUES = {
    f"{key}:{value}": value
    for key, kind in _CONSTANTS.items()
    for value in vars(torch).values()
    if isinstance(value, kind)
}


def encode_graph(module: fx.GraphModule) -> dict[str, Any]:
    """Return a traced module's graph in JSON types.

    Devices are stored as the CPU, where loaded models are.

    Args:
        module: the traced module; its layers and tensors are not part of the result.

    Raises:
        ModelFileError: the graph calls a function that is not pure and known, or has other arguments than
            numbers, texts, nodes, torch's constants and containers of these.

    Example:
        >>> graph = encode_graph(fx.symbolic_trace(torch.nn.Sequential(torch.nn.ReLU())))
        >>> graph["nodes"][1]
        {'op': 'call_module', 'name': '_0', 'target': '0', 'args': [{'node': 'input_1'}]}
    """
    graph = module.graph
    nodes = []
    for node in graph.nodes:
        target = _function_name(node.target) if node.op == "call_function" else str(node.target)
        found = {"op": node.op, "name": node.name, "target": target}
        if node.args:
            found["args"] = [_encode(value) for value in node.args]
        if node.kwargs:
            found["kwargs"] = {name: _encode(value) for name, value in node.kwargs.items()}
        nodes.append(found)
    codegen = graph._codegen
    encoded: dict[str, Any] = {"name": type(module).__name__, "nodes": nodes}
    if type(codegen) is _PyTreeCodeGen:
        info = codegen.pytree_info
        encoded["arguments"] = list(info.orig_args)
        encoded["inputs"] = _encode_spec(info.in_spec)
        encoded["outputs"] = None if info.out_spec is None else {"spec": _encode_spec(info.out_spec)}
    elif type(codegen) is not CodeGen:
        refuse(f"a graph that makes its source with {type(codegen).__name__} cannot be stored")
    return encoded


def decode_graph(encoded: object, modules: Collection[str], tensors: Collection[str]) -> fx.Graph:
    """Return the graph that `encode_graph` wrote down.

    Args:
        encoded: what the file holds; nothing in it is trusted.
        modules: names of the layers that the graph may call.
        tensors: names of the parameters and buffers that it may read.

    Raises:
        ModelFileError: the graph asks for anything else.
    """
    if not isinstance(encoded, dict) or not isinstance(encoded.get("nodes"), list):
        refuse("its graph is no list of nodes")
    graph, made = fx.Graph(), dict[str, fx.Node]()
    for item in encoded["nodes"]:
        if not isinstance(item, dict):
            refuse("a node of its graph is no object")
        op, name, target = str(item.get("op")), _identifier(item.get("name")), item.get("target")
        args, kwargs = item.get("args", []), item.get("kwargs", {})
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            refuse(f"the arguments of the node {name!r} are no list and object")
        if name in made:
            refuse(f"two nodes of its graph are called {name!r}")
        made[name] = graph.create_node(
            op,
            _target(op, target, modules, tensors),
            tuple(_decode(value, made) for value in args),
            {_identifier(key): _decode(value, made) for key, value in kwargs.items()},
            name=name,
        )
    if [node.op for node in graph.nodes].index("output") != len(made) - 1:
        refuse("its graph does not end at its output")
    if "inputs" in encoded:
        graph.set_codegen(_PyTreeCodeGen(_pytree_info(encoded)))
    return graph


def class_name(encoded: object) -> str:
    """Return the name under which the class of a traced module is shown.

    Args:
        encoded: what `encode_graph` returned; nothing in it is trusted.

    Raises:
        ModelFileError: it has no plain name.
    """
    return _identifier(encoded.get("name") if isinstance(encoded, dict) else None)


def _target(op: str, target: object, modules: Collection[str], tensors: Collection[str]) -> Any:
    if not isinstance(target, str):
        refuse("a node of its graph has a target that is no text")
    if op == "call_function":
        return _function(target)
    if op == "placeholder":
        return _identifier(target)
    known: Collection[str] = {"call_module": modules, "get_attr": tensors}.get(op, ())
    # A name in the file may be any text; in the source it must not end the string that torch puts it in.
    if op != "output" and (target not in known or not re.fullmatch("[a-zA-Z0-9_.]+", target)):
        refuse(f"its graph wants to {op[:20]} {target[:60]!r}, which is not in the file or no plain name")
    return target


def _function_name(function: object) -> str:
    name = str(function) if isinstance(function, torch._ops.OpOverload) else _NAMES.get(function)  # type: ignore[call-overload]
    if name is None:
        refuse(f"a graph that calls {getattr(function, '__name__', function)!r} cannot be stored")
    _function(name)
    return name


def _function(name: str) -> Callable[..., Any]:
    """Return the function of a name, if it is one of those that only compute."""
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    found = re.fullmatch(r"aten\.([a-zA-Z0-9_]+)\.([a-zA-Z0-9_]+)", name)
    if found and not _UNSAFE.fullmatch(found[1]) and (found[1][0] != "_" or _PRIVATE.fullmatch(found[1])):
        overload = getattr(getattr(torch.ops.aten, found[1], None), found[2], None)
        if isinstance(overload, torch._ops.OpOverload) and not overload._schema.is_mutable:
            return overload
    refuse(f"the function {name[:60]!r} is none of those that a graph in a file may call")


def _identifier(name: object) -> str:
    """Return a name that can stand in Python source as it is."""
    if (
        not isinstance(name, str)
        or not re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", name)
        or keyword.iskeyword(name)
        or name == "self"
    ):
        refuse(f"expected a plain name in its graph, got {repr(name)[:40]}")
    return name


def _encode(value: object) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_encode(item) for item in value]}
    if isinstance(value, slice):
        return {"slice": [_encode(item) for item in (value.start, value.stop, value.step)]}
    if isinstance(value, dict):
        return {"dict": [[_encode(key), _encode(item)] for key, item in value.items()]}
    return _encode_constant(value)


def _encode_constant(value: object) -> Any:
    if isinstance(value, torch.device):
        return {"device": "cpu"}
    for key, kind in _CONSTANTS.items():
        if isinstance(value, kind):
            return {key: str(value).removeprefix("torch.")}
    return encode(value)


def _decode(value: object, made: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, made) for item in value]
    if not isinstance(value, dict) or "float" in value:
        return decode(value)
    if len(value) != 1:
        refuse(f"its graph has the odd argument {repr(value)[:40]}")
    ((key, inner),) = value.items()
    if key in ("tuple", "slice", "dict") and isinstance(inner, list):
        return _CONTAINERS[key]([_decode(item, made) for item in inner])
    if key == "node" and inner in made:
        return made[inner]
    if key == "device" and inner == "cpu":
        return torch.device("cpu")
    if (constant := f"{key}:torch.{inner}") in _VALUES:
        return _VALUES[constant]
    refuse(f"its graph has the odd argument {repr(value)[:40]}")


_CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "slice": lambda ends: slice(*ends),
    "dict": dict,
}


def _pytree_info(encoded: Mapping[str, Any]) -> _PyTreeInfo:
    names, outputs = encoded.get("arguments"), encoded.get("outputs")
    if not isinstance(names, list) or not (outputs is None or isinstance(outputs, dict)):
        refuse("its graph does not say how its inputs and outputs are nested")
    in_spec = _decode_spec(encoded["inputs"])
    _check_keys(in_spec)
    out_spec = None if outputs is None else _decode_spec(outputs.get("spec"))
    return _PyTreeInfo([_identifier(name) for name in names], in_spec, out_spec)


def _check_keys(spec: pytree.TreeSpec) -> None:
    """Refuse keys of inputs that cannot stand in the source, where torch writes them."""
    for key in spec.context or ():
        _identifier(key)
    for child in spec.children():
        _check_keys(child)


def _encode_spec(spec: pytree.TreeSpec) -> Any:
    if spec.is_leaf():
        return None
    known = pytree.SUPPORTED_SERIALIZED_TYPES.get(spec.type)
    if known is None or not _is_plain(known, spec.context):
        refuse(f"inputs or outputs of the type {getattr(spec.type, '__name__', spec.type)} cannot be stored")
    children = [_encode_spec(child) for child in spec.children()]
    return {"of": known.serialized_type_name, "keys": spec.context, "items": children}


def _decode_spec(encoded: object) -> pytree.TreeSpec:
    """Return how values are nested: in Python's containers, or those that the program made known to torch."""
    if encoded is None:
        return pytree.tree_structure(0)  # one value
    if not isinstance(encoded, dict) or not isinstance(encoded.get("items"), list):
        refuse("its graph does not say how its inputs and outputs are nested")
    name, keys = str(encoded.get("of")), encoded.get("keys")
    kind = pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE.get(name)
    if kind is None or not _is_plain(pytree.SUPPORTED_SERIALIZED_TYPES[kind], keys):
        refuse(f"inputs or outputs of the type {name[:60]!r} are not known here; import it first")
    return pytree.TreeSpec(kind, keys, [_decode_spec(child) for child in encoded["items"]])


def _is_plain(known: Any, keys: object) -> bool:
    """Whether nothing but a list of keys, if any, is needed to put values into such a container."""
    named = isinstance(keys, Iterable) and not isinstance(keys, str) and all(isinstance(k, str) for k in keys)
    return known.from_dumpable_context is None and (keys is None or (isinstance(keys, list) and named))
