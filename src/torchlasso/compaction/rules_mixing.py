"""What products of two activations say about channels: attention, and matrix products in general."""

import torch
from torch import Tensor, fx

from torchlasso.compaction.flows import Call
from torchlasso.compaction.labels import Flow, squeezed, vector
from torchlasso.compaction.rules_layers import addmm
from torchlasso.compaction.rules_shape import understood_by_nobody

aten = torch.ops.aten
_BESIDE = "is multiplied with a tensor that cannot shrink"


def matmul(call: Call) -> object:
    """Return labels behind ``a @ b``: a layer's weight gives new ones, two activations a pair of theirs."""
    name = call.attribute(1, "other") or call.attribute(1, "mat2")
    if name is not None and call.analysis.program.tensors[name].ndim == 2:
        return _by_weight(call, name)
    a, b = (call.read(node) for node in call.node.args[:2])  # type: ignore[arg-type]  # both are tensors
    if min(a.value.ndim, b.value.ndim) < 2:
        return understood_by_nobody(call)
    return contracted(call, a, b)


def _by_weight(call: Call, name: str) -> object:
    flow = call.tensor(0, "self")
    assert flow is not None
    weight = call.analysis.program.tensors[name].detach()
    rows = vector(call.ledger, call.ledger.known(flow, _BESIDE), flow.value.ndim - 1)
    out = call.ledger.fresh(weight.shape[1])
    call.ledger.use(name, weight.shape, out[None, :], rows[:, None])
    reads = (weight.T != 0).cpu()
    zero = (flow.fixed & (flow.value == 0).cpu()).reshape(-1, len(rows)).all(0)
    call.ledger.dense(out, rows, reads & ~zero)
    free = ((~flow.fixed).float() @ reads.T.float()) == 0
    return Flow(call.value, out.expand(call.value.shape), free, flow.varies)


def baddbmm(call: Call) -> object:
    """Return labels behind ``β·c + α·a @ b``; the first term only joins in if it does not shrink."""
    added, a, b = (call.tensor(p, n) for p, n in enumerate(("self", "batch1", "batch2")))
    if added is None or a is None or b is None:
        return understood_by_nobody(call)
    product = contracted(call, a, b)
    if added.label is not None:
        call.ledger.tie(squeezed(added.label), squeezed(product.label))  # type: ignore[arg-type]
    return product


def contracted(call: Call, a: Flow, b: Flow) -> Flow:
    """Return labels behind a batched matrix product of activations.

    Args:
        call: the product.
        a: ``(…, i, k)``.
        b: ``(…, k, j)``.
    """
    la, lb = call.ledger.known(a, _BESIDE), call.ledger.known(b, _BESIDE)
    shape = call.value.shape
    batch = shape[:-2]
    la, lb = la.expand(*batch, *la.shape[-2:]), lb.expand(*batch, *lb.shape[-2:])
    base_a, base_b = squeezed(la), squeezed(lb)
    left, right = base_a[..., :1], base_b[..., :1, :]
    pairs = torch.broadcast_tensors(left, right)
    result = _numbered(call, torch.stack(pairs))
    zero_a, zero_b = _zero(a), _zero(b)
    _contract(call, (base_a, zero_a), (base_b, zero_b), result)
    _align_batches(call, base_a, base_b, result)
    fixed = ((~zero_a).float() @ (~zero_b).float()) == 0
    return Flow(call.value, result.expand(shape), fixed.expand(shape))


def _zero(flow: Flow) -> Tensor:
    return flow.fixed & (flow.value == 0).cpu()


def _numbered(call: Call, pairs: Tensor) -> Tensor:
    """Return one new label for each distinct pair of labels."""
    distinct, inverse = pairs.reshape(2, -1).unique(dim=1, return_inverse=True)
    return call.ledger.fresh(distinct.shape[1])[inverse].reshape(pairs.shape[1:])


def _contract(call: Call, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], result: Tensor) -> None:
    """Tie what is multiplied with one another; what meets zeros only is not read."""
    (la, zero_a), (lb, zero_b) = a, b
    k_a, k_b = la.shape[-1], lb.shape[-2]
    if k_a > 1 or k_b > 1:
        call.ledger.tie(la[..., :1, :], lb[..., :1].transpose(-1, -2))
        call.ledger.tie(la[..., :1, :], la)
        call.ledger.tie(lb[..., :1], lb)
    unread = _unread(zero_b.all(-1)[..., None, :], la)
    _read_where(call, result[..., :, :, None], la[..., :, None, :], ~unread[..., :, None, :])
    unread = _unread(zero_a.all(-2)[..., :, None], lb)
    _read_where(call, result[..., :, None, :], lb[..., None, :, :], ~unread[..., None, :, :])


