"""The mean loss over batches and its gradient, measured without leaving a trace in the model."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from torchlasso.errors import InputError
from torchlasso.terms import Term

LossFn = Callable[[Any, Any], Tensor]
"""``loss_fn(output, target)``: the mean loss of a batch."""
Batches = Iterable[tuple[Any, Any]]
"""Pairs of input and target, each with the examples along dimension 0.

The model is called with the input as its one argument, whatever it is: a tensor, a tuple, a dict.
"""


def mean_gradient(
    model: nn.Module, loss_fn: LossFn, batches: Batches, parameters: Sequence[nn.Parameter]
) -> tuple[float, list[Tensor]]:
    """Return the mean loss over all batches and its gradient, in evaluation mode.

    Args:
        model: the module.
        loss_fn: the mean loss of a batch.
        batches: pairs of input and target; batches of different sizes count by their size.
        parameters: what to differentiate by.

    Raises:
        InputError: there are no examples, or a parameter is frozen.
    """
    if not all(p.requires_grad for p in parameters):
        msg = "a penalised parameter has requires_grad=False by now; build the regularizer after freezing"
        raise InputError(msg)
    # In half precision a sum over batches would stop growing, or overflow.
    totals = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
    loss_sum, count = 0.0, 0
    with evaluation_mode(model), torch.enable_grad():
        for inputs, target in batches:
            size = batch_size(inputs, target)
            if size == 0:
                continue  # the mean over no examples is NaN
            loss = loss_fn(model(inputs), target)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for total, g in zip(totals, gradients, strict=True):
                if g is not None:
                    total.add_(g.detach().to_dense() if g.is_sparse else g.detach(), alpha=size)
            loss_sum += float(loss.detach()) * size
            count += size
    if count == 0:
        msg = "batches must hold at least one example, got none; a generator can be read only once"
        raise InputError(msg)
    return loss_sum / count, [total.div_(count) for total in totals]


def largest_strength(model: nn.Module, term: Term, loss_fn: LossFn, batches: Batches) -> float:
    """Return the smallest strength at which a block is zero, the rest of the model held as it is.

    Args:
        model: the module; it is left as it was.
        term: the block; its strength plays no part.
        loss_fn: the mean loss of a batch.
        batches: pairs of input and target that cover the data once, readable several times.

    Raises:
        InputError: there are no examples, or a parameter is frozen.
    """
    with _zeroed(term):
        _, gradients = mean_gradient(model, loss_fn, batches, term.parameters)
    return term.penalty.strength_max(term.gather(gradients))


def readable_twice(batches: Batches) -> Batches:
    """Return the batches, as a list if they are a generator, which can be read only once.

    Args:
        batches: pairs of input and target.
    """
    return list(batches) if iter(batches) is batches else batches


def batch_size(inputs: Any, target: Any) -> int:
    """Return the number of examples of a batch: the length of its first tensor, target before input.

    Args:
        inputs: a tensor, or tuples, lists and dicts of tensors.
        target: likewise; a batch whose target has no examples along dimension 0 counts by its input.
    """
    sizes = (int(value.shape[0]) for value in tensors_in((target, inputs)) if value.ndim > 0)
    return next(sizes, 1)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dicts, in order.

    Args:
        value: anything; what is neither a tensor nor such a container is passed over.
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)


@contextmanager
def _zeroed(term: Term) -> Iterator[None]:
    """Hold a block at zero for a while."""
    saved = [p.detach().clone() for p in term.parameters]
    try:
        with torch.no_grad():
            for parameter in term.parameters:
                parameter.zero_()
        yield
    finally:
        with torch.no_grad():
            for parameter, old in zip(term.parameters, saved, strict=True):
                parameter.copy_(old)


def uncompiled() -> AbstractContextManager[Any]:
    """Run compiled models as they were written, so that hooks and torch functions in them are seen."""
    # The stance would import the compiler, which takes seconds; nothing is compiled where it is not there.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and each back into its own mode afterwards.

    Args:
        model: the module.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
