"""Why something that is zero was not removed."""

from dataclasses import dataclass

from torchlasso.compaction.flows import Analysis
from torchlasso.compaction.labels import Dense, Fold, Ledger
from torchlasso.compaction.liveness import Channels


@dataclass(frozen=True)
class LeftAlone:
    """Slices of zeros that stay.

    Attributes:
        name: of the parameter.
        dim: the dimension along which they lie.
        count: how many slices.
        reason: why the first of them stays.
    """

    name: str
    dim: int
    count: int
    reason: str

    def __str__(self) -> str:
        slices = "slice" if self.count == 1 else "slices"
        return f"{self.name}: {self.count} {slices} of zeros along dimension {self.dim}: {self.reason}"


def left_alone(analysis: Analysis, channels: Channels) -> tuple[LeftAlone, ...]:
    """Return the rows and columns of zeros that stay, with the reason.

    Args:
        analysis: of a model.
        channels: which of its channels stay.
    """
    found = []
    for (name, dim), labels in analysis.ledger.axes.items():
        tensor = analysis.program.tensors[name].detach()
        if tensor.ndim < 2 or name not in analysis.program.parameters:
            continue
        others = [d for d in range(tensor.ndim) if d != dim]
        zero = (tensor == 0).cpu()
        for d in others:
            zero = zero.all(d, keepdim=True)
        classes = channels.classes[labels][zero.reshape(-1) & channels.stays(labels)]
        if len(classes):
            reason = _reason(analysis.ledger, channels, int(classes[0]))
            found.append(LeftAlone(name, dim, len(classes), reason))
    return tuple(found)


def _reason(ledger: Ledger, channels: Channels, channel: int) -> str:
    if not channels.live[channel]:
        return "keeps the shape that the model needs"
    for labels, reason in ledger.pins:
        if bool((channels.classes[labels] == channel).any()):
            return f"the channel {reason}"
    for fold in ledger.folds:
        if _stuck(fold, channels, channel):
            return (
                f"the channel is a constant other than 0, which cannot move into the bias of {fold.node.name}"
            )
    for relation in ledger.relations:
        if _reached(relation, channels, channel):
            return f"the channel is read by {relation.by}"
    return "the channel is read"


def _stuck(fold: Fold, channels: Channels, channel: int) -> bool:
    here = channels.classes[fold.columns] == channel
    return bool((here & fold.constant.cpu() & ~fold.foldable).any())


def _reached(relation: object, channels: Channels, channel: int) -> bool:
    classes, live = channels.classes, channels.live
    if isinstance(relation, Dense):
        here = classes[relation.columns] == channel
        return bool(relation.reads[live[classes[relation.rows]]][:, here].any())
    sources, targets = classes[relation.sources], classes[relation.targets]  # type: ignore[attr-defined]  # pairs
    return bool((live[sources] & (targets == channel) & (sources != channel)).any())
