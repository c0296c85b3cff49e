"""The rule of the fused optimizers: their step and the proximal step in one pass over memory."""

from abc import abstractmethod
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from torchlasso.optim.evidence import MARGIN
from torchlasso.optim.kernels.cpu import adam_step, sgd_step
from torchlasso.optim.kernels.library import available
from torchlasso.optim.kernels.table import usable
from torchlasso.optim.metric import Metric
from torchlasso.optim.metric_rule import MetricRule
from torchlasso.optim.rows import PenaltyRows
from torchlasso.optim.shrinkage import Shrinkage
from torchlasso.terms import Term


class FusedRule(MetricRule):
    """Takes the optimizer's step and the proximal step together where the C library can.

    Args:
        optimizer: a ``ProxAdamW`` or ``ProxSGD``.
        shrinkage: the penalty's memory of the run.
        metric: of the optimizer.
    """

    def __init__(self, optimizer: Optimizer, shrinkage: Shrinkage, metric: Metric) -> None:
        self._rows: PenaltyRows | None = None
        self._waiting: list[nn.Parameter] = []
        self._built_for: object = None
        super().__init__(optimizer, shrinkage, metric)

    def resume(self) -> None:
        """Begin anew with the optimizer's state, which torch may have replaced."""
        super().resume()
        self._built_for = None

    @torch.no_grad()
    def take(self) -> None:
        """Take a step of the optimizer; what the rows hold is shrunk in it, the rest by ``after``."""
        if self._stale():
            self._build()
        if self._rows is not None:
            self._step_rows(self._rows)
        taken = set() if self._rows is None else set(self._rows.parameters)
        for group in self.optimizer.param_groups:
            rest = [p for p in group["params"] if p.grad is not None and p not in taken]
            if rest:
                self.torch_step({**group, "params": rest})

    @torch.no_grad()
    def after(self) -> None:
        """Shrink the blocks that the rows do not hold."""
        terms = self.shrinkage.regularizer.terms
        if self.shrinkage.frozen is None and self._rows is not None:
            terms = tuple(term for term in terms if term not in self._held)
        self.shrink(terms)

    def _stale(self) -> bool:
        key = (self.shrinkage.regularizer, self.shrinkage.frozen is None, len(self.groups))
        return key != self._built_for or any(p.grad is not None for p in self._waiting)

    def _build(self) -> None:
        frozen = self.shrinkage.frozen is not None
        self._built_for = (self.shrinkage.regularizer, not frozen, len(self.groups))
        numbered = [(p, n) for n, g in enumerate(self.optimizer.param_groups) for p in g["params"]]
        able = [(p, n) for p, n in numbered if available() and usable(p.detach()) and not p.is_complex()]
        self._waiting = [p for p, _ in able if p.grad is None and not self.optimizer.state.get(p)]
        rows = [(p, n) for p, n in able if p.grad is None or not p.grad.is_sparse]
        rows = [(p, n) for p, n in rows if p.grad is not None or self.optimizer.state.get(p)]
        for parameter, number in rows:
            self.begin(self.optimizer.param_groups[number], parameter)
        rows = [(p, n) for p, n in rows if usable(p.detach(), *self.averages(p))]
        self._rows = None
        self._held: set[Term] = set()
        if rows:
            parameters, numbers = [p for p, _ in rows], [n for _, n in rows]
            self._rows = PenaltyRows(parameters, numbers, self.shrinkage, penalised=not frozen)
            self._held = {term for term in self._rows.terms if term is not None}

    def _step_rows(self, rows: PenaltyRows) -> None:
        grads = rows.point_gradients()
        rows.fill()
        self.step_rows(rows, np.array([g is not None for g in grads]))
        if rows.looks:
            rows.look()

    @abstractmethod
    def begin(self, group: dict[str, Any], parameter: nn.Parameter) -> None:
        """Give a parameter the optimizer's state, as torch would at its first step."""

    @abstractmethod
    def averages(self, parameter: nn.Parameter) -> list[Tensor]:
        """Return the parameter's state tensors that are shaped like it."""

    @abstractmethod
    def step_rows(self, rows: PenaltyRows, moved: Any) -> None:
        """Take the step of the rows that have a gradient."""

    @abstractmethod
    def torch_step(self, group: dict[str, Any]) -> None:
        """Take torch's own step on parameters that the library cannot take."""


