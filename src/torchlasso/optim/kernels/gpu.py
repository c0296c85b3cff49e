"""Optimizer steps with their proximal step on a CUDA device, over a whole table of tensors at once.

One launch for all tensors of a dtype, with one before it that works out the scalars of each row and one
after it that counts the step.  Everything that changes from step to step (counters, bias corrections, the
momentum's gain, the gradient noise and the memory that follows from it) lives on the device, so that the host
never waits for it and a captured CUDA graph goes on correctly when it is replayed.

These kernels have been run in Triton's interpreter and compiled for the device, but not yet run on one.
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchlasso.optim.evidence import FACTOR, LEAST, MARGIN
from torchlasso.optim.kernels.mirror import Mirror
from torchlasso.optim.kernels.table import wide_dtype

ParamGroups = Sequence[Mapping[str, Any]]

_BLOCK = 1024  # entries of a chunk
_ROWS = 128  # rows that one program prepares
_SMOOTHING = 0.9  # of the gradient noise's average, as Shrinkage has it
_ALIGNMENT = 16  # bytes that the device moves at once
_EMPTY = _ALIGNMENT  # for a tensor without entries, whose address is 0: that would mean that there is none
_OPTIONS = {"enable_fp_fusion": False}  # the numbers of the CPU's library, and of any version of Triton
_READY = 22  # scalars of a row that gpu_scalars.py works out

_POINTERS = ("w", "g", "m", "v", "vmax", "c", "rho", "step", "lr")
_SETTINGS = ("lr", "beta1", "beta2", "eps", "weight_decay", "momentum", "dampening")
_SWITCHES = ("decoupled", "maximize", "nesterov")
_PENALTY = ("slope", "ridge", "memory", "nonnegative", "stretch")
_POINTER_ROW = np.dtype([(name, np.int64) for name in _POINTERS])
_NUMBER_ROW = np.dtype([(name, np.float64) for name in (*_SETTINGS, *_SWITCHES, *_PENALTY)])
_WIDE, _SCALAR = frozenset({"c", "rho"}), frozenset({"step", "lr"})
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@cache
def available() -> bool:
    """Return whether Triton is there; torch's builds for CUDA bring it.

    Example:
        >>> available() == (find_spec("triton") is not None)
        True
    """
    return find_spec("triton") is not None


@cache
def interpreted() -> bool:
    """Return whether Triton interprets its kernels (``TRITON_INTERPRET=1``), which works on CPU tensors."""
    if not available():
        return False
    from triton import knobs

    return bool(knobs.runtime.interpret)


def usable(w: Tensor, *others: Tensor | None) -> bool:
    """Return whether the kernels can step on weights and on what goes with them in their own dtype.

    Args:
        w: weights: on a CUDA device, in a floating-point type, dense in memory in any order.
        others: gradients or averages, with the memory layout of ``w``.

    Example:
        >>> usable(torch.zeros(3, dtype=torch.complex64))
        False
    """
    if not available() or not (w.is_cuda or interpreted()) or w.dtype not in _DTYPES:
        return False
    if w.layout != torch.strided or torch.empty_like(w, device="meta").stride() != w.stride():
        return False
    fitting = all(_fits("w", t, w) and t.device == w.device for t in (w, *others) if t is not None)
    return fitting and _works_on(w.device)


@cache
def _works_on(device: torch.device) -> bool:
    """Try a step on a device once, and return whether it came out right."""
    w, grad = torch.tensor([1.0, 0.25, -1.0], device=device), torch.zeros(3, device=device)
    table = Table([w], [0])
    table.rows["slope"] = 1.0
    table.point("g", [grad])
    keys = ("weight_decay", "momentum", "dampening", "nesterov", "maximize")
    try:
        sgd_step(table, [{"lr": 0.5} | dict.fromkeys(keys, 0.0)])
        return w.tolist() == [0.5, 0.0, -0.5]
    except Exception as error:  # a device too old, no compiler for the launcher: Triton has many reasons
        message = f"the fused step on {device} cannot be used ({error}); torch's own step is taken instead"
        warnings.warn(message, stacklevel=2)
        return False


class Table:
    """Rows of tensors of one dtype on one device, built once and pointed anew at each step.

    The columns of ``rows`` that are for the caller to assign are those of the CPU's table: ``slope``,
    ``ridge``, ``nonnegative`` and ``memory``.  The memory is infinite where it is to follow from the gradient
    noise, and never more than the steps taken; ``stretch``, 1 at first, multiplies it.  The largest threshold
    is twice the learning rate under Adam.

    Args:
        weights: one tensor a row, each of which ``usable`` takes.
        groups: the number of each tensor's group in the optimizer.

    Attributes:
        rows: the numbers of each row, in NumPy.
        noise: the average of ``(grad/slope)²`` over dead weights, a tensor of one entry a row; 0 before any
            was seen.
        gain: of the momentum, a tensor of one entry a row; 0 before the first step.
        clock: the number of steps taken, a tensor of one entry.
    """

    def __init__(self, weights: Sequence[Tensor], groups: Sequence[int]) -> None:
        first = weights[0]
        self.device, self.dtype, self.groups = first.device, first.dtype, np.array(groups)
        self.rows = np.zeros(len(weights), _NUMBER_ROW)
        self.rows["stretch"] = 1.0
        self._pointers = np.zeros(len(weights), _POINTER_ROW)
        self._likes = [torch.empty_like(w, device="meta") for w in weights]
        counts = [-(-w.numel() // _BLOCK) for w in weights]
        chunks = [
            (row, start, w.numel()) for row, w in enumerate(weights) for start in range(0, w.numel(), _BLOCK)
        ]
        ends = np.cumsum(counts)
        there: dict[str, Any] = {"device": self.device}
        self.chunks = torch.tensor(chunks, dtype=torch.int64, **there).view(-1, 3)
        self.spans = torch.tensor(np.stack([ends - counts, ends], 1), dtype=torch.int64, **there)
        wide = wide_dtype(self.dtype)
        self.sums = torch.zeros(len(chunks), 2, dtype=wide, **there)
        self.ready = torch.zeros(len(weights), _READY, dtype=wide, **there)
        self.state = torch.zeros(len(weights), 2, dtype=torch.float64, **there)
        self.clock = torch.zeros(1, dtype=torch.int64, **there)
        self.noise, self.gain = self.state.unbind(1)
        self._pointers_there, self._numbers_there = Mirror(self.device), Mirror(self.device)
        self._held: dict[str, list[Tensor | None]] = {}
        self.point("w", weights)

    def point(self, column: str, tensors: Sequence[Tensor | None]) -> list[int]:
        """Point a column at tensors, and return the rows whose tensor is refused.

        A refused tensor has another dtype, device or memory layout than the weights; its pointer is null, as
        it is for None, and a step leaves a row without a gradient alone.  Gradients are not kept alive.

        Args:
            column: ``w``, ``g`` (gradients), ``m``, ``v``, ``vmax`` (the optimizer's averages), ``step`` (its
                counters, float32 on the device), ``lr`` (float32 on the device), ``rho`` (the evidence) or
                ``c`` (the penalty's weights).  The last two are in float32, or float64 for float64 weights.
            tensors: one a row, or None.
        """
        pairs = enumerate(zip(tensors, self._likes, strict=True))
        refused = [
            row
            for row, (t, like) in pairs
            if t is not None and not (t.device == self.device and _fits(column, t, like))
        ]
        pointers = [0 if t is None else t.data_ptr() or _EMPTY for t in tensors]
        for row in refused:
            pointers[row] = 0
        self._pointers[column] = pointers
        if column != "g":  # to keep gradients would keep their memory
            self._held[column] = list(tensors)
        return refused

    def on_device(self) -> tuple[Tensor, Tensor]:
        """Return the pointers and the numbers, sent to the device if they have changed."""
        pointers = self._pointers.view(np.int64).reshape(len(self.rows), -1)
        numbers = self.rows.view(np.float64).reshape(len(self.rows), -1)
        return self._pointers_there.send(pointers), self._numbers_there.send(numbers)

    @property
    def alignment(self) -> int:
        """The number of bytes that every pointer is a multiple of: 16 unless some tensor is a view."""
        pointers = [self._pointers[name] for name in _POINTERS if name not in _SCALAR]
        return _ALIGNMENT if all((p % _ALIGNMENT == 0).all() for p in pointers) else self.dtype.itemsize


def adam_step(
    table: Table,
    param_groups: ParamGroups,
    *,
    decoupled: bool,
    frozen: bool = False,
    look_every: int = 0,
    found_inf: Tensor | None = None,
    grad_scale: Tensor | None = None,
) -> None:
    """Take a step of ``torch.optim.Adam`` or ``AdamW`` and its proximal step, in place.

    Needs the columns ``w, g, m, v, step`` (``vmax`` where amsgrad is on), adds 1 to the counters and uses the
    metric ``D = lr/(√v̂ + ε)``.  A learning rate that is a tensor is read on the device.

    Args:
        table: the tensors.
        param_groups: the optimizer's own.
        decoupled: whether the weight decay is AdamW's.
        frozen: zeros stay zero, and nothing is shrunk; constraints hold.
        look_every: steps between two looks at the gradient noise; 0 for none.
        found_inf: one float32 entry on the device; unless it is 0 nothing moves and nothing is counted.
        grad_scale: one float32 entry on the device, by which the gradients are divided.
    """
    rows = _settled(table, param_groups)
    betas = np.array([[float(beta) for beta in group["betas"]] for group in param_groups])[table.groups]
    rows["beta1"], rows["beta2"] = betas.T
    rows["eps"], rows["decoupled"] = _each(table, param_groups, "eps"), decoupled
    _launch(table, True, frozen, look_every, found_inf, grad_scale)


def sgd_step(
    table: Table,
    param_groups: ParamGroups,
    *,
    frozen: bool = False,
    look_every: int = 0,
    found_inf: Tensor | None = None,
    grad_scale: Tensor | None = None,
) -> None:
    """Take a step of ``torch.optim.SGD`` and its proximal step, in place.

    Needs the columns ``w, g``, and ``m`` with momentum; where ``gain`` is 0 the momentum buffer begins as the
    gradient.  The metric is the learning rate times what the momentum makes of a constant unit gradient.

    Args:
        table: the tensors.
        param_groups: the optimizer's own.
        frozen: as in ``adam_step``.
        look_every: as in ``adam_step``.
        found_inf: as in ``adam_step``.
        grad_scale: as in ``adam_step``.
    """
    rows = _settled(table, param_groups)
    for name in ("momentum", "dampening", "nesterov"):
        rows[name] = _each(table, param_groups, name)
    _launch(table, False, frozen, look_every, found_inf, grad_scale)


def _settled(table: Table, param_groups: ParamGroups) -> Any:
    """Fill in what both optimizers have, and return the rows."""
    rates = [group["lr"] for group in param_groups]
    there = [_rate_on(table.device, rate) for rate in rates]
    table.point("lr", [there[group] for group in table.groups])
    numbers = [0.0 if t is not None else float(rate) for t, rate in zip(there, rates, strict=True)]
    table.rows["lr"] = np.array(numbers)[table.groups]
    for name in ("weight_decay", "maximize"):
        table.rows[name] = _each(table, param_groups, name)
    return table.rows


def _each(table: Table, param_groups: ParamGroups, key: str) -> Any:
    return np.array([float(group[key]) for group in param_groups])[table.groups]


def _rate_on(device: torch.device, rate: float | Tensor) -> Tensor | None:
    """Return a learning rate that lives on the device as float32, or None."""
    if not isinstance(rate, Tensor) or rate.device != device:
        return None
    return rate.to(torch.float32)


def _launch(
    table: Table,
    adam: bool,
    frozen: bool,
    look_every: int,
    found_inf: Tensor | None,
    grad_scale: Tensor | None,
) -> None:
    import triton.language as tl

    from torchlasso.optim.kernels.gpu_scalars import conclude, prepare
    from torchlasso.optim.kernels.gpu_steps import step

    count, chunks = len(table.rows), len(table.chunks)
    types = [getattr(tl, str(d).removeprefix("torch.")) for d in (table.dtype, wide_dtype(table.dtype))]
    with _current(table.device):
        pointers, numbers = table.on_device()
        prepare[(-(-count // _ROWS),)](
            *(pointers, numbers, table.state, table.clock, table.ready, found_inf, grad_scale, count),
            *(adam, look_every, MARGIN, LEAST, FACTOR, _ROWS),
            **_OPTIONS,
        )
        if chunks:
            step[(chunks,)](
                *(pointers, table.ready, table.chunks, table.sums),
                *(*types, adam, frozen, table.alignment, _BLOCK),
                **_OPTIONS,
            )
        conclude[(count,)](
            *(table.state, table.clock, table.ready, table.spans, table.sums, found_inf),
            *(_SMOOTHING, _BLOCK),
            **_OPTIONS,
        )


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which a device is the current one: Triton launches on that."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _fits(column: str, tensor: Tensor, like: Tensor) -> bool:
    """Return whether a column can point at a tensor, up to the device it is on."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return False
    if column in _SCALAR:
        return tensor.dtype == torch.float32 and tensor.numel() == 1
    wanted = wide_dtype(like.dtype) if column in _WIDE else like.dtype
    if tensor.dtype != wanted or tensor.shape != like.shape or tensor.is_neg():
        return False
    return tensor.numel() == 0 or all(
        a == b or n == 1 for a, b, n in zip(tensor.stride(), like.stride(), like.shape, strict=True)
    )
