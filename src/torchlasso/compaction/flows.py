"""One pass over a graph: values on the example, and what every call says about channels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from torchlasso.compaction.labels import Flow, Ledger
from torchlasso.compaction.trace import Program, is_open, module_path

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Constant:
    """What stands for a whole branch that is constant.

    Attributes:
        value: the constant, of size 1 along every dimension that it does not vary along.
        label: of every entry.
    """

    value: Tensor
    label: Tensor


@dataclass(eq=False)
class Analysis:
    """What the pass found.

    Attributes:
        program: the graph.
        ledger: all that was said about labels.
        flows: the tensor of each node; a list where a call returns several; a number for sizes.
        constants: branches that are replaced where a call reads them, by call and argument.
        aliases: calls that return one of their arguments unchanged.
        counts: how many layers read a parameter.
    """

    program: Program
    ledger: Ledger = field(default_factory=Ledger)
    flows: dict[fx.Node, Any] = field(default_factory=dict)
    constants: dict[tuple[fx.Node, fx.Node], Constant] = field(default_factory=dict)
    aliases: dict[fx.Node, fx.Node] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Count the layers that read each parameter: what moves into a bias must not reach another layer."""
        for node in self.program.graph.nodes:
            if node.op == "get_attr":
                readers = [user for user in node.users if user.target is not aten.embedding.default]
                self.counts[str(node.target)] = len(readers)

    def flow(self, node: fx.Node) -> Any:
        """Return the tensor of a node as a value; a parameter's entries become channels of their own.

        Args:
            node: of the graph.
        """
        flow = self.flows[node]
        if node.op != "get_attr" or flow.label is not None or not flow.value.is_floating_point():
            return flow
        labels = self.ledger.fresh(*flow.value.shape)
        self.ledger.use(str(node.target), flow.value.shape, labels)
        self.flows[node] = Flow(flow.value, labels, flow.fixed, varies=False)
        return self.flows[node]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of the graph, as a rule sees it.

    Attributes:
        analysis: all that is known so far.
        node: the call.
        value: what it returned.
    """

    analysis: Analysis
    node: fx.Node
    value: Any

    @property
    def ledger(self) -> Ledger:
        """Where to note what the call says."""
        return self.analysis.ledger

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument with nodes in it, by position or by name."""
        if position < len(self.node.args):
            return self.node.args[position]
        return self.node.kwargs.get(name, default)

    def number(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument with sizes as numbers."""
        given = self.argument(position, name, default)
        return fx.map_arg(given, lambda node: self.analysis.flows[node])

    def tensor(self, position: int, name: str) -> Flow | None:
        """Return an argument as a tensor, or None if it is not given."""
        given = self.argument(position, name)
        flow = self.read(given) if isinstance(given, fx.Node) else None
        return flow if isinstance(flow, Flow) else None

    def attribute(self, position: int, name: str) -> str | None:
        """Return the name of the parameter or buffer that is an argument, or None."""
        given = self.argument(position, name)
        return str(given.target) if isinstance(given, fx.Node) and given.op == "get_attr" else None

    def read(self, node: fx.Node) -> Any:
        """Return the tensor of an argument, or the constant that stands for it."""
        constant = self.analysis.constants.get((self.node, node))
        if constant is None:
            return self.analysis.flow(node)
        return Flow(constant.value, constant.label, torch.ones(constant.value.shape, dtype=torch.bool))

    def tensors(self) -> list[Flow]:
        """Return all arguments that are tensors."""
        found = [self.read(node) for node in self.node.all_input_nodes]
        return [flow for flow in found if isinstance(flow, Flow)]

    def has_numbers(self) -> bool:
        """Return whether a size of a tensor, or a number that the caller gives, is an argument."""
        return not all(isinstance(self.analysis.flows[node], Flow) for node in self.node.all_input_nodes)

    def apply(self, part: Callable[[Flow], Tensor | None]) -> Any:
        """Call the function on a part of each tensor, such as its labels.

        Args:
            part: from a tensor of the graph to the one to call with.
        """
        target: Any = self.node.target
        target = ON_ANY_STRIDES.get(target, target)

        def pick(node: fx.Node) -> Any:
            flow = self.read(node)
            return pytree.tree_map_only(Flow, part, flow, is_leaf=lambda x: isinstance(x, Flow))

        return target(*fx.map_arg(self.node.args, pick), **fx.map_arg(self.node.kwargs, pick))

    def open_dims(self, node: fx.Node) -> list[int]:
        """Return the dimensions of a node's tensor whose size is left open."""
        shape = getattr(node.meta.get("val"), "shape", ())
        return [d for d, size in enumerate(shape) if isinstance(size, torch.SymInt)]


ON_ANY_STRIDES = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default}
"""Labels are expanded, and smaller tensors lie otherwise in memory: what asks for strides is replaced."""

