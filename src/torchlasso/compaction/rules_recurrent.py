"""What recurrent layers say about channels: a unit is its rows in all gates, and a column of every reader."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from torchlasso.compaction.flows import Call
from torchlasso.compaction.labels import Flow, squeezed, vector
from torchlasso.compaction.rules_shape import understood_by_nobody

aten = torch.ops.aten
GATES: dict[Any, int] = {
    aten.lstm.input: 4,
    aten.gru.input: 3,
    aten.rnn_tanh.input: 1,
    aten.rnn_relu.input: 1,
}
_CELL_GATE: dict[Any, int] = {
    aten.lstm.input: 2,
    aten.gru.input: 2,
    aten.rnn_tanh.input: 0,
    aten.rnn_relu.input: 0,
}
"""The gate that decides alone whether the state of a unit stays zero: ``g``, ``n``, or the unit itself."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One direction of one layer.

    Attributes:
        units: labels of its units.
        zero: whether a unit's state is zero for all inputs.
    """

    units: Tensor
    zero: Tensor


def recurrent(call: Call) -> object:
    """Return new labels for the units of the last layer, and for the states of all layers."""
    target: Any = call.node.target
    flow = call.tensor(0, "input")
    parameters = call.argument(2, "params")
    biases, layers, both = (
        call.argument(3, "has_biases"),
        call.argument(4, "num_layers"),
        call.argument(7, "b"),
    )
    directions = 2 if both else 1
    names = [str(node.target) for node in parameters if node.op == "get_attr"]
    each = 4 if biases else 2
    if flow is None or len(names) != layers * directions * each:
        return understood_by_nobody(call)
    states = _states(call)
    columns = vector(call.ledger, call.ledger.known(flow, "feeds a recurrent layer"), flow.value.ndim - 1)
    zero = flow.fixed & (flow.value == 0).cpu()
    zero = zero.reshape(-1, zero.shape[-1]).all(0)
    cells: list[Cell] = []
    for layer in range(layers):
        found = []
        for direction in range(directions):
            start = (layer * directions + direction) * each
            still = states.still[layer * directions + direction]
            found.append(_cell(call, names[start : start + each], columns, zero, GATES[target], still))
        columns = torch.cat([cell.units for cell in found])
        zero = torch.cat([cell.zero for cell in found])
        cells += found
    units = torch.stack([cell.units for cell in cells])
    call.ledger.align(units, together=True)  # all layers of a module have one width
    for labels in states.labels:
        call.ledger.tie(squeezed(labels), units[:, None, :])
    return _results(call, cells, columns, zero, units)


@dataclass(frozen=True, eq=False)
class States:
    """The first states: their labels, and whether each unit's are zero."""

    labels: list[Tensor]
    still: Tensor


def _states(call: Call) -> States:
    given = call.argument(1, "hx")
    nodes = list(given) if isinstance(given, list | tuple) else [given]
    flows = [call.read(node) for node in nodes if isinstance(node, fx.Node)]
    labels = [call.ledger.known(flow, "is the first state of a recurrent layer") for flow in flows]
    zeros = [(flow.fixed & (flow.value == 0).cpu()) for flow in flows]
    still = torch.stack([z.reshape(z.shape[0], -1, z.shape[-1]).all(1) for z in zeros]).all(0)
    return States(labels, still)


def _cell(call: Call, names: list[str], columns: Tensor, zero: Tensor, gates: int, still: Tensor) -> Cell:
    tensors = [call.analysis.program.tensors[name].detach() for name in names]
    into, back = tensors[:2]
    size = back.shape[1]
    units = call.ledger.fresh(size)
    rows = units.repeat(gates)
    call.ledger.use(names[0], into.shape, rows[:, None], columns[None, :])
    call.ledger.use(names[1], back.shape, rows[:, None], units[None, :])
    for name in names[2:]:
        call.ledger.use(name, torch.Size((gates * size,)), rows)
    reads_in = (into != 0).cpu() & ~zero
    reads_back = (back != 0).cpu()
    target: Any = call.node.target
    gate = _CELL_GATE[target]
    rows_of_gate = slice(gate * size, (gate + 1) * size)
    own = ~reads_in[rows_of_gate].any(1) & still
    for bias in tensors[2:]:
        own &= (bias[rows_of_gate] == 0).cpu()
    while True:  # a unit that reads only units of state zero may be zero itself
        free = own & ~(reads_back[rows_of_gate] & ~own).any(1)
        if bool((free == own).all()):
            break
        own = free
    by_unit = reads_back.reshape(gates, size, size).any(0)
    inputs = reads_in.reshape(gates, size, -1).any(0) & ~own[:, None]
    call.ledger.dense(units, columns, inputs)
    call.ledger.dense(units, units, by_unit & ~own[None, :] & ~own[:, None])
    return Cell(units, own)


def _results(call: Call, cells: list[Cell], columns: Tensor, zero: Tensor, units: Tensor) -> object:
    output, *states = call.value
    flows = [Flow(output, columns.expand(output.shape), zero.expand(output.shape))]
    stopped = torch.stack([cell.zero for cell in cells])[:, None]
    for state in states:
        flows.append(Flow(state, units[:, None].expand(state.shape), stopped.expand(state.shape)))
    return flows
