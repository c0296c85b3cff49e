"""An L1 penalty on the output of a named layer, with the zeros and dead units that it leaves.

A forward hook adds up what the penalty and the statistics need, as tensors on the output's device, and
the host is asked for nothing before somebody reads.  What the hook does can be traced, so that it becomes
a part of a compiled model's graph.
"""

import difflib
import warnings
from collections.abc import Callable
from threading import Event
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from torchlasso.errors import InputError, RuleError
from torchlasso.penalties.base import check_strength
from torchlasso.tables import render_table


@final
class ActivationL1:
    r"""The penalty ``strength · (1/n) Σ_rows Σ_units |a|`` on the output ``a`` of one layer of a model.

    A *row* is one vector of units: a sample, or each token or pixel of it.  The sum runs over the units and
    the mean over the ``n`` rows of all passes since the last call, so the strength means the same at every
    batch size.  For outputs of two dimensions this is Keras' ``activity_regularizer``; where there are
    tokens or pixels, Keras sums over those too, and its strength is ours divided by their number.

    Add the call to the loss, after the forward pass and before ``backward()``.  It forgets the passes that
    it returned, so no graph outlives its step.  With gradient accumulation call it for each micro-batch.
    Passes in eval mode, under ``no_grad`` or of a frozen model are counted in the statistics only.

    A proximal step, which gives weights exact zeros, has no counterpart here: activations are computed
    afresh for every input.  They are exactly zero only where the layer says so, as a ReLU or a threshold
    does, so name the ReLU and not the linear layer before it.  The penalty also becomes small when this
    layer shrinks and the next one grows: bound the next one's weights (unit-norm columns, weight decay).

    Make it before the first call of a compiled model, which does not see later hooks.  Checkpointed
    segments need ``use_reentrant=False``, and break the graph of a compiled model.  Under DDP every rank
    has the mean over its own rows, and equal shards give the gradient of one process; statistics are of the
    rank.  A deep copy or a pickle of the model holds a hook that does nothing.

    Args:
        model: the module that holds the layer.
        layer: its name as in ``model.named_modules()``, or the layer itself.  Its output must be one tensor;
            pass what has no layer of its own (``F.relu(x)``, one output of an LSTM) through an
            ``nn.Identity`` and name that.
        strength: λ, a number or a function from the number of calls (0, 1, 2, …) to one.
        features: the dimension of the output that holds the units: −1 for (batch, token, unit), 1 for
            (batch, channel, height, width).  An output of two dimensions does not need it.

    Attributes:
        name: the layer's name.
        strength: as given.
        step: how many times the penalty was called; a changing strength reads it.
        removed: whether ``remove`` was called, or this is a copy.

    Raises:
        RuleError: the model has no such layer.
        InputError: the strength is no number, negative or not finite.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
        >>> activity = ActivationL1(model, "1", 0.1)
        >>> output = model(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        >>> activity()  # 0.1 · (3 + 1) / 2
        tensor(0.2000, grad_fn=<...>)
        >>> print(activity)
          layer   units   rows   nonzero a row   zeros   dead units
         ───────────────────────────────────────────────────────────
          1           2      2               1   50.0%            1
        >>> activity.remove()

    References:
        Goodfellow, Bengio and Courville, "Deep Learning", MIT Press (2016), sections 7.10 and 14.2.1.  With
        a ReLU, unit-norm decoder columns and dead units: Bricken et al., "Towards monosemanticity",
        Transformer Circuits Thread (2023).
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module,
        strength: float | Callable[[int], float],
        *,
        features: int | None = None,
    ) -> None:
        self.name, module = _find(model, layer)
        self.strength = strength if callable(strength) else _checked(strength, "strength")
        self.features = features
        self.step = 0
        self.removed = False
        self._forget()
        self.reset()
        self._hook = module.register_forward_hook(self._after_forward)

    def __call__(self) -> Tensor:
        """Return the penalty of the passes since the last call, a differentiable 0-d tensor, and forget them.

        Raises:
            InputError: there was no pass to penalise, or the hook was removed; the schedule returned a
                negative or non-finite strength.
        """
        total, rows = self._total, self._total_rows
        if total is None or rows is None:
            raise InputError(self._why_nothing())
        strength = self.strength
        if callable(strength):
            strength = _checked(strength(self.step), f"the schedule at step {self.step}")
        self.step += 1
        self._forget()
        return strength * total / rows.clamp(min=1)  # an empty batch costs nothing

    # ---- what the passes left ----------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """How many rows the statistics are of."""
        return 0 if self._seen is None else int(self._seen)

    @property
    def rate(self) -> Tensor:
        """The fraction of rows on which each unit was not zero; float64 numbers on the CPU, one a unit.

        Raises:
            InputError: no rows were seen since ``reset``.
        """
        if self._active is None or not self.rows:
            msg = f"no rows came through layer {self.name!r} since reset(); pass a batch through the model"
            raise InputError(msg)
        return self._active.cpu().double() / self.rows

    @property
    def l0(self) -> float:
        """The mean number of nonzero units a row.

        Raises:
            InputError: no rows were seen since ``reset``.
        """
        return self.rate.sum().item()

    @property
    def dead(self) -> Tensor:
        """Which units were zero on every row since ``reset``: boolean, one a unit, on the CPU.

        Raises:
            InputError: no rows were seen since ``reset``.
        """
        return self.rate == 0

    def reset(self) -> None:
        """Start the statistics afresh; the penalty is not touched."""
        self._active: Tensor | None = None
        self._seen: Tensor | None = None

    def __str__(self) -> str:
        columns = ("layer", "units", "rows", "nonzero a row", "zeros", "dead units")
        if not self.rows:
            return render_table(columns, [(self.name, None, 0, None, None, None)])
        units, l0 = self.rate.numel(), self.l0
        row = (self.name, units, f"{self.rows:,}", l0, f"{1 - l0 / units:.1%}", int(self.dead.sum()))
        return render_table(columns, [row])

    def __repr__(self) -> str:
        state = "removed" if self.removed else f"strength {self.strength}"
        return f"<ActivationL1 on {self.name!r}: {state}; print it for the statistics>"

    # ---- letting go --------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Take the hook off and forget what was not called for; the statistics stay."""
        self._hook.remove()
        self.removed = True
        self._forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy: without the graph, and with a hook that does nothing."""
        return self.__dict__ | {"removed": True, "_total": None, "_total_rows": None, "_ran": None}

    def _forget(self) -> None:
        self._total: Tensor | None = None
        self._total_rows: Tensor | None = None
        self._ran: Event | None = None

    # ---- the hook: dynamo traces it, so it only computes and assigns ---------------------------------------

    def _after_forward(self, module: nn.Module, args: object, output: object) -> None:
        if self.removed:  # a copy, or compiled in before `remove`
            return
        values = self._checked_output(output)
        total = _sum(values)
        # a checkpointed segment runs again in backward, and must save the same tensors then, but its
        # penalty was in the loss already
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            return
        rows = values.numel() // max(1, values.shape[self._unit_dim(values)])
        self._count(values, rows)
        if module.training and total.requires_grad:
            self._record(values, total, rows)

    def _count(self, values: Tensor, rows: int) -> None:
        """Add a pass to the statistics."""
        active = _active(values.detach(), self._unit_dim(values), rows)
        if self._active is None or self._seen is None:
            self._active, self._seen = active, active.new_full((), rows)
            return
        if self._active.shape != active.shape:
            msg = (
                f"the output of layer {self.name!r} had {self._active.numel()} units and now has "
                f"{active.numel()}; give each place that uses the layer one of its own"
            )
            raise InputError(msg)
        self._active, self._seen = self._active.to(active.device) + active, self._seen + rows

    def _record(self, values: Tensor, total: Tensor, rows: int) -> None:
        """Add a pass to the penalty."""
        if not torch.compiler.is_compiling():  # nothing in a compiled graph can hear of its backward
            self._drop_spent()
            self._ran = self._ran or Event()
            values.register_hook(_setter(self._ran))
        if self._total is None or self._total_rows is None:
            self._total, self._total_rows = total, torch.full((), rows, device=total.device)
        else:
            self._total = self._total.to(total.device) + total
            self._total_rows = self._total_rows.to(total.device) + rows

    def _drop_spent(self) -> None:
        """Forget passes that were in a backward without their penalty: kept, they would pile up in memory."""
        if self._ran is not None and self._ran.is_set():
            self._forget()
            message = (
                f"backward() ran before the penalty on layer {self.name!r} was called for, so it was not in "
                "the loss; use loss = criterion(...) + activity(), or activity.remove() if it is not wanted"
            )
            warnings.warn(message, stacklevel=2)

    def _checked_output(self, output: object) -> Tensor:
        """Return the layer's output if it is a tensor whose units are known."""
        if not isinstance(output, Tensor):
            msg = (
                f"the output of layer {self.name!r} must be one tensor, got {type(output).__name__}; pass "
                "the tensor that you mean through an nn.Identity of its own and name that layer"
            )
            raise InputError(msg)
        ndim, features = output.ndim, self.features
        if features is None and ndim != 2:
            msg = (
                f"the output of layer {self.name!r} has shape {tuple(output.shape)}; say which dimension "
                "holds the units: features=-1 for (batch, token, unit), features=1 for (batch, channel, ...)"
            )
            raise InputError(msg)
        if features is not None and not -ndim <= features < ndim:
            shape = tuple(output.shape)
            msg = f"the output of layer {self.name!r} has shape {shape} and no dimension {features} of units"
            raise InputError(msg)
        return output

    def _unit_dim(self, values: Tensor) -> int:
        return values.ndim - 1 if self.features is None else self.features % values.ndim

    def _why_nothing(self) -> str:
        if self.removed:
            return f"the penalty on layer {self.name!r} was removed; make a new ActivationL1"
        return (
            f"no pass to penalise came through layer {self.name!r} since the last call: call it once after "
            "each forward pass in training mode with gradients; leave it out of validation losses, make it "
            "before the first call of a compiled model, and checkpoint with use_reentrant=False"
        )


