"""The smaller tensors: what stays of every parameter, and constants that moved into biases."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from torchlasso.compaction.flows import Analysis
from torchlasso.compaction.labels import Flow, Fold, squeezed
from torchlasso.compaction.liveness import Channels, mask_of


@dataclass(frozen=True, eq=False)
class Part:
    """What stays of a tensor.

    Attributes:
        taken: the flat positions of the entries that stay, in order.
        shape: of what they make.
    """

    taken: Tensor
    shape: torch.Size

    def of(self, tensor: Tensor) -> Tensor:
        """Return the part of a tensor that has the shape of the original.

        Args:
            tensor: the parameter, its gradient or an optimizer's average of it.
        """
        return tensor.detach().flatten()[self.taken.to(tensor.device)].reshape(self.shape).clone()


@dataclass(eq=False)
class Surgery:
    """Every tensor of the small model.

    Attributes:
        analysis: of the large model.
        channels: which channels stay.
        parts: what stays of each parameter and buffer that a call uses.
        shifts: what folded constants add to the outputs of a call, for those that stay.
    """

    analysis: Analysis
    channels: Channels
    parts: dict[str, Part] = field(default_factory=dict)
    shifts: dict[fx.Node, Tensor] = field(default_factory=dict)
    made: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Work out what stays."""
        for use in self.analysis.ledger.uses:
            if use.name not in self.parts:
                self.parts[use.name] = part_of(mask_of(self.channels, use))
        for fold in self.analysis.ledger.folds:
            shift = self._shift(fold)
            if bool(shift.any()):
                self.shifts[fold.node] = shift

    def tensor(self, name: str) -> Tensor:
        """Return a parameter or buffer of the small model, the same object for the same name.

        Args:
            name: as in the graph.
        """
        if name not in self.made:
            old = self.analysis.program.tensors[name]
            new = self.parts[name].of(old) if name in self.parts else old.detach().clone()
            is_parameter = name in self.analysis.program.parameters
            self.made[name] = nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter else new
        return self.made[name]

    def bias(self, node: fx.Node, name: str | None) -> Tensor | None:
        """Return the bias of a layer with what folded constants add to it.

        Args:
            node: the layer's call.
            name: of its bias, or None if it has none.
        """
        shift = self.shifts.get(node)
        if name is not None:
            bias = self.tensor(name)
            if shift is not None:
                with torch.no_grad():
                    bias.copy_((bias.double() + shift.to(bias.device)).to(bias.dtype))
                del self.shifts[node]
            return bias
        if shift is None:
            return None
        flow = self.analysis.flows[node]
        return nn.Parameter(shift.to(flow.value.device, flow.value.dtype))

    def stays(self, flow: object) -> bool:
        """Return whether anything of a tensor stays; what has no channels does."""
        if not isinstance(flow, Flow) or flow.label is None or flow.label.numel() == 0:
            return True
        return bool(self.channels.stays(squeezed(flow.label)).any())

    def sizes(self, flow: Flow) -> list[int]:
        """Return the shape of a tensor on the example after what is dead has gone."""
        if flow.label is None:
            return list(flow.value.shape)
        mask = self.channels.stays(squeezed(flow.label))
        counted = sizes_of(mask)
        return [counted[d] if mask.shape[d] > 1 or n == 1 else n for d, n in enumerate(flow.value.shape)]

    def position(self, flow: Flow, dim: int, index: int) -> int:
        """Return where an index along a dimension is among what stays.

        Args:
            flow: the tensor that is indexed.
            dim: the dimension.
            index: before, from 0 to the size.
        """
        if flow.label is None:
            return index
        mask = self.channels.stays(squeezed(flow.label))
        if mask.shape[dim] == 1:
            return index
        return sizes_of(mask.narrow(dim, 0, index))[dim] if index else 0

    def _shift(self, fold: Fold) -> Tensor:
        """Return ``W[:, c]·value_c`` summed over the inputs ``c`` that go, for the outputs that stay."""
        gone = fold.foldable & ~self.channels.stays(fold.columns)
        values = torch.where(gone, fold.values.detach().cpu().double(), 0.0)
        rows = self.channels.stays(fold.rows)
        if not bool(values.any()):
            return torch.zeros(int(rows.sum()), dtype=torch.float64)
        weight = self.analysis.program.tensors[fold.weight].detach().cpu().double()
        groups = values.shape[0]
        if weight.ndim == 2 and weight.shape[0] == values.shape[1] and fold.node.target is _ADDMM:
            weight = weight.T
        kernel = (
            weight.reshape(groups, -1, values.shape[1], *weight.shape[2:]).flatten(3).sum(3)
            if (weight.ndim > 2)
            else weight[None]
        )
        return torch.einsum("goi,gi->go", kernel, values).reshape(-1)[rows]


_ADDMM = torch.ops.aten.addmm.default


def part_of(mask: Tensor) -> Part:
    """Return what stays of a tensor.

    Args:
        mask: whether an entry stays.

    Example:
        >>> part_of(torch.tensor([[True, False], [True, False]])).shape
        torch.Size([2, 1])
    """
    return Part(mask.flatten().nonzero().flatten(), torch.Size(sizes_of(mask)))


def sizes_of(mask: Tensor) -> list[int]:
    """Return the shape of what stays, in which every row has as many entries as any other.

    Args:
        mask: whether an entry stays.
    """
    sizes = []
    for dim in range(mask.ndim):
        any_behind = mask.flatten(dim + 1).any(-1) if dim + 1 < mask.ndim else mask
        counts = any_behind.sum(-1)
        sizes.append(int(counts.max()) if counts.numel() else 0)
    return sizes
