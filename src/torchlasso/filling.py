"""Tensors of a file into a model that is there, layers of other shapes replaced; all of it or nothing."""

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from torchlasso.blueprint import Blueprint, is_continuous, named_tensors, outline
from torchlasso.blueprint_layers import LAYERS, arguments, build
from torchlasso.files import refuse
from torchlasso.sparse_layers import SparseLinear


def fill(
    model: nn.Module, blueprint: Blueprint, values: Mapping[str, Tensor], ties: Mapping[str, str]
) -> None:
    """Give a model the tensors of a file, and new layers where the file has other shapes.

    A parameter that keeps its shape stays the same object, so that optimizers know it still.  One without
    data (on the device ``meta``) becomes a new one.

    Args:
        model: has all names that the file has, and no other.
        blueprint: what each part of the model in the file is.
        values: the tensors by their first name.
        ties: the first names of the others.

    Raises:
        ModelFileError: names, shapes or kinds do not fit; nothing has changed then.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1, bias=False)
        >>> fill(model, {}, {"weight": torch.tensor([[3.0, 4.0]])}, {})
        >>> model.weight
        Parameter containing:
        tensor([[3., 4.]], requires_grad=True)
    """
    replaced = _replacements(model, blueprint)
    wanted = _wanted(model, replaced)
    stored = {**values, **{name: values[first] for name, first in ties.items()}}
    _check_names(wanted, stored)
    _check_shapes(wanted, stored)
    _check_ties(wanted, values)
    _check_matrices(model, replaced, stored)
    _replace(model, replaced)
    for name, value in values.items():
        _set(model, name, value)
    for name, first in ties.items():
        (owner, key), (other, other_key) = _place(model, name), _place(model, first)
        setattr(owner, key, getattr(other, other_key))


def _replacements(model: nn.Module, blueprint: Blueprint) -> dict[str, nn.Module]:
    """Return the layers, without data, that have to take the place of those of other shapes."""
    parts = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, nn.Module] = {}
    for name, entry in blueprint.items():
        old = parts.get(name)
        if entry.get("same") in found:
            found[name] = found[entry["same"]]
        if old is None or not name or entry.get("type") not in LAYERS:
            continue
        new = build(entry["type"], entry["args"])
        if outline(new) == outline(old):
            continue
        becomes_sparse = type(new) is SparseLinear and type(old) is nn.Linear
        if type(new) is not type(old) and not becomes_sparse:
            kinds = f"a {type(new).__name__} in the file and a {type(old).__name__} in the model"
            refuse(f"{name!r} is {kinds}; give a model of the same make")
        found[name] = new.train(old.training)
    return found


def _check_names(wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    if missing := wanted.keys() - stored.keys():
        refuse(f"the model has {min(missing)!r}, the file has not; give a model of the same make")
    if surplus := stored.keys() - wanted.keys():
        refuse(f"the file has {min(surplus)[:60]!r}, the model has not; give a model of the same make")


def _check_shapes(wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    for name, tensor in wanted.items():
        found = stored[name]
        if found.shape != tensor.shape:
            shapes = f"{list(found.shape)} in the file and {list(tensor.shape)} in the model"
            refuse(f"the shape of {name!r} is {shapes}")
        if is_continuous(found) != is_continuous(tensor):
            refuse(f"the type of {name!r} is {found.dtype} in the file and {tensor.dtype} in the model")


def _check_ties(wanted: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    first: dict[int, str] = {}
    for name in values:
        if (other := first.setdefault(id(wanted[name]), name)) != name:
            refuse(f"{other!r} and {name!r} are one tensor in the model and two in the file")


def _check_matrices(
    model: nn.Module, replaced: Mapping[str, nn.Module], stored: Mapping[str, Tensor]
) -> None:
    """Refuse indices of sparse layers that are no matrix: torch would read outside of the memory."""
    parts = dict(model.named_modules(remove_duplicate=False)) | dict(replaced)
    for prefix, layer in parts.items():
        if type(layer) is SparseLinear:
            probe = cast(SparseLinear, build("SparseLinear", arguments(layer)))
            for name in named_tensors(probe):
                _set(probe, name, stored[f"{prefix}.{name}" if prefix else name])
            probe.matrix()


def _wanted(model: nn.Module, replaced: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the tensors of the model as it will be."""
    gone = tuple(f"{name}." for name in replaced)
    kept = {name: t for name, t in named_tensors(model).items() if not name.startswith(gone)}
    new = {f"{name}.{key}": t for name, layer in replaced.items() for key, t in named_tensors(layer).items()}
    return kept | new


def _replace(model: nn.Module, replaced: Mapping[str, nn.Module]) -> None:
    """Put the new layers in place, on the devices of the old ones."""
    for name, layer in replaced.items():
        old = model.get_submodule(name)
        if any(tensor.is_meta for tensor in named_tensors(layer).values()):
            devices = [tensor.device for tensor in named_tensors(old).values()]
            layer.to_empty(device=devices[0] if devices else "cpu")
            trained = {key: parameter.requires_grad for key, parameter in old.named_parameters()}
            for key, parameter in layer.named_parameters():
                parameter.requires_grad_(trained.get(key, parameter.requires_grad))
        model.set_submodule(name, layer)


def _set(model: nn.Module, name: str, value: Tensor) -> None:
    """Give a parameter or buffer its value."""
    owner, key = _place(model, name)
    old = getattr(owner, key)
    here = value if old.is_meta else value.to(old.device)
    if not isinstance(old, nn.Parameter):
        setattr(owner, key, here)
    elif old.is_meta:
        setattr(owner, key, nn.Parameter(here, requires_grad=old.requires_grad))
    elif (old.shape, old.dtype) == (here.shape, here.dtype):
        old.data.copy_(here)
    else:
        old.data = here


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that owns a tensor, and the tensor's name in it."""
    prefix, _, key = name.rpartition(".")
    return model.get_submodule(prefix), key
