"""What is to be learnt: the loss of each row, and the number of outputs that it needs."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Task:
    """A kind of target with its loss.

    Attributes:
        kind: ``"regression"``: half the squared error, in squared units of ``unit``; ``"binary"``: the
            logistic loss of one output; ``"multiclass"``: the cross-entropy of one output a class.
        outputs: number of outputs of the network.
        unit: for regression, the error that counts as 1.
    """

    kind: Literal["regression", "binary", "multiclass"]
    outputs: int = 1
    unit: float = 1.0

    def loss_rows(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each row.

        Args:
            output: ``[n, outputs]``.
            target: ``[n]``: values, 0 or 1, or class numbers.

        Example:
            >>> Task("regression").loss_rows(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0]))
            tensor([0., 2.])
        """
        if self.kind == "regression":
            return 0.5 * ((output.squeeze(1) - target) / self.unit).square()
        if self.kind == "binary":
            return functional.binary_cross_entropy_with_logits(output.squeeze(1), target, reduction="none")
        return functional.cross_entropy(output, target, reduction="none")

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        return self.loss_rows(output, target).mean()

    def probabilities(self, output: Tensor) -> Tensor:
        """Return the probability of each class, ``[n, classes]``, for a classification task."""
        if self.kind == "binary":
            positive = output.sigmoid()
            return torch.cat([1 - positive, positive], dim=1)
        return output.softmax(dim=1)
