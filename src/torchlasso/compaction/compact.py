"""``compact``: the same outputs from a smaller module."""

from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.optim import Optimizer

from torchlasso.compaction.explain import LeftAlone, left_alone
from torchlasso.compaction.flows import Analysis, analyse, gate_inputs
from torchlasso.compaction.liveness import settle
from torchlasso.compaction.optimizers import carry
from torchlasso.compaction.rebuild import rebuild
from torchlasso.compaction.report import CompactionTable, table_of
from torchlasso.compaction.rules import RULES, rule_for
from torchlasso.compaction.surgery import Surgery
from torchlasso.compaction.trace import evaluating, trace
from torchlasso.compaction.verify import largest_error
from torchlasso.errors import InputError


@dataclass(frozen=True, eq=False)
class Compacted:
    """A smaller module and what was done.

    Attributes:
        model: a plain ``nn.Module`` of ordinary layers under their old names, with the original's outputs.
        table: what went, tensor by tensor, and what the model costs before and after.
        max_error: the largest difference of outputs that was measured, on the example and on random inputs.
        left_alone: what is zero and stays all the same, with the reason.
    """

    model: fx.GraphModule
    table: CompactionTable
    max_error: float
    left_alone: tuple[LeftAlone, ...]

    def __str__(self) -> str:
        lines = [str(self.table), f" largest difference of outputs: {self.max_error:.3g}"]
        if self.left_alone:
            lines += [" left alone:", *(f"   {each}" for each in self.left_alone)]
        return "\n".join(lines)

    def __repr__(self) -> str:
        before, after = self.table.before.parameters, self.table.after.parameters
        return f"<Compacted: {before:,} parameters, now {after:,}; print it for the table>"


def compact(
    model: nn.Module, example_inputs: object, *, round_to: int = 1, optimizer: Optimizer | None = None
) -> Compacted:
    """Return a smaller module with the same outputs: without the channels that provably do nothing.

    A channel, unit, head or input column goes if every reader multiplies it by zero, or if it is constant for
    all inputs and each reader's bias can take it over.  What is tied to it goes along: norms, residuals,
    entries of tied weights.  A whole branch that is constant goes too.  Exact zeros are what it takes, so
    train with group penalties; small weights are no zeros.

    The module is traced with ``torch.export``.  Calls that are not understood keep all that passes through
    them, and are named in the result.  A constant other than zero in a convolution that pads with zeros
    cannot move into a bias and stays.

    Args:
        model: any module that ``torch.export`` can trace; it is left as it is.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.  The batch size, and
            every size that the model leaves open, stay open; a size that its code turns into a plain number
            (``float(x.shape[1])``) is fixed at the example's.  Arguments that are not given are gone.
        round_to: keep so many dead channels that widths that shrink are multiples of this.
        optimizer: an optimizer of the model's parameters.  It is moved to the new ones, and its state is cut
            like them, so that training goes on; an attached penalty goes along.

    Returns:
        The module with a table, the largest difference of outputs that was measured, and what was left alone.

    Raises:
        InputError: ``torch.export`` cannot trace the model; ``round_to`` is below 1.
        CompactionError: outputs would differ by more than rounding.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> with torch.no_grad():
        ...     _ = model[0].weight[1].zero_()  # a unit that is constant: its bias moves on
        ...     _ = model[2].weight[:, 2].zero_()  # a unit that nobody reads
        >>> small = compact(model, torch.randn(1, 4)).model
        >>> small.get_submodule("0"), small.get_submodule("2")
        (Linear(in_features=4, out_features=1, bias=True), Linear(in_features=1, out_features=2, bias=True))

    References:
        Removing what a group penalty has set to zero: Wen et al., "Learning structured sparsity in deep
        neural networks", NeurIPS (2016).
    """
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        msg = f"round_to must be a whole number of 1 or more, got {round_to!r}"
        raise InputError(msg)
    analysis = analysis_of(model, example_inputs)
    channels = settle(analysis, round_to)
    surgery = Surgery(analysis, channels)
    small = rebuild(surgery)
    small.train(model.training)
    error = largest_error(analysis.program, small)
    if optimizer is not None:
        carry(optimizer, surgery, small)
    return Compacted(small, table_of(analysis.program, small), error, left_alone(analysis, channels))


@torch.no_grad()
def analysis_of(model: nn.Module, example_inputs: object) -> Analysis:
    """Return what a model's calls say about its channels.

    Args:
        model: any module that ``torch.export`` can trace.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
    """
    program = trace(model, example_inputs)
    gate_inputs(program)
    with evaluating(model):
        return analyse(program, RULES, rule_for)
