"""Which rule belongs to which ATen function."""

from typing import Any

import torch

from torchlasso.compaction.flows import VIEWS, Rule, gate
from torchlasso.compaction.rules_entry import entrywise, normalised, pooled, reduced
from torchlasso.compaction.rules_layers import (
    batch_norm,
    convolution,
    embedding,
    group_norm,
    layer_norm,
    linear,
)
from torchlasso.compaction.rules_mixing import attention, baddbmm, matmul, product
from torchlasso.compaction.rules_recurrent import GATES, recurrent
from torchlasso.compaction.rules_shape import (
    expanded,
    filled,
    moved,
    padded,
    repeated,
    sliced,
    unchanged,
    understood_by_nobody,
)

aten = torch.ops.aten

_MOVED = (
    *VIEWS,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.split.sizes,
    aten.chunk.default,
    aten.unbind.int,
    aten.cat.default,
    aten.stack.default,
    aten.flip.default,
    aten.roll.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.channel_shuffle.default,
    aten.swapaxes.default,
    aten.view_as.default,
)
_UNCHANGED = (
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten.to.other,
    aten.type_as.default,
    aten._to_copy.default,
    aten.detach.default,
    aten.detach_.default,
    aten.lift_fresh_copy.default,
)
_ENTRYWISE = (
    aten.hardswish.default,
    aten.log_sigmoid.default,
    aten.log_sigmoid_forward.default,
    aten.__and__.Tensor,
    aten.__or__.Tensor,
    aten.__xor__.Tensor,
    aten.square.default,
    aten.rrelu.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.softshrink.default,
    aten.hardshrink.default,
    aten.threshold.default,
    aten.softplus.default,
    aten.selu.default,
    aten.relu6.default,
)
_REDUCED = (
    aten.mean.dim,
    aten.mean.default,
    aten.sum.dim_IntList,
    aten.sum.default,
    aten.amax.default,
    aten.amin.default,
    aten.var.correction,
    aten.var.dim,
    aten.std.correction,
    aten.linalg_vector_norm.default,
)
_NAMES = ("max_pool{}d", "avg_pool{}d", "adaptive_avg_pool{}d")
_POOLED = (
    *(getattr(aten, name.format(n)).default for name in _NAMES for n in (1, 2, 3)),
    aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest3d.vec,
    aten.upsample_bilinear2d.vec,
    aten.upsample_bicubic2d.vec,
    aten.upsample_nearest2d.default,
    aten.upsample_bilinear2d.default,
)
_CONVOLUTIONS = (
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.padding,
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
)
_FILLED = (
    aten.zeros.default,
    aten.ones.default,
    aten.full.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
)

RULES: dict[Any, Rule] = {
    **dict.fromkeys(_MOVED, moved),
    **dict.fromkeys(_UNCHANGED, unchanged),
    **dict.fromkeys(_ENTRYWISE, entrywise),
    **dict.fromkeys(_REDUCED, reduced),
    **dict.fromkeys(_POOLED, pooled),
    **dict.fromkeys(_CONVOLUTIONS, convolution),
    **dict.fromkeys(_FILLED, filled),
    **dict.fromkeys(GATES, recurrent),
    aten.alias.default: gate,
    aten.slice.Tensor: sliced,
    aten.select.int: sliced,
    aten.narrow.default: sliced,
    aten.expand.default: expanded,
    aten.repeat_interleave.self_int: repeated,
    aten.constant_pad_nd.default: padded,
    aten.pad.default: padded,
    aten.softmax.int: normalised,
    aten._softmax.default: normalised,
    aten.log_softmax.int: normalised,
    aten.linear.default: linear,
    aten.addmm.default: product,
    aten.batch_norm.default: batch_norm,
    aten.layer_norm.default: layer_norm,
    aten.group_norm.default: group_norm,
    aten.embedding.default: embedding,
    aten.matmul.default: matmul,
    aten.mm.default: matmul,
    aten.bmm.default: matmul,
    aten.baddbmm.default: baddbmm,
    aten.scaled_dot_product_attention.default: attention,
}
"""What each function does to labels."""


def rule_for(target: Any) -> Rule:
    """Return the rule of a function that has none of its own: by torch's own tag, or not followed.

    Args:
        target: what a call of the graph calls.
    """
    if getattr(target, "__name__", "") == "getitem":
        return _item
    if torch.Tag.pointwise in getattr(target, "tags", ()):
        return entrywise
    return understood_by_nobody


def _item(call: Any) -> Any:
    source, index = call.node.args
    return call.analysis.flows[source][index]
