"""The metric rule, with the penalties on single entries taken by the C library in one pass."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchlasso.optim.evidence import MARGIN
from torchlasso.optim.kernels.cpu import shrink, shrink_adam
from torchlasso.optim.kernels.table import wide_dtype
from torchlasso.optim.metric import Metric
from torchlasso.optim.metric_adam import AdamMetric
from torchlasso.optim.metric_rule import MetricFn, MetricRule
from torchlasso.optim.rows import PenaltyRows, is_fusable
from torchlasso.optim.shrinkage import Shrinkage
from torchlasso.terms import Term


class FastRule(MetricRule):
    """A metric rule that computes the same as its parent, faster where the C library can.

    Args:
        optimizer: the user's optimizer.
        shrinkage: the penalty's memory of the run.
        metric: of the optimizer, or a user's own function.
    """

    def __init__(self, optimizer: Optimizer, shrinkage: Shrinkage, metric: Metric | MetricFn) -> None:
        super().__init__(optimizer, shrinkage, metric)
        self._rows: PenaltyRows | None = None
        self._built_for: object = None

    @torch.no_grad()
    def after(self) -> None:
        """Shrink every block that the step moved."""
        if self.shrinkage.frozen is not None:
            super().after()
            return
        if self._built_for is not self.shrinkage.regularizer or self._point_weights():
            self._build()
            self._point_weights()
        if self._rows is not None:
            self._shrink_rows(self._rows)
        self.shrink(self._others)

    def _build(self) -> None:
        terms = self.shrinkage.regularizer.terms
        self._built_for = self.shrinkage.regularizer
        fused = [term for term in terms if is_fusable(term)]
        self._others: list[Term] = [term for term in terms if term not in fused]
        parameters = [term.parameters[0] for term in fused]
        numbers = {id(group): number for number, group in enumerate(self.optimizer.param_groups)}
        groups = [numbers[id(self.groups[p])] for p in parameters]
        self._rows = PenaltyRows(parameters, groups, self.shrinkage) if fused else None

    def resume(self) -> None:
        """Begin with an optimizer that has been running: torch may have replaced its groups and state."""
        super().resume()
        self._built_for = None

    def _point_weights(self) -> bool:
        """Point at what the step moved, and return whether a weight has another type or layout by now."""
        if self._rows is None:
            return False
        moved = [p.detach() if p.grad is not None else None for p in self._rows.parameters]
        return bool(self._rows.table.point("w", moved))

    def _shrink_rows(self, rows: PenaltyRows) -> None:
        rows.fill()
        grads = rows.point_gradients() if rows.looks else []
        if not isinstance(self.metric, AdamMetric) or not self._shrink_adam(rows):
            self._shrink_in(rows)
        if rows.looks:
            rows.look()
        del grads  # the copies among them had to last until here

    def _shrink_adam(self, rows: PenaltyRows) -> bool:
        """Let the library read Adam's own state, and return whether it can."""
        groups = self.optimizer.param_groups
        states = [self.optimizer.state.get(p, {}) for p in rows.parameters]
        rows.table.rows["limit"] = [MARGIN * float(self.groups[p]["lr"]) for p in rows.parameters]
        amsgrad = [self.groups[p]["amsgrad"] for p in rows.parameters]
        maxima = [s.get("max_exp_avg_sq") if on else None for s, on in zip(states, amsgrad, strict=True)]
        refused = rows.table.point("vmax", maxima)
        for column, key in (("v", "exp_avg_sq"), ("step", "step")):
            refused += rows.table.point(column, [state.get(key) for state in states])
        if refused:
            return False
        shrink_adam(rows.table, groups, noise=rows.looks)
        return True

    def _shrink_in(self, rows: PenaltyRows) -> None:
        """Compute the metric in torch and hand it over."""
        metrics: list[Any] = [self.displacement(p) for p in rows.parameters]
        limits = [self.limit(p) for p in rows.parameters]
        rows.table.rows["limit"] = [torch.inf if limit is None else MARGIN * float(limit) for limit in limits]
        wide = [isinstance(metric, Tensor) and metric.ndim > 0 for metric in metrics]
        rows.table.rows["metric"] = [
            0.0 if metric is None or w else float(metric) for metric, w in zip(metrics, wide, strict=True)
        ]
        pairs = zip(rows.parameters, metrics, wide, strict=True)
        rows.table.point("d", [_laid_out(p, metric) if w else None for p, metric, w in pairs])
        shrink(rows.table, noise=rows.looks)


def _laid_out(parameter: nn.Parameter, metric: Tensor) -> Tensor:
    """Return a metric in the memory layout of its parameter, copied only if it has another."""
    dtype = wide_dtype(parameter.dtype)
    if metric.dtype == dtype and metric.shape == parameter.shape and metric.stride() == parameter.stride():
        return metric
    return torch.empty_like(parameter, dtype=dtype, requires_grad=False).copy_(metric)
