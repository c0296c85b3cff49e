"""What a fit to a table learnt, in JSON types: strength, weights, features, certificate, path."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from torchlasso.fit.fitter import Fit
from torchlasso.mlp import linear_layers, used_features
from torchlasso.path import Path, PathPoint
from torchlasso.sparsity import count_zeros
from torchlasso.tabular.encoding import Encoder
from torchlasso.tabular.importance import permutation_importance
from torchlasso.tasks import Task


def summarise(
    fit: Fit, encoder: Encoder, task: Task, rows: tuple[Tensor, Tensor], *, seed: int
) -> dict[str, Any]:
    """Return the parts of the report that follow from the fit alone.

    Args:
        fit: what came out.
        encoder: of the table.
        task: the loss.
        rows: the encoded training rows and their target.
        seed: of the shuffling that measures importance.
    """
    return {
        "model": {"parameters": sum(p.numel() for p in fit.module.parameters())},
        "strength": {"value": fit.strength, "chosen_by": fit.chosen_by, "max": _emptying_strength(fit)},
        "weights": _weights(fit),
        "features": _features(fit, encoder, task, rows, seed),
        "certificate": _certificate(fit),
        "refit": _refit(fit),
    }


def path_rows(path: Path | None, chosen: PathPoint | None) -> list[dict[str, Any]]:
    """Return a path as rows of a table, weakest strength first.

    Args:
        path: None, where the strength was given, has no rows.
        chosen: the point of it that was taken.
    """
    if path is None:
        return []
    lowest = path.best("min")
    return [
        {
            "strength": point.strength,
            "train_loss": point.train_loss,
            "valid_loss": point.valid_loss,
            "valid_se": point.valid_se,
            "nonzero": point.nonzero,
            "features": point.features,
            "best": point is lowest,
            "chosen": point is chosen,
        }
        for point in path.points
    ]


def _emptying_strength(fit: Fit) -> float | None:
    """Return the smallest strength of the path that left nothing, if the path got there."""
    points = fit.path.points if fit.path else ()
    return min((point.strength for point in points if point.features == 0), default=None)


def _weights(fit: Fit) -> dict[str, Any]:
    layers = []
    for name, layer in linear_layers(fit.module):
        row = count_zeros(name, layer.weight.detach())
        layers.append(
            {
                "name": name.removesuffix("weight").rstrip(".") or "output",
                "shape": list(row.shape),
                "nonzero": row.numel - row.zeros,
                "total": row.numel,
                "dead_rows": row.dead_rows,
                "dead_columns": row.dead_columns,
            }
        )
    return {
        "nonzero": sum(layer["nonzero"] for layer in layers),
        "total": sum(layer["total"] for layer in layers),
        "layers": layers,
    }


def _features(
    fit: Fit, encoder: Encoder, task: Task, rows: tuple[Tensor, Tensor], seed: int
) -> list[dict[str, Any]]:
    groups: Sequence[Sequence[int]] = encoder.groups
    used = used_features(fit.module)
    importance = permutation_importance(fit.module, *rows, task, groups, seed=seed)
    features = [
        {"name": name, "kind": kind, "selected": bool(used[list(group)].any()), "importance": share}
        for name, kind, group, share in zip(
            encoder.feature_names, encoder.kinds, groups, importance, strict=True
        )
    ]
    return sorted(features, key=lambda f: (-f["importance"], not f["selected"]))


def _certificate(fit: Fit) -> dict[str, Any]:
    report = fit.certificate
    rows = [{"name": row.name, "residual": row.residual, "slack": row.slack} for row in report.rows]
    return {"residual": report.residual, "slack": report.slack, "rows": rows}


def _refit(fit: Fit) -> dict[str, Any]:
    if fit.refit is None:
        return {"used": False, "valid_loss_penalised": None, "valid_loss_refit": None}
    return {
        "used": fit.refit.used,
        "valid_loss_penalised": fit.refit.valid_loss_penalised,
        "valid_loss_refit": fit.refit.valid_loss_refit,
    }
