"""What calls that move data about say about channels: the labels move along."""

from typing import Any

import torch
from torch import Tensor, fx

from torchlasso.compaction.flows import Call
from torchlasso.compaction.labels import Flow, squeezed, uniform

aten = torch.ops.aten
_FILL: dict[Any, int] = {
    aten.full.default: 1,
    aten.full_like.default: 1,
    aten.new_full.default: 2,
}
_END = 2**62


def unchanged(call: Call) -> Flow:
    """Return the argument's labels: dropout, copies, changes of type."""
    flow = call.tensors()[0]
    return Flow(call.value, flow.label, flow.fixed, flow.varies)


def moved(call: Call) -> object:
    """Return labels that were moved like the values."""
    flows = call.tensors()
    if all(flow.label is None for flow in flows):
        return _results(call, None, call.apply(lambda flow: flow.fixed), varies=any(f.varies for f in flows))
    labels = {id(flow): _label(call, flow) for flow in flows}
    moved_labels = call.apply(lambda flow: labels[id(flow)])
    fixed = call.apply(lambda flow: flow.fixed)
    return _results(call, moved_labels, fixed, varies=any(flow.varies for flow in flows))


def _label(call: Call, flow: Flow) -> Tensor:
    if flow.label is not None:
        return flow.label
    labels = call.ledger.fresh(*flow.value.shape)
    call.ledger.pin(labels, "stands beside a tensor that cannot shrink")
    return labels


def _results(call: Call, labels: object, fixed: object, *, varies: bool) -> object:
    if isinstance(call.value, Tensor):
        assert isinstance(fixed, Tensor)
        assert labels is None or isinstance(labels, Tensor)
        return Flow(call.value, labels, fixed, varies)
    parts = labels if labels is not None else [None] * len(call.value)
    triples = zip(call.value, parts, fixed, strict=True)  # type: ignore[call-overload]  # several results
    return [Flow(value, label, f, varies) for value, label, f in triples]


def sliced(call: Call) -> object:
    """Return the labels of a part; along a dimension of open size all positions are alike."""
    flow, source = call.tensor(0, "self"), call.node.args[0]
    assert flow is not None
    dim = call.number(1, "dim", 0) % flow.value.ndim
    start, end = call.argument(2, "start"), call.argument(3, "end")
    whole = call.node.target is aten.slice.Tensor and start in (0, None) and _is_end(end)
    assert isinstance(source, fx.Node)
    if not whole and _depends_on_size(call, source, dim, start, end):
        return _cut(call, flow, dim)
    return moved(call)


def _is_end(end: object) -> bool:
    return end is None or (isinstance(end, int) and end > _END)


def _depends_on_size(call: Call, source: fx.Node, dim: int, start: object, end: object) -> bool:
    return dim in call.open_dims(source) or isinstance(start, fx.Node) or isinstance(end, fx.Node)


def _cut(call: Call, flow: Flow, dim: int) -> object:
    """Return the part of a tensor whose positions must not be told apart: other sizes cut elsewhere."""
    n = flow.value.shape[dim]
    if n == 0:
        return moved(call)
    fixed = uniform(flow, [dim]).expand(flow.fixed.shape)
    label = flow.label
    if label is not None:
        first = label.narrow(dim, 0, 1)
        call.ledger.tie(first, squeezed(label))
        label = first.expand(label.shape)
    alike = Flow(flow.value, label, fixed, flow.varies)
    labels = None if label is None else call.apply(lambda _: alike.label)
    return _results(call, labels, call.apply(lambda _: alike.fixed), varies=flow.varies)


def expanded(call: Call) -> Flow:
    """Return labels for copies: one copy may go while another stays, unless their number is left open."""
    flow = call.tensor(0, "self")
    assert flow is not None
    if flow.label is None:
        fixed = call.apply(lambda f: f.fixed)
        return Flow(call.value, None, fixed, flow.varies)
    labels: Tensor = call.apply(lambda f: f.label)
    fixed = call.apply(lambda f: f.fixed)
    ndim = call.value.ndim
    sizes = (1,) * (ndim - flow.value.ndim) + tuple(flow.value.shape)
    opened = call.open_dims(call.node)
    copies = [d for d in range(ndim) if sizes[d] == 1 and call.value.shape[d] > 1 and d not in opened]
    if not copies:
        return Flow(call.value, labels, fixed, flow.varies)
    return Flow(call.value, copied(call, labels, copies), fixed, flow.varies)


