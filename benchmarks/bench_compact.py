"""What ``compact`` removes of dead channels, beside Torch-Pruning on the same models with the same zeros.

Torch-Pruning (``pip install torch-pruning``) prunes what it is told to.  It is told the rows and columns of
zeros of every linear layer and convolution, one layer after the other; then the outputs are compared.
"""

import argparse
import copy
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.compaction.models import CASES, Case, kill, unsettle

from torchlasso.compaction.compact import compact

MODELS = ("mlp", "lenet", "resnet", "mobilenet", "gpt", "vit", "lstm", "multihead", "tied")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=0.5, help="of the channels that are dead (0.5)")
    parser.add_argument("--quick", action="store_true", help="two models only: a test that it runs")
    given = parser.parse_args(argv)
    print(f"torch {torch.__version__}, float64, {given.share:.0%} of all channels dead\n")
    print("| model | parameters | dead | compact: removed | error | s | Torch-Pruning: removed | error | s |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name in MODELS[:2] if given.quick else MODELS:
        print(row(name, given.share), flush=True)


def row(name: str, share: float) -> str:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    case = CASES[name]()
    unsettle(case.model, generator)
    dead = kill(case, share, generator)
    case.model.double().eval()
    x = case.inputs(2)
    assert isinstance(x, Tensor)
    x = x.double() if x.is_floating_point() else x
    count = sum(p.numel() for p in case.model.parameters())
    cells = [name, f"{count:,}", f"{dead:,}"]
    for way in (by_compact, by_torch_pruning):
        cells += measured(way, case, x, count, dead)
    return "| " + " | ".join(cells) + " |"


def measured(
    way: Callable[[Case, Tensor], nn.Module], case: Case, x: Tensor, count: int, dead: int
) -> list[str]:
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            small = way(case, x)
            seconds = time.perf_counter() - start
            with torch.no_grad():
                error = difference(small(x), case.model(x))
        except Exception as failure:  # whatever another library raises is its result
            return [f"fails ({type(failure).__name__})", "–", "–"]
    removed = count - sum(p.numel() for p in small.parameters())
    return [f"{removed:,} ({removed / dead:.0%})", f"{error:.1e}", f"{seconds:.1f}"]


def difference(a: object, b: object) -> float:
    pairs = zip(a, b, strict=True) if isinstance(a, tuple) and isinstance(b, tuple) else [(a, b)]
    return max(float((u - v).abs().max()) for u, v in pairs)


def by_compact(case: Case, x: Tensor) -> nn.Module:
    return compact(case.model, x).model


def by_torch_pruning(case: Case, x: Tensor) -> nn.Module:
    """Ask the dependency graph for the group of every dead row, and prune it."""
    import torch_pruning as tp

    model = copy.deepcopy(case.model)
    kinds = {
        nn.Linear: (tp.prune_linear_out_channels, tp.prune_linear_in_channels),
        nn.Conv2d: (tp.prune_conv_out_channels, tp.prune_conv_in_channels),
    }
    for name in [n for n, m in model.named_modules() if type(m) in kinds]:
        for side, prune in enumerate(kinds[type(model.get_submodule(name))]):
            module = model.get_submodule(name)
            weight = module.weight.detach()
            zero = weight.transpose(0, side).flatten(1).eq(0).all(1)
            if side == 0 and module.bias is not None:
                zero &= module.bias.detach() == 0
            indices = zero.nonzero().flatten().tolist()
            if not indices or len(indices) == len(zero) or getattr(module, "groups", 1) > 1:
                continue
            graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
            group = graph.get_pruning_group(module, prune, idxs=indices)
            if graph.check_pruning_group(group):
                group.prune()
    return model


if __name__ == "__main__":
    main()
