"""The parameters of a fused optimizer that are on a CUDA device, with their penalties, as tables."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchlasso.optim.kernels.gpu import Table, adam_step, sgd_step, usable
from torchlasso.optim.kernels.table import wide_dtype
from torchlasso.optim.metric import Memory
from torchlasso.optim.rows import laid_out, ridge_share, unit_kink
from torchlasso.optim.shrinkage import NOISE_EVERY, Shrinkage
from torchlasso.terms import Term


class DeviceRows:
    """Parameters of one dtype on one device, with the penalty of those that have one.

    Args:
        optimizer: a ``ProxAdamW`` or ``ProxSGD``, with a state for each parameter that needs one.
        parameters: what the rows are, each taken by ``usable``, on one device and of one dtype.
        groups: the number of each parameter's group in the optimizer.
        shrinkage: the penalty's memory of the run; its noise becomes a view of the table's.
        penalised: False leaves all rows without a penalty.

    Attributes:
        table: the table.
        terms: the term of each row, or None.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Sequence[nn.Parameter],
        groups: Sequence[int],
        shrinkage: Shrinkage,
        *,
        penalised: bool = True,
    ) -> None:
        self.optimizer, self.parameters, self.shrinkage = optimizer, list(parameters), shrinkage
        terms = shrinkage.regularizer.terms if penalised else ()
        by_parameter = {t.parameters[0]: t for t in terms if is_fusable(t)}
        self.terms = [by_parameter.get(p) for p in parameters]
        self.table = Table([p.detach() for p in parameters], groups)
        self._running: set[int] = set()  # rows whose momentum has been pointed at
        self._point_penalties()
        self.table.clock.fill_(shrinkage.steps)
        for row, term in enumerate(self.terms):
            if term is not None and shrinkage.memory == "auto":
                self.table.noise[row] = shrinkage.noise.get(term.name, 0.0)
                shrinkage.noise[term.name] = self.table.noise[row]

    def _point_penalties(self) -> None:
        units = [None if t is None else unit_kink(t) for t in self.terms]
        slopes = [0.0 if k is None else k.slope for k in units]
        self._slope = np.array([1.0 if isinstance(slope, Tensor) else slope for slope in slopes])
        self._ridge = np.array([0.0 if k is None else ridge_share(k) for k in units])
        self._changing = any(t is not None and callable(t.penalty.strength) for t in self.terms)
        self._filled = False
        self.table.rows["nonnegative"] = [k is not None and k.nonnegative for k in units]
        memory = np.inf if self.shrinkage.memory == "auto" else float(self.shrinkage.memory)
        self.table.rows["memory"] = [0.0 if t is None else memory for t in self.terms]
        pairs = zip(self.parameters, slopes, strict=True)
        self.table.point("c", [laid_out(p, s) if isinstance(s, Tensor) else None for p, s in pairs])

    def point_adam(self) -> bool:
        """Point at AdamW's state, and return whether the kernels can step on all of it."""
        states = [self.optimizer.state.get(p, {}) for p in self.parameters]
        for state in states:
            if isinstance(state.get("step"), Tensor):  # where torch has it for capturable optimizers
                state["step"] = state["step"].to(self.table.device, torch.float32)
        groups = self.optimizer.param_groups
        extreme = [groups[group]["amsgrad"] for group in self.table.groups]
        columns: dict[str, list[Tensor | None]] = {
            "w": [p.detach() for p in self.parameters],
            "m": [s.get("exp_avg") for s in states],
            "v": [s.get("exp_avg_sq") for s in states],
            "step": [s.get("step") for s in states],
            "vmax": [s.get("max_exp_avg_sq") if e else None for s, e in zip(states, extreme, strict=True)],
        }
        lacking = [
            tensor is None and (name != "vmax" or e)
            for name, column in columns.items()
            for tensor, e in zip(column, extreme, strict=True)
        ]
        refused = [row for name, column in columns.items() for row in self.table.point(name, column)]
        return not refused and not any(lacking)

    def point_sgd(self, memories: dict[nn.Parameter, Memory]) -> bool:
        """Point at the momentum buffers, made where they are missing, and return whether all of them fit.

        Args:
            memories: what the metric remembers; the momentum's gain in it becomes a view of the table's.
        """
        moves = zip(self.parameters, self.table.groups, strict=True)
        buffers = [self._buffer(row, p, group, memories) for row, (p, group) in enumerate(moves)]
        refused = self.table.point("w", [p.detach() for p in self.parameters])
        return not refused and not self.table.point("m", buffers)

    def _buffer(
        self, row: int, parameter: nn.Parameter, group: int, memories: dict[nn.Parameter, Memory]
    ) -> Tensor | None:
        if parameter.grad is None or self.optimizer.param_groups[group]["momentum"] == 0:
            return None
        state = self.optimizer.state[parameter]
        buffer: Tensor | None = state.get("momentum_buffer")
        # Without a term here the metric may be read elsewhere, and then counts for itself.
        memory = {} if self.terms[row] is None else memories.setdefault(parameter, {})
        gain, there = memory.get("gain"), self.table.gain[row]
        if buffer is None:
            buffer, gain = torch.zeros_like(parameter, requires_grad=False), 0.0
            state["momentum_buffer"] = buffer
        elif gain is None:
            gain = there if row in self._running else 1.0  # a running buffer must not begin anew
        self._running.add(row)
        if not isinstance(gain, Tensor) or gain.data_ptr() != there.data_ptr():
            memory["gain"] = there.fill_(gain)
        return buffer

    def step_adam(self) -> None:
        """Take the step of AdamW."""
        self._fill()
        adam_step(self.table, self.optimizer.param_groups, decoupled=True, **self._signals())

    def step_sgd(self) -> None:
        """Take the step of SGD."""
        self._fill()
        sgd_step(self.table, self.optimizer.param_groups, **self._signals())

    def _fill(self) -> None:
        """Point at the gradients and the evidence, and set the strengths of the coming step."""
        table, shrinkage = self.table, self.shrinkage
        table.rows["stretch"] = shrinkage.pace.each(table.groups.tolist())
        grads = [
            p.grad.to_dense() if p.grad is not None and p.grad.is_sparse else p.grad for p in self.parameters
        ]
        self._grads = self._point("g", grads)  # kept, as the device may yet have to read them
        evidence = [
            None if t is None else shrinkage.evidence.get(p)
            for p, t in zip(self.parameters, self.terms, strict=True)
        ]
        for parameter, known in zip(self.parameters, self._point("rho", evidence), strict=True):
            if known is not None:
                shrinkage.evidence[parameter] = known
        if self._changing or not self._filled:
            strengths = [t.penalty.at(shrinkage.steps).current_strength if t else 0.0 for t in self.terms]
            table.rows["slope"], table.rows["ridge"] = self._slope * strengths, self._ridge * strengths
            self._filled = True

    def _point(self, column: str, tensors: list[Tensor | None]) -> list[Tensor | None]:
        """Point at tensors, at copies of those that are laid out otherwise than their weights."""
        refused = self.table.point(column, tensors)
        for row in refused:
            tensor, parameter = tensors[row], self.parameters[row]
            assert tensor is not None  # a null pointer is never refused
            dtype = parameter.dtype if column == "g" else wide_dtype(parameter.dtype)
            tensors[row] = torch.empty_like(parameter, dtype=dtype, requires_grad=False).copy_(tensor)
        if refused:
            self.table.point(column, tensors)
        return tensors

    def _signals(self) -> dict[str, Any]:
        """Return how often to look at the noise, and what a ``GradScaler`` has set on the optimizer."""
        signals = {key: getattr(self.optimizer, key, None) for key in ("found_inf", "grad_scale")}
        return {"look_every": NOISE_EVERY, **signals}


def rows_on_devices(
    optimizer: Optimizer,
    numbered: Sequence[tuple[nn.Parameter, int]],
    shrinkage: Shrinkage,
    *,
    penalised: bool,
) -> list[DeviceRows]:
    """Return parameters as tables, one for each device and dtype.

    Args:
        optimizer: whose parameters these are.
        numbered: each parameter with the number of its group.
        shrinkage: the penalty's memory of the run.
        penalised: False leaves all rows without a penalty.
    """
    kinds: dict[Any, list[tuple[nn.Parameter, int]]] = {}
    for parameter, number in numbered:
        kinds.setdefault((parameter.device, parameter.dtype), []).append((parameter, number))
    return [
        DeviceRows(optimizer, [p for p, _ in rows], [n for _, n in rows], shrinkage, penalised=penalised)
        for rows in kinds.values()
    ]


def is_fusable(term: Term) -> bool:
    """Return whether the kernels can take a term's proximal step.

    Args:
        term: any term.
    """
    if len(term.members) > 1 or not usable(term.parameters[0].detach()):
        return False
    kink = unit_kink(term)
    if kink is None or kink.groups is not None or not kink.convex:
        return False
    return not isinstance(kink.slope, Tensor) or bool((kink.slope > 0).any())
