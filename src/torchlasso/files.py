"""Files in and out: atomic writes, and the model file.

A write happens whole or not at all.  A read trusts nothing: whatever is wrong with a file comes out as
one `ModelFileError` of one line.
"""

import contextlib
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from torchlasso.errors import InputError, ModelFileError, OutputError, TorchlassoError

AnyPath = str | os.PathLike[str]
FORMAT_VERSION = 1  # of the model file; a reader refuses every other number
MAX_DEPTH = 32
"""Most levels of containers in a file."""

_ADVICE = "; give a path in an existing, writable folder"
_KEY = "torchlasso"
_MAX_HEADER = 16 * 2**20  # characters of JSON: far more than any table of columns needs


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
    with failing_as(OutputError, f"create the folder {str(path)!r}", _ADVICE):
        folder.mkdir(exist_ok=True)
    # Permission bits say too little (root, read-only mounts, full disks): try it.
    _put({folder / "probe": b""}, keep=False)
    return folder


@contextlib.contextmanager
def results_folder(path: AnyPath) -> Iterator[Path]:
    """Hold a folder for results as `output_folder` gives it; a new one goes again if nothing comes of it.

    Args:
        path: the folder; its parent must exist.

    Raises:
        OutputError: the path is a file, its parent is missing, or nothing can be written there.
    """
    is_new = not os.path.lexists(path)
    folder = output_folder(path)
    try:
        yield folder
    except BaseException:  # Ctrl-C too
        if is_new:
            with contextlib.suppress(OSError):  # somebody put something in: then it stays
                folder.rmdir()
        raise


def text_bytes(text: str) -> bytes:
    r"""Return text as UTF-8.

    A file name of odd bytes may reach a report as lone surrogates: they are escaped, the report is kept.

    Args:
        text: any text; line ends are kept as they are.

    Example:
        >>> text_bytes("größe")
        b'gr\xc3\xb6\xc3\x9fe'
    """
    return text.encode("utf-8", errors="backslashreplace")


def write_files(files: Mapping[AnyPath, bytes]) -> None:
    """Write several files, each whole or not at all, and none before there is room for all.

    Args:
        files: the content by path; each is replaced if it is there, and its folder must exist.

    Raises:
        OutputError: a file cannot be written there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_files({f"{folder}/path.csv": text_bytes("strength,zeros")})
        ...     Path(f"{folder}/path.csv").read_text(encoding="utf-8")
        'strength,zeros'
    """
    _put(files)


