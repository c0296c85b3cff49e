"""Ordinary layers of torch for the calls of a graph, under the names that they had."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from torchlasso.compaction.flows import Analysis, Call
from torchlasso.compaction.surgery import Surgery
from torchlasso.compaction.trace import module_path

aten = torch.ops.aten


def layer_path(
    surgery: Surgery, node: fx.Node, names: dict[str, str | None], kinds: tuple[type, ...]
) -> str | None:
    """Return the name of the module whose tensors a call uses, or None if they are no one layer's.

    Args:
        surgery: of the model.
        node: the call.
        names: for each attribute of such a layer, the name of the tensor that the call uses.
        kinds: the types of such a layer.
    """
    model = surgery.analysis.program.model
    tensors = surgery.analysis.program.tensors
    paths = [module_path(node), *(name.rpartition(".")[0] for name in names.values() if name)]
    for path in paths:
        try:
            module = model.get_submodule(path)
        except AttributeError:
            continue
        same = all(
            getattr(module, attribute, None) is (None if name is None else tensors[name])
            for attribute, name in names.items()
        )
        if path and isinstance(module, kinds) and same:
            return path
    return None


def make(surgery: Surgery, node: fx.Node) -> tuple[str, nn.Module, Any] | None:
    """Return the path, the layer and its arguments for a call, or None if it stays a call.

    Args:
        surgery: of the model.
        node: a call that stays.
    """
    maker = _MAKERS.get(node.target)
    return maker(surgery, node) if maker is not None else None


def _call(surgery: Surgery, node: fx.Node) -> Call:
    return Call(surgery.analysis, node, None)


def _put(layer: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """Put tensors in the places of a layer that was made without memory."""
    for name, tensor in tensors.items():
        if tensor is not None:
            setattr(layer, name, tensor)
    return layer


def _linear(surgery: Surgery, node: fx.Node) -> tuple[str, nn.Module, Any] | None:
    call = _call(surgery, node)
    names = {"weight": call.attribute(1, "weight"), "bias": call.attribute(2, "bias")}
    path = layer_path(surgery, node, names, (nn.Linear,))
    if path is None or names["weight"] is None:
        return None
    weight, bias = surgery.tensor(names["weight"]), surgery.bias(node, names["bias"])
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    return path, _put(layer, weight=weight, bias=bias), node.args[:1]


def _convolution(surgery: Surgery, node: fx.Node) -> tuple[str, nn.Module, Any] | None:
    call = _call(surgery, node)
    transposed = "transpose" in str(node.target)
    names = {"weight": call.attribute(1, "weight"), "bias": call.attribute(2, "bias")}
    path = layer_path(surgery, node, names, (nn.modules.conv._ConvNd,))
    if path is None or names["weight"] is None:
        return None
    weight, bias = surgery.tensor(names["weight"]), surgery.bias(node, names["bias"])
    groups = kept_groups(surgery, node)
    spatial = weight.ndim - 2
    settings: dict[str, Any] = {
        "stride": _tuple(call.number(3, "stride", 1), spatial),
        "padding": _padding(call.number(4, "padding", 0), spatial),
        "groups": groups,
    }
    if transposed:
        settings["output_padding"] = _tuple(call.number(5, "output_padding", 0), spatial)
    settings["dilation"] = _tuple(call.number(7 if transposed else 5, "dilation", 1), spatial)
    kinds: Any = _TRANSPOSED if transposed else _PLAIN
    first, second = weight.shape[:2]
    channels = (first, second * groups) if transposed else (second * groups, first)
    kernel = tuple(weight.shape[2:])
    layer = kinds[spatial - 1](*channels, kernel, bias=bias is not None, device="meta", **settings)
    return path, _put(layer, weight=weight, bias=bias), node.args[:1]


_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def kept_groups(surgery: Surgery, node: fx.Node) -> int:
    """Return how many groups of a grouped convolution stay.

    Args:
        surgery: of the model.
        node: the convolution.
    """
    fold = next(fold for fold in surgery.analysis.ledger.folds if fold.node is node)
    return int(surgery.channels.stays(fold.columns).any(1).sum()) if len(fold.columns) > 1 else 1


def _tuple(value: Any, count: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * count if len(values) == 1 else values


def _padding(value: Any, count: int) -> Any:
    return value if isinstance(value, str) else _tuple(value, count)


def _batch_norm(surgery: Surgery, node: fx.Node) -> tuple[str, nn.Module, Any] | None:
    call = _call(surgery, node)
    order = ("weight", "bias", "running_mean", "running_var")
    names = {name: call.attribute(position, name) for position, name in enumerate(order, 1)}
    path = layer_path(surgery, node, names, (nn.modules.batchnorm._BatchNorm,))
    if path is None or names["running_mean"] is None:
        return None
    old: Any = surgery.analysis.program.model.get_submodule(path)
    tensors = {name: surgery.tensor(target) for name, target in names.items() if target is not None}
    flow = surgery.analysis.flows[node]
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[flow.value.ndim]
    layer = kind(
        tensors["running_mean"].shape[0],
        eps=call.number(7, "eps"),
        momentum=old.momentum,
        affine="weight" in tensors,
        device="meta",
    )
    counter = None if old.num_batches_tracked is None else old.num_batches_tracked.detach().clone()
    return path, _put(layer, **tensors, num_batches_tracked=counter), node.args[:1]


def _layer_norm(surgery: Surgery, node: fx.Node) -> tuple[str, nn.Module, Any] | None:
    call = _call(surgery, node)
    names = {"weight": call.attribute(2, "weight"), "bias": call.attribute(3, "bias")}
    path = layer_path(surgery, node, names, (nn.LayerNorm,))
    if path is None:
        return None
    tensors = {name: surgery.tensor(target) for name, target in names.items() if target is not None}
    size = len(call.number(1, "normalized_shape"))
    layer = nn.LayerNorm(
        surgery.sizes(surgery.analysis.flows[node])[-size:],
        eps=call.number(4, "eps", 1e-5),
        elementwise_affine="weight" in tensors,
        bias="bias" in tensors,
        device="meta",
    )
    return path, _put(layer, **tensors), node.args[:1]


def _group_norm(surgery: Surgery, node: fx.Node) -> tuple[str, nn.Module, Any] | None:
    call = _call(surgery, node)
    names = {"weight": call.attribute(2, "weight"), "bias": call.attribute(3, "bias")}
    path = layer_path(surgery, node, names, (nn.GroupNorm,))
    if path is None:
        return None
    tensors = {name: surgery.tensor(target) for name, target in names.items() if target is not None}
    flow = surgery.analysis.flows[node]
    channels, before = surgery.sizes(flow)[1], flow.value.shape[1]
    groups = call.number(1, "num_groups") * channels // before
    layer = nn.GroupNorm(
        groups, channels, eps=call.number(4, "eps", 1e-5), affine="weight" in tensors, device="meta"
    )
    return path, _put(layer, **tensors), node.args[:1]


def _embedding(surgery: Surgery, node: fx.Node) -> tuple[str, nn.Module, Any] | None:
    call = _call(surgery, node)
    names = {"weight": call.attribute(0, "weight")}
    path = layer_path(surgery, node, names, (nn.Embedding,))
    if path is None or names["weight"] is None:
        return None
    weight = surgery.tensor(names["weight"])
    old: Any = surgery.analysis.program.model.get_submodule(path)
    layer = nn.Embedding(
        weight.shape[0],
        weight.shape[1],
        padding_idx=old.padding_idx,
        scale_grad_by_freq=old.scale_grad_by_freq,
        device="meta",
    )
    return path, _put(layer, weight=weight), node.args[1:2]


def _dropout(surgery: Surgery, node: fx.Node) -> tuple[str, nn.Module, Any] | None:
    call = _call(surgery, node)
    path = module_path(node)
    old = surgery.analysis.program.model.get_submodule(path)
    if isinstance(old, nn.modules.dropout._DropoutNd):
        return path, type(old)(old.p), node.args[:1]
    kind: dict[Any, Any] = {aten.dropout.default: nn.Dropout, aten.alpha_dropout.default: nn.AlphaDropout}
    layer = kind.get(node.target, nn.Dropout2d)(call.number(1, "p"))
    return f"{path}.{node.name}" if path else node.name, layer, node.args[:1]


def _recurrent(surgery: Surgery, node: fx.Node) -> tuple[str, nn.Module, Any] | None:
    call = _call(surgery, node)
    names = [str(each.target) for each in call.argument(2, "params")]
    kinds: dict[Any, Any] = {aten.lstm.input: nn.LSTM, aten.gru.input: nn.GRU}
    kind = kinds.get(node.target, nn.RNN)
    own = {name.rpartition(".")[2]: name for name in names}
    path = layer_path(surgery, node, dict(own), (kind,))
    if path is None:
        return None
    old: Any = surgery.analysis.program.model.get_submodule(path)
    tensors = {attribute: surgery.tensor(name) for attribute, name in own.items()}
    settings: dict[str, Any] = {"nonlinearity": old.nonlinearity} if kind is nn.RNN else {}
    into, back = tensors["weight_ih_l0"], tensors["weight_hh_l0"]
    layer = kind(
        into.shape[1],
        back.shape[1],
        num_layers=old.num_layers,
        bias=old.bias,
        batch_first=old.batch_first,
        dropout=old.dropout,
        bidirectional=old.bidirectional,
        device="meta",
        **settings,
    )
    return path, _put(layer, **tensors), (node.args[0], *_first_states(surgery.analysis, call))


def _first_states(analysis: Analysis, call: Call) -> tuple[Any, ...]:
    """Return the first states as a layer takes them; zeros are what it takes by itself."""
    given = call.argument(1, "hx")
    nodes = list(given) if isinstance(given, list | tuple) else [given]
    flows = [analysis.flows[node] for node in nodes]
    if all(bool(f.fixed.all()) and not f.varies and not bool(f.value.any()) for f in flows):
        return ()
    return (tuple(nodes),) if isinstance(given, list | tuple) else (nodes[0],)


Maker = Callable[[Surgery, fx.Node], tuple[str, nn.Module, Any] | None]

_MAKERS: dict[Any, Maker] = {
    aten.linear.default: _linear,
    aten.conv1d.default: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv3d.default: _convolution,
    aten.conv1d.padding: _convolution,
    aten.conv2d.padding: _convolution,
    aten.conv3d.padding: _convolution,
    aten.conv_transpose1d.default: _convolution,
    aten.conv_transpose2d.input: _convolution,
    aten.conv_transpose3d.input: _convolution,
    aten.batch_norm.default: _batch_norm,
    aten.layer_norm.default: _layer_norm,
    aten.group_norm.default: _group_norm,
    aten.embedding.default: _embedding,
    aten.dropout.default: _dropout,
    aten.alpha_dropout.default: _dropout,
    aten.feature_dropout.default: _dropout,
    aten.lstm.input: _recurrent,
    aten.gru.input: _recurrent,
    aten.rnn_tanh.input: _recurrent,
    aten.rnn_relu.input: _recurrent,
}
