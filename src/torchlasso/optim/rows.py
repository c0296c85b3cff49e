"""Penalties on single entries as columns of the table that the C library walks over."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchlasso.optim.evidence import FACTOR, LEAST
from torchlasso.optim.kernels.library import available
from torchlasso.optim.kernels.table import Table, usable
from torchlasso.optim.shrinkage import Shrinkage
from torchlasso.prox import Kink
from torchlasso.terms import Term


class PenaltyRows:
    """A table with one row a parameter, and the penalty of those that have one.

    Args:
        parameters: what the rows are, each taken by ``usable``.
        groups: the number of each parameter's group in the optimizer.
        shrinkage: the penalty's memory of the run.
        penalised: False leaves all rows without a penalty.

    Attributes:
        table: the table.
        terms: the term of each row, or None.
        penalised: where a row has a term.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        groups: Sequence[int],
        shrinkage: Shrinkage,
        *,
        penalised: bool = True,
    ) -> None:
        self.shrinkage, self.parameters = shrinkage, list(parameters)
        numbers, places = np.unique(np.array(groups, dtype=np.int64), return_inverse=True)
        self._groups, self._group_of = numbers.tolist(), places
        terms = shrinkage.regularizer.terms if penalised else ()
        by_parameter = {t.parameters[0]: t for t in terms if is_fusable(t)}
        self.terms = [by_parameter.get(p) for p in parameters]
        self.table = Table([p.detach() for p in parameters], groups)
        units = [None if t is None else unit_kink(t) for t in self.terms]
        self._unit = np.array([0.0 if k is None or isinstance(k.slope, Tensor) else k.slope for k in units])
        self._weighted = np.array([k is not None and isinstance(k.slope, Tensor) for k in units])
        self._unit[self._weighted] = 1.0
        self._ridge = np.array([0.0 if k is None else ridge_share(k) for k in units])
        self._epsilon = np.array([0.0 if k is None else k.epsilon or 0.0 for k in units])
        self._gamma = np.array([0.0 if k is None else k.gamma or 0.0 for k in units])
        self.table.rows["nonnegative"] = [k is not None and k.nonnegative for k in units]
        pairs = zip(parameters, units, strict=True)
        self._c = [laid_out(p, k.slope) if k and isinstance(k.slope, Tensor) else None for p, k in pairs]
        self.table.point("c", self._c)
        self.penalised = np.array([t is not None for t in self.terms])
        self._changing = any(t is not None and callable(t.penalty.strength) for t in self.terms)
        self._filled = False
        self._noise: np.ndarray[tuple[int], np.dtype[np.float64]] | None = None
        self._noise_from: object = None
        self._rho: list[Tensor | None] = []
        self._looked_up: tuple[int, int] | None = None
        self._states: list[dict[str, Any]] | None = None

    def fill(self) -> None:
        """Set the columns of the penalty for the coming step."""
        shrinkage, rows = self.shrinkage, self.table.rows
        if self._changing or not self._filled:
            strengths = [t.penalty.at(shrinkage.steps).current_strength if t else 0.0 for t in self.terms]
            rows["slope"] = self._unit * strengths
            rows["ridge"] = self._ridge * strengths
            rows["epsilon"] = self._epsilon
            rows["knee"] = self._gamma * rows["slope"]
            self._filled = True
        stretch = np.array(shrinkage.pace.each(self._groups))[self._group_of]
        rows["memory"] = np.where(self.penalised, self._memory() * stretch, 0.0)
        evidence = self._evidence()
        refused = self.table.point("rho", evidence)
        for row in refused:  # it began with weights of another type or layout, or was saved with them
            parameter, known = self.parameters[row], evidence[row]
            assert known is not None  # a null pointer is never refused
            evidence[row] = ours = laid_out(parameter, known)
            self.shrinkage.lay_out(parameter, ours)
        if refused:
            self.table.point("rho", evidence)

    def point_gradients(self) -> list[Tensor | None]:
        """Point at the gradients; what is sparse or laid out otherwise than its weights is copied.

        Returns:
            What the table points at, to be kept until it has been walked.
        """
        grads = [
            p.grad.to_dense() if p.grad is not None and p.grad.is_sparse else p.grad for p in self.parameters
        ]
        refused = self.table.point("g", grads)
        for row in refused:
            grad = grads[row]
            assert grad is not None  # a null pointer is never refused
            grads[row] = torch.empty_like(self.parameters[row], requires_grad=False).copy_(grad)
        if refused:
            self.table.point("g", grads)
        return grads

    @property
    def looks(self) -> bool:
        """Whether this step is to measure the gradient noise."""
        return self.shrinkage.looks and bool(self.penalised.any())

    def look(self) -> None:
        """Take the noise that the step measured into its running average."""
        self._noise = None
        rows = self.table.rows
        for row in np.flatnonzero(self.penalised & (rows["dead"] > 0)):
            term = self.terms[row]
            if term is not None:
                self.shrinkage.look(
                    term.name, torch.tensor(rows["noise"][row]), torch.tensor(int(rows["dead"][row]))
                )

    def _memory(self) -> "float | np.ndarray[tuple[int], np.dtype[np.float64]]":
        taken = self.shrinkage.steps + 1
        if self.shrinkage.memory != "auto":
            return float(min(self.shrinkage.memory, taken))
        if self._noise is None or self._noise_from is not self.shrinkage.noise:
            self._noise_from = seen = self.shrinkage.noise
            self._noise = np.array(
                [np.inf if t is None else float(seen.get(t.name, np.inf)) for t in self.terms]
            )
        return np.minimum(np.maximum(LEAST, FACTOR * self._noise), taken)

    def _evidence(self) -> list[Tensor | None]:
        """Return ρ of each row; it is looked up again only when it was restored, or another was begun."""
        everything = self.shrinkage.evidence
        if self._looked_up != (id(everything), len(everything)):
            pairs = zip(self.parameters, self.terms, strict=True)
            self._rho = [everything.get(p) if term is not None else None for p, term in pairs]
            self._looked_up = (id(everything), len(everything))
        return self._rho

    def states(self, optimizer: Optimizer) -> list[dict[str, Any]]:
        """Return the optimizer's state of each row.

        Args:
            optimizer: whose table this is; a state that it loads needs a new table.
        """
        if self._states is None:
            self._states = [optimizer.state[p] for p in self.parameters]
        return self._states