def _unread(zeros: Tensor, labels: Tensor) -> Tensor:
    """Return for every label whether all that it is multiplied with is zero."""
    zeros = zeros.reshape((1,) * (labels.ndim - zeros.ndim) + tuple(zeros.shape))
    for dim in range(labels.ndim):
        if labels.shape[dim] == 1:
            zeros = zeros.all(dim, keepdim=True)
    return zeros.expand_as(labels)


def _read_where(call: Call, sources: Tensor, labels: Tensor, seen: Tensor) -> None:
    sources, labels, seen = torch.broadcast_tensors(sources, labels, seen)
    call.ledger.read(sources[seen], labels[seen])


def _align_batches(call: Call, a: Tensor, b: Tensor, result: Tensor) -> None:
    """Have the heads of both factors and of the product go together."""
    dims = [d for d in range(result.ndim - 2) if max(a.shape[d], b.shape[d]) > 1]
    if not dims:
        return
    sizes = [max(a.shape[d], b.shape[d]) for d in range(result.ndim - 2)]
    groups = torch.Size(sizes).numel()
    members = [t.expand(*sizes, *t.shape[-2:]).reshape(groups, -1) for t in (a, b, result)]
    call.ledger.align(*members)


def attention(call: Call) -> object:
    """Return labels behind ``softmax(q kᵀ·scale + mask) v``: each reads its value and its head's scores."""
    flows = [call.tensor(p, n) for p, n in enumerate(("query", "key", "value"))]
    if any(flow is None for flow in flows):
        return understood_by_nobody(call)
    q, k, v = (flow for flow in flows if flow is not None)
    mask = call.tensor(3, "attn_mask")
    if mask is not None and mask.label is not None and squeezed(mask.label).numel() > 1:
        return understood_by_nobody(call)
    heads = max(q.value.shape[-3], k.value.shape[-3]) if q.value.ndim > 3 else 1
    bq, bk, bv = (_heads(call, flow, heads) for flow in (q, k, v))
    out = _numbered(call, torch.stack(torch.broadcast_tensors(bq[:, :1], bv)))
    call.ledger.tie(bq, bk)
    call.ledger.read(out, bv)
    zero = _head_zeros(q, heads) | _head_zeros(k, heads)
    scores = torch.broadcast_tensors(out[:, :, None], bq[:, None, :])
    seen = (~zero)[:, None, :].expand(scores[0].shape)
    call.ledger.read(scores[0][seen], scores[1][seen])
    call.ledger.align(bq, bk, bv, out)
    fixed = _constant_values(call, v, heads, masked=mask is not None)
    shape = call.value.shape
    label = out.reshape(heads, 1, -1) if len(shape) > 3 else out.reshape(1, -1)
    return Flow(call.value, label.expand(shape), fixed.reshape(label.shape).expand(shape))


def _heads(call: Call, flow: Flow, heads: int) -> Tensor:
    """Return the labels ``(heads, width)`` of queries, keys or values, tied along batch and positions."""
    labels = squeezed(call.ledger.known(flow, _BESIDE))
    width = flow.value.shape[-1]
    if flow.value.ndim < 4:
        return vector(call.ledger, labels.expand(*labels.shape[:-1], width), labels.ndim - 1)[None]
    own = flow.value.shape[-3]
    moved = labels.expand(*labels.shape[:-3], own, labels.shape[-2], width).movedim(-2, -3)
    rows = moved.reshape(-1, own, width)
    call.ledger.tie(rows[:1], rows)
    return rows[0].repeat_interleave(heads // own, 0)


def _head_zeros(flow: Flow, heads: int) -> Tensor:
    zero = flow.fixed & (flow.value == 0).cpu()
    if flow.value.ndim < 4:
        return zero.reshape(-1, zero.shape[-1]).all(0)[None]
    rows = zero.movedim(-2, -3).reshape(-1, zero.shape[-3], zero.shape[-1]).all(0)
    return rows.repeat_interleave(heads // rows.shape[0], 0)


def _constant_values(call: Call, flow: Flow, heads: int, *, masked: bool) -> Tensor:
    """Return which outputs are constant: the weights of a row sum to 1, or a masked row is empty."""
    first = flow.value[..., :1, :]
    alike = flow.fixed & (flow.value == (torch.zeros_like(first) if masked else first)).cpu()
    if flow.value.ndim < 4:
        return alike.reshape(-1, alike.shape[-1]).all(0)[None]
    rows = alike.movedim(-2, -3).reshape(-1, alike.shape[-3], alike.shape[-1]).all(0)
    return rows.repeat_interleave(heads // rows.shape[0], 0)


def product(call: Call) -> object:
    """Return labels behind ``addmm`` by a weight, or leave the product of activations alone."""
    weight = call.argument(2, "mat2")
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        return addmm(call)
    return understood_by_nobody(call)
