"""The refit of a point of a path on its support, blended with the penalised weights."""

import math
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from torchlasso.lasso_points import LassoPoint
from torchlasso.lasso_run import Problem
from torchlasso.levels import Ladder
from torchlasso.optim.attach import attach
from torchlasso.path import weighted_mean
from torchlasso.streams import Stream
from torchlasso.training import cosine

BLENDS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The parts of the refit in the blends that are tried."""


@final
@dataclass(frozen=True)
class Relaxed:
    """What a refit came to.

    Attributes:
        blend: the part of the refit in the weights: 0 are the penalised weights, 1 is the refit.
        valid_losses: the mean validation loss of every blend that was tried.
    """

    blend: float
    valid_losses: dict[float, float]

    @property
    def valid_loss(self) -> float:
        """The mean validation loss of the blend that was taken."""
        return self.valid_losses[self.blend]


def refit(problem: Problem, ladder: Ladder, point: LassoPoint, steps: int) -> Relaxed:
    """Train the nonzero weights of a point without a penalty, and leave the best blend in the model.

    Args:
        problem: the path's.
        ladder: its penalties.
        point: where to start.
        steps: of the optimizer, with the learning rate falling to zero.

    Raises:
        InputError: the training diverged.
    """
    model, penalised = problem.model, point.state
    model.load_state_dict(penalised)
    ladder.level.value = point.strength
    optimizer = problem.make_optimizer()
    handle = attach(optimizer, ladder.regularizer)
    try:
        handle.freeze_zeros()
        problem.train(Stream(problem.train_batches), optimizer, steps, decay=cosine)
    finally:
        handle.remove()
        optimizer.zero_grad()
    refitted = {name: _kept(value) for name, value in model.state_dict().items()}
    found: dict[float, float] = {}
    for part in BLENDS:
        model.load_state_dict(_blend(penalised, refitted, part))
        losses = problem.valid.losses(model)
        found[part] = weighted_mean(losses.values, losses.sizes)
    best = min(found, key=lambda part: found[part] if math.isfinite(found[part]) else math.inf)
    model.load_state_dict(_blend(penalised, refitted, best))
    return Relaxed(best, found)


def _kept(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _blend(penalised: dict[str, Any], refitted: dict[str, Any], part: float) -> dict[str, Any]:
    """Return the state on the way from one to the other; what is no real number is either's."""
    if part in (0.0, 1.0):
        return refitted if part else penalised
    return {name: _between(value, refitted[name], part) for name, value in penalised.items()}


def _between(a: Any, b: Any, part: float) -> Any:
    is_number = isinstance(a, Tensor) and (a.is_floating_point() or a.is_complex())
    return a + part * (b - a) if is_number else b
