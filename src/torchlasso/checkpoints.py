"""Other people's checkpoints: the tensors in them, read without running any code from the file."""

import re
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from torchlasso.errors import ModelFileError
from torchlasso.files import (
    MAX_DEPTH,
    AnyPath,
    dense,
    failing_as,
    file_size,
    items,
    load_safetensors,
    refuse,
)

_MAX_ENTRIES = 1_000_000  # containers may be shared, so that few bytes unfold to very many entries
_PICKLED = (".pt", ".pth", ".bin", ".ckpt")


def read_checkpoint(path: AnyPath) -> dict[str, Tensor]:
    """Read the tensors of anybody's checkpoint without running any code from it.

    Nested containers become dotted names (``{"state_dict": {"fc.bias": b}}`` gives
    ``state_dict.fc.bias``); optimizer state and everything that is no tensor is left out.

    Args:
        path: a ``.safetensors`` file, or a ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` of ``torch.save``.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        ModelFileError: the file is missing or damaged, needs code execution, or holds no tensors.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"model": {"w": torch.ones(1)}, "epoch": 3}, f"{folder}/c.pt")
        ...     read_checkpoint(f"{folder}/c.pt")
        {'model.w': tensor([1.])}
    """
    with failing_as(ModelFileError, f"read {str(path)!r}"):
        suffix = Path(path).suffix.lower()
        if suffix not in (".safetensors", *_PICKLED):
            refuse(f"expected a name ending in .safetensors, {', '.join(_PICKLED)}, got {suffix!r}")
        tensors = load_safetensors(path)[0] if suffix == ".safetensors" else _load_pickled(path)
        if not tensors:
            refuse("it holds no tensors")
    return tensors


def _load_pickled(path: AnyPath) -> dict[str, Tensor]:
    """Load a ``torch.save`` file through torch's restricted unpickler, which calls nothing foreign."""
    size = file_size(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > size:
                    refuse("it would unpack to more bytes than it has")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice on torch.load's other options would mislead here
            content = torch.load(path, map_location="cpu", weights_only=True)
    except ModelFileError:
        raise
    except Exception as error:
        said = str(error)  # never passed on: it recommends to load the file without protection
        if "weights_only" not in said:
            refuse(f"it is no intact checkpoint of torch.save ({type(error).__name__})")
        asked = re.search(r"GLOBAL (\S{1,100})|weights_only=True\W+with (TorchScript)", said)
        cause = (
            f"needs code execution ({asked[1] or asked[2]})"
            if asked
            else "is damaged or needs code execution"
        )
        refuse(
            f"refused, because it {cause} to load; where you trust it, load it yourself "
            "and save plain tensors: torch.save(model.state_dict(), path)"
        )
    return _flatten(content, size)


def _flatten(content: object, size: int) -> dict[str, Tensor]:
    """Return every tensor in nested containers by its dotted name, in order."""
    found: dict[str, Tensor] = {}
    pending: list[tuple[tuple[str, ...], object]] = [((), content)]
    for _ in range(_MAX_ENTRIES):
        if not pending:
            return found
        names, value = pending.pop()
        if isinstance(value, Tensor):
            name = ".".join(names) or "tensor"
            if name in found:
                refuse(f"two of its tensors are called {name!r}")
            if value.numel() * value.element_size() > size:
                refuse(f"{name!r} claims more values than the file can hold")
            found[name] = dense(name, value)
        elif len(names) > MAX_DEPTH:
            refuse(f"its containers are nested more than {MAX_DEPTH} deep")
        elif not _is_optimizer_state(names, value):
            pending.extend(((*names, str(key)), child) for key, child in reversed(items(value)))
    refuse(f"it holds more than {_MAX_ENTRIES} entries")


def _is_optimizer_state(names: tuple[str, ...], value: object) -> bool:
    by_name = bool(names) and names[-1].startswith("optim")
    return by_name or (isinstance(value, dict) and {"state", "param_groups"} <= value.keys())
