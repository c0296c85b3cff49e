"""How a model is put together, as JSON, and back: a table from the dotted name of each part to what it is.

A part is a layer (``{"type": "Linear", "args": {...}}``), a container whose parts have lines of their own,
a traced graph, the same object as an earlier part (``{"same": "0"}``), or of a class that nothing here can
build (``{"class": "mine.Net", "why": "..."}``).
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from torchlasso.blueprint_graphs import class_name, decode_graph, encode_graph
from torchlasso.blueprint_layers import LAYERS, arguments, build
from torchlasso.errors import ModelFileError
from torchlasso.files import refuse

Blueprint: TypeAlias = dict[str, dict[str, Any]]

_CONTAINERS: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)
}
_MAX_LEVELS = 64
_MAX_PARTS = 100_000
_HELD = ("parameters", "buffers", "transient")


def describe(model: nn.Module) -> Blueprint:
    """Return what each part of a model is.

    Args:
        model: any module.

    Example:
        >>> describe(nn.Sequential(nn.Linear(2, 1), nn.ReLU()).eval())  # doctest: +NORMALIZE_WHITESPACE
        {'': {'type': 'Sequential'},
         '0': {'type': 'Linear', 'args': {'in_features': 2, 'out_features': 1}},
         '1': {'type': 'ReLU', 'args': {}}}
    """
    found: Blueprint = {}
    first: dict[nn.Module, str] = {}
    pending = [("", model)]
    while pending:
        name, module = pending.pop()
        if module in first:
            found[name] = {"same": first[module]}
            continue
        first[module] = name
        found[name] = entry = _entry(module)
        if "args" not in entry:
            prefix = f"{name}." if name else ""
            children = [(prefix + key, child) for key, child in module._modules.items() if child is not None]
            pending.extend(reversed(children))
    return found


def construct(blueprint: object, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return the model without data (on the device ``meta``).

    Args:
        blueprint: what `describe` returned; nothing in it is trusted.
        tensors: the parameters and buffers by name, whose shapes those of containers take over.

    Raises:
        ModelFileError: it is no blueprint, or has a part of a class that is not known here.  What else a
            constructor may have against its arguments is raised as it is.

    Example:
        >>> construct({"": {"type": "Linear", "args": {"in_features": 2, "out_features": 1}}}, {})
        Linear(in_features=2, out_features=1, bias=True)
    """
    made: dict[str, nn.Module] = {}
    graphs: list[tuple[fx.GraphModule, object]] = []
    for name, entry in entries(blueprint).items():
        module = _earlier(name, entry, made) if "same" in entry else _make(name, entry, tensors)
        if isinstance(module, fx.GraphModule) and "same" not in entry:
            graphs.append((module, entry.get("graph")))
        if name:
            _put(name, module, made)
        made[name] = module
    model = made[""]
    _check_size(model)
    for module, encoded in graphs:
        names = dict(module.named_modules()).keys() - {""}
        module.graph = decode_graph(encoded, names, named_tensors(module).keys())
    return model


def entries(blueprint: object) -> Blueprint:
    """Return the lines of a blueprint whose outline is sound: the model comes first, and all are objects.

    Args:
        blueprint: what a file holds; nothing in it is trusted.

    Raises:
        ModelFileError: it is no blueprint.
    """
    if not isinstance(blueprint, dict) or next(iter(blueprint), None) != "":
        refuse("it does not say how its model is put together")
    for name, entry in blueprint.items():
        if not isinstance(entry, dict):
            refuse(f"its line for {name[:60]!r} is no object")
        if name.count(".") > _MAX_LEVELS:
            refuse(f"its model is nested more than {_MAX_LEVELS} deep")
    return blueprint


def foreign(blueprint: Blueprint) -> tuple[str, str] | None:
    """Return the class of the first part that cannot be built, and why not; None if all can.

    Args:
        blueprint: its lines.
    """
    for entry in blueprint.values():
        if "class" in entry:
            return str(entry["class"]), str(entry.get("why"))
    return None


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers that a file holds, by every name that they have.

    Buffers that are not persistent are left out where the code of a class makes them anew, and are kept
    where there is no such code: in traced graphs and plain modules.

    Args:
        model: any module.

    Example:
        >>> list(named_tensors(nn.BatchNorm1d(3, affine=False)))
        ['running_mean', 'running_var', 'num_batches_tracked']
    """
    return {
        f"{prefix}.{name}" if prefix else name: tensor
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name, tensor in _own_tensors(module)
    }


def is_continuous(tensor: Tensor) -> bool:
    """Return whether the entries are real or complex numbers, as opposed to whole ones and truth values.

    Args:
        tensor: any tensor.
    """
    return tensor.is_floating_point() or tensor.is_complex()


def outline(module: nn.Module) -> dict[str, object]:
    """Return what two modules of the same make share: types of parts, shapes and kinds of tensors.

    Args:
        module: a layer.

    Example:
        >>> outline(nn.Linear(2, 1, bias=False))
        {'': <class 'torch.nn.modules.linear.Linear'>, 'weight': (torch.Size([1, 2]), True)}
    """
    parts: dict[str, object] = {name: type(part) for name, part in module.named_modules()}
    return parts | {
        name: (tensor.shape, is_continuous(tensor)) for name, tensor in named_tensors(module).items()
    }


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    left_out = () if _is_held(module) else module._non_persistent_buffers_set
    for name, tensor in (module._parameters | module._buffers).items():
        if tensor is not None and name not in left_out:
            yield name, tensor


def _is_held(module: nn.Module) -> bool:
    """Whether no code of the module's class makes its tensors."""
    return type(module) in _CONTAINERS.values() or isinstance(module, fx.GraphModule)


