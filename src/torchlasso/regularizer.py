"""Rules that say what is penalised, resolved once into terms; the differentiable sum; the table."""

import copy
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from torchlasso.errors import InputError, RuleError
from torchlasso.gradients import Batches, LossFn, largest_strength, readable_twice
from torchlasso.penalties.base import Penalty, fraction_of_max
from torchlasso.rules import Candidate, RuleKey, candidates, describe_key, matches, names_exactly
from torchlasso.tables import render_table
from torchlasso.terms import Member, Term


@dataclass(frozen=True, eq=False)
class Row:
    """What the regularizer does with one parameter, and why.

    Attributes:
        names: the parameter's names (several if it is tied).
        shape: its shape.
        penalty: the penalty on it, or None.
        reason: the rule that decided, or why it is left alone.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    penalty: Penalty | None
    reason: str


class Regularizer:
    r"""The penalty ``Σ_i strength_i · R_i(w_i)`` on the parameters of a model.

    Biases, normalisation parameters, embeddings, scalars and frozen parameters are left alone unless a
    rule names them; tied parameters count once.  ``print(regularizer)`` shows every parameter with the
    reason.  Calling it returns the differentiable penalty, for ``loss = criterion(...) + regularizer()``;
    for exact zeros use ``torchlasso.attach`` instead.

    Args:
        model: any module.
        rules: one penalty for all, or a mapping whose keys are a glob on the parameter name, a compiled
            regex, a module type, a module or a parameter, and whose values are a penalty or None.  The
            first match wins.

    Attributes:
        terms: the penalised blocks.
        step: the optimizer step at which changing strengths are read; an attached optimizer advances it.

    Raises:
        RuleError: a key matches nothing, or only parameters that are left alone by default; nothing at
            all is penalised; a penalty does not fit a parameter's shape.

    Example:
        >>> from torch import nn
        >>> from torchlasso import L1
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> print(Regularizer(model, {"0.*": L1(0.1), "*": None}))
          parameter   shape   penalty   strength   reason
         ─────────────────────────────────────────────────────────────────────────
          0.weight    3×4     L1             0.1   rule '0.*'
          0.bias      3       –                –   bias, not penalised by default
          2.weight    1×3     –                –   rule '*'
          2.bias      1       –                –   bias, not penalised by default
    """

    def __init__(self, model: nn.Module, rules: Penalty | Mapping[RuleKey, Penalty | None]) -> None:
        self.step = 0
        table = _checked_rules(rules)
        found = list(candidates(model))
        if not found:
            msg = f"the model {type(model).__name__} has no parameters, so there is nothing to penalise"
            raise RuleError(msg)
        _check_matches(table, found)
        resolved = [_resolve(table, candidate) for candidate in found]
        _check_used(table, found, resolved)
        self.rows = tuple(row for row, _ in resolved)
        self.terms = tuple(term for _, term in resolved if term is not None)
        if not self.terms:
            msg = "no parameter is penalised:\n" + _render(self.rows, 0)
            raise RuleError(msg)

    @classmethod
    def from_terms(cls, terms: Iterable[Term]) -> "Regularizer":
        """Return a regularizer of given blocks, for groups that span several parameters.

        Args:
            terms: penalised blocks; no parameter may be in two of them.

        Raises:
            RuleError: no terms, or a parameter in two of them.
        """
        self = cls.__new__(cls)
        self.step = 0
        self.terms = tuple(terms)
        members = [(member, term) for term in self.terms for member in term.members]
        if not members:
            msg = "a regularizer needs at least one term"
            raise RuleError(msg)
        ids = [id(member.parameter) for member, _ in members]
        twice = sorted({member.name for member, _ in members if ids.count(id(member.parameter)) > 1})
        if twice:
            msg = f"each parameter may be in one term only, but {twice} are in several"
            raise RuleError(msg)
        self.rows = tuple(
            Row((m.name,), tuple(m.parameter.shape), t.penalty, _joint_reason(t)) for m, t in members
        )
        return self

    def __call__(self) -> Tensor:
        """Return the penalty at the current weights and step, a differentiable 0-d tensor.

        Raises:
            InputError: in a loss it would do nothing, as the weights are outside a constraint, or a strength
                is a ``TargetSparsity`` that no optimizer drives.

        Example:
            >>> from torch import nn
            >>> from torchlasso import L1
            >>> layer = nn.Linear(2, 1)
            >>> _ = nn.init.ones_(layer.weight)
            >>> Regularizer(layer, L1(0.5))()
            tensor(1., grad_fn=<SumBackward0>)
        """
        values = [term.value() for term in self.current_terms()]
        if torch.is_grad_enabled():  # as a part of the loss
            _check_additive(self.terms, values)
        return torch.stack([value.to(values[0].device) for value in values]).sum()

    def current_terms(self) -> tuple[Term, ...]:
        """Return the terms with the strengths of the current step."""
        return tuple(term.at(self.step) for term in self.terms)

    def with_strength(self, strength: float) -> "Regularizer":
        """Return a regularizer on the same blocks, every penalty at one strength.

        Args:
            strength: the strength of all penalties.
        """
        other = copy.copy(self)
        other.terms = tuple(replace(t, penalty=t.penalty.with_strength(strength)) for t in self.terms)
        other.rows = tuple(
            replace(row, penalty=row.penalty and row.penalty.with_strength(strength)) for row in self.rows
        )
        return other

    def resolve(self, model: nn.Module, loss_fn: LossFn, batches: Batches) -> "Regularizer":
        """Return a regularizer whose fractions of ``strength_max``, such as ``L1("0.1max")``, are numbers.

        Every block is measured alone, at zero, with the rest of the model as it is now: for a linear model
        fit the intercept first; a deep net is local, so resolve it where training starts.

        Args:
            model: the module that the regularizer is of; it is left as it was.
            loss_fn: the mean loss of a batch.
            batches: pairs of input and target that cover the data once.

        Raises:
            InputError: a block has no strength of which to take a fraction; there are no batches.

        Example:
            >>> import torchlasso as tl
            >>> layer = nn.Linear(1, 1, bias=False)
            >>> batches = [(torch.tensor([[1.0]]), torch.tensor([[2.0]]))]
            >>> relative = tl.Regularizer(layer, tl.L1("0.25max"))
            >>> relative.resolve(layer, nn.functional.mse_loss, batches).terms[0].penalty.strength
            1.0
        """
        pairs = readable_twice(batches)
        other = copy.copy(self)
        other.terms = tuple(_resolved(term, model, loss_fn, pairs) for term in self.terms)
        penalties = {member.name: term.penalty for term in other.terms for member in term.members}
        other.rows = tuple(replace(row, penalty=row.penalty and penalties[row.names[0]]) for row in self.rows)
        return other

    def __str__(self) -> str:
        return _render(self.rows, self.step)

    def __repr__(self) -> str:
        count = sum(p.numel() for term in self.terms for p in term.parameters)
        return f"<Regularizer: {len(self.terms)} terms on {count:,} weights; print it for the table>"


def _checked_rules(rules: object) -> list[tuple[RuleKey, Penalty | None]]:
    if isinstance(rules, Penalty):
        return [("*", rules)]
    if not isinstance(rules, Mapping):
        msg = f"expected a penalty or a mapping from parameters to penalties, got {type(rules).__name__}"
        raise RuleError(msg)
    for key, penalty in rules.items():
        if penalty is not None and not isinstance(penalty, Penalty):
            msg = f"rule {describe_key(key)} must give a penalty such as L1(1e-3), or None, got {penalty!r}"
            raise RuleError(msg)
    return list(rules.items())


def _check_matches(table: list[tuple[RuleKey, Penalty | None]], found: list[Candidate]) -> None:
    """Raise for a key that no parameter answers to: a misspelt layer must not stay unpenalised."""
    for key, _ in table:
        if not any(matches(key, candidate) for candidate in found):
            names = [candidate.names[0] for candidate in found]
            shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
            msg = f"rule {describe_key(key)} matches no parameter{_hint(key, names)} The model has: {shown}"
            raise RuleError(msg)


def _hint(key: RuleKey, names: list[str]) -> str:
    """Return how the user may have meant a name, as the end of a sentence."""
    if not isinstance(key, str):
        return "."
    if any(name.startswith(key + ".") for name in names):
        return f"; did you mean {key + '.*'!r}?"
    near = difflib.get_close_matches(key, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else "."


def _resolve(table: list[tuple[RuleKey, Penalty | None]], candidate: Candidate) -> tuple[Row, Term | None]:
    """Return the row of one parameter, and its term if it is penalised."""
    reason = _left_alone(candidate)
    for key, penalty in table:
        if not matches(key, candidate):
            continue
        named = candidate.parameter.requires_grad and names_exactly(key, candidate)
        if penalty is not None and (reason is None or named):
            return _penalised(candidate, penalty, key)
        return _alone(candidate, reason or f"rule {describe_key(key)}"), None
    return _alone(candidate, reason or "no rule matches"), None


def _alone(candidate: Candidate, reason: str) -> Row:
    return Row(candidate.names, tuple(candidate.parameter.shape), None, reason)


def _penalised(candidate: Candidate, penalty: Penalty, key: RuleKey) -> tuple[Row, Term]:
    name, shape = candidate.names[0], tuple(candidate.parameter.shape)
    try:
        if candidate.parameter.is_complex():
            penalty = penalty.for_complex(candidate.parameter.shape)
        term = Term(penalty, (Member(name, candidate.parameter),))
    except ValueError as error:
        msg = f"parameter {name!r} cannot take the penalty of rule {describe_key(key)}: {error}"
        raise RuleError(msg) from error
    return Row(candidate.names, shape, penalty, f"rule {describe_key(key)}"), term


def _resolved(term: Term, model: nn.Module, loss_fn: LossFn, batches: Batches) -> Term:
    """Return a term with a number for its strength, if that is a fraction."""
    fraction = fraction_of_max(term.penalty.strength)
    if fraction is None:
        return term
    largest = largest_strength(model, term, loss_fn, batches)
    if not 0 < largest < float("inf"):
        msg = (
            f"{term.name} has no strength_max to take {term.penalty.strength!r} of, as it is {largest}: "
            "the loss must depend on it where it is zero, and its penalty must have an L1 or group part; "
            "give a number"
        )
        raise InputError(msg)
    return replace(term, penalty=term.penalty.with_strength(fraction * largest))


def _left_alone(candidate: Candidate) -> str | None:
    if not candidate.parameter.requires_grad:
        return "frozen (requires_grad is False)"
    return f"{candidate.exclusion}, not penalised by default" if candidate.exclusion else None


def _check_used(
    table: list[tuple[RuleKey, Penalty | None]],
    found: list[Candidate],
    resolved: list[tuple[Row, Term | None]],
) -> None:
    """Raise for a penalty whose every first match is left alone by default: it would do nothing."""
    for position, (key, penalty) in enumerate(table):
        first = [
            (row, term)
            for candidate, (row, term) in zip(found, resolved, strict=True)
            if matches(key, candidate) and not any(matches(k, candidate) for k, _ in table[:position])
        ]
        if penalty is not None and first and all(term is None for _, term in first):
            reasons = "; ".join(f"{row.names[0]}: {row.reason}" for row, _ in first[:4])
            msg = (
                f"rule {describe_key(key)} penalises nothing ({reasons}). To penalise what is left alone by "
                "default, name it exactly or give the Parameter itself; what is frozen must be unfrozen"
            )
            raise RuleError(msg)


def _check_additive(terms: Iterable[Term], values: Iterable[Tensor]) -> None:
    for term, value in zip(terms, values, strict=True):
        if not term.penalty.has_strength and bool(value.isinf()):
            msg = (
                f"{term.penalty.describe()} on {term.name} is a constraint, which has no gradient and would "
                "do nothing in a loss; use torchlasso.attach"
            )
            raise InputError(msg)
        if not getattr(term.penalty.strength, "driven", True):
            msg = f"{term.penalty.strength!r} is moved by an optimizer's steps; use torchlasso.attach first"
            raise InputError(msg)


def _joint_reason(term: Term) -> str:
    return f"together with {len(term.members) - 1} more" if len(term.members) > 1 else "given"


def _render(rows: tuple[Row, ...], step: int) -> str:
    cells = []
    for row in rows:
        penalty = row.penalty.at(step) if row.penalty else None
        cells.append(
            (
                " = ".join(row.names),
                "×".join(map(str, row.shape)) or "scalar",
                penalty.describe() if penalty else None,
                penalty.strength if penalty and penalty.has_strength else None,
                row.reason,
            )
        )
    return render_table(("parameter", "shape", "penalty", "strength", "reason"), cells)