def copied(call: Call, labels: Tensor, copies: list[int]) -> Tensor:
    """Return new labels for a tensor of copies, each of which reads what it is a copy of.

    Args:
        call: where the copies are made.
        labels: of what is copied, in the shape of the result.
        copies: the dimensions along which the copies lie.
    """
    base = squeezed(labels)
    shape = [labels.shape[d] if d in copies else base.shape[d] for d in range(labels.ndim)]
    fresh = call.ledger.fresh(*shape)
    call.ledger.read(fresh, base.expand(shape))
    call.ledger.cover(base.expand(shape), fresh)
    return fresh.expand(labels.shape)


def repeated(call: Call) -> object:
    """Return labels for ``repeat_interleave`` by a number: the copies of an entry lie side by side."""
    flow = call.tensor(0, "self")
    assert flow is not None
    dim = call.number(2, "dim")
    if flow.label is None or dim is None:
        return understood_by_nobody(call)
    labels = call.apply(lambda f: f.label)
    fresh = copied(call, labels, [dim % flow.value.ndim])
    return Flow(call.value, fresh, call.apply(lambda f: f.fixed), flow.varies)


def padded(call: Call) -> object:
    """Return labels behind constant padding: a padded dimension must be the same channel throughout."""
    flow = call.tensor(0, "self")
    assert flow is not None
    if flow.label is None:
        return Flow(call.value, None, torch.zeros(call.value.shape, dtype=torch.bool), flow.varies)
    pads = call.number(1, "pad")
    mode = call.number(2, "mode", "constant") if call.node.target is aten.pad.default else "constant"
    fill = call.number(3 if call.node.target is aten.pad.default else 2, "value", 0) or 0
    dims = [flow.value.ndim - 1 - i for i in range(len(pads) // 2) if pads[2 * i] or pads[2 * i + 1]]
    base = squeezed(flow.label)
    if any(base.shape[d] > 1 for d in dims):
        return understood_by_nobody(call)
    shape = [1 if d in dims else call.value.shape[d] for d in range(call.value.ndim)]
    alike = uniform(flow, dims, float(fill) if mode == "constant" else None)
    labels = base.expand([*shape]).expand(call.value.shape)
    return Flow(call.value, labels, alike.expand(call.value.shape), flow.varies)


def filled(call: Call) -> Flow:
    """Return labels for a new tensor that is the same everywhere, such as zeros: it can have any shape."""
    alike = bool((call.value == call.value.reshape(-1)[:1]).all()) if call.value.numel() else False
    opened = call.open_dims(call.node)
    shape = [1 if d in opened else n for d, n in enumerate(call.value.shape)]
    labels = call.ledger.fresh(*shape).expand(call.value.shape) if call.value.is_floating_point() else None
    fill = call.argument(_FILL.get(call.node.target, 99), "fill_value")
    varies = isinstance(fill, fx.Node) and not isinstance(call.analysis.flows[fill], Flow)
    fixed = torch.full((), alike and not varies).expand(call.value.shape)
    return Flow(call.value, labels, fixed, varies)


def understood_by_nobody(call: Call) -> object:
    """Have everything stay that goes into a call or comes out of it."""
    name = getattr(call.node.target, "_schema", None)
    reason = (
        f"goes through {name.name.replace('::', '.') if name else call.node.target}, which is not followed"
    )
    labelled = [flow for flow in call.tensors() if flow.label is not None]
    for flow in labelled:
        call.ledger.pin(flow.label, reason)
    varies = any(flow.varies for flow in call.tensors())

    def result(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        return Flow(value, None, torch.zeros((), dtype=torch.bool).expand(value.shape), varies)

    if isinstance(call.value, Tensor):
        return result(call.value)
    return [result(value) for value in call.value]
