"""The proximal map of total variation, exact in any diagonal metric and for all chains at once.

Where does the solution exceed a level?  For one level that is a minimal cut of a chain, which two sweeps of
messages find.  At its own mean a chain is either constant or falls apart, and its parts know on which side
their neighbours are; so a few rounds over all parts end at the exact solution.  A sweep composes functions
``clip(f + shift, low, high)``, which are closed under composition: it is a parallel scan, and a round is a
handful of tensor operations on any device.

References:
    Chambolle and Darbon, "On total variation minimization and surface evolution using parametric maximum
    flows", Int. J. Comput. Vis. 84 (2009): from level to level.
    Johnson, "A dynamic programming algorithm for the fused lasso and L0-segmentation", J. Comput. Graph.
    Stat. 22 (2013): the clipped messages.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from torchlasso.prox import Step

_LARGEST = 1e300  # a threshold beyond it acts no differently, and would overflow in sums
_FAR = 4.0  # bounds: a slope that no two neighbours can outweigh
_ROUNDING = 8 * torch.finfo(torch.float64).eps  # parts that differ by less are one


def total_variation_prox(w: Tensor, threshold: Step, dim: int = -1) -> Tensor:
    """Pull neighbours along a dimension together, until pieces of them are exactly equal.

    ``argmin_x Σ_i ½(x_i − w_i)²/t_i + Σ_i |x_{i+1} − x_i|`` on every line along ``dim``

    Args:
        w: any real tensor of at least one dimension.
        threshold: ``t ≥ 0``, a number or a tensor that broadcasts against ``w``; an entry with 0 is held.
        dim: the dimension along which neighbours are compared.

    Returns:
        A new tensor of the shape and dtype of ``w``, computed in float64.  A line with a NaN or an infinity
        is NaN.

    Example:
        >>> total_variation_prox(torch.tensor([0.0, 1.0, 5.0, 6.0]), 1.0)
        tensor([1., 1., 5., 5.])
    """
    lines = w.movedim(dim, -1)
    t = torch.as_tensor(threshold, dtype=torch.float64, device=w.device).clamp(max=_LARGEST)
    if w.numel() == 0 or not bool(t.any()):
        return w + 0.0
    t = t.expand_as(w).movedim(dim, -1)
    broken = ~(lines.isfinite() & ~t.isnan()).all(-1, keepdim=True)
    t = torch.where(broken, 0.0, t)
    largest = float(t.max())
    flat = torch.where(broken, 0.0, lines.double()).reshape(-1)
    start = torch.arange(flat.numel(), device=w.device) % lines.shape[-1] == 0
    chains = Chains(flat, (largest / t).reshape(-1), start, torch.zeros_like(flat), largest)
    solved = torch.where(broken, torch.nan, chains.solve().reshape(lines.shape))
    return solved.movedim(-1, dim).to(w.dtype) + 0.0


@dataclass(frozen=True, eq=False)
class Chains:
    """Chains laid end to end, of each ``Σ ½·price·(x − w)² + edge·x`` plus ``bound·Σ |x_{i+1} − x_i|``.

    Attributes:
        w: the points, a float64 vector.
        price: of moving an entry, positive; infinity holds it.
        start: where a chain begins, True at the first entry.
        edge: the slope from neighbours outside: ``bound`` for each that lies below, ``−bound`` above.
        bound: the strength.
    """

    w: Tensor
    price: Tensor
    start: Tensor
    edge: Tensor
    bound: float

    def solve(self) -> Tensor:
        """Return the minimiser; equal neighbours are exactly equal."""
        result, size = torch.empty_like(self.w), torch.empty_like(self.w)
        at, part = torch.arange(self.w.numel(), device=self.w.device), self
        while at.numel():
            number = part._number
            level = part._levels()[number]
            above, apart = part._cut(level)
            done = ~apart[number]
            result[at[done]] = level[done]
            size[at[done]] = part._extreme(part.w.abs(), "amax")[number][done]
            at, part = at[~done], part._parts(above, ~done)
        return self._one_where_equal(result, size)

    @property
    def _number(self) -> Tensor:
        """The number of each entry's chain."""
        return self.start.cumsum(0) - 1

    def _sum(self, values: Tensor) -> Tensor:
        """Return the sum over each chain."""
        count = int(self.start.sum())
        return values.new_zeros(count).index_add(0, self._number, values)

    def _extreme(self, values: Tensor, which: str) -> Tensor:
        """Return the largest (``"amax"``) or smallest (``"amin"``) value of each chain."""
        count = int(self.start.sum())
        return values.new_zeros(count).scatter_reduce(0, self._number, values, which, include_self=False)

    def _levels(self) -> Tensor:
        """Return the only level at which each chain can be constant, or one between its held entries."""
        reference = self.w[self.start]  # the mean is taken relative to it: a constant chain keeps its level
        held = self.price.isinf()
        price = torch.where(held, 0.0, self.price)
        pull = self._sum(torch.where(held, 0.0, price * (self.w - reference[self._number])) - self.edge)
        level = reference + pull / self._sum(price)
        if not bool(held.any()):
            return level
        low = self._extreme(torch.where(held, self.w, torch.inf), "amin")
        high = self._extreme(torch.where(held, self.w, -torch.inf), "amax")
        return torch.where(low <= high, low + (high - low) / 2, level)

    def _cut(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return which entries end above their chain's level, and which chains fall apart at it."""
        above, apart = self._side(level, 1.0)
        if bool(self.price.isinf().any()):
            # At the level of a held entry, leaving it upwards and downwards are two questions.
            below, falls = self._side(level, -1.0)
            above = torch.where(apart[self._number], above, ~below)
            apart = apart | falls
        return above, apart

    def _side(self, level: Tensor, side: float) -> tuple[Tensor, Tensor]:
        """Return the entries on one side of the level, and in which chains that is a true part."""
        far = _FAR * self.bound
        away = (self.price * (level - self.w)).clamp(-far, far)
        held = self.price.isinf() & (level == self.w)
        slope = torch.where(held, far, side * away) + side * self.edge
        end = self.start.roll(-1)
        longest = int(self._sum(torch.ones_like(slope)).max())
        from_left = _messages(slope, self.start, self.bound, longest)
        from_right = _messages(slope.flip(0), end.flip(0), self.bound, longest).flip(0)
        beyond = from_left + from_right - slope < 0
        changes = (beyond != beyond.roll(1)) & ~self.start
        cost = self._sum(torch.where(beyond, slope, 0.0) + self.bound * changes.to(slope.dtype))
        inside = self._sum((~beyond).double()) > 0
        return beyond, (cost < 0) & inside  # an empty set costs nothing

    def _parts(self, above: Tensor, chosen: Tensor) -> Self:
        """Return the parts into which the chosen chains fall where ``above`` changes."""
        change = (above != above.roll(1)) & ~self.start
        step = self.bound * torch.where(change, 2 * above.to(self.w.dtype) - 1, 0.0)
        edge = self.edge + step - step.roll(-1)  # down for the upper of the two, up for the lower
        return type(self)(
            self.w[chosen], self.price[chosen], (self.start | change)[chosen], edge[chosen], self.bound
        )

    def _one_where_equal(self, x: Tensor, size: Tensor) -> Tensor:
        """Return ``x`` with parts that only rounding tells apart made equal."""
        near = (x - x.roll(1)).abs() <= _ROUNDING * torch.maximum(size, size.roll(1))
        first = torch.where(self.start | ~near, torch.arange(x.numel(), device=x.device), 0)
        return torch.where(self.price.isinf(), self.w, x[first.cummax(0).values])


def _messages(slope: Tensor, start: Tensor, bound: float, longest: int) -> Tensor:
    """Return ``f_i = slope_i + clip(f_{i−1}, −bound, bound)``, begun anew at every start.

    Args:
        slope: of every entry.
        start: where chains begin.
        bound: of what one entry can tell the next.
        longest: chain.
    """
    shift = torch.where(start, 0.0, slope)
    low = torch.where(start, slope, slope - bound)
    high = torch.where(start, slope, slope + bound)
    reach = 1
    while reach < longest:
        # Entry i holds the composition over the `reach` entries that end at it; put the ones before first.
        s, down, up = shift[reach:], low[reach:], high[reach:]
        new_low = (low[:-reach] + s).clamp(down, up)
        new_high = (high[:-reach] + s).clamp(down, up)
        new_shift = shift[:-reach] + s
        low = torch.cat([low[:reach], new_low])
        high = torch.cat([high[:reach], new_high])
        shift = torch.cat([shift[:reach], new_shift])
        reach *= 2
    return low