@final
class AdamRule(FusedRule):
    """The step of AdamW."""

    optimizer: AdamW

    def begin(self, group: dict[str, Any], parameter: nn.Parameter) -> None:
        """Let torch make the state."""
        if parameter.grad is not None:
            self.optimizer._init_group({**group, "params": [parameter]}, *([] for _ in range(6)))

    def averages(self, parameter: nn.Parameter) -> list[Tensor]:
        """Return the moments."""
        state = self.optimizer.state[parameter]
        return [t for key, t in state.items() if key != "step"]

    def step_rows(self, rows: PenaltyRows, moved: Any) -> None:
        """Take the step."""
        states = [self.optimizer.state[p] for p in rows.parameters]
        columns = (("m", "exp_avg"), ("v", "exp_avg_sq"), ("vmax", "max_exp_avg_sq"), ("step", "step"))
        for column, key in columns:
            rows.table.point(column, [state.get(key) for state in states])
        groups = self.optimizer.param_groups
        rates = np.array([MARGIN * float(group["lr"]) for group in groups])
        rows.table.rows["limit"] = rates[rows.table.rows["group"]]
        adam_step(rows.table, groups, decoupled=True, noise=rows.looks)

    def torch_step(self, group: dict[str, Any]) -> None:
        """Take torch's own step."""
        weights, grads, means, squares, largest, steps = lists = [list[Tensor]() for _ in range(6)]
        has_complex = self.optimizer._init_group(group, *lists)
        beta1, beta2 = group["betas"]
        adam(
            *(weights, grads, means, squares, largest, steps),
            foreach=group["foreach"],
            capturable=group["capturable"],
            fused=group["fused"],
            has_complex=has_complex,
            decoupled_weight_decay=True,
            amsgrad=group["amsgrad"],
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )


@final
class SGDRule(FusedRule):
    """The step of SGD with momentum."""

    optimizer: SGD

    def begin(self, group: dict[str, Any], parameter: nn.Parameter) -> None:
        """Make room for the momentum buffer; torch's begins as the first gradient."""

    def averages(self, parameter: nn.Parameter) -> list[Tensor]:
        """Return the momentum buffer, if there is one."""
        buffer = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
        return [] if buffer is None else [buffer]

    def step_rows(self, rows: PenaltyRows, moved: Any) -> None:
        """Take the step."""
        table, groups = rows.table, self.optimizer.param_groups
        momentum = np.array([group["momentum"] for group in groups])[table.rows["group"]]
        with_buffer = moved & (momentum != 0)
        buffers: list[Tensor | None] = []
        for row, parameter in enumerate(rows.parameters):
            buffers.append(self._buffer(table.rows, row, parameter) if with_buffer[row] else None)
        table.point("m", buffers)
        moves = zip(rows.parameters, rows.terms, moved, strict=True)
        table.rows["metric"] = [self.displacement(p) if term and there else 0.0 for p, term, there in moves]
        sgd_step(table, groups, noise=rows.looks)

    def _buffer(self, columns: Any, row: int, parameter: nn.Parameter) -> Tensor:
        state = self.optimizer.state[parameter]
        buffer = state.get("momentum_buffer")
        columns["fresh"][row] = buffer is None
        if buffer is None:
            buffer = state["momentum_buffer"] = torch.empty_like(parameter, requires_grad=False)
        found: Tensor = buffer
        return found

    def torch_step(self, group: dict[str, Any]) -> None:
        """Take torch's own step."""
        parameters: list[Tensor] = []
        grads: list[Tensor] = []
        buffers: list[Tensor | None] = []
        sparse = self.optimizer._init_group(group, parameters, grads, buffers)
        keys = ("weight_decay", "momentum", "lr", "dampening", "nesterov", "maximize", "foreach", "fused")
        sgd(parameters, grads, buffers, has_sparse_grad=sparse, **{key: group[key] for key in keys})
        if group["momentum"] != 0:
            for parameter, buffer in zip(parameters, buffers, strict=True):
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
