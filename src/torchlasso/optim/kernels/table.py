"""The table that the C library walks over: one row a tensor, in chunks that its threads share."""

from collections.abc import Sequence
from functools import partial
from operator import is_

import numpy as np
import torch
from torch import Tensor, nn

CHUNK = 32_768
"""Entries of a chunk: long enough to read memory in order, short enough to share a tensor evenly."""

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_POINTERS = ("w", "g", "m", "v", "vmax", "c", "rho", "d", "step")
_WIDE = frozenset({"c", "rho", "d"})  # columns in the type of the arithmetic

_Like = tuple[torch.Size, tuple[int, ...], torch.dtype]  # shape, stride and dtype of a row's weights

# The layouts of steps.c.
_ROW = np.dtype(
    [(name, np.int64) for name in (*_POINTERS, "n")]
    + [(name, np.float64) for name in ("slope", "ridge", "knee", "epsilon", "limit", "memory", "metric")]
    + [(name, np.int32) for name in ("dtype", "group", "nonnegative", "fresh")]
    + [(name, np.float64) for name in ("step_size", "root", "noise")]
    + [("dead", np.int64)],
    align=True,
)
_CHUNK = np.dtype(
    [(name, np.int64) for name in ("row", "start", "length")] + [("noise", np.float64), ("dead", np.int64)],
    align=True,
)
_SETTINGS = np.dtype(
    [(name, np.float64) for name in ("lr", "beta1", "beta2", "eps", "weight_decay", "momentum", "dampening")]
    + [(name, np.int32) for name in ("decoupled", "maximize", "nesterov")],
    align=True,
)


class Table:
    """Rows of tensors, built once and pointed anew at each step.

    The columns of ``rows`` that are no pointers are for the caller to assign:

    - ``slope``, ``ridge``: λa and λb of a penalty ``Σ c·(slope·|w| + ridge·w²/2)``; 0 at first.
    - ``knee``: where the slope has fallen to 0 in a straight line, in units of ``c``, as that of the minimax
      concave penalty does; 0, at first: it does not fall.
    - ``epsilon``: where the slope has halved as that of the log-sum penalty does; 0, at first: it does not.
    - ``limit``: the largest threshold ``D·slope·c``; infinite at first.
    - ``memory``: ``N`` in steps for rows with evidence; 0, the plain proximal step, at first.
    - ``metric``: the scalar ``D`` where the metric is one.
    - ``nonnegative``: 1 where the weights are held at zero or above.
    - ``fresh``: 1 where the momentum buffer begins with this gradient.
    - ``noise``, ``dead``: results, see ``cpu.py``.

    Args:
        weights: one tensor a row, each of which ``usable`` takes.
        groups: the number of each tensor's group in the optimizer.

    Example:
        >>> table = Table([torch.zeros(3), torch.zeros(2, 2)], [0, 0])
        >>> table.rows["slope"] = 1e-3
        >>> table.point("g", [torch.ones(3), torch.ones(2, 2).half()])  # refused: another dtype
        [1]
    """

    def __init__(self, weights: Sequence[Tensor], groups: Sequence[int]) -> None:
        self.rows = np.zeros(len(weights), _ROW)
        self.rows["n"] = sizes = [w.numel() for w in weights]
        self.rows["dtype"] = [_DTYPES[w.dtype] for w in weights]
        self.rows["group"] = groups
        self.rows["limit"] = np.inf
        self.chunks = np.concatenate(
            [_chunks(row, n) for row, n in enumerate(sizes)] or [np.zeros(0, _CHUNK)]
        )
        self.settings = np.zeros(max(groups, default=0) + 1, _SETTINGS)
        self.entries = sum(sizes)
        self.addresses = tuple(int(a.ctypes.data) for a in (self.rows, self.chunks, self.settings))
        self._likes = [(w.shape, w.stride(), w.dtype) for w in weights]
        self._known: dict[str, tuple[list[Tensor | None], list[int]]] = {}
        self.point("w", weights)

    def point(self, column: str, tensors: Sequence[Tensor | None]) -> list[int]:
        """Point a column at tensors, and return the rows whose tensor is refused.

        A refused tensor has another dtype or memory layout than the weights; its pointer is null, as it is
        for None, and a step leaves a row without a gradient alone.  The table keeps all tensors alive but the
        gradients, which the caller holds until the step is taken.  To point at the same objects as before
        costs next to nothing.

        Args:
            column: ``w``, ``g`` (gradients), ``m``, ``v``, ``vmax`` (the optimizer's averages), ``step`` (its
                counters), ``rho`` (the evidence), ``c`` (the penalty's weights) or ``d`` (a metric).  The
                last three are in float32, or float64 for weights in float64.
            tensors: one a row, or None.
        """
        pointers = _addresses(tensors)
        known = self._known.get(column)
        if known and pointers == known[1] and all(map(is_, tensors, known[0])):
            return []
        refuses = _refuses_gradient if column == "g" else partial(_refuses, column)
        pairs = enumerate(zip(tensors, self._likes, strict=True))
        refused = [row for row, (t, like) in pairs if t is not None and refuses(t, like)]
        for row in refused:
            pointers[row] = 0
        self.rows[column] = pointers
        if column != "g":  # to keep gradients would keep their memory
            self._known[column] = (list(tensors), pointers)
        return refused


