"""One penalised block of a model: a penalty, and the parameters that it acts on as one tensor.

Most blocks are one parameter.  A block of several (a filter, its norm entries and the next layer's input
column) is *gathered* into a matrix with one row a group, so that a penalty with ``groups="rows"`` acts
on all of them at once, and *scattered* back.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from torchlasso.errors import RuleError
from torchlasso.penalties.base import Penalty


@dataclass(frozen=True, eq=False)
class Member:
    """A parameter in a block.

    Attributes:
        name: its name in the model.
        parameter: the parameter itself.
        dim: the dimension that runs over the groups of a joint block (0: rows, 1: columns).
        index: where a group owns several slices along that dimension: their positions, one row a group, every
            position once; None where group ``g`` is slice ``g``.
    """

    name: str
    parameter: nn.Parameter
    dim: int = 0
    index: Tensor | None = None

    @property
    def groups(self) -> int:
        """How many groups of a joint block it has."""
        return self.parameter.shape[self.dim] if self.index is None else self.index.shape[0]

    @property
    def width(self) -> int:
        """How many of its entries belong to each group of a joint block."""
        dim = self.dim % self.parameter.ndim
        slices = 1 if self.index is None else self.index.shape[1]
        return slices * math.prod(n for d, n in enumerate(self.shape) if d != dim)

    @property
    def shape(self) -> torch.Size:
        """Its shape as real numbers: a complex parameter has a last dimension of two parts."""
        return real(self.parameter).shape


@dataclass(frozen=True, eq=False)
class Term:
    """A penalty on one virtual tensor made of one or more parameters.

    Raises:
        RuleError: the members of a joint block disagree on the number of groups.
    """

    penalty: Penalty
    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        """Check that the penalty fits the block."""
        if not self.members:
            msg = "a term needs at least one parameter"
            raise RuleError(msg)
        if len(self.members) > 1:
            self._check_joint()
        self.penalty.validate(self.shape)

    def _check_joint(self) -> None:
        for m in self.members:
            if not -m.parameter.ndim <= m.dim < m.parameter.ndim:
                msg = f"{m.name} of shape {tuple(m.parameter.shape)} has no dimension {m.dim} of groups"
                raise RuleError(msg)
            if m.index is not None:
                _check_index(m, m.index)
        counts = {m.name: m.groups for m in self.members}
        if len(set(counts.values())) > 1:
            msg = f"the members of a joint group must have one entry a group each, got {counts}"
            raise RuleError(msg)

    @property
    def shape(self) -> torch.Size:
        """The shape of the block's one tensor."""
        first = self.members[0]
        if len(self.members) == 1:
            return first.shape
        return torch.Size((first.groups, sum(m.width for m in self.members)))

    @property
    def name(self) -> str:
        """The names of the members, joined by ``+``."""
        return "+".join(m.name for m in self.members)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters of the block."""
        return [m.parameter for m in self.members]

    def at(self, step: int) -> Self:
        """Return the term with the strength that holds at an optimizer step."""
        penalty = self.penalty.at(step)
        return self if penalty is self.penalty else replace(self, penalty=penalty)

    def unshrunk(self) -> Self:
        """Return the term at strength 0: its prox only keeps the constraints, such as non-negativity."""
        return replace(self, penalty=self.penalty.with_strength(0.0))

    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return tensors shaped like the members as the block's one tensor.

        Args:
            tensors: one for each member: the parameters themselves, their gradients or their metric.

        Returns:
            The tensor itself for a single member, else a matrix with one row a group; always real.
        """
        if len(self.members) == 1:
            return real(tensors[0])
        pairs = zip(self.members, map(real, tensors), strict=True)
        return torch.cat([_rows(t, m) for m, t in pairs], dim=1)

    def scatter(self, block: Tensor) -> list[Tensor]:
        """Return the parts of a gathered tensor, each shaped like its member seen as real numbers.

        Args:
            block: a tensor shaped like the result of ``gather``.
        """
        if len(self.members) == 1:
            return [block]
        parts, start = [], 0
        for member in self.members:
            parts.append(_unrows(block[:, start : start + member.width], member))
            start += member.width
        return parts

    def value(self) -> Tensor:
        """Return the penalty at the current weights, differentiable."""
        return self.penalty.value(self.gather(self.parameters))


def real(tensor: Tensor) -> Tensor:
    """Return a tensor as real numbers: itself, or a view of the two parts of a complex one.

    Args:
        tensor: any tensor.
    """
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _rows(tensor: Tensor, member: Member) -> Tensor:
    moved = tensor.movedim(member.dim % member.parameter.ndim, 0)
    if member.index is not None:
        moved = moved[member.index.flatten().to(tensor.device)]
    return moved.reshape(member.groups, member.width)


def _unrows(rows: Tensor, member: Member) -> Tensor:
    moved = real(member.parameter).movedim(member.dim % member.parameter.ndim, 0)
    part = rows.reshape(moved.shape)
    if member.index is not None:
        part = part[member.index.flatten().argsort().to(rows.device)]
    return part.movedim(0, member.dim % member.parameter.ndim)


def _check_index(member: Member, index: Tensor) -> None:
    expected = torch.arange(member.parameter.shape[member.dim])
    if index.ndim != 2 or not torch.equal(index.flatten().sort().values.cpu(), expected):
        msg = (
            f"the index of {member.name} must hold every position of dimension {member.dim} once, one row a "
            f"group; got {tuple(index.shape)} positions for a size of {len(expected)}"
        )
        raise RuleError(msg)
