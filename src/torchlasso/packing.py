"""A tensor without its zeros, bit by bit: all entries, or a bitmask and values, or gaps and values.

"Zero" means that every bit is zero, so -0.0 is a value like any other and comes back as it was.
"""

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchlasso.files import dense, refuse

Entry: TypeAlias = dict[str, Any]
"""What a file says of one tensor: its dtype, its shape, and the layout of its parts."""

_SKIP = 255
"""A gap byte that stands for 255 zeros and no value; a smaller byte is that many zeros, then one value."""

_OVERHEAD = 128
"""Bytes that one more part costs in the header of the file, about."""

_PARTS = {"dense": ("",), "mask": (".mask", ".values"), "gaps": (".gaps", ".values")}
_MAX_DIMS = 64
_UNSIGNED = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}
_DTYPES = {str(found): found for found in vars(torch).values() if isinstance(found, torch.dtype)}


def pack(name: str, tensor: Tensor) -> tuple[dict[str, Tensor], Entry]:
    """Return the tensor in the layout that takes the fewest bytes.

    * ``dense``: the tensor itself.
    * ``mask``: one bit an entry, which is 1 where there is a value (the lowest bit of a byte comes first),
      and the values in order.
    * ``gaps``: one byte a value, which counts the zeros before it (255: that many zeros and no value), and
      the values in order.  Zeros after the last value are counted too, so that few bytes cannot claim to be
      many entries.

    Args:
        name: the tensor's name.
        tensor: dense, of any shape, dtype and device.

    Returns:
        The parts by their name in the file (``w``, or ``w.mask`` and ``w.values``, or ``w.gaps`` and
        ``w.values``), and the entry from which `unpack` restores the tensor.

    Raises:
        ModelFileError: the tensor is sparse, quantised or has no data.

    Example:
        >>> w = torch.zeros(40, 40)
        >>> w[3, 4] = 0.5
        >>> parts, entry = pack("w", w)
        >>> entry
        {'dtype': 'float32', 'shape': [40, 40], 'layout': 'gaps'}
        >>> parts
        {'w.gaps': tensor([124, 255, 255, 255, 255, 255], dtype=torch.uint8), 'w.values': tensor([0.5000])}
        >>> torch.equal(unpack("w", entry, parts), w)
        True
    """
    tensor = dense(name, tensor).cpu().resolve_conj().resolve_neg()
    entry: Entry = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
    if tensor.dtype == torch.complex128:  # safetensors has no such type: the real and imaginary parts
        tensor = torch.view_as_real(tensor)
    flat = tensor.reshape(-1)
    bits = flat.view(_unsigned(tensor.dtype)).numpy()
    present = bits != 0
    entry["layout"], codes = _smallest(present, bits.itemsize)
    if codes is None:
        return {name: tensor}, entry
    values = torch.from_numpy(bits[present]).view(tensor.dtype)
    return {f"{name}.{entry['layout']}": torch.from_numpy(codes), f"{name}.values": values}, entry


def part_names(name: str, entry: object) -> list[str]:
    """Return the names in the file of a tensor's parts.

    Args:
        name: the tensor's name.
        entry: what a file says of it; nothing in it is trusted.

    Raises:
        ModelFileError: the entry is no entry, or its layout is unknown.

    Example:
        >>> part_names("w", {"dtype": "float32", "shape": [3], "layout": "mask"})
        ['w.mask', 'w.values']
    """
    layout = entry.get("layout") if isinstance(entry, dict) else None
    suffixes = _PARTS.get(layout) if isinstance(layout, str) else None
    if suffixes is None:
        refuse(f"expected one of the layouts {', '.join(_PARTS)} for {name!r}, got {repr(layout)[:20]}")
    return [name + suffix for suffix in suffixes]


def unpack(name: str, entry: Entry, parts: Mapping[str, Tensor]) -> Tensor:
    """Return the tensor that `pack` took apart.

    Args:
        name: the tensor's name.
        entry: what a file says of it; nothing in it is trusted.
        parts: the tensors in the file by name, all on the CPU.

    Raises:
        ModelFileError: the parts are not there or contradict the entry.  This is known before room is made
            for the tensor, which has at most 255 entries for each byte of its parts.
    """
    dtype, shape = _type_of(name, entry), _shape_of(name, entry)
    stored, stored_shape = (torch.float64, [*shape, 2]) if dtype == torch.complex128 else (dtype, shape)
    names = part_names(name, entry)
    if missing := [part for part in names if part not in parts]:
        refuse(f"it says that {name!r} is stored as {entry['layout']}, but {missing[0]!r} is missing")
    found = [parts[part] for part in names]
    if found[-1].dtype != stored:
        refuse(f"the values of {name!r} are {found[-1].dtype}, expected {stored}")
    if len(found) == 1:
        tensor = found[0]
        if list(tensor.shape) != stored_shape:
            refuse(f"{name!r} has the shape {list(tensor.shape)}, expected {stored_shape}")
    else:
        codes, values = found
        flat = _spread(name, entry["layout"], codes, values, math.prod(stored_shape))
        tensor = flat.reshape(stored_shape)
    return torch.view_as_complex(tensor.contiguous()) if dtype == torch.complex128 else tensor


