"""States of a model with only the nonzero entries of its sparse tensors, for keeping many of them."""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from torch import Tensor

_NARROW = 2**31  # entries whose positions fit into four bytes


class Sparse(NamedTuple):
    """The nonzero entries of a tensor.

    Attributes:
        values: the entries that are not zero.
        positions: where they are in the flattened tensor.
        shape: of the tensor.
    """

    values: Tensor
    positions: Tensor
    shape: tuple[int, ...]

    def dense(self) -> Tensor:
        """Return the tensor."""
        flat = self.values.new_zeros(self.shape).reshape(-1)
        flat[self.positions.long()] = self.values
        return flat.reshape(self.shape)


@final
@dataclass(frozen=True, eq=False)
class PackedState:
    """A ``state_dict`` on the CPU, some of whose tensors are kept as their nonzero entries.

    Attributes:
        entries: a ``Sparse`` or the value itself, by name.
    """

    entries: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        """The bytes that its tensors take."""
        parts = (e if isinstance(e, Sparse) else (e,) for e in self.entries.values())
        tensors = (part for each in parts for part in each if isinstance(part, Tensor))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def unpack(self) -> dict[str, Any]:
        """Return the ``state_dict``, in tensors that share no memory with what is kept."""
        return {
            name: entry.dense() if isinstance(entry, Sparse) else copy.deepcopy(entry)
            for name, entry in self.entries.items()
        }


def pack(state: Mapping[str, Any], sparse: Collection[str]) -> PackedState:
    """Return a copy of a model's state, tensors that are mostly zero without their zeros.

    Args:
        state: the model's ``state_dict()``.
        sparse: names of the tensors that may be; each is only where that takes fewer bytes.

    Example:
        >>> import torch
        >>> packed = pack({"w": torch.eye(50)}, {"w"})
        >>> packed.nbytes, bool((packed.unpack()["w"] == torch.eye(50)).all())
        (400, True)
    """
    return PackedState({name: _packed(value, may=name in sparse) for name, value in state.items()})


def _packed(value: Any, *, may: bool) -> Any:
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    value = value.detach()
    if may and value.numel() < _NARROW:
        flat = value.reshape(-1)
        positions = flat.nonzero().reshape(-1)
        if len(positions) * (4 + value.element_size()) < value.numel() * value.element_size():
            return Sparse(flat[positions].cpu(), positions.int().cpu(), tuple(value.shape))
    return value.to("cpu", copy=True)