def write_tensors(path: AnyPath, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write tensors and their configuration as one safetensors file, whole or not at all.

    Args:
        path: the file, replaced if it is there; its folder must exist.
        tensors: see `pack_tensors`.
        config: see `pack_tensors`.

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
    _put({path: pack_tensors(tensors, config)})


def pack_tensors(tensors: dict[str, Tensor], config: dict[str, Any]) -> bytes:
    """Return the content of the file that `read_tensors` reads.

    Args:
        tensors: dense tensors of any shape; views and shared storage are written out as copies.
        config: JSON types only, without NaN or infinity; tuples come back as lists.

    Raises:
        InputError: the tensors or the configuration cannot be stored.
    """
    with failing_as(InputError, "store these tensors and this configuration"):
        if "__metadata__" in tensors:  # safetensors would write a file that nobody can read
            refuse("no tensor may be called '__metadata__'")
        copies = {
            name: dense(name, tensor).cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        draft = {"format": FORMAT_VERSION, "sha256": "0" * 64, "config": config}
        header = _parse(json.dumps(draft, allow_nan=False))  # as it will be read back
        header["sha256"] = _digest(copies, header["config"])
        return save(copies, metadata={_KEY: json.dumps(header)})


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
    with failing_as(ModelFileError, f"read {str(path)!r}"):
        mapped, metadata = load_safetensors(path)
        if _KEY not in metadata:
            refuse("it is a safetensors file, but not one that torchlasso wrote")
        header = _parse(metadata[_KEY])
        tensors = {name: tensor.clone() for name, tensor in mapped.items()}
        config: dict[str, Any] = header["config"]
        if _digest(tensors, config) != header.get("sha256"):
            refuse("its content does not match its checksum, so it is damaged")
    return tensors, config


def _put(files: Mapping[AnyPath, bytes], *, keep: bool = True) -> None:
    """Write every file in full beside its place, then move all into place; without ``keep``, only try to."""
    staged: list[tuple[AnyPath, Path, Path]] = []
    try:
        for path, data in files.items():
            with _failing_to_write(path):
                target = Path(os.path.realpath(path))  # write through a link, as a plain open() would
                if keep and target.exists() and not target.is_file():
                    raise FileExistsError(0, "it is there and is no regular file")
                temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
                staged.append((path, temporary, target))
                with temporary.open("xb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
        for path, temporary, target in staged if keep else ():
            with _failing_to_write(path):
                os.replace(temporary, target)
    finally:  # after an interrupt too; what was moved into place is no longer here
        for _, temporary, _ in staged:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _failing_to_write(path: AnyPath) -> contextlib.AbstractContextManager[None]:
    return failing_as(OutputError, f"write {str(path)!r}", _ADVICE)


@contextlib.contextmanager
def failing_as(kind: type[TorchlassoError], what: str, advice: str = "") -> Iterator[None]:
    """Turn every error into one of ours with one line: what failed, why, what to do."""
    try:
        yield
    except Exception as error:  # parsers of hostile files fail in every way there is
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        line = "".join(filter(str.isprintable, " ".join(said.split())))
        msg = f"cannot {what}: {line[:300] or type(error).__name__}{advice}"
        raise kind(msg) from error


def refuse(why: str) -> NoReturn:
    """Raise the error that says why a file is not read; `failing_as` adds which file."""
    raise ModelFileError(why)


def dense(name: str, tensor: object) -> Tensor:
    """Return the tensor without its graph, if it has one value in memory for every entry."""
    if not isinstance(tensor, Tensor):
        refuse(f"expected a tensor for {name!r}, got {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        refuse(f"{name!r} is sparse, quantised or without data, expected a dense tensor")
    return tensor.detach()


def _parse(text: str) -> dict[str, Any]:
    """Return the metadata of a model file, whose size, depth, version and configuration are sound."""
    if len(text) > _MAX_HEADER:
        refuse(f"its configuration has {len(text)} characters, at most {_MAX_HEADER} are allowed")
    header = json.loads(text)
    level = [header]
    for _ in range(MAX_DEPTH):
        level = [child for item in level for _, child in items(item)]
    if level or not isinstance(header, dict):
        refuse(f"its metadata is no JSON object, or is nested more than {MAX_DEPTH} deep")
    version, config = header.get("format"), header.get("config")
    if type(version) is not int or version != FORMAT_VERSION:
        refuse(f"its format is {repr(version)[:20]}, this version of torchlasso reads {FORMAT_VERSION}")
    if not isinstance(config, dict):
        refuse(f"expected a dict as its configuration, got {type(config).__name__}")
    return header


def _digest(tensors: dict[str, Tensor], config: dict[str, Any]) -> str:
    """Return the SHA-256 over the configuration and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, allow_nan=False).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_size(path: AnyPath) -> int:
    """Return the size of a file in bytes, and refuse what is no file."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        refuse("it is a folder or a device, expected a file")
    return found.st_size


def load_safetensors(path: AnyPath) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Map a safetensors file; the parser checks every size before anything is allocated."""
    size = file_size(path)
    with Path(path).open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
    if header > size - 8:
        refuse(f"its {size} bytes are too few for its header, so it is cut short or no safetensors file")
    with safe_open(os.fspath(path), framework="pt", device="cpu") as opened:
        names = list(opened.keys())
        return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}


def items(value: object) -> list[tuple[object, object]]:
    """Return the entries of a container with their keys or positions; nothing else has any."""
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) else []