def _smallest(present: NDArray[np.bool_], itemsize: int) -> tuple[str, NDArray[np.uint8] | None]:
    """Return the layout of the fewest bytes, and its bitmask or gaps."""
    size, count = present.size, int(np.count_nonzero(present))
    spared = (size - count) * itemsize - _OVERHEAD  # by leaving out the zeros
    mask = (size + 7) // 8
    gaps = _gaps(present) if count < min(mask, spared) else None  # at least one byte a value
    if gaps is not None and gaps.size < min(mask, spared):
        return "gaps", gaps
    return ("mask", np.packbits(present, bitorder="little")) if mask < spared else ("dense", None)


def _gaps(present: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the bytes that count the zeros before each value and after the last."""
    places = np.flatnonzero(present)
    skips, rests = np.divmod(np.diff(places, prepend=-1) - 1, _SKIP)
    after = (present.size - (int(places[-1]) + 1 if places.size else 0)) // _SKIP
    ends = np.cumsum(skips + 1)
    gaps = np.full((int(ends[-1]) if places.size else 0) + after, _SKIP, dtype=np.uint8)
    gaps[ends - 1] = rests
    return gaps


def _spread(name: str, layout: str, codes: Tensor, values: Tensor, size: int) -> Tensor:
    """Return the flat tensor of ``size`` entries whose nonzero ones are ``values``."""
    if codes.dtype != torch.uint8 or codes.dim() != 1 or values.dim() != 1:
        refuse(f"the {layout} and the values of {name!r} are no plain vectors of bytes and values")
    places = (_places_in_mask if layout == "mask" else _places_by_gaps)(name, codes.numpy(), size)
    if len(places) != len(values):
        refuse(f"its {layout} for {name!r} has places for {len(places)} values, it holds {len(values)}")
    bits = values.view(_unsigned(values.dtype)).numpy()
    out = np.zeros(size, dtype=bits.dtype)
    out[places] = bits
    return torch.from_numpy(out).view(values.dtype)


def _places_in_mask(name: str, mask: NDArray[np.uint8], size: int) -> NDArray[np.intp]:
    if mask.size != (size + 7) // 8:
        refuse(f"its mask for {name!r} has {mask.size} bytes, {size} entries need {(size + 7) // 8}")
    places = np.flatnonzero(np.unpackbits(mask, bitorder="little"))
    if places.size and places[-1] >= size:
        refuse(f"its mask for {name!r} has bits behind the last of {size} entries")
    return places


def _places_by_gaps(name: str, gaps: NDArray[np.uint8], size: int) -> NDArray[np.intp]:
    valued = gaps < _SKIP
    ends = np.cumsum(gaps + valued, dtype=np.intp)
    counted = int(ends[-1]) if ends.size else 0
    if not 0 <= size - counted < _SKIP:
        refuse(f"its gaps for {name!r} make {counted} entries, its shape makes {size}")
    return ends[valued] - 1


def _type_of(name: str, entry: Entry) -> torch.dtype:
    said = entry.get("dtype")
    dtype = _DTYPES.get(f"torch.{said}")
    if dtype is None:
        refuse(f"expected a dtype of torch for {name!r}, got {repr(said)[:40]}")
    return dtype


def _shape_of(name: str, entry: Entry) -> list[int]:
    shape = entry.get("shape")
    if (
        not isinstance(shape, list)
        or len(shape) > _MAX_DIMS
        or not all(type(n) is int and 0 <= n < 2**63 for n in shape)
    ):
        refuse(f"expected a list of sizes as the shape of {name!r}, got {repr(shape)[:40]}")
    return shape


def _unsigned(dtype: torch.dtype) -> torch.dtype:
    """Return the whole numbers of the same width, whose bits numpy can read."""
    return _UNSIGNED[dtype.itemsize]
