"""Whether a small model says what the large one says."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchlasso.compaction.trace import Program, evaluating
from torchlasso.errors import CompactionError

_ULPS = 1e3
"""How many units of rounding outputs may differ by, relative to the largest; less in half precision."""


@torch.no_grad()
def largest_error(program: Program, small: nn.Module) -> float:
    """Return the largest difference between outputs, on the example and on random inputs.

    Args:
        program: the original, traced.
        small: the compacted module.

    Raises:
        CompactionError: outputs differ by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    with evaluating(program.model, small):
        for inputs in ((program.args, program.kwargs), _random(program, generator)):
            args, kwargs = inputs
            expected = pytree.tree_leaves(program.model(*args, **kwargs))
            got = pytree.tree_leaves(small(*args, **kwargs))
            for number, (a, b) in enumerate(zip(expected, got, strict=True)):
                if isinstance(a, Tensor):
                    worst = max(worst, _difference(a, b, number))
    return worst


def _random(program: Program, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return random inputs: normal numbers, and whole numbers drawn from those of the example."""

    def draw(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dtype == torch.bool or not leaf.numel():
            return leaf
        if leaf.is_floating_point():
            return torch.randn(leaf.shape, generator=generator).to(leaf)
        return leaf.flatten()[torch.randint(leaf.numel(), leaf.shape, generator=generator).to(leaf.device)]

    args, kwargs = pytree.tree_map(draw, (program.args, program.kwargs))
    return args, kwargs


def _difference(expected: Tensor, got: Tensor, number: int) -> float:
    """Return the largest difference of one output, or raise if it is no rounding."""
    if expected.shape != got.shape:
        msg = f"output {number} has shape {tuple(got.shape)} after compaction, not {tuple(expected.shape)}"
        raise CompactionError(msg)
    if not expected.numel():
        return 0.0
    a, b = expected.double(), got.double()
    same = (a == b) | (a.isnan() & b.isnan())
    error = torch.where(same, 0.0, (a - b).abs())
    finite = a[a.isfinite()].abs()
    scale = max(1.0, float(finite.max()) if finite.numel() else 0.0)
    eps = torch.finfo(expected.dtype).eps if expected.is_floating_point() else 0.0
    allowed = min(_ULPS * eps, 0.05) * scale
    worst = float(error.max())
    if not worst <= allowed:
        msg = (
            f"output {number} would differ by {worst:.3g} after compaction, more than the {allowed:.3g} of "
            "rounding; the model was left as it is.  Please report it with the model"
        )
        raise CompactionError(msg)
    return worst
