"""How much a fitted model relies on each feature."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchlasso.mlp import used_features
from torchlasso.tasks import Task

_MOST_ROWS = 2_000
_REPEATS = 3


@torch.no_grad()
def permutation_importance(
    module: nn.Module,
    inputs: Tensor,
    target: Tensor,
    task: Task,
    groups: Sequence[Sequence[int]],
    *,
    seed: int,
) -> list[float]:
    """Return the share of each feature in how much the loss grows when features are shuffled.

    The columns of a feature are shuffled together among the rows, three times; what the model does not
    use has importance 0 without being tried.

    Args:
        module: what ``build_mlp`` returned.
        inputs: ``[n, p]``; of more than 2,000 rows as many are drawn.
        target: ``[n]``.
        task: the loss.
        groups: the columns of each feature.
        seed: of the shuffling.

    Returns:
        One number a feature, zero or more; they sum to 1 unless no feature helps.

    References:
        Breiman, "Random forests", Mach. Learn. 45 (2001).
    """
    dtype = next(module.parameters()).dtype
    generator = torch.Generator().manual_seed(seed)
    # Drawn, not the first ones: a table may be sorted by its target.
    rows = torch.randperm(len(inputs), generator=generator)[:_MOST_ROWS]
    inputs, target = inputs[rows].to(dtype), target[rows]
    target = target if task.kind == "multiclass" else target.to(dtype)
    used = used_features(module)
    base = float(task.loss(module(inputs), target))
    growth = []
    for group in groups:
        columns = list(group)
        total = 0.0
        for _ in range(_REPEATS if bool(used[columns].any()) else 0):
            shuffled = inputs.clone()
            order = torch.randperm(len(inputs), generator=generator)
            shuffled[:, columns] = inputs[order][:, columns]
            total += float(task.loss(module(shuffled), target)) - base
        growth.append(max(total, 0.0))
    whole = sum(growth)
    return [g / whole if whole > 0 else 0.0 for g in growth]
