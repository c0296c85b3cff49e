"""The small model: a graph of ordinary layers, with what is dead left out."""

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from torchlasso.compaction.labels import Flow, squeezed
from torchlasso.compaction.modules import make
from torchlasso.compaction.shapes import item_of, rewritten
from torchlasso.compaction.surgery import Surgery, part_of
from torchlasso.errors import CompactionError

aten = torch.ops.aten
_PLAIN = (list, tuple, dict)
_CASTS = (aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.type_as.default)


def rebuild(surgery: Surgery) -> fx.GraphModule:
    """Return the small model.

    Args:
        surgery: what stays of the large one.
    """
    builder = _Builder(surgery)
    for node in surgery.analysis.program.graph.nodes:
        builder.visit(node)
    return builder.finish()


@dataclass(eq=False)
class _Builder:
    """A new graph and its modules, grown call by call."""

    surgery: Surgery
    graph: fx.Graph = field(default_factory=fx.Graph)
    root: nn.Module = field(default_factory=nn.Module)
    nodes: dict[fx.Node, Any] = field(default_factory=dict)
    layers: dict[str, nn.Module] = field(default_factory=dict)
    constants: int = 0

    def visit(self, node: fx.Node) -> None:
        """Copy one node, unless nothing of it stays."""
        if node.op == "placeholder":
            self.nodes[node] = self.graph.placeholder(node.name)
        elif node.op == "output":
            self._output(node)
        elif node.op == "call_function" and self._needed(node):
            self.nodes[node] = self._call(node)

    def _needed(self, node: fx.Node) -> bool:
        flows = self.surgery.analysis.flows[node]
        if isinstance(flows, list | tuple):
            return any(self.surgery.stays(flow) for flow in flows)
        return self.surgery.stays(flows)

    def _call(self, node: fx.Node) -> Any:
        if node in self.surgery.analysis.aliases:
            return self._argument(node, self.surgery.analysis.aliases[node])
        if node.target is aten.alias.default:
            return self._selected(node)
        if self._is_same_type(node):
            return self._arguments(node, node.args[0])
        made = make(self.surgery, node)
        if made is not None:
            path, layer, args = made
            if path not in self.layers:
                self.layers[path] = layer
                put(self.root, path, layer)
            return self.graph.call_module(path, self._arguments(node, tuple(args)))
        if node.target is operator.getitem:
            return self._item(node)
        return self._function(node)

    def _is_same_type(self, node: fx.Node) -> bool:
        """Return whether a change of type changes none; the model may be moved to another type later."""
        if node.target not in _CASTS:
            return False
        source: Any = node.args[0]
        before, after = (self.surgery.analysis.flows[n].value for n in (source, node))
        return bool(before.dtype == after.dtype and before.device == after.device)

    def _function(self, node: fx.Node) -> fx.Node:
        target, args, kwargs = rewritten(self.surgery, node)
        if node in self.surgery.shifts or node.target in (aten.linear.default, aten.addmm.default):
            args, kwargs = self._with_bias(node, list(args), kwargs)
        if target is aten.cat.default:
            args = ([n for n in args[0] if self.surgery.stays(self.surgery.analysis.flows[n])], *args[1:])
        return self.graph.call_function(target, self._arguments(node, args), self._arguments(node, kwargs))

    def _with_bias(self, node: fx.Node, args: list[Any], kwargs: Any) -> tuple[tuple[Any, ...], Any]:
        """Return the arguments of an affine call with its new bias."""
        position = 0 if node.target is aten.addmm.default else 2
        given = args[position] if position < len(args) else kwargs.get("bias")
        if isinstance(given, fx.Node) and given.op != "get_attr":  # a part of a parameter, or computed
            if node in self.surgery.shifts:
                msg = f"constant channels would move into the bias of {node.name}, which the model computes"
                raise CompactionError(msg)
            return tuple(args), kwargs
        name = str(given.target) if isinstance(given, fx.Node) else None
        bias = self.surgery.bias(node, name)
        if name is None and bias is not None:
            weight = str(args[1].target)
            name = weight.removesuffix("weight") + "bias"
            put(self.root, name, bias)
            args = [*args[:2], None, *args[3:]]
            args[2] = self.graph.get_attr(name)
        return tuple(args), kwargs

    def _item(self, node: fx.Node) -> fx.Node:
        source: Any = node.args[0]
        index: Any = node.args[1]
        layer = self.nodes[source]
        if layer.op == "call_module":
            return self._state(layer, source, index)
        return self.graph.call_function(operator.getitem, self._arguments(node, item_of(self.surgery, node)))

    def _state(self, layer: fx.Node, source: Any, index: int) -> fx.Node:
        """Return an output of a recurrent layer, which nests its states where ATen lists them."""
        if index == 0 or source.target is not aten.lstm.input:
            return self.graph.call_function(operator.getitem, (layer, index))
        states = self.graph.call_function(operator.getitem, (layer, 1))
        return self.graph.call_function(operator.getitem, (states, index - 1))

    def _selected(self, node: fx.Node) -> Any:
        """Return an input with the slices that are read, along every dimension that loses some."""
        flow: Flow = self.surgery.analysis.flows[node]
        source: Any = node.args[0]
        current = self.nodes[source]
        if flow.label is None:
            return current
        stays = self.surgery.channels.stays(squeezed(flow.label))
        for dim in range(stays.ndim):
            others = [d for d in range(stays.ndim) if d != dim]
            along = stays.amax(others) if others else stays
            if stays.shape[dim] > 1 and not bool(along.all()):
                index = self._constant(along.nonzero().flatten().to(flow.value.device), "_columns")
                current = self.graph.call_function(aten.index_select.default, (current, dim, index))
        return current

    def _constant(self, value: Tensor, name: str) -> fx.Node:
        target = f"{name}_{self.constants}"
        self.constants += 1
        self.root.register_buffer(target, value)
        return self.graph.get_attr(target)

    def _arguments(self, reader: fx.Node, arguments: Any) -> Any:
        return fx.map_arg(arguments, lambda node: self._argument(reader, node))

    def _argument(self, reader: fx.Node, node: fx.Node) -> Any:
        if node.graph is self.graph:
            return node
        constant = self.surgery.analysis.constants.get((reader, node))
        if constant is not None:
            mask = self.surgery.channels.stays(constant.label)
            return self._constant(part_of(mask).of(constant.value), "_constant")
        if node.op == "get_attr" and node not in self.nodes:
            target = str(node.target)
            put(self.root, target, self.surgery.tensor(target))
            return self.graph.get_attr(target)
        return self.nodes[node]

    def _output(self, node: fx.Node) -> None:
        flat = self._arguments(node, node.args[0])
        program = self.surgery.analysis.program
        if _is_plain(program.out_spec) and _is_flat(program.in_spec):
            self.graph.output(pytree.tree_unflatten(list(flat), program.out_spec))
            return
        self.graph.output(tuple(flat))
        names = [n.name for n in self.graph.nodes if n.op == "placeholder"]
        keywords = list(program.kwargs)
        positional = (
            [f"arg_{i}" for i in range(len(program.args))] if not _is_flat(program.in_spec) else names
        )
        order = positional[: len(program.args)] + keywords
        self.graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(order, program.in_spec, program.out_spec)))

    def finish(self) -> fx.GraphModule:
        """Return the module without what turned out to be unused."""
        for node in reversed(self.graph.nodes):
            if node.op in ("call_function", "call_module", "get_attr") and not node.users:
                self.graph.erase_node(node)
        self.graph.lint()
        module = fx.GraphModule(self.root, self.graph, class_name="Compacted")
        for node in module.graph.nodes:
            node.meta.clear()
        return module


def put(root: nn.Module, name: str, what: nn.Module | Tensor) -> None:
    """Put a layer, parameter or buffer under a dotted name, with plain modules in between.

    Args:
        root: the outermost module.
        name: dotted.
        what: is put there.
    """
    *path, last = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    if isinstance(what, nn.Module):
        for child, module in getattr(root, last, nn.Module()).named_children():
            what.add_module(child, module)
        root.add_module(last, what)
    elif isinstance(what, nn.Parameter):
        root.register_parameter(last, what)
    else:
        root.register_buffer(last, what)


def _is_plain(spec: pytree.TreeSpec) -> bool:
    if spec.is_leaf() or spec.type is type(None):
        return True
    return spec.type in _PLAIN and all(_is_plain(child) for child in spec.children())


def _is_flat(spec: pytree.TreeSpec) -> bool:
    """Return whether every argument is one tensor."""
    return all(leaf.is_leaf() for part in spec.children() for leaf in part.children())
