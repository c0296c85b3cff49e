"""What is to be learnt: the loss of each row, and the number of outputs that it needs."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from torchlasso.loss_base import Loss
from torchlasso.losses import (
    BinaryLoss,
    CoxLoss,
    MultilabelLoss,
    MultinomialLoss,
    PoissonLoss,
    SquaredLoss,
)

Kind = Literal["regression", "binary", "multiclass", "multilabel", "counts", "survival"]

_LOSSES: dict[Kind, Loss] = {
    "regression": SquaredLoss(),
    "binary": BinaryLoss(),
    "multiclass": MultinomialLoss(),
    "multilabel": MultilabelLoss(),
    "counts": PoissonLoss(),
    "survival": CoxLoss(),
}


@dataclass(frozen=True)
class Task:
    """A kind of target with its loss.

    Attributes:
        kind: ``"regression"``: half the squared error, in squared units of ``unit``, or another loss of the
            error; ``"binary"``: the logistic loss of one output; ``"multiclass"``: the cross-entropy of one
            output a class; ``"multilabel"``: the logistic losses of one output a label; ``"counts"``: the
            Poisson loss of the logarithm of a rate; ``"survival"``: Cox's loss of the logarithm of a hazard.
        outputs: number of outputs of the network.
        unit: for regression, the error that counts as 1.
        measure: the loss, or None for that of the kind.
        weighted: whether the last column of the target holds the weights of the rows, whose mean over all
            rows is 1.  So they go wherever the rows go, and the mean over a batch is still a mean of rows.
    """

    kind: Kind
    outputs: int = 1
    unit: float = 1.0
    measure: Loss | None = None
    weighted: bool = False

    def loss_rows(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each row, times its weight.

        Args:
            output: ``[n, outputs]``.
            target: ``[n]``: values, 0 or 1, or class numbers; ``[n, labels]``; or ``[n, 2]``: time and event.
                With weights one column more.

        Example:
            >>> Task("regression").loss_rows(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0]))
            tensor([0., 2.])
        """
        loss = self.measure or _LOSSES[self.kind]
        answer, weights = self.parts(target)
        if self.kind == "regression":  # a loss of the error; the difference first, which loses no digits
            error = (output.squeeze(1) - answer) / self.unit
            return loss.rows(error, torch.zeros_like(error), weights)
        return loss.rows(output, answer, weights)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        return self.loss_rows(output, target).mean()

    def parts(self, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the target without its weights, and the weights, if there are any.

        Args:
            target: as in ``loss_rows``.
        """
        if not self.weighted:
            return target, None
        answer, weights = target[:, :-1], target[:, -1]
        if self.kind not in ("multilabel", "survival"):
            answer = answer.squeeze(1)
        return answer.long() if self.kind == "multiclass" else answer, weights

    def rescale(self, target: Tensor) -> tuple[float, float] | None:
        """Return the scale and the shift with which an output of size 1 becomes one of the size needed.

        Args:
            target: of the training rows.
        """
        if self.kind not in ("regression", "counts"):
            return None
        answer, weights = self.parts(target)
        mean = float(answer.mean() if weights is None else (weights * answer).mean())
        if self.kind == "counts":
            return 1.0, math.log(mean) if mean > 0 else 0.0
        return self.unit, mean

    def probabilities(self, output: Tensor) -> Tensor:
        """Return the probability of each class (or label), ``[n, classes]``, for a classification task."""
        if self.kind == "binary":
            positive = output.sigmoid()
            return torch.cat([1 - positive, positive], dim=1)
        return output.sigmoid() if self.kind == "multilabel" else output.softmax(dim=1)

    def predictions(self, output: Tensor) -> Tensor:
        """Return the predicted value of each row: the rate for counts, else the output itself."""
        return output.exp() if self.kind == "counts" else output
