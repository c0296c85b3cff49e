"""What calls that act on every entry alone say about channels, and those that reduce or normalise."""

import torch
from torch import Tensor, fx

from torchlasso.compaction.flows import Call, Constant
from torchlasso.compaction.labels import Flow, aligned_to, rows_of, squeezed, uniform
from torchlasso.compaction.rules_shape import understood_by_nobody

aten = torch.ops.aten
_NORM = aten.linalg_vector_norm.default
_SUMS = (aten.add.Tensor, aten.sub.Tensor)
_PRODUCTS = (aten.mul.Tensor, aten.mul.Scalar)


def entrywise(call: Call) -> Flow:
    """Return one label an entry: tensors of one shape are tied, what is broadcast is only read.

    A branch that is constant is replaced by its constant; a sum with zero is the other term.
    """
    _replace_constants(call)
    flows = call.tensors()
    other = _sum_with_zero(call)
    if other is not None:
        call.analysis.aliases[call.node] = other
        flow: Flow = call.read(other)
        return flow
    fixed = _fixed(call, flows)
    varies = call.has_numbers() or any(flow.varies for flow in flows)
    return Flow(call.value, _labels(call, flows), fixed, varies)


def _replace_constants(call: Call) -> None:
    """Have a constant stand for every branch that varies with no input, next to one that does."""
    nodes = [n for n in call.node.all_input_nodes if isinstance(call.analysis.flows[n], Flow)]
    flows = {node: call.analysis.flows[node] for node in nodes}
    if len(nodes) < 2 or all(bool(flow.fixed.all()) for flow in flows.values()):
        return
    for node, flow in flows.items():
        if not (flow.varies and flow.label is not None and bool(flow.fixed.all())):
            continue
        value = squeezed(flow.value)
        if all(value.shape[d] == 1 for d in call.open_dims(node)):
            label = call.ledger.fresh(*value.shape)
            call.analysis.constants[call.node, node] = Constant(value.clone(), label)


def _sum_with_zero(call: Call) -> fx.Node | None:
    """Return the other term of a sum with a constant branch of zeros."""
    if call.node.target not in _SUMS or len(call.node.args) < 2:
        return None
    first, second = call.node.args[:2]
    pairs = [(first, second), (second, first)] if call.node.target is aten.add.Tensor else [(first, second)]
    for kept, dropped in pairs:
        if not (isinstance(kept, fx.Node) and isinstance(dropped, fx.Node)):
            continue
        constant = call.analysis.constants.get((call.node, dropped))
        scaled = kept is second and call.number(2, "alpha", 1) != 1
        if constant is None or bool(constant.value.any()) or scaled:
            continue
        flow = call.read(kept)
        if flow.value.shape == call.value.shape and flow.value.dtype == call.value.dtype:
            return kept
    return None


def _fixed(call: Call, flows: list[Flow]) -> Tensor:
    shape = call.value.shape
    # A size or a number that the caller gives is another at the next call.
    fixed = torch.full(shape, not call.has_numbers())
    for flow in flows:
        fixed = fixed & flow.fixed
    if call.node.target in _PRODUCTS:
        for flow in flows:
            fixed = fixed | (flow.fixed & (flow.value == 0).cpu())
    return fixed.expand(shape)


def _labels(call: Call, flows: list[Flow]) -> Tensor | None:
    ndim, shape = call.value.ndim, call.value.shape
    labelled = [flow for flow in flows if flow.label is not None]
    if not labelled:
        return None
    bases = [aligned_to(squeezed(flow.label), ndim) for flow in labelled]  # type: ignore[arg-type]
    largest = [max(base.shape[d] for base in bases) for d in range(ndim)]
    result = next((base for base in bases if list(base.shape) == largest), None)
    if result is None:
        result = call.ledger.fresh(*largest)
    varying = [d for d in range(ndim) if largest[d] > 1]
    for flow, base in zip(labelled, bases, strict=True):
        if base is not result:
            _join(call, base, result, _sizes(flow, ndim), varying)
    for flow in flows:
        sizes = _sizes(flow, ndim)
        if flow.label is None and any(sizes[d] > 1 for d in varying):
            call.ledger.pin(result, "is combined with a tensor that cannot shrink")
    return result.expand(shape)


