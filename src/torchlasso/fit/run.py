"""The one entrance to a fit: a linear model is solved, a network is trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from torchlasso.errors import InputError
from torchlasso.fit.fitter import Fit, Fitter
from torchlasso.fit.linear import LinearFitter
from torchlasso.fit.network import NetworkFitter
from torchlasso.fit.settings import Progress, Settings, Silent
from torchlasso.tasks import Task

_SHARED_WORK = 20_000_000  # multiplications in the widest layer of one step


def fit_mlp(
    rows: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor] | None,
    task: Task,
    settings: Settings,
    progress: Progress | None = None,
) -> Fit:
    """Fit a sparse multilayer perceptron, or a sparse linear model if there are no hidden layers.

    Args:
        rows: inputs ``[n, p]`` and target ``[n]`` to train on.
        valid: the same to choose the strength on; needed if no strength is given.
        task: the loss.
        settings: the shape, the penalty, the strength and the budget.
        progress: whom to tell.

    Raises:
        InputError: neither a strength nor validation rows.
    """
    if settings.strength is None and valid is None:
        msg = "choosing the strength needs validation rows; give them, or a strength"
        raise InputError(msg)
    kind: type[Fitter] = NetworkFitter if settings.hidden else LinearFitter
    with threads_for(rows[0], settings):
        return kind(rows, valid, task, settings, progress or Silent()).run()


@contextmanager
def threads_for(inputs: Tensor, settings: Settings) -> Iterator[None]:
    """Use one thread where a step is too small to share.

    On such steps a second thread mostly waits; next to other work on the machine it stalls every step.
    """
    widest = max(settings.hidden, default=1)
    work = min(len(inputs), settings.batch_size) * inputs.shape[1] * widest
    before = torch.get_num_threads()
    torch.set_num_threads(1 if work < _SHARED_WORK else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
