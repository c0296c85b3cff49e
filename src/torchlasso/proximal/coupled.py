"""Proximal maps in a diagonal metric for penalties that have a closed form for a number only.

And the closed form of one of them: the soft threshold of singular values.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchlasso.prox import at_least_float32

ScalarProx = Callable[[Tensor, float], Tensor]
"""``prox(v, step) = argmin_x ½·‖x − v‖²/step + R(x)`` for a step that is one number."""

_MEMORY = 10  # steps that the extrapolation looks back on; 20 saved a fifth of the steps and no time
_ROUNDS = 2000  # the worst of 3000 random metrics of up to nine decades needed 314
_FIRST_WAIT = 10.0  # rounds before the step is looked at
_LOOK_AGAIN = 5.0  # rounds after a look that changed nothing
_PROGRESS = 0.3  # of the residual between two looks, with which the step is left alone
_UNEVEN = 10.0  # ratio of the two residuals beyond which the step changes
_MOST = 100.0  # change of the step at once
_GROWTH = 2.0  # of the residual, beyond which an extrapolation is taken back
_TOLERANCE = {torch.float64: 1e-9}  # of the way from w to the result
_NARROW_TOLERANCE = 1e-6


def singular_value_threshold(w: Tensor, threshold: float | Tensor) -> Tensor:
    """Shrink every singular value of a matrix by ``threshold``, and to exactly zero within it.

    ``argmin_X ½‖X − W‖² + t·Σ σ_i(X)``, that is ``U·max(S − t, 0)·Vᵀ`` with ``W = U·S·Vᵀ``

    Args:
        w: a real matrix.
        threshold: ``t ≥ 0``, one number.

    Returns:
        A new matrix of the shape and dtype of ``w``, zero if all singular values are, and all NaN if an entry
        is NaN or infinite.

    Example:
        >>> singular_value_threshold(torch.diag(torch.tensor([3.0, 1.0])), 2.0)
        tensor([[1., 0.],
                [0., 0.]])

    References:
        Cai, Candès and Shen, "A singular value thresholding algorithm for matrix completion",
        SIAM J. Optim. 20 (2010).
    """
    if w.numel() == 0:
        return w + 0.0
    wide = at_least_float32(w)
    if not bool(wide.isfinite().all()):
        return torch.full_like(w, torch.nan)
    u, s, vt = torch.linalg.svd(wide, full_matrices=False)
    alive = ~(s <= threshold)  # NaN counts as alive, so that it shows
    shrunk: Tensor = (u[:, alive] * (s - threshold)[alive]) @ vt[alive]
    return shrunk.to(w.dtype) + 0.0


def prox_in_metric(w: Tensor, step: Tensor, prox: ScalarProx) -> Tensor:
    """Return ``argmin_x Σ ½(x − w)²/d + R(x)`` from the proximal map of ``R`` for a constant step.

    Douglas-Rachford splitting, extrapolated from its last ten iterates (Anderson acceleration).  Its step
    begins at the geometric mean of ``d``, and changes where that leaves one residual far behind.  What is
    returned came out of ``prox``, so it has that map's exact zeros or ranks.  It stops at a bound on the
    distance to the minimiser: a subgradient of ``R`` is known at each iterate, and the objective is strongly
    convex in the metric.

    Args:
        w: any real tensor.
        step: ``d ≥ 0``, a tensor that broadcasts against ``w``; an entry with 0 keeps its ``w`` to the last
            bit, which what ``prox`` made around it only fits within the tolerance.
        prox: of ``R``.

    Returns:
        A new tensor of the shape and dtype of ``w``, computed in float64.  Without held entries none is off
        by more than 1e-9 of the longest way from ``w`` (1e-6 for narrower dtypes) beyond rounding, unless
        2000 applications of ``prox`` were not enough: then it is the last iterate.  All NaN where anything
        is NaN or infinite.

    References:
        Douglas-Rachford: Eckstein and Bertsekas, Math. Program. 55 (1992).  Its acceleration: Fu, Zhang and
        Boyd, "Anderson accelerated Douglas-Rachford splitting", SIAM J. Sci. Comput. 42 (2020).
    """
    point = w.detach().double()
    d = step.double().expand_as(point)
    if not bool((point.isfinite() & d.isfinite()).all()):
        return torch.full_like(w, torch.nan)
    held = d == 0
    if bool(held.all()):
        return w + 0.0
    found = _split(point, d, prox, w.dtype)
    return torch.where(held, w, found.to(w.dtype)) + 0.0


def _split(w: Tensor, d: Tensor, prox: ScalarProx, dtype: torch.dtype) -> Tensor:
    """Return the last point that ``prox`` made on the way to the minimiser."""
    positive = d[d > 0]
    longest, step = float(positive.max()), math.exp(float(positive.log().mean()))
    tolerance = _TOLERANCE.get(dtype, _NARROW_TOLERANCE)
    size, narrow, wide = float(w.abs().max()), torch.finfo(dtype).eps, torch.finfo(w.dtype)
    s, before, path, mark = w, w, _Path(), math.inf
    wait = look = _FIRST_WAIT
    for k in range(1, _ROUNDS + 1):
        x = (step * w + d * s) / (step + d)
        z = prox(2 * x - s, step)
        move = z - x
        # z is the exact minimiser of a problem whose linear part is off by (z − x)·(1/d − 1/step); in the
        # metric's norm it is no further off than that.
        weight = torch.where(d > 0, (1 / d.sqrt() - d.sqrt() / step).abs() * math.sqrt(longest), 1.0)
        rounding = size * max(narrow, 8 * wide.eps * float(weight.max())) + wide.tiny
        if float((weight * move).norm()) <= tolerance * float((z - w).abs().max()) + rounding:
            break
        slope = (s - x) / step
        factor = 1.0
        if not path.astray(move):
            if k >= look:
                if path.best > _PROGRESS * mark:
                    factor = _imbalance(x, z, before, step * slope)
                mark, look = path.best, k + _LOOK_AGAIN
            before = z
        if factor == 1.0:
            s = path.next(s, move)
        else:
            step, wait, path = step * factor, 1.5 * wait, _Path()  # less and less often, so that it settles
            s, look = z + step * slope, k + wait
    return z


def _imbalance(x: Tensor, z: Tensor, before: Tensor, dual: Tensor) -> float:
    """Return the factor by which a step should change, 1 if it need not.

    Args:
        x: the point of the quadratic.
        z: the point of the penalty, which should be ``x``.
        before: the last one, which should be ``z``.
        dual: the step times the slope at ``x``.

    References:
        Relative residuals: Wohlberg, "ADMM penalty parameter selection by residual balancing",
        arXiv 1704.06209.
    """
    tiny = torch.finfo(x.dtype).tiny
    apart = max(float((z - x).norm()) / max(float(x.norm()), float(z.norm()), tiny), tiny)
    restless = float((z - before).norm()) / max(float(dual.norm()), tiny)
    if apart <= _UNEVEN * restless and restless <= _UNEVEN * apart:
        return 1.0
    return min(max(math.sqrt(restless / apart), 1 / _MOST), _MOST)


@dataclass
class _Path:
    """The last points of a fixed-point iteration ``s ← s + move``, and where they lead.

    Attributes:
        points: as vectors.
        moves: from each.
        plain: where the step without extrapolation would have led from the last point, or None.
        best: the smallest norm of a move.
    """

    points: list[Tensor] = field(default_factory=list)
    moves: list[Tensor] = field(default_factory=list)
    plain: Tensor | None = None
    best: float = math.inf

    def astray(self, move: Tensor) -> bool:
        """Return whether an extrapolation led to a point that is clearly worse.

        Args:
            move: from that point.
        """
        return float(move.norm()) > _GROWTH * self.best

    def next(self, s: Tensor, move: Tensor) -> Tensor:
        """Return the next point.

        Args:
            s: the current one.
            move: from it.
        """
        if self.astray(move) and self.plain is not None:
            back, self.plain = self.plain, None
            self.points.clear()
            self.moves.clear()
            return back
        self.best = min(self.best, float(move.norm()))
        self.points = [*self.points[-_MEMORY:], s.reshape(-1)]
        self.moves = [*self.moves[-_MEMORY:], move.reshape(-1)]
        self.plain = s + move
        if len(self.points) == 1:
            return self.plain
        changes = torch.stack(self.moves, 1).diff(dim=1)
        steps = torch.stack(self.points, 1).diff(dim=1) + changes
        products = changes.T @ changes
        ridge = 1e-12 * products.diagonal().max() + torch.finfo(s.dtype).tiny
        products = products + ridge * torch.eye(len(products), dtype=s.dtype, device=s.device)
        weights = torch.linalg.solve(products, changes.T @ move.reshape(-1))
        extrapolated: Tensor = self.plain - (steps @ weights).reshape(s.shape)
        return extrapolated