def usable(w: Tensor, *others: Tensor | None) -> bool:
    """Return whether the C library can step on weights and on what goes with them in their own dtype.

    Args:
        w: weights: on the CPU, in a floating-point type, dense in memory in any order of the dimensions.
        others: gradients or averages, with the memory layout of ``w``.

    Example:
        >>> w = torch.zeros(2, 3)
        >>> usable(w, torch.ones(2, 3)), usable(w.T, w), usable(torch.zeros(2, 6)[:, ::2])
        (True, False, False)
    """
    if w.layout != torch.strided or w.dtype not in _DTYPES or not _is_dense(w):
        return False
    like = (w.shape, w.stride(), w.dtype)
    return not any(_refuses("w", t, like) for t in (w, *others) if t is not None)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type of the arithmetic on weights of a dtype, and of their evidence.

    Args:
        dtype: of the weights.
    """
    return torch.promote_types(dtype, torch.float32)


def _chunks(row: int, n: int) -> "np.ndarray[tuple[int], np.dtype[np.void]]":
    starts = np.arange(0, n, CHUNK)
    chunks = np.zeros(len(starts), _CHUNK)
    chunks["row"], chunks["start"], chunks["length"] = row, starts, np.minimum(CHUNK, n - starts)
    return chunks


def _addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    """Return where the tensors begin, 0 for None and for what is no plain memory."""
    try:
        found = list(map(Tensor.data_ptr, tensors))  # type: ignore[arg-type]  # None raises
    except (TypeError, RuntimeError):
        return [_address(tensor) for tensor in tensors]
    return found if all(found) else [_address(tensor) for tensor in tensors]


def _address(tensor: Tensor | None) -> int:
    if tensor is None or tensor.layout is not torch.strided:
        return 0
    return tensor.data_ptr() or 1  # an empty tensor has no address, but it may count its steps


def _refuses_gradient(grad: Tensor, like: _Like) -> bool:
    """Return whether a gradient is not laid out like its weights.

    torch sees to it that it has their shape and device, so that the usual one is recognised in half the time,
    which is most of what a step on a small tensor costs.
    """
    _, stride, dtype = like
    usual = type(grad) is Tensor and grad.dtype is dtype and grad.layout is torch.strided
    return not (usual and grad.stride() == stride and not grad.is_neg()) and _refuses("g", grad, like)


def _refuses(column: str, tensor: Tensor, like: _Like) -> bool:
    """Return whether a tensor is anything but plain memory laid out like the weights."""
    if type(tensor) not in (Tensor, nn.Parameter) or not tensor.is_cpu or tensor.layout != torch.strided:
        return True
    shape, stride, dtype = like
    if column == "step":
        return tensor.dtype != torch.float32 or tensor.numel() != 1
    wanted = wide_dtype(dtype) if column in _WIDE else dtype
    if tensor.dtype != wanted or tensor.shape != shape or tensor.is_neg():
        return True
    # The stride of a dimension of one entry means nothing, and in an empty tensor none does.
    return tensor.stride() != stride and any(
        a != b and n > 1 for a, b, n in zip(tensor.stride(), stride, shape, strict=True)
    )


def _is_dense(w: Tensor) -> bool:
    """Return whether the entries fill a stretch of memory without gaps or overlaps."""
    expected = 1
    for stride, n in sorted((s, n) for s, n in zip(w.stride(), w.shape, strict=True) if n != 1):
        if stride != expected:
            return w.numel() == 0
        expected *= n
    return True
