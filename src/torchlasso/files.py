"""Files in and out: atomic writes, the model file, and other people's checkpoints.

A write happens whole or not at all.  A read trusts nothing: no code from a file ever runs, and
whatever is wrong with a file comes out as one `ModelFileError` of one line.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from torchlasso.errors import InputError, ModelFileError, OutputError, TorchlassoError

AnyPath = str | os.PathLike[str]
FORMAT_VERSION = 1  # of the model file; a reader refuses every other number

_ADVICE = "; give a path in an existing, writable folder"
_KEY = "torchlasso"
_MAX_HEADER = 16 * 2**20  # characters of JSON: far more than any table of columns needs
_MAX_DEPTH = 32
_MAX_ENTRIES = 1_000_000  # containers may be shared, so that few bytes unfold to very many entries
_PICKLED = (".pt", ".pth", ".bin", ".ckpt")


def output_folder(path: AnyPath) -> Path:
    """Create a folder for results, or check the one that is there, before any work is done.

    Args:
        path: the folder; its parent must exist.

    Raises:
        OutputError: the path is a file, its parent is missing, or nothing can be written there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     output_folder(f"{parent}/results").is_dir()
        True
    """
    folder = Path(path)
    with _failing_as(OutputError, f"create the folder {str(path)!r}", _ADVICE):
        folder.mkdir(exist_ok=True)
    # Permission bits say too little (root, read-only mounts, full disks): try it.
    _put(folder / "probe", b"", keep=False)
    return folder


def write_text(path: AnyPath, text: str) -> None:
    """Write text as UTF-8, whole or not at all.

    Args:
        path: the file, replaced if it is there; its folder must exist.
        text: its new content; line ends are kept as they are.

    Raises:
        OutputError: the file cannot be written there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text(f"{folder}/path.csv", "strength,zeros")
        ...     Path(f"{folder}/path.csv").read_text(encoding="utf-8")
        'strength,zeros'
    """
    # A file name of odd bytes may reach a report as lone surrogates: escape them, keep the report.
    _put(path, text.encode("utf-8", errors="backslashreplace"))


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Write bytes, whole or not at all.

    Args:
        path: the file, replaced if it is there; its folder must exist.
        data: its new content.

    Raises:
        OutputError: the file cannot be written there.
    """
    _put(path, data)


