"""The sentences about one fit: each takes the content of metrics.json and speaks plain English.

They are written for readers who are no statisticians, and they do not flatter: where the ordinary
network scores higher, the headline says so.
"""

import math
from typing import Any

from torchlasso.monitor.formats import clean, difference, listing, number, percent, quantity, score

Metrics = dict[str, Any]

NETS = {"sparse": "Sparse network", "dense": "Ordinary network"}
_PENALTIES = {
    "l1": "l1 (sets single weights to zero)",
    "features": "features (drops whole input features)",
    "neurons": "neurons (drops whole hidden neurons)",
}


def share_of(part: int, whole: int) -> float:
    """Divide, with nothing being no share of nothing.

    Args:
        part: how many of them.
        whole: how many in all.

    Returns:
        The share, 0 to 1.
    """
    return part / whole if whole else 0.0


def _known(*values: float | None) -> bool:
    return all(value is not None and not math.isnan(value) for value in values)


def headline(metrics: Metrics) -> str:
    """Say in one sentence how well the sparse network predicts, with how little, against the ordinary one.

    Args:
        metrics: the content of metrics.json.

    Returns:
        A sentence without its full stop; it opens with the ordinary network where that scores higher.
    """
    metric, weights, features = metrics["metric"], metrics["weights"], metrics["features"]
    sparse, dense = (metrics["scores"][net]["test"] for net in NETS)
    selected = sum(bool(feature["selected"]) for feature in features)
    used = (
        f"{selected:,} of {quantity(len(features), 'feature')} and "
        f"{percent(share_of(weights['nonzero'], weights['total']))} of the weights"
    )
    ours, theirs = _named_score(sparse, metric), _named_score(dense, metric)
    place = "of the test rows right" if metric == "accuracy" else "on the test rows"
    if not _known(sparse, dense):
        return f"{ours} {place} with {used}; the ordinary network of the same shape: {theirs}"
    if ours == theirs:
        return f"{ours} {place} with {used}; the ordinary network of the same shape does just as well"
    if dense > sparse:
        return (
            f"The ordinary network does better here: {theirs} {place}, "
            f"against {ours} for the sparse network with {used}"
        )
    return f"{ours} {place} with {used}; the ordinary network of the same shape: {theirs}"


def _named_score(value: float | None, metric: str) -> str:
    """Write a score so that a sentence can do without the name of the metric."""
    if metric == "accuracy":
        return score(value, metric)
    symbol = "R²" if metric == "R2" else clean(metric)
    return f"{symbol}\N{NO-BREAK SPACE}{score(value, metric)}"


def remarks(metrics: Metrics) -> list[str]:
    """Say whether the difference may be chance, and whether anything was learnt at all.

    Args:
        metrics: the content of metrics.json.

    Returns:
        Sentences to put under the headline, perhaps none.
    """
    told, metric = [], metrics["metric"]
    sparse, dense = (metrics["scores"][net] for net in NETS)
    error = metrics["scores"]["difference_se"]
    known = _known(sparse["test"], dense["test"], error)
    if known and score(sparse["test"], metric) != score(dense["test"], metric):
        apart = abs(sparse["test"] - dense["test"])
        chance = 2 * error
        rows, reach = quantity(metrics["split"]["test"], "test row"), difference(chance, metric)
        verdict = f"may be chance (up to about {reach})"
        if apart > chance:
            verdict = f"is more than chance explains (about {reach})"
        told.append(f"With {rows}, the difference of {difference(apart, metric)} {verdict}.")
    if not any(feature["selected"] for feature in metrics["features"]):
        told.append("No feature was selected: the sparse network predicts the same for every row.")
    return told


def score_notes(metrics: Metrics) -> list[str]:
    """Explain the table of scores: the metric, the standard error and the gap.

    Args:
        metrics: the content of metrics.json.

    Returns:
        One sentence or two for each.
    """
    metric, scores = metrics["metric"], metrics["scores"]
    sparse, dense = (scores[net]["gap"] for net in NETS)
    meaning = {
        "accuracy": "The score is the share of rows that are predicted right.",
        "R2": "R² is the share of the target's variation that is predicted: 1 is perfect, "
        "0 is no better than always answering the mean.",
    }
    gap = "The gap is train minus test: what a network only learnt by heart (overfitting). "
    ours, theirs = difference(sparse, metric), difference(dense, metric)
    if ours == theirs:
        gap += f"It is {ours} for both networks."
    elif not _known(sparse, dense) or sparse < dense:
        gap += f"It is {ours} for the sparse network and {theirs} for the ordinary one."
    else:
        gap += f"Sparsity did not cut it here: it is {ours}, and {theirs} for the ordinary network."
    spread = "± is one standard error: how far other test rows could have moved the score."
    ordinary = "The ordinary network was trained on the same rows, without regularisation or early stopping."
    return [f"{meaning.get(metric, f'The score is {metric}.')} {spread}", f"{gap} {ordinary}"]