def is_fusable(term: Term) -> bool:
    """Return whether the C library can take a term's proximal step.

    Args:
        term: any term.
    """
    if not available() or len(term.members) > 1:
        return False
    parameter = term.parameters[0]
    if parameter.is_complex() or not usable(parameter.detach()):
        return False
    kink = unit_kink(term)
    if kink is None or kink.groups is not None or not kink.everywhere:
        return False
    return not isinstance(kink.slope, Tensor) or bool((kink.slope > 0).any())


def unit_kink(term: Term) -> Kink | None:
    """Return the form of a term's penalty at strength 1."""
    parameter = term.parameters[0].detach()
    like = torch.empty((), dtype=torch.promote_types(parameter.dtype, torch.float32)).expand(parameter.shape)
    return term.penalty.with_strength(1.0).kink(like)


def ridge_share(kink: Kink) -> float:
    """Return the ridge at strength 1, as a multiple of the slope where that is a tensor."""
    if not isinstance(kink.slope, Tensor):
        return float(kink.ridge)
    finite = (kink.slope > 0) & kink.slope.isfinite()
    if not bool(finite.any()):
        return 0.0
    ridge = torch.as_tensor(kink.ridge).expand_as(kink.slope)
    return float(ridge[finite][0] / kink.slope[finite][0])


def laid_out(parameter: nn.Parameter, slope: Tensor) -> Tensor:
    """Return the penalty's weights in the memory layout of the parameter."""
    wide = torch.promote_types(parameter.dtype, torch.float32)
    return torch.empty_like(parameter, dtype=wide, requires_grad=False).copy_(slope)
