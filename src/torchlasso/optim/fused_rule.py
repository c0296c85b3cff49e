"""The rule of the fused optimizers: their step and the proximal step in one pass over memory."""

from abc import abstractmethod
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from torchlasso.optim.evidence import MARGIN
from torchlasso.optim.gpu_rule import DeviceRows, rows_on_devices
from torchlasso.optim.kernels import gpu
from torchlasso.optim.kernels.cpu import adam_step, sgd_step
from torchlasso.optim.kernels.library import available
from torchlasso.optim.kernels.table import usable
from torchlasso.optim.metric import Memory, Metric
from torchlasso.optim.metric_rule import MetricRule, groups_of
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
        self._there: list[DeviceRows] = []  # what is on a device that Triton can step on
        self._waiting: list[nn.Parameter] = []
        self._built_for: object = None
        self._removed = False
        super().__init__(optimizer, shrinkage, metric)

    def resume(self) -> None:
        """Begin anew with the optimizer's state, which torch may have replaced."""
        super().resume()
        self._built_for = None

    def remove(self) -> None:
        """Go on as torch's own optimizer."""
        self._removed, self._built_for = True, None

    @_disable_dynamo  # a compiled step breaks its graph here
    @torch.no_grad()
    def take(self) -> None:
        """Take a step of the optimizer; what the rows hold is shrunk in it, the rest by ``after``."""
        if self._stale():
            self._build()
        if self._rows is not None:
            self._step_rows(self._rows)
        for rows in self._there:
            self.step_there(rows)
        for number, parameters in self._rest.items():
            group, rest = self.optimizer.param_groups[number], [p for p in parameters if p.grad is not None]
            if rest:
                self.torch_step({**group, "params": rest})

    @torch.no_grad()
    def after(self) -> None:
        """Shrink the blocks that the rows do not hold."""
        self.shrinkage.grad_scale = getattr(
            self.optimizer, "grad_scale", None
        )  # torch's divide the gradients
        self.shrink(self.shrinkage.regularizer.terms if self.shrinkage.frozen is not None else self._unheld)

    def _stale(self) -> bool:
        count = sum(len(group["params"]) for group in self.optimizer.param_groups)
        key = (self.shrinkage.regularizer, self.shrinkage.frozen is None, count)
        if key != self._built_for or any(p.grad is not None for p in self._waiting):
            return True
        # A model may change its type or memory format at any time.
        rows = self._rows
        if rows is not None and rows.table.point("w", rows.parameters):
            return True
        return not all(self.point_there(rows) for rows in self._there)

    def _build(self) -> None:
        frozen, self.groups = self.shrinkage.frozen is not None, groups_of(self.optimizer)
        self._built_for = (self.shrinkage.regularizer, not frozen, len(self.groups))
        numbered = [(p, n) for n, g in enumerate(self.optimizer.param_groups) for p in g["params"]]
        able = [(p, n) for p, n in numbered if not p.is_complex() and _takes(p.detach())]
        self._waiting = [p for p, _ in able if p.grad is None and not self.optimizer.state.get(p)]
        rows = [(p, n) for p, n in able if p.grad is None or not p.grad.is_sparse]
        rows = [(p, n) for p, n in rows if p.grad is not None or self.optimizer.state.get(p)]
        for parameter, number in rows:
            self.begin(self.optimizer.param_groups[number], parameter)
        rows = [(p, n) for p, n in rows if self.ready(self.optimizer.param_groups[n], p)]
        here = [(p, n) for p, n in rows if available() and usable(p.detach())]
        self._rows = None
        held: set[Term | None] = set()
        penalised = not frozen and not self._removed
        at_home = {p for p, _ in here}
        away = [(p, n) for p, n in rows if p not in at_home]
        self._there = rows_on_devices(self.optimizer, away, self.shrinkage, penalised=penalised)
        for there in self._there:
            self.point_there(there)
            held.update(there.terms)
        if here:
            parameters, numbers = [p for p, _ in here], [n for _, n in here]
            self._rows = PenaltyRows(parameters, numbers, self.shrinkage, penalised=penalised)
            held.update(self._rows.terms)
        self._unheld = [term for term in self.shrinkage.regularizer.terms if term not in held]
        taken = at_home.union(*(there.parameters for there in self._there))
        self._rest: dict[int, list[nn.Parameter]] = {}
        for parameter, number in numbered:
            if parameter not in taken:
                self._rest.setdefault(number, []).append(parameter)

    def _step_rows(self, rows: PenaltyRows) -> None:
        grads = rows.point_gradients()
        moved = np.array([grad is not None for grad in grads])
        if not self.point_state(rows, moved):
            self._build()  # somebody has replaced the optimizer's state
            if self._rows is not None:
                self._step_rows(self._rows)
            return
        rows.fill()
        self.step_rows(rows, moved)
        if rows.looks:
            rows.look()

    @abstractmethod
    def begin(self, group: dict[str, Any], parameter: nn.Parameter) -> None:
        """Give a parameter the optimizer's state, as torch would at its first step."""

    @abstractmethod
    def ready(self, group: dict[str, Any], parameter: nn.Parameter) -> bool:
        """Return whether the library can step on a parameter's state."""

    @abstractmethod
    def point_state(self, rows: PenaltyRows, moved: Any) -> bool:
        """Point at the optimizer's state, and return whether the library can step on all of it."""

    @abstractmethod
    def step_rows(self, rows: PenaltyRows, moved: Any) -> None:
        """Take the step of the rows that have a gradient."""

    @abstractmethod
    def point_there(self, rows: DeviceRows) -> bool:
        """Point at the optimizer's state on a device, and return whether the kernels can take all of it."""

    @abstractmethod
    def step_there(self, rows: DeviceRows) -> None:
        """Take the step of the rows on a device that have a gradient."""

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

    def ready(self, group: dict[str, Any], parameter: nn.Parameter) -> bool:
        """Return whether the moments are laid out like the weights, and the counter is in float32."""
        state = self.optimizer.state[parameter]
        keys = ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))
        if any(key not in state for key in keys) or state["step"].dtype != torch.float32:
            return False
        return _takes(parameter.detach(), *(state[key] for key in keys))

    def point_state(self, rows: PenaltyRows, moved: Any) -> bool:
        """Point at the moments and the counters."""
        states = rows.states(self.optimizer)
        if self.optimizer.state.get(rows.parameters[0]) is not states[0]:
            return False
        refused = []
        for column, key in (("m", "exp_avg"), ("v", "exp_avg_sq"), ("step", "step")):
            refused += rows.table.point(column, [state[key] for state in states])
        if any(group["amsgrad"] for group in self.optimizer.param_groups):
            on = [self.groups[p]["amsgrad"] for p in rows.parameters]
            maxima = [s["max_exp_avg_sq"] if o else None for s, o in zip(states, on, strict=True)]
            refused += rows.table.point("vmax", maxima)
        return not refused

    def step_rows(self, rows: PenaltyRows, moved: Any) -> None:
        """Take the step."""
        groups = self.optimizer.param_groups
        rates = np.array([MARGIN * float(group["lr"]) for group in groups])
        rows.table.rows["limit"] = rates[rows.table.rows["group"]]
        adam_step(rows.table, groups, decoupled=True, noise=rows.looks)

    def point_there(self, rows: DeviceRows) -> bool:
        """Point at the moments and the counters."""
        return rows.point_adam()

    def step_there(self, rows: DeviceRows) -> None:
        """Take the step."""
        rows.step_adam()

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

    def ready(self, group: dict[str, Any], parameter: nn.Parameter) -> bool:
        """Return whether the momentum buffer, if there is one, is laid out like the weights."""
        return _takes(parameter.detach(), self.optimizer.state.get(parameter, {}).get("momentum_buffer"))

    def point_state(self, rows: PenaltyRows, moved: Any) -> bool:
        """Point at the momentum buffers, and make those that are missing."""
        table, groups = rows.table, self.optimizer.param_groups
        momentum = np.array([group["momentum"] for group in groups])[table.rows["group"]]
        wanted = moved & (momentum != 0)
        states = [self.optimizer.state[p] if w else {} for p, w in zip(rows.parameters, wanted, strict=True)]
        buffers = [state.get("momentum_buffer") for state in states]
        if table.point("m", buffers):
            return False
        table.rows["fresh"] = wanted & np.array([buffer is None for buffer in buffers])
        fresh = np.flatnonzero(table.rows["fresh"])
        for row in fresh:
            like = rows.parameters[row]
            buffers[row] = states[row]["momentum_buffer"] = torch.empty_like(like, requires_grad=False)
        if len(fresh):
            table.point("m", buffers)
        return True

    def step_rows(self, rows: PenaltyRows, moved: Any) -> None:
        """Take the step."""
        table, groups = rows.table, self.optimizer.param_groups
        table.rows["metric"] = self._metrics(rows, moved)
        sgd_step(table, groups, noise=rows.looks)

    def _metrics(self, rows: PenaltyRows, moved: Any) -> list[float]:
        """Return the metric of every row; it is the same for all of a group that remember the same."""
        known: dict[Any, tuple[float, Memory]] = {}
        metrics = [0.0] * len(rows.parameters)
        for row in np.flatnonzero(moved & rows.penalised):
            parameter = rows.parameters[row]
            memory = self.memory.setdefault(parameter, {})
            key = (int(rows.table.rows["group"][row]), *memory.values())
            if key not in known:
                displacement = self.displacement(parameter)
                known[key] = (0.0 if displacement is None else float(displacement), dict(memory))
            metrics[row], after = known[key]
            memory.update(after)
        return metrics

    def point_there(self, rows: DeviceRows) -> bool:
        """Point at the momentum buffers."""
        return rows.point_sgd(self.memory)

    def step_there(self, rows: DeviceRows) -> None:
        """Take the step."""
        rows.step_sgd()

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


def _takes(w: Tensor, *others: Tensor | None) -> bool:
    """Return whether the C library, or Triton on a device, can step on weights and what goes with them."""
    return (available() and usable(w, *others)) or gpu.usable(w, *others)