def strength_notes(metrics: Metrics, path: list[dict[str, Any]]) -> list[str]:
    """Say how the strength was chosen, and what was done after that.

    Args:
        metrics: the content of metrics.json.
        path: the rows of path.csv, or an empty list.

    Returns:
        A paragraph on the choice and one on the retraining.
    """
    strength, folds = metrics["strength"], metrics["split"].get("folds")
    value, highest = number(strength["value"]), strength["max"]
    limit = f" From about {number(highest)} on, nothing is left of the network." if highest else ""
    best = next((row for row in path if row["best"]), None)
    if strength["chosen_by"] == "given" or best is None:
        return [f"The strength {value} was {_how(strength['chosen_by'])}.{limit}", _refit(metrics)]
    tried = "One strength was tried."
    if len(path) > 1:
        tried = f"{len(path):,} strengths were tried, weak to strong."
    if folds is not None:
        tried += (
            f" They were judged by {folds:,}-fold cross-validation: the validation loss is the mean of the "
            "folds' losses, each on training rows that its fold left out, and ± is its standard error."
        )
    margin = clean(strength["chosen_by"]) if folds is None else "one standard error"
    if best["chosen"]:
        rule = (
            f"The chosen one, {value}, has the lowest validation loss, and no stronger one is within "
            f"{margin} of it."
        )
    else:
        rule = (
            f"The lowest validation loss is {number(best['valid_loss'])}, at {number(best['strength'])}. "
            f"The chosen strength, {value}, is the strongest whose validation loss is within "
            f"{margin} of it: a simpler network, and as good "
            f"as far as these rows can tell."
        )
    return [f"{tried} {rule}{limit}", _refit(metrics)]


def _how(chosen_by: str) -> str:
    return "given, so no other was tried" if chosen_by == "given" else f"chosen by {clean(chosen_by)}"


def _refit(metrics: Metrics) -> str:
    refit = metrics["refit"]
    losses = (
        f"validation loss {number(refit.get('valid_loss_penalised'))} before, "
        f"{number(refit.get('valid_loss_refit'))} after"
    )
    if refit["used"]:
        return (
            f"The weights that were left were then retrained without the penalty, zeros kept ({losses}). "
            "The certificate is of the weights before that."
        )
    if refit.get("valid_loss_refit") is None:
        return "The weights that were left were not retrained without the penalty."
    return f"Retraining what was left without the penalty did not help ({losses}), so it was not kept."


def certificate_notes(certificate: dict[str, Any]) -> list[str]:
    """Put the certificate into plain words.

    Args:
        certificate: `certificate` of metrics.json.

    Returns:
        Paragraphs on the residual, on the slack where there is one, and on what neither can say.
    """
    residual, slack = certificate["residual"], certificate["slack"]
    if not _known(residual):
        return ["The residual could not be computed."]
    if residual <= 0.01:
        verdict = "so the training has settled"
    elif residual <= 0.1:
        verdict = "so the training has nearly settled and small details could still change"
    else:
        verdict = "so the training has not settled: longer training may change weights and features"
    told = [
        f"Residual {number(residual)}: how far the training stopped from a stationary point of its "
        f"objective, where the pull of the data on every weight is balanced by the penalty. The largest "
        f"pull left over is {percent(residual)} of the strength, {verdict}. Small is good.",
    ]
    if slack is not None and slack >= 0:
        told.append(
            f"Slack {number(slack)}: the zero weight closest to coming back feels {percent(1 - slack)} "
            f"of the pull that it would take."
        )
    elif slack is not None:
        told.append(f"Slack {number(slack)}: a zero weight is pulled harder than the penalty holds it.")
    told.append("The certificate cannot say whether another training run would end at a better point.")
    return told


def facts(metrics: Metrics) -> list[tuple[str, str]]:
    """List what was fitted to what.

    Args:
        metrics: the content of metrics.json.

    Returns:
        Pairs of a label and its text.
    """
    table, split, model = metrics["table"], metrics["split"], metrics["model"]
    classes = f" ({listing([clean(c) for c in table['classes']], 8)})" if table["classes"] else ""
    hidden = [f"{size:,}" for size in model["hidden"]]
    shape = f"hidden layers of {', '.join(hidden)} neurons" if hidden else "no hidden layer (a linear model)"
    choosing = f"to train, {split['valid']:,} to choose the strength"
    if "folds" in split:
        choosing = f"to train and, in {split['folds']:,} folds, to choose the strength"
    rows = (
        f"{split['train']:,} {choosing}, {split['test']:,} to test "
        f"({clean(split['test_source'])}); seed {split['seed']}"
    )
    size = f"{quantity(table['rows'], 'row')}, {quantity(table['columns'], 'column')}"
    return [
        ("Data", f"{clean(table['source'])}: {size}"),
        ("Target", f"{clean(table['target'])}, {table['task']}{classes}"),
        ("Rows", rows),
        ("Network", f"{shape}; {quantity(model['parameters'], 'parameter')}"),
        ("Penalty", _PENALTIES.get(model["penalty"], clean(model["penalty"]))),
        ("Time", f"{number(metrics['seconds'])} s"),
    ]
