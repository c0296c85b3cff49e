"""An optimizer, and the penalty attached to it, moved from a model to its compacted form."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchlasso.compaction.surgery import Surgery
from torchlasso.errors import InputError
from torchlasso.optim.attach import Handle
from torchlasso.optim.metric_rule import MetricRule
from torchlasso.penalties.base import Penalty
from torchlasso.regularizer import Regularizer
from torchlasso.terms import Member, Term


@dataclass(frozen=True, eq=False)
class Move:
    """From the parameters of a model to those of its compacted form."""

    surgery: Surgery
    names: dict[int, str]
    present: frozenset[int]

    def parameter(self, old: Tensor) -> nn.Parameter | None:
        """Return what a parameter became, None if it is gone, and itself if it is no part of the model."""
        name = self.names.get(id(old))
        if name is None and isinstance(old, nn.Parameter):
            return old
        new = self.surgery.made.get(name) if name is not None else None
        return new if isinstance(new, nn.Parameter) and id(new) in self.present else None

    def cut(self, value: Any, old: Tensor) -> Any:
        """Return the part of a value that belongs to what stays of a parameter; others as they are."""
        name = self.names.get(id(old))
        if name is None:
            return value
        if not isinstance(value, Tensor) or not value.ndim or value.shape != old.shape:
            return value.clone() if isinstance(value, Tensor) else value
        part = self.surgery.parts.get(name)
        return value.clone() if part is None else part.of(value)


def carry(optimizer: Optimizer, surgery: Surgery, small: nn.Module) -> None:
    """Have an optimizer hold the parameters of the small model, with its state cut like them.

    A bias that was made for folded constants joins the last group.

    Args:
        optimizer: of the original model's parameters; changed in place, so that schedulers go on with it.
        surgery: what stays of them.
        small: the compacted model.

    Raises:
        InputError: an attached penalty does not fit the smaller parameters.
    """
    names = {id(tensor): name for name, tensor in surgery.analysis.program.tensors.items()}
    move = Move(surgery, names, frozenset(id(p) for p in small.parameters()))
    handle = _handle_of(optimizer)
    regularizer = None if handle is None else _regularizer(handle.regularizer, move)
    saved = None if handle is None else handle.saved()
    before = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[Tensor, Any] = {
        new: {key: move.cut(value, old) for key, value in optimizer.state[old].items()}
        for old in before
        if old in optimizer.state and (new := move.parameter(old)) is not None
    }
    for group in optimizer.param_groups:
        group["params"] = [new for old in group["params"] if (new := move.parameter(old)) is not None]
    optimizer.param_groups[-1]["params"] += _made_anew(small, move)
    optimizer.state.clear()
    optimizer.state.update(state)
    if handle is not None and saved is not None:
        _carry_handle(handle, regularizer, _moved(saved, before, move))


def _handle_of(optimizer: Optimizer) -> Handle | None:
    """Return what is attached to an optimizer; its hooks are bound to it."""
    for hook in optimizer._optimizer_step_pre_hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, Handle):
            return owner
    return None


def _made_anew(small: nn.Module, move: Move) -> list[nn.Parameter]:
    known = {id(tensor) for tensor in move.surgery.made.values()}
    return [p for p in small.parameters() if id(p) not in known]


def _carry_handle(handle: Handle, regularizer: Regularizer | None, saved: dict[str, Any]) -> None:
    if regularizer is None:  # nothing that is penalised is left
        handle.remove()
        return
    handle.shrinkage.take(regularizer)
    if isinstance(handle._rule, MetricRule):
        handle._rule.resume()
    handle.restore(saved)


def _regularizer(old: Regularizer, move: Move) -> Regularizer | None:
    """Return the same penalties on the parameters of the small model."""
    terms = tuple(term for term in (_term(term, move) for term in old.terms) if term is not None)
    if not terms:
        return None
    new = copy.copy(old)
    new.terms = terms
    shapes = {member.name: tuple(member.parameter.shape) for term in terms for member in term.members}
    new.rows = tuple(replace(row, shape=shapes.get(row.names[0], row.shape)) for row in old.rows)
    return new


def _term(term: Term, move: Move) -> Term | None:
    members = [
        Member(member.name, new, member.dim, _index(member, move))
        for member in term.members
        if (new := move.parameter(member.parameter)) is not None
    ]
    if not members:
        return None
    penalty: Penalty = term.penalty
    weights = getattr(penalty, "weights", None)
    first = term.members[0].parameter
    if len(term.members) == 1 and isinstance(weights, Tensor) and weights.shape == first.shape:
        penalty = replace(penalty, weights=move.cut(weights, first))  # type: ignore[call-arg]  # it has them
    return Term(penalty, tuple(members))


def _index(member: Member, move: Move) -> Tensor | None:
    """Return which slices of what stays belong to each group that is left."""
    if member.index is None:
        return None
    numbers = torch.arange(len(member.index)).repeat_interleave(member.index.shape[1])
    owner = torch.empty_like(numbers)
    owner[member.index.flatten().cpu()] = numbers
    old, dim = member.parameter, member.dim % member.parameter.ndim
    along = owner.view([-1 if d == dim else 1 for d in range(old.ndim)]).expand(old.shape)
    left = move.cut(along, old).movedim(dim, 0).flatten(1)[:, 0]
    groups = [(left == group).nonzero().flatten() for group in left.unique()]
    if len({len(group) for group in groups}) > 1:
        msg = f"slices of {member.name} that a penalty holds together were removed apart; attach a new one"
        raise InputError(msg)
    return torch.stack(groups)


def _moved(saved: Mapping[str, Any], before: list[nn.Parameter], move: Move) -> dict[str, Any]:
    """Return what a handle remembers, under the numbers of the new parameters and cut like them."""
    alive = [number for number, old in enumerate(before) if move.parameter(old) is not None]
    numbers = {number: new for new, number in enumerate(alive)}

    def cut(values: Any, number: int) -> Any:
        if isinstance(values, dict):
            return {key: move.cut(value, before[number]) for key, value in values.items()}
        return move.cut(values, before[number])

    result = dict(saved)
    for key in ("evidence", "memory", "frozen"):
        if saved.get(key) is not None:
            result[key] = {numbers[n]: cut(v, n) for n, v in saved[key].items() if n in numbers}
    return result