Rule = Callable[[Call], Any]


def analyse(program: Program, rules: Mapping[Any, Rule], fallback: Callable[[Any], Rule]) -> Analysis:
    """Follow values and labels through a graph.

    Args:
        program: a traced module.
        rules: what each function does to labels.
        fallback: a rule for any other function.
    """
    analysis = Analysis(program)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            analysis.flows[node] = _input(program.inputs[node.name])
        elif node.op == "get_attr":
            value = program.tensors[str(node.target)].detach()
            analysis.flows[node] = Flow(value, None, torch.ones(value.shape, dtype=torch.bool), varies=False)
        elif node.op == "call_function":
            _visit(analysis, node, rules, fallback)
        else:
            for result in node.all_input_nodes:
                for flow in pytree.tree_leaves(analysis.flows[result], is_leaf=lambda x: isinstance(x, Flow)):
                    if isinstance(flow, Flow):
                        analysis.ledger.pin(flow.label, "is part of the model's output")
    return analysis


def _input(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return Flow(value, None, torch.zeros((), dtype=torch.bool).expand(value.shape))


def _visit(
    analysis: Analysis, node: fx.Node, rules: Mapping[Any, Rule], fallback: Callable[[Any], Rule]
) -> None:
    def value_of(argument: fx.Node) -> Any:
        return pytree.tree_map_only(
            Flow, lambda f: f.value, analysis.flows[argument], is_leaf=lambda x: isinstance(x, Flow)
        )

    value = node.target(*fx.map_arg(node.args, value_of), **fx.map_arg(node.kwargs, value_of))  # type: ignore[operator]
    rule = rules.get(node.target) or fallback(node.target)
    analysis.ledger.current = called(node)
    if not pytree.tree_any(lambda leaf: isinstance(leaf, Tensor), value):
        analysis.flows[node] = value
    else:
        analysis.flows[node] = rule(Call(analysis, node, value))


def called(node: fx.Node) -> str:
    """Return what a call is, for the user.

    Args:
        node: a call of the graph.
    """
    name = str(node.target).removeprefix("aten.").partition(".")[0]
    path = module_path(node)
    return f"{name} in {path}" if path else name


def gate_inputs(program: Program) -> None:
    """Put an ``alias`` behind every real input, after the views of it: where columns can be selected.

    Args:
        program: a traced module; its graph is changed.
    """
    views: set[fx.Node] = set()
    for node in list(program.graph.nodes):
        if node.op == "placeholder":
            value = program.inputs[node.name]
            if isinstance(value, Tensor) and value.is_floating_point():
                views.add(node)
        elif node.target in VIEWS and node.args[0] in views:
            views.add(node)
    for view in views:
        readers = [user for user in view.users if user not in views and user.op == "call_function"]
        if not readers or all(user.target is aten.sym_size.int for user in readers):
            continue
        with program.graph.inserting_after(view):
            gate = program.graph.call_function(aten.alias.default, (view,))
        gate.meta = dict(view.meta)
        for user in readers:
            if user.target is not aten.sym_size.int:
                user.replace_input_with(view, gate)


def gate(call: Call) -> Flow:
    """Give every entry of an input its own label, the same for all rows of a batch.

    Args:
        call: the ``alias`` of an input.
    """
    shape = getattr(call.node.meta.get("val"), "shape", call.value.shape)
    own = [1 if is_open(size) else n for size, n in zip(shape, call.value.shape, strict=True)]
    labels = call.ledger.fresh(*own).expand(call.value.shape)
    return Flow(call.value, labels, torch.zeros((), dtype=torch.bool).expand(call.value.shape))


VIEWS = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten._unsafe_view.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.squeeze.default,
        aten.select.int,
        aten.slice.Tensor,
        aten.contiguous.default,
        aten.movedim.int,
        aten.movedim.intlist,
    }
)
"""Functions that return the entries of one tensor under another shape."""
