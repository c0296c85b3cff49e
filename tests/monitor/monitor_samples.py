"""Paths, layers and features made up for the tests of the monitor."""

import math
from typing import Any

Metrics = dict[str, Any]

BASE = ("radius", "texture", "perimeter", "area", "smoothness", "concavity", "symmetry", "fractal dimension")
NAMES = [f"{kind} {name}" for kind in ("worst", "mean") for name in BASE]


def features(names: list[str], selected: int) -> list[Metrics]:
    """Give the first of the names falling importances that sum to 1, and the others none."""
    raw = [0.8**rank for rank in range(selected)]
    shares = [value / sum(raw) for value in raw] + [0.0] * (len(names) - selected)
    return [
        {"name": name, "kind": "numeric", "selected": rank < selected, "importance": share}
        for rank, (name, share) in enumerate(zip(names, shares, strict=True))
    ]


def walk(steps: int = 30, *, best: int = 13, chosen: int = 17) -> list[Metrics]:
    """Make a path with a U-shaped validation loss, weak to strong."""
    rows = []
    for step in range(steps):
        at = step / max(steps - 1, 1)
        rows.append(
            {
                "strength": 0.001 * 310**at,
                "train_loss": 0.02 + 0.5 * at**4,
                "valid_loss": 0.08 + 0.9 * (at - 0.45) ** 2,
                "valid_se": 0.015 + 0.01 * at,
                "nonzero": round(4032 * (1 - at) ** 3),
                "features": math.ceil(30 * (1 - at)),
                "best": step == min(best, steps - 1),
                "chosen": step == min(chosen, steps - 1),
            }
        )
    return rows


def layer(name: str, rows: int, columns: int, nonzero: int, dead: tuple[int, int] = (0, 0)) -> Metrics:
    return {
        "name": name,
        "shape": [rows, columns],
        "nonzero": nonzero,
        "total": rows * columns,
        "dead_rows": dead[0],
        "dead_columns": dead[1],
    }