def _entry(module: nn.Module) -> dict[str, Any]:
    cls = type(module)
    try:
        entry = _known(module)
    except (ModelFileError, AttributeError) as error:
        return {"class": f"{cls.__module__}.{cls.__qualname__}", "why": str(error)}
    return {**entry, "training": True} if module.training else entry


def _known(module: nn.Module) -> dict[str, Any]:
    """Return the line of a module that can be built anew, checked by building it."""
    cls = type(module)
    if "forward" in vars(module):
        refuse("it was given another forward")
    if module._forward_hooks or module._forward_pre_hooks:
        refuse("it has hooks, which no file can hold")
    if LAYERS.get(cls.__name__) is cls:
        found = arguments(module)
        if outline(build(cls.__name__, found)) != outline(module):
            refuse("its tensors are not those that its class makes from its attributes")
        return {"type": cls.__name__, "args": found}
    held = {
        "parameters": [name for name, p in module._parameters.items() if p is not None],
        "buffers": [name for name, b in module._buffers.items() if b is not None],
        "transient": sorted(module._non_persistent_buffers_set),
    }
    held = {key: names for key, names in held.items() if names}
    if _CONTAINERS.get(cls.__name__) is cls:
        return {"type": cls.__name__, **held}
    if not isinstance(module, fx.GraphModule):
        refuse("torchlasso does not know its class")
    graph = encode_graph(module)
    decode_graph(graph, dict(module.named_modules()).keys() - {""}, named_tensors(module).keys())
    return {"type": "GraphModule", "graph": graph, **held}


def _make(name: str, entry: dict[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    kind = str(entry.get("type"))
    if kind in LAYERS:
        args = entry.get("args")
        if not isinstance(args, dict):
            refuse(f"its line for {name[:60]!r} has no arguments")
        module = build(kind, args)
    elif kind == "GraphModule":
        title = class_name(entry.get("graph"))
        module = fx.GraphModule(nn.Module(), fx.Graph(), title)
    elif kind in _CONTAINERS:
        module = _CONTAINERS[kind]()
    else:
        refuse(f"its line for {name[:60]!r} has the unknown type {kind[:40]!r}")
    if kind not in LAYERS:
        _hold(module, name, entry, tensors)
    return module.train(entry.get("training") is True)


def _hold(module: nn.Module, prefix: str, entry: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Give a container its own parameters and buffers, without data."""
    parameters, buffers, transient = (entry.get(key, []) for key in _HELD)
    for name in (*parameters, *buffers):
        path = f"{prefix}.{name}" if prefix else name
        if path not in tensors:
            refuse(f"its tensor {path[:60]!r} is missing")
        empty = torch.empty_like(tensors[path], device="meta")
        if name in buffers:
            module.register_buffer(name, empty, persistent=name not in transient)
        else:
            module.register_parameter(name, nn.Parameter(empty, requires_grad=is_continuous(empty)))


def _earlier(name: str, entry: Mapping[str, Any], made: Mapping[str, nn.Module]) -> nn.Module:
    other = entry["same"]
    if not isinstance(other, str) or other not in made:
        refuse(
            f"its part {name[:60]!r} is said to be the same as {repr(other)[:60]}, which is no earlier one"
        )
    return made[other]


def _put(name: str, module: nn.Module, made: Mapping[str, nn.Module]) -> None:
    """Put a part into the container that holds it."""
    above, _, key = name.rpartition(".")
    parent = made.get(above)
    if parent is None or not _is_held(parent):
        refuse(f"its part {name[:60]!r} is in no container")
    if isinstance(parent, nn.ModuleList) and key != str(len(parent)):
        refuse(f"its part {name[:60]!r} is not the next one of a list")
    parent.add_module(key, module)


def _check_size(model: nn.Module) -> None:
    """Refuse a model whose shared parts unfold to very many, or hold themselves."""
    pending, count = [model], 0
    while pending:
        children = [child for child in pending.pop()._modules.values() if child is not None]
        pending.extend(children)
        count += 1
        if count + len(pending) > _MAX_PARTS:
            refuse(f"its model has more than {_MAX_PARTS} parts")
