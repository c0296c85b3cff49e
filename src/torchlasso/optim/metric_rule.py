"""The metric rule: after each step of an optimizer, the proximal map in that step's metric."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchlasso.optim.metric import Memory, Metric
from torchlasso.optim.shrinkage import Shrinkage
from torchlasso.regularizer import Regularizer
from torchlasso.terms import Term, real

MetricFn = Callable[[nn.Parameter, dict[str, Any], dict[str, Any]], float | Tensor]
"""``metric(parameter, group, state)``: a user's own metric, read after each step."""


class MetricRule:
    """What happens around each step of an optimizer whose metric is known.

    Args:
        optimizer: the user's optimizer.
        shrinkage: the penalty's memory of the run.
        metric: of the optimizer, or a user's own function.
    """

    def __init__(self, optimizer: Optimizer, shrinkage: Shrinkage, metric: Metric | MetricFn) -> None:
        self.optimizer, self.shrinkage, self.metric = optimizer, shrinkage, metric
        self.memory: dict[nn.Parameter, Memory] = {}
        self.groups = groups_of(optimizer)
        self.resume()

    def resume(self) -> None:
        """Begin with an optimizer that has been running: torch may have replaced its groups and state."""
        self.groups = groups_of(self.optimizer)
        self.memory = {}
        if isinstance(self.metric, Metric):
            for parameter in self._parameters():
                state = self.optimizer.state.get(parameter)
                if state and parameter in self.groups:
                    self.memory[parameter] = self.metric.resume(self.groups[parameter], state)

    def check(self, regularizer: Regularizer) -> None:
        """Take any regularizer: every penalty has a proximal map."""

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note what the step will overwrite."""
        if sum(len(group["params"]) for group in self.optimizer.param_groups) != len(self.groups):
            self.groups = groups_of(self.optimizer)  # add_param_group was called
        if not isinstance(self.metric, Metric) or type(self.metric).before is Metric.before:
            return  # most metrics need nothing from before the step
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # it has yet to make the gradients
        for parameter in self._parameters():
            if parameter.grad is not None or closure is not None:
                memory = self.memory.setdefault(parameter, {})
                self.metric.before(self.groups[parameter], self.state(parameter), memory)

    @torch.no_grad()
    def after(self) -> None:
        """Shrink every block that the step moved."""
        self.shrink(self.shrinkage.regularizer.terms)

    def shrink(self, terms: Iterable[Term]) -> None:
        """Shrink the blocks of some terms, in torch.

        Args:
            terms: of the regularizer.
        """
        for term in terms:
            metrics = [self.displacement(parameter) for parameter in term.parameters]
            limits = [self.limit(parameter) for parameter in term.parameters]
            if any(metric is not None for metric in metrics):
                self.shrinkage.step(term, gathered(term, metrics), limits[0] if len(limits) == 1 else None)

    def displacement(self, parameter: nn.Parameter) -> float | Tensor | None:
        """Return the metric of a parameter, or None if this step left it where it was."""
        if parameter.grad is None:
            return None
        group, state = self.groups[parameter], self.state(parameter)
        if not isinstance(self.metric, Metric):
            return self.metric(parameter, group, state)
        memory = self.memory.setdefault(parameter, {})
        return self.metric.displacement(group, state, parameter.grad, memory)

    def limit(self, parameter: nn.Parameter) -> float | Tensor | None:
        """Return the largest step that the optimizer could have taken, or None if there is none."""
        if not isinstance(self.metric, Metric) or parameter.grad is None:
            return None
        return self.metric.limit(self.groups[parameter], self.memory.setdefault(parameter, {}))

    def state(self, parameter: nn.Parameter) -> dict[str, Any]:
        """Return the optimizer's state of a parameter; to index it would add an entry to a plain SGD's."""
        return dict(self.optimizer.state.get(parameter, {}))

    def _parameters(self) -> list[nn.Parameter]:
        return [p for term in self.shrinkage.regularizer.terms for p in term.parameters]


def groups_of(optimizer: Optimizer) -> dict[nn.Parameter, dict[str, Any]]:
    """Return the optimizer's group of every parameter.

    Args:
        optimizer: any torch optimizer.
    """
    return {p: group for group in optimizer.param_groups for p in group["params"]}


def gathered(term: Term, metrics: Sequence[float | Tensor | None]) -> float | Tensor:
    """Return the metrics of a block's parameters as one.

    Args:
        term: the block.
        metrics: of each parameter; None, which counts as 0, where it was not moved.
    """
    if len(metrics) == 1:
        return 0.0 if metrics[0] is None else metrics[0]
    return term.gather([_full(p, m) for p, m in zip(term.parameters, metrics, strict=True)])


def _full(parameter: nn.Parameter, metric: float | Tensor | None) -> Tensor:
    """Return a metric as a tensor shaped like its parameter (zero if the parameter did not move)."""
    if isinstance(metric, Tensor) and metric.ndim > 0:
        return metric
    like = real(parameter)
    value = 0.0 if metric is None else metric
    return torch.ones_like(like, dtype=torch.promote_types(like.dtype, torch.float32)) * value
