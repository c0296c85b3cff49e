"""Single layers as a name and the arguments of their constructor, and back.

A file can name the layers listed here and nothing else, so reading one runs no code but theirs.
"""

import inspect
import math
import numbers
import warnings
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from torchlasso.files import refuse
from torchlasso.mlp import Rescale
from torchlasso.simplenet import SimpleNet
from torchlasso.sparse_layers import SparseLinear

_WORDS = (
    *("Linear", "Bilinear", "Identity", "Flatten", "Unflatten", "Fold", "Unfold"),
    *("Embedding", "EmbeddingBag", "MultiheadAttention"),
    *("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"),
    *("LayerNorm", "GroupNorm", "RMSNorm", "LocalResponseNorm"),
    *("Dropout", "AlphaDropout", "FeatureAlphaDropout"),
    *("CELU", "ELU", "GELU", "GLU", "LeakyReLU", "Mish", "PReLU", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU"),
    *("Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "Tanh", "Tanhshrink", "Threshold"),
    *("LogSigmoid", "LogSoftmax", "Sigmoid", "Softmax", "Softmax2d", "Softmin"),
    *("Softplus", "Softshrink", "Softsign"),
    *("Upsample", "UpsamplingBilinear2d", "UpsamplingNearest2d"),
    *("PixelShuffle", "PixelUnshuffle", "ChannelShuffle"),
)
_FAMILIES = (  # of one, two and three dimensions each
    *("Conv", "ConvTranspose", "BatchNorm", "InstanceNorm", "Dropout"),
    *("AdaptiveAvgPool", "AdaptiveMaxPool", "AvgPool", "LPPool", "MaxPool", "MaxUnpool"),
    *("CircularPad", "ConstantPad", "ReflectionPad", "ReplicationPad", "ZeroPad"),
)
LAYERS: dict[str, type[nn.Module]] = {
    **{word: getattr(nn, word) for word in _WORDS},
    **{f"{word}{n}d": getattr(nn, f"{word}{n}d") for word in _FAMILIES for n in (1, 2, 3)},
    "Rescale": Rescale,
    "SimpleNet": SimpleNet,
    "SparseLinear": SparseLinear,
}
"""The layers that a file may name."""

_MOST_LAYERS = 1_000  # of a recurrent network: its constructor makes them one by one
_NOT_STORED = ("device", "dtype", "scale", "shift")  # where and what the tensors are, or tensors themselves


def arguments(layer: nn.Module) -> dict[str, Any]:
    """Return the constructor's arguments that make such a layer, as far as they are no defaults.

    Args:
        layer: of one of the types in ``LAYERS``.

    Returns:
        JSON types; a tuple is a list, and an infinite number is a dict of one entry.

    Raises:
        ModelFileError: an argument is no number, text, truth value or tuple of these.

    Example:
        >>> arguments(nn.Conv2d(3, 8, 5, padding=2, bias=False))  # doctest: +NORMALIZE_WHITESPACE
        {'in_channels': 3, 'out_channels': 8, 'kernel_size': [5, 5], 'stride': [1, 1], 'padding': [2, 2],
         'dilation': [1, 1], 'bias': False}
    """
    found, kind = {}, type(layer)
    for name, default in _parameters(kind).items():
        value = _READ.get((kind, name), _has_bias if name == "bias" else attrgetter(name))(layer)
        if value is not default and (type(value) is not type(default) or value != default):
            found[name] = encode(value)
    return found


def build(kind: str, found: Mapping[str, Any]) -> nn.Module:
    """Return a layer without data (on the device ``meta``).

    Args:
        kind: a name in ``LAYERS``.
        found: what `arguments` returned; nothing in it is trusted.

    Raises:
        ModelFileError: there is no such layer, or it has no such arguments.  What else a constructor may
            have against its arguments is raised as it is.

    Example:
        >>> build("Linear", {"in_features": 10**6, "out_features": 10**6}).weight.shape
        torch.Size([1000000, 1000000])
    """
    if kind not in LAYERS:
        refuse(f"it asks for a layer of the unknown type {kind[:40]!r}")
    cls = LAYERS[kind]
    if unknown := found.keys() - _parameters(cls).keys():
        refuse(f"it gives {kind} an unknown argument {min(unknown)[:40]!r}")
    given = {name: decode(value) for name, value in found.items()}
    if not isinstance(layers := given.get("num_layers", 1), int) or layers > _MOST_LAYERS:
        refuse(f"it asks for {repr(layers)[:20]} layers in a {kind}, at most {_MOST_LAYERS} are allowed")
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter(
            "ignore"
        )  # remarks on initial values and odd arguments: the layer was made once
        return cls(**given)


def encode(value: object) -> Any:
    """Return an argument as JSON.

    Example:
        >>> encode((1, float("-inf"), None, "same"))
        [1, {'float': '-inf'}, None, 'same']
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else {"float": str(number)}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    refuse(f"an argument of the type {type(value).__name__} cannot be stored")


def decode(value: object) -> Any:
    """Return the argument that `encode` made JSON of; lists become tuples.

    Example:
        >>> decode([1, {"float": "-inf"}, None, "same"])
        (1, -inf, None, 'same')
    """
    if isinstance(value, list):
        return tuple(decode(item) for item in value)
    if isinstance(value, dict):
        number = value.get("float")
        if number not in ("inf", "-inf", "nan") or len(value) != 1:
            refuse(f"it holds {repr(value)[:40]} where an argument was expected")
        return float(number)
    return value


def _parameters(cls: type[nn.Module]) -> dict[str, object]:
    """Return the constructor's arguments that describe a layer, with their defaults."""
    made = nn.RNNBase if issubclass(cls, nn.RNNBase) else cls
    found = {
        name: parameter.default
        for name, parameter in inspect.signature(made).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in _NOT_STORED
        and not name.startswith("_")
    }
    if cls is nn.Hardtanh:
        return {"min_val": found["min_val"], "max_val": found["max_val"], "inplace": found["inplace"]}
    if made is nn.RNNBase:
        left_out = {"mode"} if cls is nn.LSTM else {"mode", "proj_size"}
        found = {name: default for name, default in found.items() if name not in left_out}
        return {**found, "nonlinearity": "tanh"} if cls is nn.RNN else found
    return found


def _has_bias(layer: Any) -> bool:
    """Return the argument ``bias``; without ``affine`` there is none either way, so it keeps its default."""
    affine = getattr(layer, "affine", getattr(layer, "elementwise_affine", True))
    bias = layer.bias  # a parameter or None, and in recurrent layers a truth value
    return not affine or isinstance(bias, Tensor) or bool(bias)


_READ: dict[tuple[type[nn.Module], str], Callable[[Any], object]] = {
    (nn.MultiheadAttention, "bias"): lambda layer: layer.in_proj_bias is not None,
    (nn.MultiheadAttention, "add_bias_kv"): lambda layer: layer.bias_k is not None,
    (SimpleNet, "input_size"): attrgetter("fc1.in_features"),
    (SimpleNet, "hidden_size"): attrgetter("fc1.out_features"),
    (SimpleNet, "output_size"): attrgetter("fc2.out_features"),
}
"""Arguments that are no attributes of the same name."""
