"""Penalties that are no sum of norms: a definition in numpy, and an independent way to the minimiser."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.penalties.brute import Array
from torchlasso.penalties.base import Penalty

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Whole:
    """A penalty, and the same thing in plain numpy.

    Attributes:
        name: shown as the test's id.
        build: returns the penalty for tensors of a shape, at a strength of 0.75 if it has one.
        value: its definition at a float64 array of a shape, infinite outside the constraints.
        argmin: ``argmin_x ½·Σ(x − w)²/step + value(x)`` for arrays, by a way that is not the package's own;
            ``step`` has the shape of ``w``, may hold zeros, and is constant unless ``metric`` is True.
        shapes: where it is legal.
        metric: whether an elementwise step is part of the contract.
        tolerance: of the prox in float64 against ``argmin``.
        zeroes: whether a huge step takes every entry to zero.
        scale_free: whether ``prox(a·w, a·step) = a·prox(w, step)`` (homogeneous of degree one).
        has_slope: whether zero is stationary for small gradients, up to ``strength_max``.
        constraint: whether it has no strength: its prox is a projection.
    """

    name: str
    build: Callable[[Shape], Penalty]
    value: Callable[[Array], float]
    argmin: Callable[[Array, Array], Array]
    shapes: tuple[Shape, ...]
    metric: bool = True
    tolerance: float = 1e-7
    zeroes: bool = True
    scale_free: bool = False
    has_slope: bool = True
    constraint: bool = False

    def __repr__(self) -> str:
        return self.name
