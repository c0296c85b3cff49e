"""What layers with weights say about channels: which outputs read which inputs, and which are constant."""

from dataclasses import replace

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from torchlasso.compaction.flows import Call
from torchlasso.compaction.labels import Flow, Fold, same_along, squeezed, vector
from torchlasso.compaction.rules_entry import need_each_other
from torchlasso.compaction.rules_shape import understood_by_nobody

aten = torch.ops.aten


def linear(call: Call) -> object:
    """Return new labels for the outputs of ``x Wᵀ + b``."""
    return _affine(call, call.argument(0, "input"), "weight", 1, call.argument(2, "bias"), transposed=False)


def addmm(call: Call) -> object:
    """Return new labels for the outputs of ``b + x W``."""
    if call.number(3, "beta", 1) != 1 or call.number(4, "alpha", 1) != 1:
        return understood_by_nobody(call)
    return _affine(call, call.argument(1, "mat1"), "mat2", 2, call.argument(0, "self"), transposed=True)


def _affine(
    call: Call, x: object, weight_name: str, position: int, bias: object, *, transposed: bool
) -> object:
    name = call.attribute(position, weight_name)
    bias_name = str(bias.target) if isinstance(bias, fx.Node) and bias.op == "get_attr" else None
    if name is None or not isinstance(x, fx.Node) or (bias is not None and bias_name is None):
        return understood_by_nobody(call)
    flow: Flow = call.read(x)
    stored = call.analysis.program.tensors[name].detach()
    weight = stored.T if transposed else stored
    out, columns = call.ledger.fresh(weight.shape[0]), None
    if flow.label is not None:
        columns = vector(call.ledger, flow.label, flow.value.ndim - 1)
    factors = [out[:, None]] + ([columns[None, :]] if columns is not None else [])
    call.ledger.use(name, stored.shape, *([f.T for f in factors] if transposed else factors))
    if bias_name is not None:
        call.ledger.use(bias_name, torch.Size((len(out),)), out)
    reads = (weight != 0).cpu()
    if columns is not None:
        values, foldable = same_along(flow, flow.value.ndim - 1)
        constant = foldable[None]
        fold = Fold(call.node, name, bias_name, columns[None], values[None], constant, constant, out)
        relate(call, fold, out[None], reads[None])
    free = F.linear((~flow.fixed).float(), reads.float()) == 0
    return Flow(call.value, out.expand(call.value.shape), free, flow.varies)


def relate(call: Call, fold: Fold, rows: Tensor, reads: Tensor) -> None:
    """Note which outputs read which inputs; inputs that can move into the bias are not read.

    Args:
        call: the layer.
        fold: its constant inputs.
        rows: labels of the outputs, ``(groups, outputs of a group)``.
        reads: ``(groups, outputs of a group, inputs of a group)``.
    """
    once = call.analysis.counts.get(fold.bias or fold.weight, 0) == 1
    foldable = fold.foldable.cpu() if once else fold.foldable.cpu() & (fold.values == 0).cpu()
    call.ledger.folds.append(replace(fold, foldable=foldable))
    for group in range(rows.shape[0]):
        read = reads[group] & ~foldable[group]
        call.ledger.dense(rows[group], fold.columns[group], read)


