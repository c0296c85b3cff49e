"""A walk over strengths from dense to sparse, and the choice of one on validation rows."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from torchlasso.errors import InputError
from torchlasso.mlp import linear_layers, used_features
from torchlasso.training import Batches

LossRows = Callable[[Tensor, Tensor], Tensor]
"""``loss_rows(output, target)``: the loss of each row, a vector."""

Rule = Literal["min", "1se"]


class Judged(Protocol):
    """A model at one strength, with its losses on the validation rows."""

    @property
    def strength(self) -> float:
        """λ."""

    @property
    def valid_losses(self) -> Tensor:
        """The data loss of each validation row, or of each group of rows."""

    @property
    def valid_sizes(self) -> Tensor | None:
        """How many rows each loss stands for; None for one."""


P = TypeVar("P")
J = TypeVar("J", bound=Judged)


@dataclass(frozen=True, eq=False)
class PathPoint:
    """A model at one strength.

    Attributes:
        strength: λ.
        train_loss: mean data loss on the training rows.
        valid_losses: the data loss of each validation row.
        nonzero: nonzero weights.
        features: inputs that reach an output.
        state: the model's ``state_dict``, on the CPU.
    """

    strength: float
    train_loss: float
    valid_losses: Tensor
    nonzero: int
    features: int
    state: dict[str, Tensor]

    @property
    def valid_sizes(self) -> None:
        """Every loss stands for one row."""
        return

    @property
    def valid_loss(self) -> float:
        """The mean data loss on the validation rows."""
        return float(self.valid_losses.mean())

    @property
    def valid_se(self) -> float:
        """The standard error of the mean validation loss."""
        return standard_error(self.valid_losses)


@dataclass(frozen=True)
class Path:
    """Models at growing strengths."""

    points: tuple[PathPoint, ...]

    def best(self, rule: Rule = "1se") -> PathPoint:
        """Return the point with the lowest validation loss, or the sparsest that is as good.

        Args:
            rule: ``"min"`` or ``"1se"``, see ``choose``.

        Raises:
            InputError: no point has a finite validation loss.
        """
        return choose(self.points, rule)


def choose(points: Sequence[J], rule: Rule = "1se") -> J:
    """Return the point with the lowest validation loss, or the sparsest that is as good.

    ``"1se"`` takes the largest strength whose validation loss exceeds the lowest by no more than the
    standard error of that very difference, taken row by row: both models see the same rows, so
    their losses rise and fall together and the paired error is the one that counts.

    A point whose validation loss is not finite (a training run that diverged) is never taken.

    Args:
        points: models at different strengths, measured on the same rows.
        rule: ``"min"`` or ``"1se"``.

    Raises:
        InputError: no point has a finite validation loss, or the rule is neither.

    References:
        Breiman, Friedman, Olshen and Stone, "Classification and regression trees" (1984).
    """
    if rule not in ("min", "1se"):
        msg = f"the rule must be 'min' (lowest validation loss) or '1se' (the sparsest as good), got {rule!r}"
        raise InputError(msg)
    usable = [point for point in points if math.isfinite(_mean_loss(point))]
    if not usable:
        msg = "no strength has a finite validation loss; scale the data, or lower the learning rate"
        raise InputError(msg)
    lowest = min(usable, key=lambda point: (_mean_loss(point), -point.strength))
    if rule == "min":
        return lowest
    return max((point for point in usable if _as_good(point, lowest)), key=lambda point: point.strength)


def _mean_loss(point: Judged) -> float:
    return weighted_mean(point.valid_losses, point.valid_sizes)


def _as_good(point: Judged, lowest: Judged) -> bool:
    excess = point.valid_losses - lowest.valid_losses
    return weighted_mean(excess, point.valid_sizes) <= standard_error(excess, point.valid_sizes)


def weighted_mean(values: Tensor, sizes: Tensor | None = None) -> float:
    """Return the mean over all rows of values that stand for one or more rows each.

    Args:
        values: a vector of means.
        sizes: how many rows each is the mean of; None for one.
    """
    return float(values.mean() if sizes is None else (values * sizes).sum() / sizes.sum())


def standard_error(values: Tensor, sizes: Tensor | None = None) -> float:
    r"""Return the standard error of the mean of a vector (0 for fewer than two entries).

    With ``B`` values ``v_b`` that stand for ``n_b`` of ``n`` rows it is
    ``√(B/(B − 1) · Σ_b (n_b/n)²·(v_b − m)²)``, which for one row each is the textbook's.

    Args:
        values: a vector of means.
        sizes: how many rows each is the mean of; None for one.
    """
    count = len(values)
    if count < 2:
        return 0.0
    if sizes is None:
        return float(values.std()) / math.sqrt(count)
    parts = (values - weighted_mean(values, sizes)) * sizes / sizes.sum()
    return math.sqrt(count / (count - 1) * float(parts.square().sum()))


def strength_grid(largest: float, smallest_fraction: float, count: int) -> list[float]:
    """Return ``count`` strengths in geometric steps up to ``largest``; zero alone if that is the largest.

    Args:
        largest: the last strength.
        smallest_fraction: the first, as a fraction of the last.
        count: how many.

    Example:
        >>> strength_grid(1.0, 0.01, 3)
        [0.01, 0.1, 1.0]
    """
    if largest == 0:
        return [0.0]
    exponents = [(count - 1 - i) / max(count - 1, 1) for i in range(count)]
    return [largest * smallest_fraction**e for e in exponents]


def walk(
    fit_at: Callable[[float], None],
    measure: Callable[[float], P],
    strengths: Iterable[float],
    *,
    stop: Callable[[P], bool],
    on_point: Callable[[], None] = lambda: None,
) -> list[P]:
    """Fit a model at one strength after the other, each from where the last left it.

    Args:
        fit_at: trains the model at a strength.
        measure: returns the point of the model as it is.
        strengths: in the order of the walk; read one by one, so they may depend on the points so far.
        stop: whether nothing more is to be found behind a point.
        on_point: called after every strength.
    """
    points: list[P] = []
    for strength in strengths:
        fit_at(strength)
        points.append(measure(strength))
        on_point()
        if stop(points[-1]):
            break
    return points


def measure_point(
    model: nn.Module, strength: float, train: Batches, valid: Batches, loss_rows: LossRows
) -> PathPoint:
    """Return a model's losses, sparsity and weights as a point of a path.

    Args:
        model: what ``build_mlp`` returned.
        strength: at which it was trained.
        train: the training rows.
        valid: the validation rows.
        loss_rows: the loss of each row.
    """
    return PathPoint(
        strength,
        float(row_losses(model, train, loss_rows).mean()),
        row_losses(model, valid, loss_rows),
        sum(int((layer.weight != 0).sum()) for _, layer in linear_layers(model)),
        int(used_features(model).sum()),
        {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()},
    )


@torch.no_grad()
def row_losses(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss_rows: LossRows) -> Tensor:
    """Return the loss of every row, in float64 and in evaluation mode.

    Args:
        model: any module.
        batches: pairs of input and target.
        loss_rows: the loss of each row.
    """
    model.eval()
    return torch.cat([loss_rows(model(x), y) for x, y in batches]).double().cpu()
