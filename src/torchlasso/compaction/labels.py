"""Channel labels: every entry of every tensor carries the number of the channel that it belongs to.

Moving data about (views, splits, transposes) is done to the labels as it is done to the values.  What calls
say about labels is written into a ``Ledger``, and read by ``liveness`` when the whole graph has been seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx


@dataclass(frozen=True, eq=False)
class Flow:
    """One tensor of the graph on the example.

    Attributes:
        value: its value.
        label: the channel of every entry, or None for a tensor that has nothing to do with channels.
        fixed: whether an entry has this value for all inputs of all sizes.
        varies: whether it depends on the inputs at all; parameters and what is computed of them do not.
    """

    value: Tensor
    label: Tensor | None
    fixed: Tensor
    varies: bool = True


@dataclass(frozen=True, eq=False)
class Dense:
    """A layer's weights as a relation: a live row makes live the columns that it does not multiply by zero.

    Attributes:
        rows: labels of the outputs, one a row.
        columns: labels of the inputs, one a column.
        reads: whether a row reads a column, a matrix.
        by: the call, for the user.
    """

    rows: Tensor
    columns: Tensor
    reads: Tensor
    by: str = ""


@dataclass(frozen=True, eq=False)
class Pairs:
    """A live label of ``sources`` makes live the one beside it in ``targets``."""

    sources: Tensor
    targets: Tensor
    by: str = ""


@dataclass(frozen=True, eq=False)
class Aligned:
    """Tensors that keep the same groups, and in each of them as many entries as in any other.

    Attributes:
        members: labels, each ``(groups, entries)`` with the same number of groups.
        together: whether all groups stay if one does.
    """

    members: tuple[Tensor, ...]
    together: bool = False


@dataclass(frozen=True, eq=False)
class Use:
    """A parameter in a call: an entry stays if every factor's label there stays.

    Attributes:
        name: of the parameter or buffer.
        shape: its shape.
        factors: tensors of labels that broadcast to the shape.
    """

    name: str
    shape: torch.Size
    factors: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Fold:
    """A call whose constant inputs can move into its bias.

    Attributes:
        node: the call.
        weight: the name of its weight.
        bias: the name of its bias, or None.
        columns: labels of the inputs, ``(groups, inputs of a group)``.
        values: what a constant input is worth, of the same shape; 0 where it is not constant.
        constant: whether it is constant.
        foldable: whether it may move.
        rows: labels of the outputs.
    """

    node: fx.Node
    weight: str
    bias: str | None
    columns: Tensor
    values: Tensor
    constant: Tensor
    foldable: Tensor
    rows: Tensor


@dataclass(eq=False)
class Ledger:
    """What is known about labels.

    Attributes:
        count: how many labels there are.
        ties: pairs of labels that go or stay together.
        relations: what makes what live, in the order of the graph.
        pins: labels that must stay, with the reason.
        aligned: tensors that keep the same groups.
        covers: labels that stay only along with one of several others (padded with −1), a row each.
        uses: parameters in calls.
        folds: calls with constant inputs.
        axes: the labels along one dimension of a parameter.
        statistics: labels ``(groups, …)`` that are all read as one.
        current: the call that is being looked at, for the user.
    """

    count: int = 0
    ties: list[Tensor] = field(default_factory=list)
    relations: list[Dense | Pairs] = field(default_factory=list)
    pins: list[tuple[Tensor, str]] = field(default_factory=list)
    aligned: list[Aligned] = field(default_factory=list)
    covers: list[Pairs] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)
    axes: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    statistics: list[Tensor] = field(default_factory=list)
    current: str = ""

    def fresh(self, *shape: int) -> Tensor:
        """Return labels that nothing else has.

        Args:
            shape: of the result.
        """
        size = torch.Size(shape).numel()
        labels = torch.arange(self.count, self.count + size).reshape(shape)
        self.count += size
        return labels

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Have labels go or stay together.

        Args:
            a: labels.
            b: as many others, after broadcasting.
        """
        a, b = torch.broadcast_tensors(a, b)
        pairs = _distinct(a, b)
        if pairs.numel():
            self.ties.append(pairs)

    def read(self, sources: Tensor, targets: Tensor) -> None:
        """Have a live label make live the ones that its value is computed from.

        Args:
            sources: labels of results.
            targets: labels of what they are computed from, after broadcasting.
        """
        pairs = _distinct(*torch.broadcast_tensors(sources, targets))
        if pairs.numel():
            self.relations.append(Pairs(pairs[0], pairs[1], self.current))

    def dense(self, rows: Tensor, columns: Tensor, reads: Tensor) -> None:
        """Have a live row make live the columns that it reads.

        Args:
            rows: labels of the outputs.
            columns: labels of the inputs.
            reads: whether a row reads a column, a matrix.
        """
        self.relations.append(Dense(rows, columns, reads, self.current))

    def all_or_none(self, results: Tensor, groups: Tensor) -> None:
        """Have any live result of a group make live all of its inputs.

        Args:
            results: labels ``(groups, …)``.
            groups: labels ``(groups, …)``.
        """
        self.statistics.append(groups.reshape(groups.shape[0], -1))
        hubs = self.fresh(groups.shape[0])
        targets = groups.reshape(groups.shape[0], -1)
        self.read(hubs[:, None].expand_as(targets), targets)
        sources = results.reshape(results.shape[0], -1)
        self.read(sources, hubs[:, None].expand_as(sources))

    def cover(self, labels: Tensor, others: Tensor) -> None:
        """Have labels stay only along with one of several others, wherever any of these others stays.

        Args:
            labels: what is spread over others.
            others: of the same shape.
        """
        self.covers.append(Pairs(labels.reshape(-1), others.reshape(-1)))

    def align(self, *members: Tensor, together: bool = False) -> None:
        """Have tensors keep the same groups, and in each of them the same number of entries.

        Args:
            members: labels, each ``(groups, entries)``.
            together: whether all groups stay if one does.
        """
        self.aligned.append(Aligned(members, together))

    def known(self, flow: "Flow", reason: str) -> Tensor:
        """Return the labels of a tensor; one that has none gets some that stay.

        Args:
            flow: any tensor.
            reason: why they stay.
        """
        if flow.label is not None:
            return flow.label
        labels = self.fresh().expand(flow.value.shape)
        self.pin(labels, reason)
        return labels

    def pin(self, labels: Tensor | None, reason: str) -> None:
        """Have labels stay.

        Args:
            labels: any labels, or None.
            reason: why, for the user.
        """
        if labels is not None and labels.numel():
            self.pins.append((squeezed(labels).reshape(-1).unique(), reason))

    def use(self, name: str, shape: torch.Size, *factors: Tensor) -> None:
        """Note how a parameter's entries follow from labels; one axis has the same labels in all its uses.

        Args:
            name: of the parameter or buffer.
            shape: of it.
            factors: labels that broadcast to the shape.
        """
        for factor in factors:
            dims = [d for d in range(factor.ndim) if factor.shape[d] > 1]
            if len(dims) == 1 and factor.numel() == shape[dims[0]]:
                known = self.axes.setdefault((name, dims[0]), factor.reshape(-1))
                self.tie(known, factor.reshape(-1))
        self.uses.append(Use(name, shape, factors))