def convolution(call: Call) -> object:
    """Return new labels for the filters; a depthwise filter goes with its channel."""
    name, bias_name = call.attribute(1, "weight"), call.attribute(2, "bias")
    flow = call.tensor(0, "input")
    if name is None or flow is None or (bias_name is None and call.argument(2, "bias") is not None):
        return understood_by_nobody(call)
    transposed = "transpose" in str(call.node.target)
    groups = call.number(6, "groups", 1)
    stored = call.analysis.program.tensors[name].detach()
    spatial = stored.ndim - 2
    channel = flow.value.ndim - spatial - 1
    into = stored.shape[0] if transposed else stored.shape[1] * groups
    outputs = stored.shape[1] * groups if transposed else stored.shape[0]
    out = call.ledger.fresh(outputs)
    grouped_out = out.reshape(groups, -1)
    kernel = stored.reshape(groups, -1, *stored.shape[1:])
    reads = (kernel != 0).flatten(3).any(3).cpu()
    reads = reads.transpose(1, 2) if transposed else reads
    shape = list(call.value.shape)
    label = out.reshape(-1, *[1] * spatial).expand(shape)
    columns = vector(call.ledger, call.ledger.known(flow, "is an input that cannot shrink"), channel)
    columns = columns.reshape(groups, into // groups)
    _use_kernel(call, name, stored, grouped_out, columns, transposed=transposed)
    _use_bias(call, bias_name, out)
    if groups > 1:
        call.ledger.align(columns, grouped_out)
        if columns.shape[1] == 1 and grouped_out.shape[1] == 1:
            call.ledger.tie(columns, grouped_out)
    values, constant = same_along(flow, channel)
    zero = constant & (values == 0)
    foldable = zero if transposed or _pads(call) else constant
    values, constant, foldable = (t.reshape(columns.shape) for t in (values, constant, foldable))
    fold = Fold(call.node, name, bias_name, columns, values, constant, foldable, out)
    relate(call, fold, grouped_out, reads)
    free = ~(reads & ~foldable.cpu().reshape(groups, 1, -1)).any(2).reshape(-1)
    fixed = free.reshape(-1, *[1] * spatial).expand(shape)
    return Flow(call.value, label, fixed, flow.varies)


def _pads(call: Call) -> bool:
    """Return whether zeros stand beyond the border."""
    padding = call.number(4, "padding", 0)
    if isinstance(padding, str):
        return padding != "valid"
    return bool(any(padding) if isinstance(padding, list | tuple) else padding)


def _use_bias(call: Call, name: str | None, out: Tensor) -> None:
    if name is not None:
        call.ledger.use(name, torch.Size((len(out),)), out)


def _use_kernel(
    call: Call, name: str, stored: Tensor, out: Tensor, columns: Tensor, *, transposed: bool
) -> None:
    """Note the labels of a kernel ``(out, in of a group, …)``, or ``(in, out of a group, …)`` transposed."""
    ones = [1] * (stored.ndim - 2)
    first, second = (columns, out) if transposed else (out, columns)
    rows = first.reshape(-1, 1, *ones)
    inner = second[:, None].expand(-1, first.shape[1], -1).reshape(first.numel(), second.shape[1], *ones)
    if out.shape[0] == 1:
        inner = inner[:1]
    factors = (inner, rows) if transposed else (rows, inner)
    call.ledger.use(name, stored.shape, *factors)


def batch_norm(call: Call) -> object:
    """Return the labels as they are: a channel goes along with its scale, shift and statistics."""
    flow = call.tensor(0, "input")
    assert flow is not None
    names = [call.attribute(p, n) for p, n in enumerate(("weight", "bias", "running_mean", "running_var"), 1)]
    if flow.label is None or names[2] is None:
        return understood_by_nobody(call)
    channels = vector(call.ledger, flow.label, 1)
    for name in names:
        if name is not None:
            call.ledger.use(name, torch.Size((len(channels),)), channels)
    shape = call.value.shape
    spread = [-1] + [1] * (len(shape) - 2)
    fixed = flow.fixed
    if names[0] is not None:
        weight = call.analysis.program.tensors[names[0]].detach()
        fixed = fixed | (weight == 0).cpu().reshape(spread)
    label = channels.reshape(spread).expand(shape)
    return Flow(call.value, label, fixed.expand(shape), flow.varies)


def layer_norm(call: Call) -> object:
    """Return labels that need each other: the statistics are over all channels."""
    flow = call.tensor(0, "input")
    assert flow is not None
    size = len(call.number(1, "normalized_shape"))
    names = [call.attribute(2, "weight"), call.attribute(3, "bias")]
    return _normalise(call, flow, names, list(range(flow.value.ndim - size, flow.value.ndim)))


def _normalise(call: Call, flow: Flow, names: list[str | None], dims: list[int]) -> object:
    ndim = flow.value.ndim
    label = flow.label
    if label is None:
        return Flow(call.value, None, torch.zeros((), dtype=torch.bool).expand(call.value.shape), flow.varies)
    base = squeezed(label)
    inner = [1 if d not in dims else flow.value.shape[d] for d in range(ndim)]
    first = base
    for d in range(ndim):
        if d not in dims:
            first = first.narrow(d, 0, 1)
    if any(name is not None for name in names):
        call.ledger.tie(first, base)
        base = first
    for name in names:
        if name is not None:
            shape = torch.Size([flow.value.shape[d] for d in dims])
            call.ledger.use(name, shape, first.expand(inner).reshape(shape))
    need_each_other(
        call, base.expand([base.shape[d] if d not in dims else n for d, n in enumerate(inner)]), dims
    )
    fixed = torch.zeros((), dtype=torch.bool).expand(call.value.shape)
    if names[0] is not None:
        weight = call.analysis.program.tensors[names[0]].detach()
        fixed = (weight == 0).cpu().reshape(inner).expand(call.value.shape)
    return Flow(call.value, base.expand(call.value.shape), fixed, flow.varies)


def group_norm(call: Call) -> object:
    """Return labels that need each other within a group, which may go whole."""
    flow = call.tensor(0, "input")
    assert flow is not None
    groups = call.number(1, "num_groups")
    names = [call.attribute(2, "weight"), call.attribute(3, "bias")]
    if flow.label is None:
        return understood_by_nobody(call)
    channels = vector(call.ledger, flow.label, 1)
    for name in names:
        if name is not None:
            call.ledger.use(name, torch.Size((len(channels),)), channels)
    rows = channels.reshape(groups, -1)
    call.ledger.all_or_none(rows, rows)
    call.ledger.align(rows)
    spread = [-1] + [1] * (flow.value.ndim - 2)
    fixed = torch.zeros((), dtype=torch.bool).expand(call.value.shape)
    if names[0] is not None:
        weight = call.analysis.program.tensors[names[0]].detach()
        fixed = (weight == 0).cpu().reshape(spread).expand(call.value.shape)
    return Flow(call.value, channels.reshape(spread).expand(call.value.shape), fixed, flow.varies)


def embedding(call: Call) -> object:
    """Return new labels for the columns of a table; its rows stay, as any of them may be looked up."""
    name = call.attribute(0, "weight")
    if name is None:
        return understood_by_nobody(call)
    table = call.analysis.program.tensors[name].detach()
    columns = call.ledger.fresh(table.shape[1])
    call.ledger.use(name, table.shape, columns[None, :])
    alike = (table == table[:1]).all(0).cpu()
    shape = call.value.shape
    return Flow(call.value, columns.expand(shape), alike.expand(shape))
