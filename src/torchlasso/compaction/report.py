"""What compaction did, as tables: shapes before and after, and what the model costs."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchlasso.compaction.trace import Program, evaluating
from torchlasso.tables import render_table

BATCHES = (1, 64)
"""Batch sizes at which the models are timed."""

_BUDGET = 0.05
"""Seconds for which a model is timed at one batch size; a slower one is timed once."""


@dataclass(frozen=True)
class CompactionRow:
    """One tensor.

    Attributes:
        name: of the parameter or buffer.
        before: its shape.
        after: its new shape, or None if it is gone.
    """

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...] | None


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        parameters: how many numbers are trained.
        macs: multiplications with additions in one pass of the example, or None if torch cannot count them.
        bytes: of parameters and buffers.
        seconds: of one pass by batch size, on the machine at hand; empty if the batch size is fixed.
    """

    parameters: int
    macs: int | None
    bytes: int
    seconds: dict[int, float]


@dataclass(frozen=True)
class CompactionTable:
    """What went, tensor by tensor, and what that saves; ``print`` it for the table.

    Attributes:
        rows: one for each tensor that changed.
        before: the cost of the original.
        after: the cost of the compacted model.
    """

    rows: tuple[CompactionRow, ...]
    before: Cost
    after: Cost

    @property
    def removed(self) -> float:
        """The fraction of the parameters that went."""
        return 1 - self.after.parameters / self.before.parameters if self.before.parameters else 0.0

    def __str__(self) -> str:
        shapes = [(row.name, _shape(row.before), _shape(row.after)) for row in self.rows]
        table = render_table(("tensor", "before", "after"), shapes) if shapes else "nothing was removed"
        return f"{table}\n{render_table(('total', 'before', 'after', 'ratio'), self._totals())}"

    def _totals(self) -> list[tuple[object, ...]]:
        pairs: list[tuple[str, float | None, float | None, Callable[[float], str]]] = [
            ("parameters", self.before.parameters, self.after.parameters, _whole),
            ("MACs", self.before.macs, self.after.macs, _whole),
            ("bytes", self.before.bytes, self.after.bytes, _whole),
        ]
        for batch, seconds in self.before.seconds.items():
            pairs.append((f"ms, batch {batch}", 1e3 * seconds, 1e3 * self.after.seconds[batch], _short))
        return [
            (
                name,
                a if a is None else text(a),
                b if b is None else text(b),
                f"{b / a:.3f}" if a and b else None,
            )
            for name, a, b, text in pairs
        ]


def _shape(shape: tuple[int, ...] | None) -> str:
    return "gone" if shape is None else "×".join(map(str, shape)) or "scalar"


def _whole(number: float) -> str:
    return f"{int(number):,}"


def _short(number: float) -> str:
    return f"{number:.3g}"


def table_of(program: Program, small: nn.Module) -> CompactionTable:
    """Return what changed between a traced module and its small form.

    Args:
        program: the traced module.
        small: the compacted one.
    """
    old, new = _tensors(program.model), _tensors(small)
    changed = tuple(
        CompactionRow(name, tuple(tensor.shape), tuple(new[name].shape) if name in new else None)
        for name, tensor in old.items()
        if name not in new or new[name].shape != tensor.shape
    )
    with evaluating(program.model, small):
        times = _times(program, small)
        costs = [
            Cost(
                sum(p.numel() for p in model.parameters()),
                _macs(model, program),
                sum(
                    t.numel() * t.element_size()
                    for t in {id(t): t for t in _tensors(model).values()}.values()
                ),
                {batch: pair[which] for batch, pair in times.items()},
            )
            for which, model in enumerate((program.model, small))
        ]
    return CompactionTable(changed, *costs)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name; a tied one under its first name only."""
    buffers = [(name, b) for name, b in model.named_buffers() if not name.startswith("_")]
    return {**dict(model.named_parameters()), **dict(buffers)}


@torch.no_grad()
def _macs(model: nn.Module, program: Program) -> int | None:
    from torch.utils.flop_counter import FlopCounterMode  # it imports Triton, which takes a while

    counter = FlopCounterMode(display=False)
    try:
        with counter:
            model(*program.args, **program.kwargs)
    except (RuntimeError, NotImplementedError, AssertionError):
        return None
    return int(counter.get_total_flops()) // 2


def _times(program: Program, small: nn.Module) -> dict[int, tuple[float, float]]:
    """Return the median seconds of both models by batch size, taken in turn to meet the same load."""
    found = {}
    for batch in BATCHES:
        sized = resized(program, batch)
        if sized is not None:
            found[batch] = _medians([program.model, small], *sized)
    return found


def resized(program: Program, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Return the example at another batch size, or None if the module has no open batch dimension.

    Args:
        program: a traced module.
        batch: number of rows.
    """
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    shapes = [getattr(node.meta.get("val"), "shape", ()) for node in nodes]
    leaves, spec = pytree.tree_flatten((program.args, program.kwargs))
    pairs = zip(leaves, shapes, strict=True)
    rows = [leaf.shape[0] if shape and isinstance(shape[0], torch.SymInt) else 0 for leaf, shape in pairs]
    first = next((n for n in rows if n), 0)
    if not first:
        return None
    new = [
        leaf if n != first else leaf[torch.arange(batch, device=leaf.device) % n]
        for leaf, n in zip(leaves, rows, strict=True)
    ]
    args, kwargs = pytree.tree_unflatten(new, spec)
    return args, kwargs


@torch.inference_mode()
def _medians(models: list[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, float]:
    seconds: list[list[float]] = [[] for _ in models]
    for model in models:
        model(*args, **kwargs)
    while True:
        for model, times in zip(models, seconds, strict=True):
            start = time.perf_counter()
            model(*args, **kwargs)
            times.append(time.perf_counter() - start)
        if len(seconds[0]) == 25 or sum(map(sum, seconds)) > _BUDGET:
            first, second = (statistics.median(times) for times in seconds)
            return first, second
