"""From a module to a flat graph of ATen calls with concrete example values: ``torch.export``, made plain."""

import inspect
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from torchlasso.errors import InputError

aten = torch.ops.aten
_CHECKS = re.compile(r"_assert|sym_constrain_range|_guards_fn|_assert_tensor_metadata")


@dataclass(frozen=True, eq=False)
class Program:
    """A module as a graph of calls.

    Attributes:
        model: the module that was traced, in the mode that it was in.
        graph: calls of ATen functions; parameters, buffers and constants are ``get_attr`` nodes.
        tensors: what each ``get_attr`` target stands for.
        parameters: the targets that are parameters.
        inputs: a value for each placeholder, by name.
        args: the positional arguments of the example.
        kwargs: its keyword arguments.
        in_spec: how the arguments nest, as ``torch.export`` gives it.
        out_spec: how the outputs nest.
    """

    model: nn.Module
    graph: fx.Graph
    tensors: dict[str, Tensor]
    parameters: frozenset[str]
    inputs: dict[str, Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec


def trace(model: nn.Module, example_inputs: object) -> Program:
    """Trace a module in evaluation mode, with every size of its inputs left open that can be.

    Args:
        model: any module that ``torch.export`` can trace; its mode and its tensors are left as they are.
        example_inputs: a tensor, a tuple of arguments or a mapping of keyword arguments.

    Raises:
        InputError: ``torch.export`` cannot trace the module; its own message is in ours.
    """
    args, kwargs = call_arguments(example_inputs)
    args, kwargs = pytree.tree_map(_at_least_two, (args, kwargs))
    with evaluating(model), _quiet():
        exported = _export(model, args, kwargs)
    graph, tensors, parameters, names = _lifted(exported, model)
    _make_functional(graph)
    leaves = pytree.tree_leaves((args, kwargs))
    _check_numbers(leaves)
    return Program(
        model,
        graph,
        tensors,
        parameters,
        dict(zip(names, leaves, strict=True)),
        args,
        kwargs,
        exported.call_spec.in_spec,
        exported.call_spec.out_spec,
    )


def call_arguments(example_inputs: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments.

    Args:
        example_inputs: a tensor, a tuple of arguments or a mapping of keyword arguments.

    Raises:
        InputError: anything else.
    """
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, Sequence) and not isinstance(example_inputs, str):
        return tuple(example_inputs), {}
    kind = type(example_inputs).__name__
    msg = f"example_inputs must be a tensor, a tuple of arguments or a dict of keyword arguments, got {kind}"
    raise InputError(msg)


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put models into evaluation mode, and every submodule back into its own mode afterwards.

    Args:
        models: any modules.
    """
    modes = {module: module.training for model in models for module in model.modules()}
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what ``torch.export`` says about sizes that it fixed, and about LSTM weights, to itself."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _at_least_two(leaf: Any) -> Any:
    """Return a batch of one row twice: ``torch.export`` fixes sizes of 0 and 1."""
    if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == 1:
        return torch.cat([leaf, leaf])
    return leaf


def _open_sizes(leaf: Any) -> Any:
    return dict.fromkeys(range(leaf.ndim), Dim.AUTO) if isinstance(leaf, Tensor) else None


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    shapes = pytree.tree_map(_open_sizes, (*args, *kwargs.values()))
    flat = _recurrent_weights(model)
    try:
        return export(model, args, kwargs, dynamic_shapes=_by_name(model, args, kwargs, shapes), strict=False)
    except Exception as error:
        first = str(error).strip().splitlines()
        msg = (
            f"torch.export cannot trace {type(model).__name__} ({type(error).__name__}: "
            f"{first[0] if first else ''}); example_inputs must be what the model is called with"
        )
        raise InputError(msg) from error
    finally:
        for module, weights in flat.items():
            module._flat_weights = weights


def _by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> Any:
    """Return the shapes by the names of the arguments, as ``torch.export`` wants them with kwargs."""
    if not kwargs:
        return tuple(shapes)
    names = list(inspect.signature(model.forward).parameters)[: len(args)]
    return dict(zip((*names, *kwargs), shapes, strict=True))


def _recurrent_weights(model: nn.Module) -> dict[nn.RNNBase, list[Any]]:
    """Return the weight lists of recurrent layers, which export replaces by its own for a while."""
    return {m: list(m._flat_weights) for m in model.modules() if isinstance(m, nn.RNNBase)}


def _lifted(
    exported: ExportedProgram, model: nn.Module
) -> tuple[fx.Graph, dict[str, Tensor], frozenset[str], list[str]]:
    """Return the graph with its tensors as ``get_attr`` nodes, and the names of the real inputs."""
    graph = exported.graph
    nodes = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    tensors: dict[str, Tensor] = {}
    first = {id(tensor): name for name, tensor in model.named_parameters()}  # a tied one has several names
    parameters, names = set(), []
    for spec in exported.graph_signature.input_specs:
        node = nodes[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            names.append(node.name)
            continue
        tensor = _tensor(exported, model, spec)
        target = first.get(id(tensor), str(spec.target))
        tensors[target] = tensor
        if spec.kind is InputKind.PARAMETER:
            parameters.add(target)
        with graph.inserting_before(node):
            attribute = graph.create_node("get_attr", target, name=node.name + "_tensor")
            attribute.meta = dict(node.meta)
        node.replace_all_uses_with(attribute)
        graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "call_module") and _CHECKS.search(str(node.target)):
            graph.erase_node(node)
    return graph, tensors, frozenset(parameters), names


def _tensor(exported: ExportedProgram, model: nn.Module, spec: Any) -> Tensor:
    if spec.kind is InputKind.CONSTANT_TENSOR or spec.persistent is False:
        constant: Tensor = exported.constants[spec.target].detach()
        return constant
    owner, _, name = str(spec.target).rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(owner), name)
    return tensor


def _make_functional(graph: fx.Graph) -> None:
    """Replace in-place calls by their functional forms; later readers of the argument read the result."""
    for node in list(graph.nodes):
        if node.op != "call_function" or not _in_place(node.target):
            continue
        name = node.target._schema.name.split("::")[1].rstrip("_")
        functional = getattr(getattr(aten, name, None), node.target._overloadname, None)
        changed = node.args[0] if node.args else None
        if functional is None or not isinstance(changed, fx.Node):
            msg = f"the model changes a tensor in place with {node.target}, which cannot be compacted"
            raise InputError(msg)
        _check_aliases(node, changed)
        later = False
        for user in graph.nodes:
            later = later or user is node
            if later and user is not node and changed in user.all_input_nodes:
                user.replace_input_with(changed, node)
        node.target = functional


def _check_numbers(leaves: Sequence[object]) -> None:
    """Raise if a number is an argument: a traced graph would keep the one that it was traced with."""
    numbers = [leaf for leaf in leaves if isinstance(leaf, int | float) and not isinstance(leaf, bool)]
    if numbers:
        msg = (
            f"the example holds the number {numbers[0]!r}, and a compacted model would keep it for ever; "
            "leave the argument out, give a tensor, or wrap the model in a module that sets it"
        )
        raise InputError(msg)


def _check_aliases(node: fx.Node, changed: fx.Node) -> None:
    """Raise if a tensor that is changed in place shares its memory with one that is read afterwards."""
    family, pending = {changed}, [changed]
    while pending:
        member = pending.pop()
        near = [member.args[0]] if _is_view(member) else []
        near += [user for user in member.users if _is_view(user) and user.args[0] is member]
        new = [other for other in near if isinstance(other, fx.Node) and other not in family]
        family.update(new)
        pending += new
    after = False
    for reader in node.graph.nodes:
        after = after or reader is node
        sized = reader.target is aten.sym_size.int  # it reads no entry
        if after and reader is not node and not sized and (family - {changed}) & set(reader.all_input_nodes):
            msg = (
                f"the model changes a part of a tensor in place ({node.target}) and reads the tensor "
                f"afterwards ({reader.name}); write it without the underscore, or with torch.where"
            )
            raise InputError(msg)


def _is_view(node: fx.Node) -> bool:
    """Return whether a call gives a view of its first argument."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(
        r.alias_info is not None and not r.alias_info.is_write for r in schema.returns
    )


def _in_place(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    return schema is not None and schema.is_mutable


def is_open(size: Any) -> bool:
    """Return whether a size of an exported tensor is free: one symbol, and no product that a layer fixes.

    Args:
        size: an entry of ``node.meta["val"].shape``.
    """
    return isinstance(size, torch.SymInt) and bool(size.node.expr.is_Symbol)


def module_path(node: fx.Node) -> str:
    """Return the dotted name of the module in which a call was made.

    Args:
        node: of an exported graph.
    """
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    return re.sub(r"@\d+", "", path)
