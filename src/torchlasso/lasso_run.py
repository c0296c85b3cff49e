"""The walk of a path for any module: a dense start, then one strength after the other, warm-started."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, NAdam, Optimizer, RAdam, RMSprop

from torchlasso.errors import InputError
from torchlasso.gradients import Batches, LossFn, mean_gradient
from torchlasso.lasso_points import LassoPoint, count_nonzero, point_of
from torchlasso.levels import Strengths, beyond, ladder, needs_largest, own_strengths, planned
from torchlasso.optim.attach import Handle, attach
from torchlasso.path import walk
from torchlasso.regularizer import Regularizer
from torchlasso.streams import Stream, count_batches
from torchlasso.training import constant, cosine, raise_eps, train
from torchlasso.validation import Validation

OptimizerFn = Callable[[list[dict[str, Any]]], Optimizer]
"""From parameter groups to an optimizer."""

PATH_FITS = 1.5
"""All strengths together take at most so many times the steps of one fit."""

_BESIDE_ROOT = (Adam, AdamW, NAdam, RAdam, RMSprop)  # whose ε is added to the root of the second moment
_LOOKS = 4  # at a strength, to see whether it has settled
_SETTLED = 1e-3  # relative change of loss, penalty and nonzeros from look to look
_EXTRA = 5  # one strength more for every so many, where the last one has left something
_MEASURING = 0.25  # of the steps of the path may be spent on passes that measure the training batches


@final
@dataclass(frozen=True, eq=False)
class Problem:
    """What a path is asked for.

    Attributes:
        model: any module.
        regularizer: what is penalised.
        loss_fn: the mean loss of a batch.
        train_batches: pairs of input and target.
        valid: the validation batches.
        optimizer: makes the optimizer.
        strengths: how many, or which.
        steps: of one fit.
        dense_steps: of the dense start.
    """

    model: nn.Module
    regularizer: Regularizer
    loss_fn: LossFn
    train_batches: Batches
    valid: Validation
    optimizer: OptimizerFn
    strengths: Strengths
    steps: int
    dense_steps: int

    def make_optimizer(self) -> Optimizer:
        """Return an optimizer whose groups are the blocks of one strength each, and what is not penalised."""
        groups: dict[object, list[nn.Parameter]] = {}
        for term in self.regularizer.terms:
            strength = term.penalty.strength if term.penalty.has_strength else None
            groups.setdefault(strength, []).extend(term.parameters)
        penalised = {parameter for group in groups.values() for parameter in group}
        rest = [p for p in self.model.parameters() if p.requires_grad and p not in penalised]
        optimizer: object = self.optimizer([{"params": group} for group in (*groups.values(), rest) if group])
        if not isinstance(optimizer, Optimizer):
            msg = f"optimizer must return a torch.optim.Optimizer, got {type(optimizer).__name__}"
            raise InputError(msg)
        return optimizer

    def train(
        self, stream: Stream, optimizer: Optimizer, steps: int, decay: Callable[[float], float] = constant
    ) -> Tensor:
        """Take optimizer steps and return the losses.

        Raises:
            InputError: the weights are not finite afterwards.
        """
        losses = train(self.model, self.loss_fn, stream, optimizer, steps=steps, decay=decay)
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            msg = "training diverged; scale the inputs, or give an optimizer with a lower learning rate"
            raise InputError(msg)
        return losses


class Look(NamedTuple):
    """What can be seen of a model while it trains, without a pass of its own."""

    loss: float
    error: float
    penalty: float
    nonzero: int

    def like(self, other: "Look") -> bool:
        """Whether nothing has changed but for the noise of the batches."""
        noise = 2 * math.hypot(self.error, other.error)
        return (
            abs(self.loss - other.loss) <= max(noise, _SETTLED * abs(other.loss))
            and abs(self.penalty - other.penalty) <= _SETTLED * other.penalty
            and abs(self.nonzero - other.nonzero) <= _SETTLED * other.nonzero
        )


@final
class Run:
    """A path on its way.

    Args:
        problem: what is asked for.

    Attributes:
        points: so far.
        strengths: all that are planned.
        ladder: the penalties.
        own: their strengths before the path.
        left: optimizer steps.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.stream = Stream(problem.train_batches)
        self.optimizer = problem.make_optimizer()
        self.points: list[LassoPoint] = []
        self._handle: Handle | None = None
        self._batches = count_batches(problem.train_batches)

    def start(self) -> None:
        """Train without a penalty, and place the strengths by what that gives.

        Raises:
            InputError: the training diverged or came to nothing, or the strengths cannot be placed.
        """
        p = self.problem
        p.train(self.stream, self.optimizer, p.dense_steps, decay=cosine)
        if p.dense_steps and p.valid.losses(p.model).is_constant:
            msg = (
                f"after {p.dense_steps} steps without a penalty the output is the same for every validation "
                "row, as when all units of a layer have died; give an optimizer with a lower learning rate"
            )
            raise InputError(msg)
        self.own = own_strengths(p.regularizer.resolve(p.model, p.loss_fn, p.train_batches))
        self.ladder = ladder(p.regularizer, self.own)
        largest = self._largest() if needs_largest(p.strengths) else 1.0
        self.strengths = planned(p.strengths, largest)
        self.left = int(PATH_FITS * p.steps)
        if self._measures:
            self.left -= self._batches * self._most
        self._attach()

    def walk(self, on_point: Callable[[], None], *, stopped: Callable[[], bool]) -> None:
        """Go on from the last point until nothing is left.

        Args:
            on_point: called after every strength.
            stopped: whether the user wants no more.
        """
        extra = beyond(self.strengths, self._most - len(self.strengths))
        ahead = islice(chain(self.strengths, extra), len(self.points), None)

        def stop(_: LassoPoint) -> bool:
            return self._is_over() or stopped()

        if not self._is_over():
            walk(self._fit_at, self._measure, ahead, stop=stop, on_point=on_point)

    def finish(self) -> None:
        """Let go of the optimizer and the gradients."""
        if self._handle is not None:
            self._handle.remove()
        self.optimizer.zero_grad()

    def saved(self) -> dict[str, Any]:
        """Return everything that the rest of the path depends on, as plain containers and tensors."""
        return {
            "model": dict(self.problem.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "stream": self.stream.saved(),
            "own": self.own,
            "strengths": self.strengths,
            "left": self.left,
            "points": [point.saved() for point in self.points],
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take back what ``saved`` returned."""
        self.own, self.strengths, self.left = saved["own"], saved["strengths"], saved["left"]
        self.points = [LassoPoint.restored(point) for point in saved["points"]]
        self.ladder = ladder(self.problem.regularizer, self.own)
        self._attach()
        self.problem.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.stream.restore(saved["stream"])

    # ---- one strength --------------------------------------------------------------------------------------

    def _fit_at(self, strength: float) -> None:
        """Train at a strength until loss and nonzeros settle or its share of the steps is used up."""
        self.ladder.level.value = strength
        self._raise_eps(strength)
        allotted = max(1, self.left // (self._most - len(self.points)))
        self._taken, before = 0, None
        while self._taken < allotted:
            steps = min(math.ceil(allotted / _LOOKS), allotted - self._taken)
            losses = self.problem.train(self.stream, self.optimizer, steps).double()
            self._taken += steps
            self._look = self._looked(losses)
            if before is not None and self._look.like(before):
                break
            before = self._look
        self.left -= self._taken

    @torch.no_grad()
    def _looked(self, losses: Tensor) -> Look:
        noisy = self._batches > 1 and len(losses) > 1
        error = float(losses.std()) / math.sqrt(len(losses)) if noisy else 0.0
        terms = self.ladder.regularizer.current_terms()
        penalty = sum(float(term.value()) for term in terms if term.penalty.has_strength)
        return Look(float(losses.mean()), error, penalty, count_nonzero(self.ladder.shrunk))

    def _measure(self, strength: float) -> LassoPoint:
        p, terms = self.problem, self.ladder.shrunk
        loss, residual = self._look.loss, None
        if self._measures:
            loss, residual = _stationarity(p.model, self.ladder.regularizer, p.loss_fn, p.train_batches)
        losses = p.valid.losses(p.model)
        point = point_of(
            p.model, strength, terms, losses, train_loss=loss, residual=residual, steps=self._taken
        )
        self.points.append(point)
        return point

    def _is_over(self) -> bool:
        """Whether nothing is left, or only what no longer sees its input."""
        last = self.points[-2:]
        return bool(last) and (last[-1].nonzero == 0 or (len(last) == 2 and all(p.is_constant for p in last)))

    @property
    def _most(self) -> int:
        """The most strengths that there may be."""
        count = len(self.strengths)
        return count + count // _EXTRA if isinstance(self.problem.strengths, int) else count

    @property
    def _measures(self) -> bool:
        """Whether there is the time to measure the training batches at every strength."""
        return self._batches * self._most <= _MEASURING * PATH_FITS * self.problem.steps

    def _largest(self) -> float:
        """Return where the path is to end, by all training batches or as many as there is time for."""
        p = self.problem
        most = max(1, p.steps // (_LOOKS * len(self.ladder.shrunk)))
        batches = p.train_batches if most >= self._batches else list(islice(p.train_batches, most))
        return self.ladder.largest(p.model, p.loss_fn, batches)

    def _attach(self) -> None:
        exact = self._batches == 1  # no noise, so nothing to weigh
        self._handle = attach(self.optimizer, self.ladder.regularizer, memory=0 if exact else "auto")

    def _raise_eps(self, strength: float) -> None:
        if isinstance(self.optimizer, _BESIDE_ROOT):
            part_of = self.ladder.part_of
            for group in self.optimizer.param_groups:
                part = max((part_of.get(parameter, 0.0) for parameter in group["params"]), default=0.0)
                raise_eps([group], strength * part)


def _stationarity(
    model: nn.Module, regularizer: Regularizer, loss_fn: LossFn, batches: Batches
) -> tuple[float, float]:
    """Return the mean loss and the residual of ``torchlasso.certificate``, in one pass."""
    parameters = [parameter for term in regularizer.terms for parameter in term.parameters]
    loss, gradients = mean_gradient(model, loss_fn, batches, parameters)
    by_parameter = dict(zip(parameters, gradients, strict=True))
    found = [torch.zeros((), dtype=torch.float64)]
    with torch.no_grad():
        for term in regularizer.current_terms():
            w, grad = term.gather(term.parameters), term.gather([by_parameter[p] for p in term.parameters])
            residual = term.penalty.residual(w, grad) / (term.penalty.current_strength or 1.0)
            found += [residual.max().double().cpu()] if residual.numel() else []
    return loss, float(torch.stack(found).max())
