"""One call of a model, as it is recorded for a file and compared with what the file gives."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from torchlasso.errors import InputError
from torchlasso.sparsification import densify

TOLERANCE = 1e-4
"""The largest difference to the model, relative to the largest output, with which a file is kept."""


@dataclass(frozen=True, eq=False)
class Call:
    """A model with inputs for it.

    Attributes:
        module: in evaluation mode, without sparse layers, on the CPU.
        inputs: the arguments, one row at least in each.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]

    def more(self) -> "Call":
        """Return the call with twice as many rows: a file must not know how many there were."""
        return Call(self.module, tuple(torch.cat([x, x]) for x in self.inputs))

    def outputs(self) -> list[Tensor]:
        """Return the outputs, in the order in which they stand in whatever the model returns."""
        with torch.no_grad():
            return leaves(self.module(*self.inputs))


def call_of(model: nn.Module, example_inputs: object) -> Call:
    """Return a call of a copy of a model, as it is exported.

    Args:
        model: any module; sparse layers become dense in the copy, since no format makes use of them.
        example_inputs: a tensor or a tuple of tensors, whose first dimension is the batch.

    Raises:
        InputError: the inputs are no tensors with a batch.
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if not inputs or not all(isinstance(x, Tensor) and x.ndim and len(x) for x in inputs):
        kinds = ", ".join(type(x).__name__ for x in inputs)
        msg = (
            "expected example_inputs, a tensor or a tuple of tensors with the batch in their first "
            f"dimension, got {kinds or 'none'}"
        )
        raise InputError(msg)
    # A batch of one would be taken for a constant of the model.
    rows = tuple(x.detach().cpu() if len(x) > 1 else torch.cat([x, x]).detach().cpu() for x in inputs)
    return Call(densify(copy.deepcopy(model).cpu()).eval().requires_grad_(False), rows)


def leaves(outputs: object) -> list[Tensor]:
    """Return the tensors of a nested output.

    Args:
        outputs: tuples, lists and dicts of tensors.
    """
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference between outputs, relative to the largest magnitude of each.

    Args:
        found: what the file gives.
        expected: what the model gives.

    Returns:
        0 where all are equal, infinity where shapes or what is finite differ.

    Example:
        >>> difference([torch.tensor([1.0, 2.2])], [torch.tensor([1.0, 2.0])])
        0.1...
    """
    if [x.shape for x in found] != [x.shape for x in expected]:
        return float("inf")
    return max(
        (_difference(a.double(), b.double()) for a, b in zip(found, expected, strict=True)), default=0.0
    )


def _difference(found: Tensor, expected: Tensor) -> float:
    wrong = ~((found == expected) | (found.isnan() & expected.isnan()))
    if not wrong.any():
        return 0.0
    if not (found[wrong].isfinite() & expected[wrong].isfinite()).all():
        return float("inf")
    scale = expected[expected.isfinite()].abs().max()
    return float((found - expected)[wrong].abs().max() / (scale if scale > 0 else 1.0))


def check_difference(worst: float, what: str) -> None:
    """Raise unless a file gives what the model gives.

    Args:
        worst: what `difference` returned.
        what: how to call the file.

    Raises:
        InputError: it does not; nothing was written.
    """
    if not worst <= TOLERANCE:
        msg = (
            f"the {what} file would differ from the model by {worst:.1e} of its largest output, more than "
            f"{TOLERANCE:.0e}, so it was not written; the model may depend on something other than its inputs"
        )
        raise InputError(msg)


def refuse_export(what: str, error: Exception) -> NoReturn:
    """Raise the error that says why a model cannot be exported, in one line.

    Args:
        what: the format.
        error: what torch raised.

    Raises:
        InputError: always.
    """
    said: BaseException = error.__cause__ or error
    line = " ".join(str(said).split())[:300] or type(said).__name__
    msg = f"the model cannot be exported to {what}: {line}"
    raise InputError(msg) from error
