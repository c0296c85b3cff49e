"""Nested containers of tensors, such as an optimizer's state, as tensors by name and a JSON structure."""

import math
from typing import Any

from torch import Tensor

from torchlasso.errors import InputError, ModelFileError


def encode(value: Any) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors in nested containers, and a structure of JSON types that says where they belong.

    Args:
        value: dicts, lists, tuples, tensors, strings, numbers and None, in each other.

    Returns:
        The tensors under numbers, and the structure; ``decode`` takes both.

    Raises:
        InputError: something of another kind is in it.

    Example:
        >>> import torch
        >>> tensors, structure = encode({0: (torch.ones(1), 0.5)})
        >>> structure
        {'dict': [[0, {'tuple': [{'tensor': '0'}, 0.5]}]]}
        >>> decode(tensors, structure)
        {0: (tensor([1.]), 0.5)}
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _encoded(value, tensors)


def _encoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_encoded(key, tensors), _encoded(child, tensors)] for key, child in value.items()]}
    if isinstance(value, list | tuple):
        children = [_encoded(child, tensors) for child in value]
        return children if isinstance(value, list) else {"tuple": children}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    msg = f"expected tensors, numbers, strings and containers of them, got {type(value).__name__}"
    raise InputError(msg)


def decode(tensors: dict[str, Tensor], structure: Any) -> Any:
    """Return what ``encode`` took.

    Args:
        tensors: by number.
        structure: of JSON types.

    Raises:
        ModelFileError: the structure is not one that ``encode`` makes.
    """
    if isinstance(structure, list):
        return [decode(tensors, child) for child in structure]
    if not isinstance(structure, dict):
        return structure
    try:
        ((kind, content),) = structure.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "float":
            return float(content)
        children = [decode(tensors, child) for child in content]
        return {"tuple": tuple, "dict": dict}[kind](children)
    except (KeyError, TypeError, ValueError) as error:
        msg = "the structure of the stored containers is damaged"
        raise ModelFileError(msg) from error