def _sizes(flow: Flow, ndim: int) -> list[int]:
    return [1] * (ndim - flow.value.ndim) + list(flow.value.shape)


def _join(call: Call, base: Tensor, result: Tensor, sizes: list[int], varying: list[int]) -> None:
    """Tie labels of equal shape; have a result read what is broadcast along its channels."""
    if all(sizes[d] > 1 for d in varying):
        call.ledger.tie(base, result)
        return
    call.ledger.read(result, base)
    spread, others = torch.broadcast_tensors(base, result)
    call.ledger.cover(spread, others)


def normalised(call: Call) -> Flow:
    """Return labels behind a softmax: every entry needs all along the dimension."""
    flow = call.tensors()[0]
    dim = call.number(1, "dim") % call.value.ndim if call.value.ndim else 0
    fixed = torch.zeros((), dtype=torch.bool).expand(call.value.shape)
    if flow.label is not None:
        need_each_other(call, flow.label, [dim])
    return Flow(call.value, flow.label, fixed, flow.varies)


def need_each_other(call: Call, labels: Tensor, dims: list[int]) -> None:
    """Have any live entry along some dimensions make live all of them.

    Args:
        call: where.
        labels: of a tensor.
        dims: the dimensions of a normalisation.
    """
    base = squeezed(labels)
    if any(base.shape[d] > 1 for d in dims):
        rows = rows_of(base, dims)
        call.ledger.all_or_none(rows, rows)


def reduced(call: Call) -> object:
    """Return labels behind a mean, sum or maximum: one channel stays one, of several all are read."""
    flow = call.tensor(0, "self")
    assert flow is not None
    if not isinstance(call.value, Tensor):
        return understood_by_nobody(call)
    dims = call.number(2 if call.node.target is _NORM else 1, "dim")
    ndim = flow.value.ndim
    if dims is None or isinstance(dims, torch.dtype):
        dims = list(range(ndim))
    dims = [d % ndim for d in ([dims] if isinstance(dims, int) else dims or range(ndim))]
    kept = call.value.ndim == ndim
    fixed = _reduced_fixed(call, flow, dims, kept=kept)
    if flow.label is None:
        return Flow(call.value, None, fixed, flow.varies)
    base = squeezed(flow.label)
    rows = rows_of(base, dims)
    shape = [1 if d in dims else base.shape[d] for d in range(ndim) if kept or d not in dims]
    if rows.shape[1] == 1:
        result = rows.reshape(shape)
    else:
        result = call.ledger.fresh(*shape)
        call.ledger.all_or_none(result.reshape(-1, 1), rows)
    return Flow(call.value, result.expand(call.value.shape), fixed, flow.varies)


def _reduced_fixed(call: Call, flow: Flow, dims: list[int], *, kept: bool) -> Tensor:
    """Return what stays constant: the mean and the extremes of one constant, and sums and norms of zeros."""
    sums = call.node.target in (aten.sum.dim_IntList, aten.sum.default, _NORM)
    alike = uniform(flow, dims, 0.0 if sums else None)
    if not kept:
        alike = alike.reshape([n for d, n in enumerate(alike.shape) if d not in dims])
    return alike.expand(call.value.shape)


def pooled(call: Call) -> object:
    """Return labels behind spatial pooling or resizing: channels are dimension 1 of a batch."""
    flow = call.tensors()[0]
    spatial = _spatial(call)
    if flow.label is None or not isinstance(call.value, Tensor):
        return understood_by_nobody(call)
    dims = list(range(flow.value.ndim - spatial, flow.value.ndim))
    base = squeezed(flow.label)
    first = base
    for d in dims:
        first = first.narrow(d, 0, 1)
    call.ledger.tie(first, base)
    alike = uniform(flow, dims, 0.0 if _pads_with_zeros(call) else None)
    shape = call.value.shape
    return Flow(call.value, first.expand(shape), alike.expand(shape), flow.varies)


def _spatial(call: Call) -> int:
    name = str(call.node.target)
    return next(n for n in (1, 2, 3) if f"{n}d" in name)


def _pads_with_zeros(call: Call) -> bool:
    """Return whether an average counts zeros beyond the border."""
    if ".avg_pool" not in str(call.node.target):
        return False
    padding = call.number(3, "padding", 0)
    return bool(any(padding) if isinstance(padding, list | tuple) else padding)
