"""Sizes that are written into a graph, for the smaller tensors."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from torchlasso.compaction.flows import ON_ANY_STRIDES, Call
from torchlasso.compaction.labels import Flow
from torchlasso.compaction.modules import kept_groups
from torchlasso.compaction.surgery import Surgery

aten = torch.ops.aten

Rewrite = tuple[Any, tuple[Any, ...], dict[str, Any]]


def rewritten(surgery: Surgery, node: fx.Node) -> Rewrite:
    """Return the function and the arguments of a call with the sizes of the small model.

    Args:
        surgery: of the model.
        node: a call that stays; the arguments still name the old nodes.
    """
    target: Any = node.target
    change = _CHANGES.get(target)
    target, args, kwargs = (
        (node.target, node.args, dict(node.kwargs)) if change is None else change(surgery, node)
    )
    return ON_ANY_STRIDES.get(target, target), args, kwargs


def _source(surgery: Surgery, node: fx.Node) -> Flow:
    """Return the tensor that a call is about."""
    source: Any = node.args[0]
    flow: Flow = surgery.analysis.flows[source]
    return flow


def _resized(given: Sequence[Any], old: Sequence[int], new: Sequence[int]) -> list[Any]:
    """Return sizes as given where they did not change; a computed size that did is left to torch."""
    sizes: list[Any] = []
    for size, before, after in zip(given, old, new, strict=True):
        if before == after or (isinstance(size, int) and size == -1):
            sizes.append(size)
        else:
            sizes.append(after if isinstance(size, int) else -1)
    if sum(isinstance(size, int) and size == -1 for size in sizes) > 1:
        sizes = [
            n if isinstance(s, int) and s == -1 and i else s
            for i, (s, n) in enumerate(zip(sizes, new, strict=True))
        ]
    return sizes


def _replace(node: fx.Node, **changes: tuple[int, Any]) -> Rewrite:
    """Return a call with some arguments changed, each given by its position."""
    args, kwargs = list(node.args), dict(node.kwargs)
    for name, (position, value) in changes.items():
        if position < len(args):
            args[position] = value
        else:
            kwargs[name] = value
    return node.target, tuple(args), kwargs


def _shape_argument(position: int, name: str) -> Callable[[Surgery, fx.Node], Rewrite]:
    def change(surgery: Surgery, node: fx.Node) -> Rewrite:
        flow = surgery.analysis.flows[node]
        given = Call(surgery.analysis, node, None).argument(position, name)
        sizes = _resized(given, flow.value.shape, surgery.sizes(flow))
        return _replace(node, **{name: (position, sizes)})

    return change


def _unflatten(surgery: Surgery, node: fx.Node) -> Rewrite:
    call, flow = Call(surgery.analysis, node, None), surgery.analysis.flows[node]
    given = call.argument(2, "sizes")
    dim = call.number(1, "dim") % (flow.value.ndim - len(given) + 1)
    part = slice(dim, dim + len(given))
    return _replace(node, sizes=(2, _resized(given, flow.value.shape[part], surgery.sizes(flow)[part])))


def _split(surgery: Surgery, node: fx.Node) -> Rewrite:
    call, flows = Call(surgery.analysis, node, None), surgery.analysis.flows[node]
    dim = call.number(2, "dim", 0)
    before = [flow.value.shape[dim] for flow in flows]
    after = [surgery.sizes(flow)[dim] if surgery.stays(flow) else 0 for flow in flows]
    if before == after:
        return node.target, node.args, dict(node.kwargs)
    return aten.split_with_sizes.default, (node.args[0], after, dim), {}


def _slice(surgery: Surgery, node: fx.Node) -> Rewrite:
    call = Call(surgery.analysis, node, None)
    source = _source(surgery, node)
    dim = call.number(1, "dim", 0) % source.value.ndim
    start, end = call.argument(2, "start"), call.argument(3, "end")
    changes = {}
    for name, position, given in (("start", 2, start), ("end", 3, end)):
        if (
            isinstance(given, int)
            and 0 < given + source.value.shape[dim] * (given < 0) < source.value.shape[dim]
        ):
            index = given + source.value.shape[dim] * (given < 0)
            changes[name] = (position, surgery.position(source, dim, index))
    return _replace(node, **changes) if changes else (node.target, node.args, dict(node.kwargs))


def _select(surgery: Surgery, node: fx.Node) -> Rewrite:
    call, source = Call(surgery.analysis, node, None), _source(surgery, node)
    size = source.value.shape[call.number(1, "dim")]
    index = call.argument(2, "index")
    if not isinstance(index, int) or (index < 0 and surgery.sizes(source) == list(source.value.shape)):
        return node.target, node.args, dict(node.kwargs)
    dim = call.number(1, "dim") % source.value.ndim
    return _replace(node, index=(2, surgery.position(source, dim, index + size * (index < 0))))


def _repeat(surgery: Surgery, node: fx.Node) -> Rewrite:
    call = Call(surgery.analysis, node, None)
    source, flow = _source(surgery, node), surgery.analysis.flows[node]
    dim = call.number(2, "dim")
    if dim is None or flow.label is None:
        return node.target, node.args, dict(node.kwargs)
    return _replace(node, repeats=(1, surgery.sizes(flow)[dim] // surgery.sizes(source)[dim]))


def _attention(surgery: Surgery, node: fx.Node) -> Rewrite:
    """Keep the scale of the full width of a head."""
    query: Flow = _source(surgery, node)
    width = query.value.shape[-1]
    if node.kwargs.get("scale") is not None or surgery.sizes(query)[-1] == width:
        return node.target, node.args, dict(node.kwargs)
    return node.target, node.args, {**node.kwargs, "scale": width**-0.5}


def _convolution(surgery: Surgery, node: fx.Node) -> Rewrite:
    return _replace(node, groups=(6, kept_groups(surgery, node)))


def _group_norm(surgery: Surgery, node: fx.Node) -> Rewrite:
    flow = surgery.analysis.flows[node]
    groups = Call(surgery.analysis, node, None).number(1, "num_groups")
    return _replace(node, num_groups=(1, groups * surgery.sizes(flow)[1] // flow.value.shape[1]))


def _layer_norm(surgery: Surgery, node: fx.Node) -> Rewrite:
    size = len(Call(surgery.analysis, node, None).number(1, "normalized_shape"))
    return _replace(node, normalized_shape=(1, surgery.sizes(surgery.analysis.flows[node])[-size:]))


_CHANGES: dict[Any, Callable[[Surgery, fx.Node], Rewrite]] = {
    aten.view.default: _shape_argument(1, "size"),
    aten.reshape.default: _shape_argument(1, "shape"),
    aten._unsafe_view.default: _shape_argument(1, "size"),
    aten.expand.default: _shape_argument(1, "size"),
    aten.zeros.default: _shape_argument(0, "size"),
    aten.ones.default: _shape_argument(0, "size"),
    aten.full.default: _shape_argument(0, "size"),
    aten.new_zeros.default: _shape_argument(1, "size"),
    aten.new_ones.default: _shape_argument(1, "size"),
    aten.new_full.default: _shape_argument(1, "size"),
    aten.unflatten.int: _unflatten,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.split.sizes: _split,
    aten.chunk.default: _split,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.repeat_interleave.self_int: _repeat,
    aten.scaled_dot_product_attention.default: _attention,
    aten.conv1d.default: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv3d.default: _convolution,
    aten.conv_transpose1d.default: _convolution,
    aten.conv_transpose2d.input: _convolution,
    aten.conv_transpose3d.input: _convolution,
    aten.group_norm.default: _group_norm,
    aten.layer_norm.default: _layer_norm,
}


def item_of(surgery: Surgery, node: fx.Node) -> tuple[Any, int]:
    """Return the arguments of ``getitem``: ``unbind`` gives as many results as stay.

    Args:
        surgery: of the model.
        node: the call.
    """
    source: Any = node.args[0]
    index: Any = node.args[1]
    if source.target is not aten.unbind.int:
        return source, index
    return source, sum(surgery.stays(flow) for flow in surgery.analysis.flows[source][:index])
