"""The one entrance to a fit: a linear model is solved, a network is trained."""

from torch import Tensor

from torchlasso.errors import InputError
from torchlasso.fit.fitter import Fit, Fitter
from torchlasso.fit.linear import LinearFitter
from torchlasso.fit.network import NetworkFitter
from torchlasso.fit.settings import Progress, Settings, Silent
from torchlasso.tasks import Task


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
    return kind(rows, valid, task, settings, progress or Silent()).run()
