"""Which channels do nothing: the smallest set of live ones that every rule of the ledger allows."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from torchlasso.compaction.flows import Analysis
from torchlasso.compaction.labels import Aligned, Dense, Flow, Ledger, Pairs, Use, squeezed


@dataclass(eq=False)
class Channels:
    """Classes of labels that go or stay together.

    Attributes:
        classes: the class of each label.
        count: how many classes there are.
        live: whether a class is needed, one entry a class.
        kept: whether it stays: live, or needed for its shape.
    """

    classes: Tensor
    count: int
    live: Tensor
    kept: Tensor

    def stays(self, labels: Tensor) -> Tensor:
        """Return for each label whether it stays."""
        return self.kept[self.classes[labels]]


def classify(ledger: Ledger) -> Channels:
    """Return the classes of labels that are tied, none of them live yet.

    Args:
        ledger: what was said about the labels.
    """
    if ledger.ties:
        a, b = torch.cat(ledger.ties, dim=1).numpy()
    else:
        a = b = np.zeros(0, dtype=np.int64)
    graph = coo_array((np.ones(len(a), dtype=np.int8), (a, b)), shape=(ledger.count, ledger.count))
    count, classes = connected_components(graph, directed=False)
    none = torch.zeros(count, dtype=torch.bool)
    return Channels(torch.from_numpy(classes.astype(np.int64)), count, none, none)


def settle(analysis: Analysis, round_to: int = 1) -> Channels:
    """Return which classes stay.

    Args:
        analysis: a graph with all that its calls say.
        round_to: widths that shrink are multiples of this where there are enough channels.
    """
    ledger, channels = analysis.ledger, classify(analysis.ledger)
    channels.live = live_classes(ledger, channels)
    channels.kept = channels.live.clone()
    aligned = [*aligned_classes(ledger, channels), *_rectangles(analysis, channels)]
    products = list(_products(analysis, channels))
    while True:
        before = int(channels.kept.sum())
        for group in aligned:
            _align(channels.kept, group)
        for product in products:
            _complete(channels.kept, product)
        for cover in ledger.covers:
            _cover(channels, cover)
        for relation in ledger.relations:
            if isinstance(relation, Dense):
                _keep_one(channels, relation)
        _agree(channels, ledger)
        _round(channels, ledger, round_to)
        if int(channels.kept.sum()) == before:
            return channels


def live_classes(ledger: Ledger, channels: Channels) -> Tensor:
    """Return which classes an output depends on.

    Args:
        ledger: what was said about the labels.
        channels: the classes.
    """
    live, classes = torch.zeros(channels.count, dtype=torch.bool), channels.classes
    for labels, _ in ledger.pins:
        live[classes[labels]] = True
    relations = [_by_class(relation, classes) for relation in reversed(ledger.relations)]
    while True:
        before = int(live.sum())
        for relation in relations:
            if isinstance(relation, Dense):
                reached = relation.reads[live[relation.rows]].any(0)
                live[relation.columns[reached]] = True
            else:
                live[relation.targets[live[relation.sources]]] = True
        if int(live.sum()) == before:
            return live


def _by_class(relation: Dense | Pairs, classes: Tensor) -> Dense | Pairs:
    if isinstance(relation, Dense):
        return Dense(classes[relation.rows], classes[relation.columns], relation.reads)
    return Pairs(classes[relation.sources], classes[relation.targets])


def aligned_classes(ledger: Ledger, channels: Channels) -> Iterator[Aligned]:
    """Yield what has to keep the same groups, in classes instead of labels.

    Args:
        ledger: what was said about the labels.
        channels: the classes.
    """
    for aligned in ledger.aligned:
        members = tuple(channels.classes[member] for member in aligned.members)
        yield Aligned(members, aligned.together)


def _bases(analysis: Analysis, channels: Channels) -> Iterator[tuple[bool, Tensor]]:
    """Yield the classes of every tensor along what they vary along, and whether it is an input."""
    seen: set[tuple[tuple[int, ...], bytes]] = set()
    for node, flows in analysis.flows.items():
        for flow in flows if isinstance(flows, list | tuple) else [flows]:
            if not isinstance(flow, Flow) or flow.label is None:
                continue
            base = squeezed(channels.classes[squeezed(flow.label)])
            base = base.reshape([n for n in base.shape if n != 1])
            key = (tuple(base.shape), base.numpy().tobytes())
            if base.ndim > 1 and base.numel() and key not in seen:
                seen.add(key)
                yield node.target is torch.ops.aten.alias.default, base


def _rectangles(analysis: Analysis, channels: Channels) -> Iterator[Aligned]:
    """Yield for every tensor whose channels vary along several dimensions that it stays a rectangle."""
    for _, base in _bases(analysis, channels):
        for split in range(1, base.ndim):
            yield Aligned((base.reshape(int(np.prod(base.shape[:split])), -1),))


def _products(analysis: Analysis, channels: Channels) -> Iterator[Tensor]:
    """Yield the inputs, in which whole slices are selected along each dimension."""
    for is_input, base in _bases(analysis, channels):
        if is_input:
            yield base


def _align(kept: Tensor, aligned: Aligned) -> None:
    alive = torch.stack([kept[member].any(1) for member in aligned.members]).any(0)
    if not bool(alive.any()):
        return
    alive = torch.ones_like(alive) if aligned.together else alive
    for member in aligned.members:
        counts = kept[member].sum(1)
        most = max(int(counts[alive].max()), 1)
        for group in (alive & (counts < most)).nonzero().flatten().tolist():
            _revive(kept, member[group], most)


def _revive(kept: Tensor, classes: Tensor, count: int) -> None:
    """Have at least a number of entries stay, the first ones of those that would go."""
    while True:
        stays = kept[classes]
        if int(stays.sum()) >= count or bool(stays.all()):
            return
        kept[classes[~stays][0]] = True


def _complete(kept: Tensor, base: Tensor) -> None:
    stays = kept[base]
    product = torch.ones_like(stays)
    for dim in range(base.ndim):
        others = [d for d in range(base.ndim) if d != dim]
        product &= stays.amax(others, keepdim=True)
    kept[base[product]] = True


def _cover(channels: Channels, cover: Pairs) -> None:
    kept = channels.kept
    sources, targets = channels.classes[cover.sources], channels.classes[cover.targets]
    stays = kept[targets]
    if bool(stays.any()):
        has = torch.zeros_like(kept)
        has[sources[stays]] = True
        kept[targets[kept[sources] & ~has[sources]]] = True


def _keep_one(channels: Channels, relation: Dense) -> None:
    """Leave a layer one input: no layer of torch has none."""
    rows, columns = channels.classes[relation.rows], channels.classes[relation.columns]
    if bool(channels.kept[rows].any()) and len(columns) and not bool(channels.kept[columns].any()):
        channels.kept[columns[0]] = True


def _agree(channels: Channels, ledger: Ledger) -> None:
    """Have all calls that share a parameter keep the same part of it."""
    uses: dict[str, list[Use]] = {}
    for use in ledger.uses:
        uses.setdefault(use.name, []).append(use)
    for shared in uses.values():
        if len(shared) < 2:
            continue
        masks = [mask_of(channels, use) for use in shared]
        union = torch.stack(masks).any(0)
        for use, mask in zip(shared, masks, strict=True):
            missing = union & ~mask
            for factor in use.factors if bool(missing.any()) else ():
                channels.kept[channels.classes[factor.expand(use.shape)[missing]]] = True


def mask_of(channels: Channels, use: Use) -> Tensor:
    """Return which entries of a parameter stay in one of its calls.

    Args:
        channels: which classes stay.
        use: the call.
    """
    mask = torch.ones(use.shape, dtype=torch.bool)
    for factor in use.factors:
        mask &= channels.stays(factor)
    return mask


def _round(channels: Channels, ledger: Ledger, round_to: int) -> None:
    if round_to == 1:
        return
    for labels in ledger.axes.values():
        classes = channels.classes[labels]
        count = int(channels.kept[classes].sum())
        if 0 < count < len(classes):
            _revive(channels.kept, classes, min(-(-count // round_to) * round_to, len(classes)))