def _find(model: object, layer: object) -> tuple[str, nn.Module]:
    """Return the name and the module of a layer given by either."""
    if not isinstance(model, nn.Module):
        msg = f"ActivationL1 expects a model (nn.Module) first, got {type(model).__name__}"
        raise InputError(msg)
    modules = dict(model.named_modules(remove_duplicate=False))
    if isinstance(layer, nn.Module):
        for name, module in modules.items():
            if module is layer:
                return name, module
        msg = f"this {type(layer).__name__} is no part of the model {type(model).__name__}"
        raise RuleError(msg)
    if not isinstance(layer, str):
        msg = f"layer must be the name of a submodule or the submodule, got {type(layer).__name__}"
        raise InputError(msg)
    if layer in modules:
        return layer, modules[layer]
    names = [name for name in modules if name]
    near = difflib.get_close_matches(layer, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "it has: " + ", ".join(names[:12])
    msg = f"the model {type(model).__name__} has no layer {layer!r}; {hint}"
    raise RuleError(msg)


def _checked(strength: object, source: str) -> float:
    """Return a strength as a number; no fraction such as ``"0.1max"``, as there is no largest one here."""
    if isinstance(strength, str):
        msg = f"{source} must be a number or a function of the step for activations, got {strength!r}"
        raise InputError(msg)
    return check_strength(strength, source)


def _sum(values: Tensor) -> Tensor:
    """Return ``Σ|a|`` in float32 or wider, differentiable, with slope 0 at 0."""
    sizes = values.abs()  # before the conversion: a complex number has a modulus
    wide = torch.promote_types(sizes.dtype, torch.float32)
    return sizes.sum(dtype=wide)


def _active(values: Tensor, dim: int, rows: int) -> Tensor:
    """Return on how many rows each unit is not zero."""
    nonzero = values.ne(0).movedim(dim, -1)
    return nonzero.reshape(rows, nonzero.shape[-1]).sum(0, dtype=torch.int32).long()  # int64 sums are slow


def _setter(ran: Event) -> Callable[[Tensor], None]:
    """Return a gradient hook that sets ``ran``; it holds nothing else, so that no graph holds itself."""
    return lambda grad: ran.set()