def squeezed(labels: Tensor) -> Tensor:
    """Return labels with size 1 along every dimension that they do not vary along.

    Args:
        labels: of any shape.

    Example:
        >>> squeezed(torch.tensor([[1, 2], [1, 2]])).shape
        torch.Size([1, 2])
    """
    for dim in range(labels.ndim):
        if labels.shape[dim] > 1:
            first = labels.narrow(dim, 0, 1)
            if labels.stride(dim) == 0 or bool((labels == first).all()):
                labels = first
    return labels


def aligned_to(labels: Tensor, ndim: int) -> Tensor:
    """Return labels with leading dimensions of size 1 up to a number of dimensions.

    Args:
        labels: of ``ndim`` dimensions at most.
        ndim: dimensions of the result.
    """
    return labels.reshape((1,) * (ndim - labels.ndim) + tuple(labels.shape))


def vector(ledger: Ledger, labels: Tensor, dim: int) -> Tensor:
    """Return the labels along one dimension, and tie what differs along the others.

    Args:
        ledger: where ties are noted.
        labels: of any shape.
        dim: the dimension of channels.
    """
    base = squeezed(labels).movedim(dim, -1)
    base = base.expand(*base.shape[:-1], labels.shape[dim]).reshape(-1, labels.shape[dim])
    ledger.tie(base[:1], base)
    return base[0]


def same_along(flow: Flow, dim: int) -> tuple[Tensor, Tensor]:
    """Return for every entry along one dimension its value, and whether it is that everywhere and always.

    Args:
        flow: a tensor.
        dim: the dimension of channels.
    """
    values = flow.value.movedim(dim, -1).reshape(-1, flow.value.shape[dim]).cpu()
    fixed = flow.fixed.movedim(dim, -1).reshape(-1, flow.value.shape[dim])
    constant = fixed.all(0) & (values == values[:1]).all(0)
    return torch.where(constant, values[0], torch.zeros_like(values[0])), constant


def uniform(flow: Flow, dims: Sequence[int], worth: float | None = None) -> Tensor:
    """Return where a tensor is one constant along some dimensions, with size 1 along them.

    Args:
        flow: a tensor.
        dims: the dimensions.
        worth: the value that the constant must have, or None for any.
    """
    first = flow.value
    for dim in dims:
        first = first.narrow(dim, 0, min(1, first.shape[dim]))
    same = flow.value == (first if worth is None else worth)
    alike: Tensor = flow.fixed & same.cpu()
    for dim in dims:
        alike = torch.all(alike, dim, keepdim=True)
    return alike


def _distinct(a: Tensor, b: Tensor) -> Tensor:
    stacked = torch.stack([a.reshape(-1), b.reshape(-1)])
    pairs: Tensor = stacked[:, stacked[0] != stacked[1]].unique(dim=1)
    return pairs


def rows_of(labels: Tensor, dims: Sequence[int]) -> Tensor:
    """Return labels as ``(groups, entries)``: the given dimensions side by side, the others as groups.

    Args:
        labels: of any shape.
        dims: those within a group.
    """
    inner = [d % labels.ndim for d in dims]
    outer = [d for d in range(labels.ndim) if d not in inner]
    moved = labels.permute(*outer, *inner)
    groups = torch.Size(moved.shape[: len(outer)]).numel()
    return moved.reshape(groups, -1)