def write_tensors(path: AnyPath, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write tensors and their configuration as one safetensors file, whole or not at all.

    Args:
        path: the file, replaced if it is there; its folder must exist.
        tensors: dense tensors of any shape; views and shared storage are written out as copies.
        config: JSON types only, without NaN or infinity; tuples come back as lists.

    Raises:
        InputError: the tensors or the configuration cannot be stored.
        OutputError: the file cannot be written there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_tensors(f"{folder}/m.safetensors", {"w": torch.zeros(2)}, {"strength": 0.1})
        ...     read_tensors(f"{folder}/m.safetensors")
        ({'w': tensor([0., 0.])}, {'strength': 0.1})
    """
    with _failing_as(InputError, "store these tensors and this configuration"):
        if "__metadata__" in tensors:  # safetensors would write a file that nobody can read
            _refuse("no tensor may be called '__metadata__'")
        copies = {
            name: _dense(name, tensor).cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        draft = {"format": FORMAT_VERSION, "sha256": "0" * 64, "config": config}
        header = _parse(json.dumps(draft, allow_nan=False))  # as it will be read back
        header["sha256"] = _digest(copies, header["config"])
        data = save(copies, metadata={_KEY: json.dumps(header)})
    _put(path, data)


def read_tensors(path: AnyPath) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file that `write_tensors` wrote, and refuse every other one.

    A checksum over everything finds damage; it does not tell who wrote the file.

    Args:
        path: the model file.

    Returns:
        The tensors, on the CPU and independent of the file, and the configuration.

    Raises:
        ModelFileError: the file is missing, damaged, foreign, or of another format version.

    Example:
        >>> read_tensors("missing.safetensors")
        Traceback (most recent call last):
        torchlasso.errors.ModelFileError: cannot read 'missing.safetensors': No such file or directory
    """
    with _failing_as(ModelFileError, f"read {str(path)!r}"):
        mapped, metadata = _load_safetensors(path)
        if _KEY not in metadata:
            _refuse("it is a safetensors file, but not one that torchlasso wrote")
        header = _parse(metadata[_KEY])
        tensors = {name: tensor.clone() for name, tensor in mapped.items()}
        config: dict[str, Any] = header["config"]
        if _digest(tensors, config) != header.get("sha256"):
            _refuse("its content does not match its checksum, so it is damaged")
    return tensors, config


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
    with _failing_as(ModelFileError, f"read {str(path)!r}"):
        suffix = Path(path).suffix.lower()
        if suffix not in (".safetensors", *_PICKLED):
            _refuse(f"expected a name ending in .safetensors, {', '.join(_PICKLED)}, got {suffix!r}")
        tensors = _load_safetensors(path)[0] if suffix == ".safetensors" else _load_pickled(path)
        if not tensors:
            _refuse("it holds no tensors")
    return tensors


def _put(path: AnyPath, data: bytes, *, keep: bool = True) -> None:
    """Put ``data`` at ``path`` through a temporary file beside it; without ``keep``, only try to."""
    with _failing_as(OutputError, f"write {str(path)!r}", _ADVICE):
        target = Path(os.path.realpath(path))  # write through a link, as a plain open() would
        if keep and target.exists() and not target.is_file():
            raise FileExistsError(0, "it is there and is no regular file")
        temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            if keep:
                os.replace(temporary, target)
        finally:  # after an interrupt too; what was moved into place is no longer here
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _failing_as(kind: type[TorchlassoError], what: str, advice: str = "") -> Iterator[None]:
    """Turn every error into one of ours with one line: what failed, why, what to do."""
    try:
        yield
    except Exception as error:  # parsers of hostile files fail in every way there is
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        line = "".join(filter(str.isprintable, " ".join(said.split())))
        msg = f"cannot {what}: {line[:300] or type(error).__name__}{advice}"
        raise kind(msg) from error


def _refuse(why: str) -> NoReturn:
    raise ModelFileError(why)


def _dense(name: str, tensor: object) -> Tensor:
    """Return the tensor without its graph, if it has one value in memory for every entry."""
    if not isinstance(tensor, Tensor):
        _refuse(f"expected a tensor for {name!r}, got {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        _refuse(f"{name!r} is sparse, quantised or without data, expected a dense tensor")
    return tensor.detach()


def _parse(text: str) -> dict[str, Any]:
    """Return the metadata of a model file, whose size, depth, version and configuration are sound."""
    if len(text) > _MAX_HEADER:
        _refuse(f"its configuration has {len(text)} characters, at most {_MAX_HEADER} are allowed")
    header = json.loads(text)
    level = [header]
    for _ in range(_MAX_DEPTH):
        level = [child for item in level for _, child in _items(item)]
    if level or not isinstance(header, dict):
        _refuse(f"its metadata is no JSON object, or is nested more than {_MAX_DEPTH} deep")
    version, config = header.get("format"), header.get("config")
    if type(version) is not int or version != FORMAT_VERSION:
        _refuse(f"its format is {repr(version)[:20]}, this version of torchlasso reads {FORMAT_VERSION}")
    if not isinstance(config, dict):
        _refuse(f"expected a dict as its configuration, got {type(config).__name__}")
    return header


def _digest(tensors: dict[str, Tensor], config: dict[str, Any]) -> str:
    """Return the SHA-256 over the configuration and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, allow_nan=False).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _file_size(path: AnyPath) -> int:
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        _refuse("it is a folder or a device, expected a file")
    return found.st_size


def _load_safetensors(path: AnyPath) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Map a safetensors file; the parser checks every size before anything is allocated."""
    size = _file_size(path)
    with Path(path).open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
    if header > size - 8:
        _refuse(f"its {size} bytes are too few for its header, so it is cut short or no safetensors file")
    with safe_open(os.fspath(path), framework="pt", device="cpu") as opened:
        names = list(opened.keys())
        return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}


def _load_pickled(path: AnyPath) -> dict[str, Tensor]:
    """Load a ``torch.save`` file through torch's restricted unpickler, which calls nothing foreign."""
    size = _file_size(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > size:
                    _refuse("it would unpack to more bytes than it has")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice on torch.load's other options would mislead here
            content = torch.load(path, map_location="cpu", weights_only=True)
    except ModelFileError:
        raise
    except Exception as error:
        said = str(error)  # never passed on: it recommends to load the file without protection
        if "weights_only" not in said:
            _refuse(f"it is no intact checkpoint of torch.save ({type(error).__name__})")
        asked = re.search(r"GLOBAL (\S{1,100})|weights_only=True\W+with (TorchScript)", said)
        cause = (
            f"needs code execution ({asked[1] or asked[2]})"
            if asked
            else "is damaged or needs code execution"
        )
        _refuse(
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
                _refuse(f"two of its tensors are called {name!r}")
            if value.numel() * value.element_size() > size:
                _refuse(f"{name!r} claims more values than the file can hold")
            found[name] = _dense(name, value)
        elif len(names) > _MAX_DEPTH:
            _refuse(f"its containers are nested more than {_MAX_DEPTH} deep")
        elif not _is_optimizer_state(names, value):
            pending.extend(((*names, str(key)), child) for key, child in reversed(_items(value)))
    _refuse(f"it holds more than {_MAX_ENTRIES} entries")


def _is_optimizer_state(names: tuple[str, ...], value: object) -> bool:
    by_name = bool(names) and names[-1].startswith("optim")
    return by_name or (isinstance(value, dict) and {"state", "param_groups"} <= value.keys())


def _items(value: object) -> list[tuple[object, object]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) else []
