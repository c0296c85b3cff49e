"""The proximal step, with zeros decided by the evidence of many steps instead of one noisy batch.

Each weight has one number, its *evidence* ρ.  A weight that is not zero is *alive*: it takes the ordinary
proximal step, and ρ only remembers its sign.  One that reaches zero is dead: what the optimizer would have
moved it by is, divided by the metric, the averaged gradient, and ρ adds these up in units of the strength,
drifting back towards 0 by one unit a step.  The weight returns when the sum leaves ``[−N, N]``, which noise
with a standard deviation of ``s`` strengths does with a chance of about ``exp(−2N/s²)`` and a true
gradient above the strength always does.  ρ is kept relative to N, so that N may change.

This is dual averaging in the optimizer's own metric with a finite memory of N steps.  The fixed points are
those of the proximal step.

References:
    Xiao, "Dual averaging methods for regularized stochastic learning and online optimization", J. Mach.
    Learn. Res. 11 (2010); McMahan, "Follow-the-regularized-leader and mirror descent", AISTATS (2011).
    The test for a drift: Page, "Continuous inspection schemes", Biometrika 41 (1954).
"""

import operator
from typing import Literal

import torch
from torch import Tensor

from torchlasso.errors import InputError
from torchlasso.penalties.base import Penalty
from torchlasso.prox import Kink, at_least_float32

ALIVE = 4.0
"""``|ρ|`` of a weight that is alive, to which half precision adds what rounding left of the weight."""

MARGIN = 2.0
"""How far beyond the optimizer's largest step a threshold may reach: see ``Metric.limit``."""

LEAST, FACTOR = 20.0, 16.0
"""The automatic memory is ``FACTOR`` times the square of noise over strength, and ``LEAST`` steps or more."""


MemorySteps = Literal["auto"] | int
"""How many steps of evidence a zero weighs before it moves; 0 is the plain proximal step."""


def begin(w: Tensor) -> Tensor:
    """Return the evidence of weights that are all alive.

    Args:
        w: real weights.

    Returns:
        A tensor shaped like ``w``, in float32 or wider: ``±4``.
    """
    wide = at_least_float32(w.detach())
    return torch.copysign(torch.full_like(wide, ALIVE), wide)


def is_alive(evidence: Tensor) -> Tensor:
    """Return where weights are alive."""
    return evidence.abs() > ALIVE / 2


def bounded(metric: float | Tensor, kink: Kink | None, limit: float | Tensor | None) -> float | Tensor:
    """Return ``min(D, 2·limit/slope)``, so that no threshold is beyond what the optimizer can move by.

    Groups and penalties without a kink are not bounded: see ``Metric.limit``.

    Args:
        metric: ``D``.
        kink: the penalty's form, or None.
        limit: the optimizer's largest step, or None.
    """
    if kink is None or limit is None or kink.groups is not None:
        return metric
    slope = kink.slope
    if isinstance(slope, Tensor):
        divisor = slope.clamp_min(torch.finfo(slope.dtype).tiny)
        each = torch.where(slope > 0, MARGIN * limit / divisor, torch.inf)
        return torch.minimum(torch.as_tensor(metric, dtype=slope.dtype, device=slope.device), each)
    if slope == 0:
        return metric
    most = MARGIN * limit / slope
    if isinstance(metric, Tensor):
        return metric.minimum(most) if isinstance(most, Tensor) else metric.clamp_max(most)
    return min(metric, float(most))


def shrunk_within(
    penalty: Penalty, kink: Kink | None, w: Tensor, metric: float | Tensor, limit: float | Tensor | None
) -> Tensor:
    """Return the proximal map of weights, which moves none of them by more than ``2·limit``.

    At a fixed point the proximal map undoes the optimizer's step, so a bound beyond that step changes none.

    Args:
        penalty: at the current step.
        kink: the penalty's form, or None.
        w: the weights after the optimizer's step.
        metric: ``D``.
        limit: the optimizer's largest step, or None.
    """
    if limit is None or not penalty.separable:
        return penalty.prox(w, metric)
    if kink is not None and kink.convex:
        return penalty.prox(w, bounded(metric, kink, limit))
    wide = at_least_float32(w)
    most = (MARGIN * torch.as_tensor(limit, device=w.device)).to(wide.dtype)
    if w.dtype != wide.dtype:
        most = torch.maximum(most, _unit_in_last_place(w))  # a smaller move would be rounded away for good
    shrunk = torch.maximum(torch.minimum(at_least_float32(penalty.prox(w, metric)), wide + most), wide - most)
    return penalty.with_strength(0.0).prox(shrunk.to(w.dtype), metric)  # the constraints hold in any case


