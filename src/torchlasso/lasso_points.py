"""A model at one strength of a path: what it loses, what is left of it, and its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from torchlasso.path import standard_error, weighted_mean
from torchlasso.sparse_states import PackedState, Sparse, pack
from torchlasso.tables import render_table
from torchlasso.terms import Term
from torchlasso.validation import Losses


@final
@dataclass(frozen=True, eq=False)
class LassoPoint:
    """A model at one strength of a path.

    Attributes:
        strength: λ, of the rules whose own strength is the largest; the others carry their share.
        train_loss: the mean data loss, in evaluation mode over all training batches where ``residual`` is
            known, else the mean over the last training steps.
        valid_losses: the data loss of each validation row, or of each batch where a loss cannot be split.
        valid_sizes: how many rows each of them stands for.
        nonzero: nonzero weights in the blocks that the path shrinks.
        groups: for each of these blocks, the groups (single weights, where a penalty has no groups) that
            are not zero.
        residual: how far it is from a stationary point, as in ``torchlasso.certificate``; None where a pass
            over the training batches at every strength would have cost more than the training.
        steps: optimizer steps taken at this strength.
        is_constant: whether the output is the same for every validation row.
        packed: the weights, without their zeros.
    """

    strength: float
    train_loss: float
    valid_losses: Tensor
    valid_sizes: Tensor
    nonzero: int
    groups: tuple[int, ...]
    residual: float | None
    steps: int
    is_constant: bool
    packed: PackedState

    @property
    def valid_loss(self) -> float:
        """The mean data loss on the validation rows."""
        return weighted_mean(self.valid_losses, self.valid_sizes)

    @property
    def valid_se(self) -> float:
        """The standard error of the mean validation loss."""
        return standard_error(self.valid_losses, self.valid_sizes)

    @property
    def state(self) -> dict[str, Any]:
        """The model's ``state_dict``, on the CPU, made anew each time."""
        return self.packed.unpack()

    def saved(self) -> dict[str, Any]:
        """Return everything as plain containers and tensors."""
        return vars(self) | {"packed": {n: _plain(entry) for n, entry in self.packed.entries.items()}}

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> "LassoPoint":
        """Return the point that ``saved`` was called on.

        Args:
            saved: what it returned.
        """
        entries = {n: Sparse(*e) if isinstance(e, tuple) else e for n, e in saved["packed"].items()}
        return cls(**saved | {"packed": PackedState(entries)})


def point_of(
    model: nn.Module,
    strength: float,
    terms: Sequence[Term],
    losses: Losses,
    *,
    train_loss: float,
    residual: float | None,
    steps: int,
) -> LassoPoint:
    """Return a model as it is as a point.

    Args:
        model: any module.
        strength: λ.
        terms: the blocks that the path shrinks.
        losses: on the validation rows.
        train_loss: see ``LassoPoint``.
        residual: see ``LassoPoint``.
        steps: see ``LassoPoint``.
    """
    return LassoPoint(
        strength,
        train_loss,
        losses.values,
        losses.sizes,
        count_nonzero(terms),
        tuple(int((norms_of(term) > 0).sum()) for term in terms),
        residual,
        steps,
        losses.is_constant,
        pack(model.state_dict(), {member.name for term in terms for member in term.members}),
    )


def count_nonzero(terms: Sequence[Term]) -> int:
    """Return the number of nonzero weights in blocks.

    Args:
        terms: the blocks.
    """
    return sum(int(parameter.detach().count_nonzero()) for term in terms for parameter in term.parameters)


def norms_of(term: Term, state: dict[str, Tensor] | None = None) -> Tensor:
    """Return the norm of every group of a block, of every weight where its penalty has no groups.

    Args:
        term: the block.
        state: where to take the weights from by name, instead of the model.
    """
    members = [m.parameter.detach() if state is None else state[m.name] for m in term.members]
    w = term.gather(members)
    layout = term.penalty.layout(w.shape)
    return w.abs().reshape(-1) if layout is None else layout.sum(w.square()).sqrt()


def table_of(points: Sequence[LassoPoint], names: Sequence[str], marks: Sequence[str]) -> str:
    """Return points as a table of text.

    Args:
        points: in the order of the path.
        names: of the blocks that it shrinks.
        marks: a word on each point.
    """
    columns = ["strength", "nonzero", "train loss", "valid loss", "± se", "residual", "steps"]
    blocks = [f"in {name}" for name in names] if 1 < len(names) <= _SHOWN else []
    rows = [
        (
            *(p.strength, f"{p.nonzero:,}", p.train_loss, p.valid_loss, p.valid_se),
            *(p.residual, p.steps, *(f"{n:,}" for n in p.groups[: len(blocks)]), mark),
        )
        for p, mark in zip(points, marks, strict=True)
    ]
    return render_table([*columns, *blocks, ""], rows)


_SHOWN = 6  # blocks with a column of their own in the table


def _plain(entry: Any) -> Any:
    return tuple(entry) if isinstance(entry, Sparse) else entry
