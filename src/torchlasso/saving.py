"""Models in files: one safetensors file without the zeros, from which the model itself is built again."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from torchlasso.blueprint import construct, describe, entries, foreign, is_continuous, named_tensors
from torchlasso.errors import InputError, ModelFileError
from torchlasso.files import AnyPath, failing_as, read_tensors, refuse, write_tensors
from torchlasso.filling import fill
from torchlasso.packing import Entry, pack, part_names, unpack

_KIND = "module"


def save(model: nn.Module, path: AnyPath) -> None:
    """Write a model as one safetensors file that leaves out the zeros.

    Every parameter and persistent buffer comes back bit by bit; each is stored whole, as a bitmask and
    values or as gaps and values, whichever is smallest.  A tensor of several names is stored once.  The file
    also says how to build the model, if it is made of layers of ``torch.nn`` in ``nn.Sequential``,
    ``ModuleList`` or ``ModuleDict``, or came out of ``torchlasso.compact`` or ``torchlasso.sparsify``.  Of a
    class of your own it keeps the name, and `load` needs an instance to fill.

    Only entries whose bits are all zero are left out.  ``-0.0`` is stored as a value: what was set to zero
    by multiplying with a mask is smaller in the file after ``w.add_(0.0)``.

    Args:
        model: any module, on any device.
        path: the file, replaced if it is there; its folder must exist.

    Raises:
        InputError: the model keeps sparse or quantised tensors, or state that is no tensor.
        OutputError: the file cannot be written there.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(model, f"{folder}/model.safetensors")
        ...     load(f"{folder}/model.safetensors")
        Sequential(
          (0): Linear(in_features=3, out_features=2, bias=True)
          (1): ReLU()
        )
    """
    write_tensors(path, *_content(model))


def load(path: AnyPath, model: nn.Module | None = None) -> nn.Module:
    """Read a model that `save` wrote.

    Nothing in the file is run.  Sizes, names and types are checked against one another before anything is
    allocated, and a checksum finds damage; it does not tell who wrote the file.

    Args:
        path: the file.
        model: an instance to fill, which is needed for classes of your own.  Layers whose stored tensors
            have other shapes (of a compacted copy) are replaced by layers that fit.  Its names must be those
            in the file; its mode, its devices and which parameters are trained stay as they are.

    Returns:
        The model: ``model`` itself if there is one, else a new one on the CPU, in the mode (training or
        evaluation) that it was saved in.  Tensors have the types that they were saved in.

    Raises:
        ModelFileError: the file is missing, damaged, foreign or of another format version, it holds a class
            of your own and there is no instance, or the instance does not fit.  It is not changed then.

    Example:
        >>> import tempfile
        >>> class Net(nn.Module):
        ...     def __init__(self, width):
        ...         super().__init__()
        ...         self.hidden = nn.Linear(4, width)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(Net(2), f"{folder}/net.safetensors")
        ...     load(f"{folder}/net.safetensors", Net(8))
        Net(
          (hidden): Linear(in_features=4, out_features=2, bias=True)
        )
    """
    model = None if model is None else _module(model)
    tensors, config = read_tensors(path)
    with failing_as(ModelFileError, f"read {str(path)!r}"):
        if config.get("kind") != _KIND:
            refuse(f"it is a file of torchlasso, but no model of tl.save: it holds a {config.get('kind')!r}")
        blueprint = entries(config.get("modules"))
        values, ties = _unpack(tensors, config)
        if model is None:
            if unknown := foreign(blueprint):
                kind, why = unknown
                refuse(
                    f"it holds a {kind[:80]}, which cannot be built from a file ({why[:90]}); make one "
                    "yourself and have it filled: tl.load(path, model)"
                )
            model = construct(blueprint, values)
            frozen = config.get("frozen", ())
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name not in frozen and is_continuous(parameter))
        fill(model, blueprint, values, ties)
    return model


def _module(model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        msg = f"expected a model (torch.nn.Module), got {type(model).__name__}"
        raise InputError(msg)
    return model


def _content(model: object) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the configuration of the file."""
    model = _module(model)
    parts: dict[str, Tensor] = {}
    described: dict[str, Entry] = {}
    ties: dict[str, str] = {}
    with failing_as(InputError, f"store this {type(model).__name__}"):
        for name, module in model.named_modules():
            if type(module).get_extra_state is not nn.Module.get_extra_state:
                refuse(f"its part {name!r} keeps extra state, which is no tensor")
        first: dict[int, str] = {}
        for name, tensor in named_tensors(model).items():
            if (known := first.setdefault(id(tensor), name)) != name:
                ties[name] = known
                continue
            packed, described[name] = pack(name, tensor)
            parts |= packed
        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        config = {
            "kind": _KIND,
            "modules": describe(model),
            "tensors": described,
            "ties": ties,
            "frozen": frozen,
        }
    return parts, config


def _unpack(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors by their first name, and the first names of the others."""
    described, ties = config.get("tensors"), config.get("ties")
    if not isinstance(described, dict) or not isinstance(ties, dict):
        refuse("it does not say what its tensors are")
    used = [part for name, entry in described.items() for part in part_names(name, entry)]
    if sorted(used) != sorted(tensors):
        odd = min(set(tensors) ^ set(used), default="one name")
        refuse(f"what it says of its tensors is not what it holds ({odd[:60]!r})")
    for name, first in ties.items():
        if name in described or first not in described:
            refuse(f"its tensor {name[:60]!r} is said to be the same as {repr(first)[:60]}")
    return {name: unpack(name, entry, tensors) for name, entry in described.items()}, ties