def step_with_evidence(
    moved: Tensor,
    shrunk: Tensor,
    kink: Kink,
    evidence: Tensor,
    metric: float | Tensor,
    memory: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the weights and their evidence after a step.

    Args:
        moved: the weights where they are alive, and the optimizer's displacement where they are dead.
        shrunk: the proximal map of ``moved``.
        kink: the penalty's form; its slopes are λ times the weights of the penalty.
        evidence: ρ, shaped like ``moved``.
        metric: ``D`` as ``bounded`` returned it.  Where that is less than the optimizer's own, gradients are
            far below the strength, and the evidence counts at most half a unit a step.
        memory: ``N ≥ 1`` in steps, a number or a 0-d tensor.

    Returns:
        Two new tensors in the dtype of ``moved``, float32 or wider.  NaN stays NaN.
    """
    alive = is_alive(evidence)
    slope = torch.as_tensor(kink.entry_slope, dtype=moved.dtype, device=moved.device)
    unit = torch.as_tensor(metric, dtype=moved.dtype, device=moved.device) * slope  # a step's threshold
    usable = (unit != 0) & ~unit.isinf()  # NaN is, so that it shows
    # In units of the threshold: an alive weight, or the averaged gradient at a dead one over the strength.
    ratio = torch.where(usable, moved / torch.where(usable, unit, 1.0), 0.0)
    died, start = _deaths(shrunk, kink, evidence, ratio, memory)
    died &= alive & (unit > 0)
    sign = torch.copysign(torch.full_like(moved, ALIVE), torch.where(shrunk == 0, evidence, shrunk))
    new, rho = torch.where(died, 0.0, shrunk), torch.where(died, start, sign)

    drifted = kink.shrink(torch.where(alive, 0.0, evidence) + ratio / memory, 1 / memory)
    drifted = torch.where(usable, drifted, evidence)
    inside = kink.size(drifted) <= 1  # False for NaN, which must show
    back = kink.shrink(drifted, 1.0) * memory * unit
    returned = torch.copysign(torch.full_like(moved, ALIVE), drifted)
    free = slope == 0  # the strength is 0 by now: nothing holds it
    dead_w = torch.where(free, shrunk, torch.where(inside, 0.0, back))
    dead_rho = torch.where(free, sign, torch.where(inside, drifted, returned))
    return torch.where(alive, new, dead_w) + 0.0, torch.where(alive, rho, dead_rho)


def _deaths(
    after: Tensor, kink: Kink, evidence: Tensor, ratio: Tensor, memory: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Return which alive weights reached zero, and the evidence that they start with.

    They start on the side where they were, as many units inside the edge as they are beyond the threshold.
    """
    if kink.groups is None:
        side = torch.sign(evidence)
        start = side * (1 - (1 - side * ratio) / memory)
        return after * side <= 0, start.clamp(-1.0, 1.0)
    size = kink.size(ratio)
    start = ratio / torch.where(size > 0, size, 1.0) * (1 - (1 - size) / memory).clamp(0.0, 1.0)
    return kink.size(after) == 0, start


def noise(grad: Tensor, kink: Kink, evidence: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum over dead weights (groups: over their entries) of ``(grad/slope)²``, and their number.

    Args:
        grad: the gradient of one batch.
        kink: the penalty's form.
        evidence: ρ.

    Returns:
        Two 0-d tensors, to be divided by the caller where the number is not 0.
    """
    dead = ~is_alive(evidence)
    slope = torch.as_tensor(kink.entry_slope, dtype=evidence.dtype, device=evidence.device)
    dead = dead & (slope > 0) & slope.isfinite()
    square = (kink.size(grad.to(evidence.dtype)) / torch.where(slope > 0, slope, 1.0)).square()
    return torch.where(dead, square, 0.0).sum(), dead.sum()


def memory_of(noise_over_strength: float | Tensor | None, steps: int) -> float | Tensor:
    """Return the automatic memory ``N`` in steps: ``16·noise²``, at least 20, at most the steps taken.

    Args:
        noise_over_strength: the mean of ``(grad/slope)²`` over dead weights, or None if none was seen.
        steps: taken so far, at least 1.
    """
    if noise_over_strength is None:
        return float(steps)
    if isinstance(noise_over_strength, Tensor):
        measured = (FACTOR * noise_over_strength).clamp(LEAST, None).clamp_max(steps)
        return torch.where(noise_over_strength > 0, measured, float(steps))  # 0 there: none was seen
    return min(max(LEAST, FACTOR * noise_over_strength), float(steps))


def check_memory(memory: object) -> MemorySteps:
    """Return a memory that is ``"auto"`` or a whole number of steps, zero or more.

    Args:
        memory: what the user gave.

    Raises:
        InputError: it is neither.

    Example:
        >>> check_memory(100)
        100
    """
    if isinstance(memory, str) and memory == "auto":
        return "auto"
    try:
        steps = operator.index(memory)  # type: ignore[arg-type]  # what is no whole number raises
    except TypeError:
        steps = -1
    if steps < 0 or isinstance(memory, bool):
        msg = (
            "memory must be 'auto' (measured from the gradient noise) or a number of steps, 0 for the plain "
            f"proximal step; got {memory!r}"
        )
        raise InputError(msg)
    return steps


def widened(w: Tensor, evidence: Tensor) -> Tensor:
    """Return the weights in float32 with what rounding to half precision has left in the evidence.

    Args:
        w: weights in half precision, or moved by an optimizer since.
        evidence: ρ; alive weights hold ``±(4 + f)``, ``f`` in units in the last place.
    """
    rest = torch.where(is_alive(evidence), evidence.abs() - ALIVE, 0.0)
    return w.float() + rest * _unit_in_last_place(w)


def narrowed(wide: Tensor, evidence: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return weights rounded to half precision, and their evidence with what the rounding left.

    Args:
        wide: the weights in float32.
        evidence: ρ, as ``step_with_evidence`` returned it.
        dtype: of the result.
    """
    w = wide.to(dtype)
    rest = ((wide - w.float()) / _unit_in_last_place(w)).clamp(-1.0, 1.0).nan_to_num(0.0)
    rho = torch.copysign(ALIVE + rest, evidence)
    return w, torch.where(is_alive(evidence), rho, evidence)


def _unit_in_last_place(w: Tensor) -> Tensor:
    """Return the spacing of half-precision numbers at ``w``, in float32."""
    info = torch.finfo(w.dtype)
    _, exponent = torch.frexp(w.float())
    spacing = torch.ldexp(torch.full_like(exponent, info.eps, dtype=torch.float32), exponent - 1)
    return spacing.clamp_min(info.tiny * info.eps)
