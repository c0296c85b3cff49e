"""``coupled_groups``: the slices of parameters that can only be removed together."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchlasso.compaction.compact import analysis_of
from torchlasso.compaction.flows import Analysis
from torchlasso.compaction.labels import Use, squeezed
from torchlasso.compaction.liveness import Channels, classify
from torchlasso.errors import RuleError
from torchlasso.penalties.base import Penalty
from torchlasso.regularizer import Regularizer
from torchlasso.tables import render_table
from torchlasso.terms import Member, Term


@dataclass(frozen=True)
class Slice:
    """Slices of one parameter.

    Attributes:
        name: of the parameter.
        dim: the dimension along which they lie.
        indices: their positions.
        makes: whether they compute the channel (a filter, a norm's entry); else they read it.
    """

    name: str
    dim: int
    indices: tuple[int, ...]
    makes: bool


@dataclass(frozen=True)
class CoupledGroup:
    """What goes when one channel, unit or head goes.

    Attributes:
        slices: of all parameters that it has a part in.
    """

    slices: tuple[Slice, ...]


@dataclass(frozen=True, eq=False)
class CoupledGroups:
    """The groups of a model's parameter slices that can only go together; ``print`` it for a table.

    Attributes:
        sets: lists of groups of the same parameters: the channels of one width of the model.
    """

    sets: tuple[tuple[CoupledGroup, ...], ...]
    _parameters: dict[str, nn.Parameter]

    @property
    def groups(self) -> tuple[CoupledGroup, ...]:
        """All groups."""
        return tuple(group for groups in self.sets for group in groups)

    def regularizer(self, penalty: Penalty) -> Regularizer:
        """Return a regularizer of which every term is one set, with one row a group.

        A weight lies in two sets, as a row of one and a column of the other, and can be penalised in one:
        here where it makes a channel.  Only weights that make none that can go (those of the last layer) are
        penalised with the channels that they read.  A layer of which a set owns a part only is left out.

        Args:
            penalty: such as ``GroupLasso(1e-2, groups="channels")``.

        Raises:
            RuleError: no set can be penalised.
        """
        terms, taken = [], {s.name for groups in self.sets for s in groups[0].slices if s.makes}
        for groups in self.sets:
            members = [m for m in map(self._member, _columns(groups)) if m is not None]
            own = {s.name: s.makes for s in reversed(groups[0].slices)}
            members = [m for m in members if own[m.name] or m.name not in taken]
            taken |= {m.name for m in members}
            if len(members) > 1 or (members and members[0].index is None and members[0].dim == 0):
                terms.append(Term(penalty, tuple(members)))
        if not terms:
            msg = (
                "the model has no coupled set that a penalty can act on; name its parameters in a Regularizer"
            )
            raise RuleError(msg)
        return Regularizer.from_terms(terms)

    def _member(self, column: tuple[Slice, ...]) -> Member | None:
        """Return one parameter's part in a set, or None if a set owns a part of the dimension only."""
        first = column[0]
        parameter = self._parameters[first.name]
        index = torch.tensor([piece.indices for piece in column])
        size = parameter.shape[first.dim]
        if index.numel() != size or len(index.unique()) != size:
            return None
        plain = torch.equal(index.flatten(), torch.arange(size)) and index.shape[1] == 1
        return Member(first.name, parameter, first.dim, None if plain else index)

    def __str__(self) -> str:
        rows = [(len(groups), ", ".join(map(_named, groups[0].slices))) for groups in self.sets]
        return render_table(("groups", "slices of each"), rows)

    def __repr__(self) -> str:
        return f"<CoupledGroups: {len(self.groups)} groups in {len(self.sets)} sets; print it for the table>"


def coupled_groups(model: nn.Module, example_inputs: object) -> CoupledGroups:
    """Return the groups of parameter slices that can only be removed together.

    A filter, its norm's entries, the columns of all layers that read it, and the same of its residual
    partners are one group; so are the queries, keys, values and output columns of an attention head.
    Channels that the outputs show, or that a normalisation reads all at once, are in no group.

    Args:
        model: any module that ``torch.export`` can trace.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.

    Raises:
        InputError: ``torch.export`` cannot trace the model.

    Example:
        >>> from torchlasso import GroupLasso
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> coupled = coupled_groups(model, torch.randn(2, 4))
        >>> print(coupled)
          groups   slices of each
         ─────────────────────────────────────────────────
               3   0.weight[0], 0.bias[0], 2.weight[:, 0]
               4   0.weight[:, 0]
        >>> regularizer = coupled.regularizer(GroupLasso(1e-2, groups="channels"))
        >>> regularizer.terms[0].name, tuple(regularizer.terms[0].shape)
        ('0.weight+0.bias+2.weight', (3, 7))
    """
    analysis = analysis_of(model, example_inputs)
    channels = _merged(analysis)
    free = torch.ones(channels.count, dtype=torch.bool)
    free[list(_held(analysis, channels))] = False
    pieces: dict[int, dict[tuple[str, int], Slice]] = {}
    for use in analysis.ledger.uses:
        for channel, piece in _pieces(analysis, channels, use):
            if free[channel]:
                pieces.setdefault(channel, {}).setdefault((piece.name, piece.dim), piece)
    sets: dict[Any, list[CoupledGroup]] = {}
    for channel in sorted(pieces, key=lambda c: _order(pieces[c])):
        found = tuple(pieces[channel].values())
        key = tuple((piece.name, piece.dim, len(piece.indices)) for piece in found)
        sets.setdefault(key, []).append(CoupledGroup(found))
    known = {id(t): name for name, t in analysis.program.tensors.items()}
    parameters = {known[id(p)]: p for p in model.parameters() if id(p) in known}
    return CoupledGroups(tuple(map(tuple, sets.values())), parameters)


def _order(pieces: dict[tuple[str, int], Slice]) -> int:
    return next(iter(pieces.values())).indices[0]


def _merged(analysis: Analysis) -> Channels:
    """Return classes in which all of a head, and of a group of a grouped layer, is one."""
    ledger = analysis.ledger
    ties = list(ledger.ties)
    for aligned in ledger.aligned:
        if aligned.together:
            member = aligned.members[0]
            ledger.tie(member[:1], member)
            continue
        for member in aligned.members:
            ledger.tie(aligned.members[0][:, :1], member)
    channels = classify(ledger)
    ledger.ties = ties
    return channels


def _held(analysis: Analysis, channels: Channels) -> Iterator[int]:
    """Yield the classes that cannot go alone."""
    for labels, _ in analysis.ledger.pins:
        yield from channels.classes[labels].unique().tolist()
    for groups in analysis.ledger.statistics:
        classes = channels.classes[groups]
        mixed = (classes != classes[:, :1]).any(1)
        yield from classes[mixed].unique().tolist()


def _pieces(analysis: Analysis, channels: Channels, use: Use) -> Iterator[tuple[int, Slice]]:
    """Yield the slices of a parameter with the class of each, for every dimension that runs over classes."""
    if use.name not in analysis.program.parameters:
        return
    for number, factor in enumerate(use.factors):
        classes = squeezed(channels.classes[squeezed(factor)])
        dims = [d for d in range(classes.ndim) if classes.shape[d] > 1]
        if len(dims) != 1:
            continue
        along = classes.reshape(-1)
        for channel in along.unique().tolist():
            indices = tuple((along == channel).nonzero().flatten().tolist())
            yield channel, Slice(use.name, dims[0], indices, makes=number == 0)


def _columns(groups: tuple[CoupledGroup, ...]) -> list[tuple[Slice, ...]]:
    """Return the slices of each parameter over all groups of a set."""
    return [tuple(column) for column in zip(*(group.slices for group in groups), strict=True)]


def _named(piece: Slice) -> str:
    """Return a slice as it is written in Python, or the number of slices if there are several."""
    where = str(piece.indices[0]) if len(piece.indices) == 1 else f"{len(piece.indices)} slices"
    return f"{piece.name}[{':, ' * piece.dim}{where}]"
