"""Linear layers with many zeros become sparse where that is measured to be faster on this machine."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from torchlasso.errors import InputError
from torchlasso.semi_structured import semi_structured, unpacked
from torchlasso.sparse_layers import SparseLinear
from torchlasso.tables import render_table

MARGIN = 1.1
"""A layer is replaced only where the dense one takes more than this many times as long."""
ROWS = (1, 64)
"""Numbers of rows that count where no example inputs are given."""

_FEWEST_ZEROS = 0.4  # below, no sparse product was ever seen to win, and none is tried
_TURN = 2e-4  # seconds: what is measured is repeated until it takes about as long
_TURNS = (5, 25)
_ENOUGH = 0.05  # seconds a comparison, once it has its fewest turns
_COLUMNS = ("layer", "shape", "zeros", "rows", "dense, µs", "sparse, µs", "ratio", "chosen")
_KEY = "_torchlasso_sparsify"

_Size = tuple[int, ...]


@dataclass(frozen=True)
class SparsifyRow:
    """What was measured for one layer.

    Attributes:
        name: of the layer.
        shape: of its weight.
        zeros: the fraction of its weights that is exactly zero.
        rows: how many rows came in at once; None where nothing was measured.
        dense: median seconds of the dense layer.
        sparse: median seconds of the best sparse one; None where there is none.
        chosen: the kind of the layer in the result, or why it stayed dense unmeasured.
    """

    name: str
    shape: tuple[int, int]
    zeros: float
    rows: int | None
    dense: float | None
    sparse: float | None
    chosen: str


@dataclass(frozen=True)
class SparsifyTable:
    """What `sparsify` measured and chose, a row for each layer and number of rows; ``print`` it."""

    rows: tuple[SparsifyRow, ...]

    def __str__(self) -> str:
        return render_table(_COLUMNS, map(_cells, self.rows))


def sparsify(model: nn.Module, example_inputs: Tensor | tuple[Any, ...] | None = None) -> nn.Module:
    r"""Return a copy of a model in which linear layers are sparse wherever that is measured to be faster.

    Each ``nn.Linear`` of which at least 40 % is zero is timed against a `SparseLinear` of the same weights
    (and, on a CUDA device, against torch's 2:4 form), in turn, on this machine, with the number of threads
    that torch has now.  It is replaced only if the dense layer takes more than 1.1 times as long for every
    number of rows; otherwise it stays.  The outputs are the same but for rounding.

    Args:
        model: any module; it stays as it is.
        example_inputs: what the model is to be fast for: one input, or a tuple of the arguments; each layer
            is then timed on as many rows as it receives in one such call.  None times every layer at 1 row
            and at 64 rows, and both must be faster.

    Returns:
        The copy, for inference.  `sparsify_table` tells what was measured and chosen; `densify` undoes it.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
        >>> fast = sparsify(model)  # without a zero there is nothing to try
        >>> print(sparsify_table(fast))
          layer   shape   zeros   rows   dense, µs   sparse, µs   ratio   chosen
         ──────────────────────────────────────────────────────────────────────────────────
          0       32×64   0.0%    –      –           –            –       dense, few zeros
          2       4×32    0.0%    –      –           –            –       dense, few zeros
    """
    result = copy.deepcopy(model)
    sizes = None if example_inputs is None else _input_sizes(result, example_inputs)
    rows: list[SparsifyRow] = []
    chosen: dict[nn.Module, nn.Module] = {}
    for name, layer, fused in _linears(result):
        reason = _reason(layer, fused=fused, reached=sizes is None or layer in sizes)
        if reason:
            rows.append(_row(name, layer, None, None, None, reason))
            continue
        shapes: list[_Size] = [(n, layer.in_features) for n in ROWS] if sizes is None else [sizes[layer]]
        better, found = _compare(name, layer, shapes)
        rows += found
        if better is not None:
            chosen[layer] = better
    result = _replaced(result, chosen)
    result.__dict__[_KEY] = SparsifyTable(tuple(rows))
    return result


def sparsify_table(model: nn.Module) -> SparsifyTable:
    """Return what `sparsify` measured when it made this model, and what it chose.

    Args:
        model: what `sparsify` returned, or a copy of it.

    Raises:
        InputError: the model does not come from there.
    """
    table = model.__dict__.get(_KEY)
    if not isinstance(table, SparsifyTable):
        msg = f"expected a model that sparsify returned, got another {type(model).__name__}"
        raise InputError(msg)
    return table


def densify(model: nn.Module) -> nn.Module:
    """Return a copy of a model in which every sparse linear layer is dense again, with the same weights.

    Args:
        model: any module; it stays as it is.

    Example:
        >>> sparse = nn.Sequential(SparseLinear(3, 2), nn.ReLU())
        >>> densify(sparse)
        Sequential(
          (0): Linear(in_features=3, out_features=2, bias=True)
          (1): ReLU()
        )
    """
    result = copy.deepcopy(model)
    dense: dict[nn.Module, nn.Module] = {
        layer: layer.to_dense() for layer in result.modules() if isinstance(layer, SparseLinear)
    }
    dense |= {layer: unpacked(layer) for layer in result.modules() if type(layer) is nn.Linear}
    result = _replaced(result, dense)
    result.__dict__.pop(_KEY, None)
    return result


# ---- which layers -------------------------------------------------------------------------------------


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear, bool]]:
    """Yield name, layer and whether a fused kernel reads its weight past its ``forward``.

    Subclasses are left alone: attention reads the weights of its own, and others compute something else.
    """
    fused = {
        layer
        for parent in model.modules()
        if isinstance(parent, nn.TransformerEncoderLayer)
        for layer in (parent.linear1, parent.linear2)
    }
    for name, layer in model.named_modules():
        if type(layer) is nn.Linear and not layer.weight.is_meta:
            yield name or "(itself)", layer, layer in fused


def _reason(layer: nn.Linear, *, fused: bool, reached: bool) -> str:
    """Return why a layer stays dense without a trial, or nothing."""
    if fused:
        return "dense, in a fused kernel"
    if not reached:
        return "dense, not reached"
    if _zeros(layer) < _FEWEST_ZEROS:
        return "dense, few zeros"
    return ""


def _zeros(layer: nn.Linear) -> float:
    return float((layer.weight.detach() == 0).sum()) / max(1, layer.weight.numel())


def _input_sizes(model: nn.Module, example_inputs: Tensor | tuple[Any, ...]) -> dict[nn.Module, _Size]:
    """Return the shape of the first input of every linear layer that a call reaches."""
    sizes: dict[nn.Module, _Size] = {}

    def note(layer: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            sizes.setdefault(layer, tuple(args[0].shape))

    hooks = [layer.register_forward_pre_hook(note) for _, layer, _ in _linears(model)]
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.inference_mode():
            model.eval()(*(example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return sizes


def _replaced(model: nn.Module, chosen: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put layers into the places of others, wherever these stand."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in chosen:
                parent._modules[name] = chosen[child]
    return chosen.get(model, model)


# ---- measuring ----------------------------------------------------------------------------------------


def _compare(name: str, layer: nn.Linear, shapes: list[_Size]) -> tuple[nn.Module | None, list[SparsifyRow]]:
    """Time the dense layer against its sparse forms; return the one that always wins, and the rows."""
    forms: dict[str, nn.Module | None] = {
        "sparse": SparseLinear.from_linear(layer),
        "2:4": semi_structured(layer),
    }
    ways = {kind: form for kind, form in forms.items() if form is not None}
    timed = [_medians({"dense": layer, **ways}, layer.weight, shape) for shape in shapes]
    wins = {
        kind: min(times["dense"] / times[kind] for times in timed)
        for kind in ways
        if all(kind in times for times in timed)
    }
    best = max(wins, key=wins.__getitem__, default=None)
    win = best is not None and wins[best] > MARGIN
    chosen = best if best is not None and win else "dense"
    rows = [
        _row(name, layer, shape, times["dense"], times.get(best or ""), chosen)
        for shape, times in zip(shapes, timed, strict=True)
    ]
    return (ways[chosen] if win else None), rows


def _medians(ways: Mapping[str, nn.Module], like: Tensor, shape: _Size) -> dict[str, float]:
    """Return median seconds of one call, taken in turn; what this build of torch cannot do is left out."""
    x = torch.randn(shape, device=like.device).to(like.dtype)
    with torch.inference_mode():
        calls = {kind: n for kind, way in ways.items() if (n := _calls(way, x))}
        seconds: dict[str, list[float]] = {kind: [] for kind in calls}
        start = time.perf_counter()
        for turn in range(_TURNS[1]):
            if turn >= _TURNS[0] and time.perf_counter() - start > _ENOUGH:
                break
            for kind, n in calls.items():
                seconds[kind].append(_seconds(ways[kind], x, n) / n)
    return {kind: median(times) for kind, times in seconds.items()}


def _calls(way: nn.Module, x: Tensor) -> int:
    """Return how many calls make up a turn; none if it cannot be called at all."""
    try:
        _seconds(way, x, 1)
        return max(1, int(_TURN / max(1e-7, _seconds(way, x, 3) / 3)))
    except RuntimeError:  # torch was built without sparse products, or without these sizes
        return 0


def _seconds(way: Callable[[Tensor], object], x: Tensor, calls: int) -> float:
    _wait(x)
    start = time.perf_counter()
    for _ in range(calls):
        way(x)
    _wait(x)
    return time.perf_counter() - start


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def _row(
    name: str, layer: nn.Linear, shape: _Size | None, dense: float | None, sparse: float | None, chosen: str
) -> SparsifyRow:
    size = (layer.out_features, layer.in_features)
    rows = None if shape is None else torch.Size(shape[:-1]).numel()
    return SparsifyRow(name, size, _zeros(layer), rows, dense, sparse, chosen)


def _cells(row: SparsifyRow) -> tuple[object, ...]:
    dense, sparse = (None if t is None else f"{1e6 * t:,.1f}" for t in (row.dense, row.sparse))
    ratio = f"{row.dense / row.sparse:.2f}" if row.dense and row.sparse else None
    size = "×".join(map(str, row.shape))
    return row.name, size, f"{row.zeros:.1%}", row.rows, dense, sparse, ratio, row.chosen
