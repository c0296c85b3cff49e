"""The loss of each validation row under any mean loss, so that two models can be compared row by row."""

import copy
import inspect
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from torchlasso.errors import InputError
from torchlasso.gradients import Batches, LossFn, batch_size, evaluation_mode, tensors_in

_AGREE = 1e-4  # relative, between the mean of the rows' losses and the loss of their batch


@dataclass(frozen=True, eq=False)
class Losses:
    """What a model loses on the validation rows.

    Attributes:
        values: the loss of each row, or of each batch where rows cannot be told apart; float64, on the CPU.
        sizes: how many rows each value stands for.
        is_constant: whether the model's output is the same for every row, of two or more.
    """

    values: Tensor
    sizes: Tensor
    is_constant: bool


@final
class Validation:
    """The validation batches, measured row by row if the loss is a mean of the losses of rows.

    Whether it is, is found out on the first batch: the loss is taken without its reduction, or on each row
    alone (in one go, by ``torch.func.vmap``), and the mean must be the loss of the batch.  That fails for a
    loss with class weights or one that compares rows with each other; then the batch is the unit.

    Args:
        loss_fn: the mean loss of a batch.
        batches: pairs of input and target, in the same order each time.
    """

    def __init__(self, loss_fn: LossFn, batches: Batches) -> None:
        self._loss_fn, self._batches = loss_fn, batches
        self._judge: LossFn | None = None
        self._first: list[Tensor] = []

    @torch.no_grad()
    def losses(self, model: nn.Module) -> Losses:
        """Return a model's losses, in evaluation mode.

        Args:
            model: any module; its modes are left as they were.

        Raises:
            InputError: there are no rows, or they came in another order than before.
        """
        values: list[Tensor] = []
        sizes: list[int] = []
        spread = _Spread()
        with evaluation_mode(model):
            for inputs, target in self._batches:
                rows = batch_size(inputs, target)
                if rows == 0:
                    continue
                if not values:
                    self._check_order(target)
                output = model(inputs)
                spread.add(output)
                losses = self._of_batch(output, target, rows)
                values.append(losses.reshape(-1).double().cpu())
                sizes += [1] * rows if len(values[-1]) == rows else [rows]
        if not values:
            msg = "valid_batches holds no rows; the strength cannot be judged without any"
            raise InputError(msg)
        counts = torch.tensor(sizes, dtype=torch.float64)
        return Losses(torch.cat(values), counts, spread.is_none and bool(counts.sum() > 1))

    def _of_batch(self, output: Any, target: Any, rows: int) -> Tensor:
        """Return the loss of each row, or the one of the batch."""
        if rows > 1 and self._judge is None:
            of_rows = _by_rows(self._loss_fn)
            agrees = _agrees(of_rows, self._loss_fn, output, target, rows)
            self._judge = of_rows if agrees else self._loss_fn
        judge = self._judge if rows > 1 and self._judge is not None else self._loss_fn
        return judge(output, target)

    def _check_order(self, target: Any) -> None:
        """Raise unless the first target is the one that came first the last time."""
        now = [tensor.detach().cpu() for tensor in tensors_in(target)]
        if not self._first:
            self._first = [tensor.clone() for tensor in now]
        elif len(now) != len(self._first) or not all(map(torch.equal, now, self._first)):
            msg = (
                "valid_batches must come in the same order each time, so that strengths are compared on the "
                "same rows; use a DataLoader with shuffle=False"
            )
            raise InputError(msg)


def _by_rows(loss_fn: LossFn) -> LossFn:
    """Return a function from output and target to the loss of each row, as far as a loss lets one say it.

    Losses of torch and those made like them have a ``reduction``; any other is called on every row alone.
    """
    if isinstance(loss_fn, nn.Module):
        if getattr(loss_fn, "reduction", None) == "mean":
            unreduced = copy.copy(loss_fn)
            unreduced.__dict__["reduction"] = "none"  # as torch keeps it, a plain attribute
            return lambda output, target: _mean_of_rest(unreduced(output, target))
    elif "reduction" in _parameters(loss_fn):
        return lambda output, target: _mean_of_rest(loss_fn(output, target, reduction="none"))  # type: ignore[call-arg]  # it has
    return lambda output, target: _one_by_one(loss_fn, output, target)


def _parameters(loss_fn: LossFn) -> Collection[str]:
    try:
        return inspect.signature(loss_fn).parameters
    except (TypeError, ValueError):  # a builtin
        return ()


def _mean_of_rest(losses: Tensor) -> Tensor:
    return losses.reshape(len(losses), -1).mean(dim=1)


def _one_by_one(loss_fn: LossFn, output: Tensor, target: Tensor) -> Tensor:
    of_row: Callable[[Tensor, Tensor], Tensor] = torch.func.vmap(loss_fn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some losses are mapped row by row, which is slower and as right
        return of_row(output.unsqueeze(1), target.unsqueeze(1))


def _agrees(of_rows: LossFn, loss_fn: LossFn, output: Any, target: Any, count: int) -> bool:
    """Return whether the losses of rows are there and their mean is the loss of the batch."""
    try:
        rows, whole = of_rows(output, target), loss_fn(output, target)
        return rows.shape == (count,) and torch.allclose(rows.mean(), whole, rtol=_AGREE, atol=0.0)
    except Exception:  # a loss that cannot take single rows refuses in whatever way it likes
        return False


class _Spread:
    """Whether the outputs of a model differ between rows."""

    def __init__(self) -> None:
        self.is_none = True
        self._first: list[Tensor] | None = None

    def add(self, output: Any) -> None:
        """Take the outputs of a batch."""
        tensors = [tensor for tensor in tensors_in(output) if tensor.ndim > 0]
        if self._first is None:
            self._first = [tensor[:1].clone() for tensor in tensors]
        self.is_none = self.is_none and all(
            bool((tensor == first).all()) for tensor, first in zip(tensors, self._first, strict=True)
        )
