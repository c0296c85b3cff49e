"""What one fit has to tell, in words: the page and the terminal only lay it out.

Every sentence and every rounded number is made here, once, so that the two faces cannot disagree.
"""

from dataclasses import dataclass
from typing import Any

from torchlasso.errors import InputError
from torchlasso.monitor.formats import clean, difference, number, percent, quantity, score
from torchlasso.monitor.sentences import (
    NETS,
    certificate_notes,
    facts,
    headline,
    remarks,
    score_notes,
    share_of,
    strength_notes,
)

_PARTS = (
    "torchlasso",
    "table",
    "split",
    "model",
    "strength",
    "metric",
    "scores",
    "refit",
    "weights",
    "features",
    "certificate",
    "seconds",
)


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """The scores of one network, as text."""

    name: str
    train: str
    valid: str
    test: str
    spread: str
    gap: str


@dataclass(frozen=True, slots=True)
class LayerRow:
    """What is left of one layer; `share` is the part of its weights that is not zero."""

    name: str
    shape: str
    left: str
    share: float
    percent: str
    outputs_off: str
    inputs_off: str


@dataclass(frozen=True, slots=True)
class FeatureRow:
    """One selected feature; `share` is its importance relative to the most important one."""

    rank: int
    name: str
    kind: str
    share: float
    percent: str


@dataclass(frozen=True, slots=True)
class Story:
    """Everything there is to say about one fit, in reading order."""

    title: str
    headline: str
    remarks: tuple[str, ...]
    scores: tuple[ScoreRow, ...]
    gap_label: str
    score_notes: tuple[str, ...]
    strength: tuple[str, ...]
    layers: tuple[LayerRow, ...]
    weights: str
    selected: tuple[FeatureRow, ...]
    dropped: tuple[str, ...]
    certificate: tuple[str, ...]
    certificate_rows: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]


def tell(metrics: dict[str, Any], path: list[dict[str, Any]]) -> Story:
    """Put into words what one fit learnt.

    Args:
        metrics: the content of metrics.json.
        path: the rows of path.csv, weakest strength first; empty where the strength was given.

    Returns:
        The sentences and the rows of the tables.

    Raises:
        InputError: `metrics` lacks a part that every fit writes.
    """
    missing = [part for part in _PARTS if part not in metrics]
    if missing:
        message = (
            f"expected the metrics of one fit, but {', '.join(missing)} is missing; "
            f"pass the whole content of a metrics.json that this version wrote"
        )
        raise InputError(message)
    weights = metrics["weights"]
    return Story(
        title=clean(metrics["table"]["target"]),
        headline=headline(metrics),
        remarks=tuple(remarks(metrics)),
        scores=tuple(_score_row(metrics, net) for net in NETS),
        gap_label="Gap (points)" if metrics["metric"] == "accuracy" else "Gap",
        score_notes=tuple(score_notes(metrics)),
        strength=tuple(strength_notes(metrics, path)),
        layers=tuple(_layer_row(layer) for layer in weights["layers"]),
        weights=f"{weights['nonzero']:,} of {quantity(weights['total'], 'weight')} are left "
        f"({percent(share_of(weights['nonzero'], weights['total']))}); all others are exactly zero.",
        selected=tuple(_selected(metrics["features"])),
        dropped=tuple(clean(f["name"]) for f in metrics["features"] if not f["selected"]),
        certificate=tuple(certificate_notes(metrics["certificate"])),
        certificate_rows=tuple(
            (clean(row["name"]), number(row["residual"]), number(row["slack"]))
            for row in metrics["certificate"]["rows"]
        ),
        notes=tuple(clean(note) for note in metrics["table"]["notes"]),
        facts=tuple(facts(metrics)),
    )


def _score_row(metrics: dict[str, Any], net: str) -> ScoreRow:
    metric, scores = metrics["metric"], metrics["scores"][net]
    spread = scores["test_se"]
    return ScoreRow(
        name=NETS[net],
        train=score(scores["train"], metric),
        valid=score(scores["valid"], metric),
        test=score(scores["test"], metric),
        spread="" if spread is None else f"± {score(spread, metric)}",
        gap=difference(scores["gap"], metric).removesuffix(" points"),
    )


def _layer_row(layer: dict[str, Any]) -> LayerRow:
    shape, share = layer["shape"], share_of(layer["nonzero"], layer["total"])
    inputs = shape[1] if len(shape) > 1 else 1
    return LayerRow(
        name=clean(layer["name"]),
        shape=" × ".join(f"{size:,}" for size in shape),
        left=f"{layer['nonzero']:,} of {layer['total']:,}",
        share=share,
        percent=percent(share),
        outputs_off=f"{layer['dead_rows']:,} of {shape[0]:,}",
        inputs_off=f"{layer['dead_columns']:,} of {inputs:,}",
    )


def _selected(features: list[dict[str, Any]]) -> list[FeatureRow]:
    chosen = [feature for feature in features if feature["selected"]]
    top = max((feature["importance"] for feature in chosen), default=0.0) or 1.0
    return [
        FeatureRow(
            rank=rank,
            name=clean(feature["name"]),
            kind=clean(feature["kind"]),
            share=max(0.0, feature["importance"] / top),
            percent=percent(feature["importance"]),
        )
        for rank, feature in enumerate(chosen, start=1)
    ]
