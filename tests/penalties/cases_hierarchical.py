"""LassoNet's penalty for the table of laws: its definition in numpy, and a search over a row's radius."""

import numpy as np

from tests.penalties.brute import Array
from tests.penalties.cases import STRENGTH
from tests.penalties.whole import Whole
from torchlasso.penalties.hierarchical import Hierarchical

Wide = np.longdouble


def value(w: Array, strength: float, bound: float, skip: int, inner: float) -> float:
    """Return the penalty of a matrix, infinite outside the bound (but for a rounding)."""
    norms = np.sqrt(np.sum(w[:, :skip] ** 2, axis=1))
    largest = np.abs(w[:, skip:]).max(axis=1, initial=0.0)
    if np.any(largest > bound * norms * (1 + 1e-12)):
        return float("inf")
    return float(strength * (norms.sum() + inner * np.abs(w[:, skip:]).sum()))


def on_sphere(theta: Array, step: Array, radius: float) -> Array:
    """Return the point of a sphere nearest to ``theta`` in a metric, by bisection of the multiplier.

    ``x = θ/(1 + d·ν)`` with ``ν ≥ −1/max d``; where that is too short, the first entry with the largest step
    and no ``θ`` takes the rest.
    """
    if theta.size == 1:
        return np.where(theta < 0, -radius, radius).astype(Wide)
    low, high = Wide(-1) / step.max(), Wide(1e12)

    def point(nu: Wide) -> Array:
        divisor = 1 + step * nu
        return np.where(theta == 0, 0.0, theta / np.where(theta == 0, 1.0, divisor))

    with np.errstate(divide="ignore"):
        if np.sum(point(low) ** 2) < radius**2:
            x = point(low)
            x[int(np.argmax(step))] = np.sqrt(radius**2 - np.sum(x**2))
            return x
        for _ in range(120):
            middle = (low + high) / 2
            longer = np.sum(point(middle) ** 2) > radius**2
            low, high = (middle, high) if longer else (low, middle)
    x = point(high)
    return x * (radius / max(np.sqrt(np.sum(x**2)), Wide(1e-300)))


def row_argmin(
    theta: Array, rest: Array, d: Array, d_rest: Array, lam: float, mu: float, bound: float
) -> Array:
    """Return the minimiser for one row: a search over ``‖x‖``, in long double.

    Entries with step 0 stay; if that breaks the bound, the others do what they can.
    """
    theta, rest, d, d_rest = (np.asarray(v, dtype=Wide) for v in (theta, rest, d, d_rest))
    moves, moves_rest = d > 0, d_rest > 0
    fixed = np.sqrt(np.sum(theta[~moves] ** 2))

    def complete(radius: Wide) -> tuple[Array, Array]:
        x, y = theta.copy(), rest.copy()
        if moves.any():
            x[moves] = on_sphere(theta[moves], d[moves], np.sqrt(max(radius**2 - fixed**2, Wide(0))))
        reach = np.maximum(np.abs(rest) - d_rest * mu, 0)
        y[moves_rest] = (np.sign(rest) * np.minimum(reach, bound * radius))[moves_rest]
        return x, y

    def objective(radius: Wide) -> Wide:
        x, y = complete(radius)
        cost = np.sum((x - theta)[moves] ** 2 / d[moves]) / 2 + lam * radius
        cost = cost + np.sum((y - rest)[moves_rest] ** 2 / d_rest[moves_rest]) / 2
        return cost + mu * np.sum(np.abs(y))

    if not moves.any():
        return np.concatenate(complete(fixed)).astype(float)
    needed = np.abs(rest) / bound if bound > 0 else np.zeros_like(rest)
    low = max([fixed, *needed[~moves_rest]])
    high = max([low, np.sqrt(np.sum(theta**2)), *needed])
    grid = np.linspace(low, high, 65)  # in case there were several valleys
    best = int(np.argmin([objective(b) for b in grid]))
    left, right = grid[max(best - 1, 0)], grid[min(best + 1, 64)]
    for _ in range(75):
        third, other = left + (right - left) / 3, right - (right - left) / 3
        left, right = (left, other) if objective(third) <= objective(other) else (third, right)
    found = (left + right) / 2
    found = low if objective(low) <= objective(found) + Wide(1e-18) else found
    return np.concatenate(complete(found)).astype(float) + 0.0


def argmin(w: Array, step: Array, strength: float, bound: float, skip: int, inner: float) -> Array:
    """Return the minimiser for every row of a matrix."""
    rows = [
        row_argmin(a[:skip], a[skip:], d[:skip], d[skip:], strength, strength * inner, bound)
        for a, d in zip(w, step, strict=True)
    ]
    return np.array(rows).reshape(w.shape)


def _case(bound: float, skip: int, inner: float, shapes: tuple[tuple[int, int], ...]) -> Whole:
    return Whole(
        name=f"hierarchical-M{bound:g}-skip{skip}-inner{inner:g}",
        build=lambda shape: Hierarchical(STRENGTH, M=bound, skip=skip, inner=inner),
        value=lambda w: value(w, STRENGTH, bound, skip, inner),
        argmin=lambda w, step: argmin(w, step, STRENGTH, bound, skip, inner),
        shapes=shapes,
        tolerance=1e-6,
        scale_free=True,
    )


# Bounds so wide that the weights of the laws lie within them; the tests of the penalty have narrow ones.
CASES = [
    _case(100.0, 1, 0.0, ((3, 4), (1, 2), (0, 4))),
    _case(100.0, 2, 0.25, ((3, 4), (0, 4))),
]
