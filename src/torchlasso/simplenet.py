"""The model of the L1 tutorial, as every introduction writes it."""

import operator

import torch
from torch import Tensor, nn

from torchlasso.errors import InputError
from torchlasso.penalties.base import check_strength


class SimpleNet(nn.Module):
    """Linear, ReLU, Linear, with an L1 term to add to the loss.

    This is the textbook way, kept as a starting point: added to the loss, an L1 term shrinks the weights
    (and here the biases) but makes none of them exactly zero.  ``torchlasso.attach`` does.

    Args:
        input_size: number of input features.
        hidden_size: number of hidden units.
        output_size: number of outputs.
        l1_strength: the factor of the L1 term.

    Raises:
        InputError: a size below 1, or a negative strength.

    Example:
        >>> model = SimpleNet(input_size=100, hidden_size=25, output_size=5, l1_strength=0.1)
        >>> output, target = model(torch.randn(8, 100)), torch.randint(5, (8,))
        >>> loss = nn.CrossEntropyLoss()(output, target)
        >>> loss += model.l1_regularization()
        >>> loss.backward()
    """

    def __init__(self, input_size: int, hidden_size: int, output_size: int, l1_strength: float) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "output_size": output_size}
        for name, size in sizes.items():
            if not _is_whole(size) or size < 1:
                msg = f"{name} must be a whole number of 1 or more, got {size!r}"
                raise InputError(msg)
        self.l1_strength = check_strength(l1_strength, "l1_strength")
        self.fc1 = nn.Linear(input_size, hidden_size)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(hidden_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs for a batch of shape ``[n, input_size]``."""
        output: Tensor = self.fc2(self.relu(self.fc1(x)))
        return output

    def l1_regularization(self) -> Tensor:
        """Return ``l1_strength · Σ|p|`` over all parameters, a differentiable 0-d tensor."""
        return self.l1_strength * torch.stack([p.abs().sum() for p in self.parameters()]).sum()


def _is_whole(size: object) -> bool:
    try:
        operator.index(size)  # type: ignore[arg-type]  # what is no whole number raises
    except TypeError:
        return False
    return True
