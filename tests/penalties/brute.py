"""What a penalty is, said once more in plain numpy, and minimisers that know nothing of proximal maps.

A penalty is a list of blocks ``level·‖x_B‖₂ + ridge/2·‖x_B‖²``; an entry alone is a block of one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.optimize

Array = np.ndarray


@dataclass(frozen=True)
class Block:
    """Entries that share one norm."""

    entries: Array  # flat indices
    level: float
    ridge: float = 0.0
    nonnegative: bool = False
    excluded: bool = False

    def value(self, x: Array) -> float:
        """Return the penalty of the block's entries, infinite outside the constraints."""
        if (self.excluded and np.any(x != 0)) or (self.nonnegative and np.any(x < 0)):
            return float("inf")
        return float(self.level * np.sqrt(np.sum(x * x)) + self.ridge / 2 * np.sum(x * x))


def total(blocks: list[Block], x: Array) -> float:
    """Return the penalty of a whole tensor."""
    return sum(block.value(x.reshape(-1)[block.entries]) for block in blocks)


def argmin_prox(blocks: list[Block], w: Array, step: Array) -> Array:
    """Return ``argmin_x ½·Σ(x − w)²/step + penalty`` by numerical minimisation, block by block."""
    flat, steps = w.reshape(-1).astype(float), np.broadcast_to(step, w.shape).reshape(-1).astype(float)
    x = np.empty_like(flat)
    alone = [block for block in blocks if block.entries.size == 1]
    if alone:
        at = np.array([block.entries[0] for block in alone])
        x[at] = _argmin_alone(alone, flat[at], steps[at])
    for block in blocks:
        if block.entries.size > 1:
            x[block.entries] = _argmin_block(block, flat[block.entries], steps[block.entries])
    return x.reshape(w.shape)


def _argmin_alone(blocks: list[Block], w: Array, step: Array) -> Array:
    """Minimise convex functions of one number, all at once: compare two points, and drop a third."""
    wide = w.astype(np.longdouble)
    price = np.divide(1.0, step, out=np.full_like(w, 1e300), where=step > 0)

    def objective(x: Array) -> Array:
        penalty = np.array([b.level * abs(v) + b.ridge / 2 * v * v for b, v in zip(blocks, x, strict=True)])
        return (x - wide) ** 2 * price / 2 + penalty

    nonnegative = np.array([block.nonnegative for block in blocks])
    low, high = np.minimum(wide, 0.0), np.maximum(wide, 0.0)
    low = np.where(nonnegative, 0.0, low)
    zero = objective(np.zeros_like(wide))
    for _ in range(90):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        down = objective(left) <= objective(right)
        low, high = np.where(down, low, left), np.where(down, right, high)
    found = (low + high) / 2
    found = np.where(zero <= objective(found) + 1e-18, 0.0, found)
    held = np.where(nonnegative, np.maximum(w, 0.0), w)
    excluded = np.array([block.excluded for block in blocks])
    return np.where(excluded, 0.0, np.where(step == 0, held, found)).astype(float)


def _argmin_block(block: Block, w: Array, step: Array) -> Array:
    if block.excluded:
        return np.zeros_like(w)
    held = step == 0  # an infinite price on moving
    x = np.where(held, w, 0.0)
    if held.all():
        return x
    move = ~held

    def objective(free: Array) -> float:
        point = x.copy()
        point[move] = free
        return float(np.sum((free - w[move]) ** 2 / step[move]) / 2 + block.value(point))

    found = _argmin_smooth(block, objective, x, move, w[move], step[move])
    zero = np.zeros_like(found)
    x[move] = zero if objective(zero) <= objective(found) + 1e-13 else found
    return x


def _argmin_smooth(
    block: Block, objective: Callable[[Array], float], x: Array, move: Array, w: Array, step: Array
) -> Array:
    """Minimise over the entries that may move by BFGS, polished as a root of the gradient."""

    def gradient(free: Array) -> Array:
        point = x.copy()
        point[move] = free
        norm = max(float(np.linalg.norm(point)), 1e-300)
        return (free - w) / step + block.level * free / norm + block.ridge * free

    rough = scipy.optimize.minimize(objective, w * 0.7, jac=gradient, method="BFGS", options={"gtol": 1e-9})
    polished = scipy.optimize.root(gradient, rough.x, tol=1e-14)
    better = polished.x if objective(polished.x) <= rough.fun + 1e-13 else rough.x
    return np.asarray(better)


def steepest_descent(block: Block, w: Array, grad: Array) -> float:
    """Return the fastest rate at which ``⟨grad, x⟩ + penalty`` falls when one leaves ``w``, by trying.

    This is the distance of ``−grad`` to the subdifferential: zero if no direction leads down.
    """
    if block.excluded:
        return float("inf") if np.any(w != 0) else 0.0
    h = 1e-7
    axes = np.eye(w.size)
    slope = grad.astype(float)
    if np.any(w != 0):
        slope = slope + [(block.value(w + h * e) - block.value(w - h * e)) / (2 * h) for e in axes]
    best, here = 0.0, block.value(w)
    for direction in (-slope, *axes, *(-axes)):
        length = np.linalg.norm(direction)
        if length > 0:
            unit = direction / length
            best = max(best, -(float(grad @ unit) + (block.value(w + h * unit) - here) / h))
    return best
