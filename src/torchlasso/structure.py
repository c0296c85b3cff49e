"""The named penalties of the estimators: which blocks of a network vanish together."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchlasso.errors import InputError
from torchlasso.mlp import linear_layers
from torchlasso.penalties.base import Penalty
from torchlasso.penalties.separable import L1
from torchlasso.penalties.structured import GroupLasso, Groups, GroupWeights
from torchlasso.regularizer import Regularizer
from torchlasso.terms import Member, Term

PENALTIES = ("l1", "features", "neurons")


def structured_regularizer(
    module: nn.Module,
    penalty: str,
    strength: float,
    groups: Sequence[Sequence[int]] | None = None,
    *,
    keep: Sequence[int] = (),
) -> Regularizer:
    """Return the regularizer that a named penalty stands for.

    * ``"l1"``: every weight alone.
    * ``"features"``: the first layer's weights of one input (or of one group of inputs) vanish together;
      the other layers carry an L1 at the same strength, without which the network would undo the
      penalty for free by making the first layer small and the next one large.
    * ``"neurons"``: all weights into a hidden unit vanish together; for the last hidden layer, together
      with the weights out of it.

    Args:
        module: what ``build_mlp`` returned.
        penalty: one of the names above.
        strength: λ.
        groups: lists of inputs that belong together (the columns of one category); every input once.
        keep: inputs whose weights into the first layer are free, with ``"l1"`` and ``"features"``; for a
            group that has one of them, all of it.

    Raises:
        InputError: an unknown name, or ``"neurons"`` without a hidden layer.
    """
    layers = linear_layers(module)
    first, rest = layers[0], [_single(name, layer, L1(strength)) for name, layer in layers[1:]]
    if penalty == "l1":
        every = L1(strength, weights=_entry_weights(first[1].weight, keep))
        return Regularizer.from_terms([_single(*first, every), *rest])
    if penalty == "features":
        named: Groups = "columns" if groups is None else groups
        whole = GroupLasso(strength, groups=named, weights=_group_weights(first[1].weight, groups, keep))
        return Regularizer.from_terms([_single(*first, whole), *rest])
    if penalty == "neurons":
        return Regularizer.from_terms(_neuron_terms(layers, strength))
    msg = f"penalty must be one of {', '.join(PENALTIES)}, got {penalty!r}"
    raise InputError(msg)


def _entry_weights(weight: Tensor, keep: Sequence[int]) -> Tensor | None:
    if not keep:
        return None
    weights = torch.ones_like(weight, requires_grad=False)
    weights[:, list(keep)] = 0.0
    return weights


def _group_weights(
    weight: Tensor, groups: Sequence[Sequence[int]] | None, keep: Sequence[int]
) -> GroupWeights:
    if not keep:
        return "sqrt"
    outputs, inputs = weight.shape
    listed = [[j] for j in range(inputs)] if groups is None else groups
    sizes = [outputs * len(group) if set(keep).isdisjoint(group) else 0 for group in listed]
    return torch.tensor(sizes, dtype=weight.dtype).sqrt()


def _neuron_terms(layers: list[tuple[str, nn.Linear]], strength: float) -> list[Term]:
    if len(layers) < 2:
        msg = "penalty='neurons' needs a hidden layer; use 'l1' or 'features' for a linear model"
        raise InputError(msg)
    rows = GroupLasso(strength, groups="rows")
    terms = [_single(name, layer, rows) for name, layer in layers[:-2]]
    (into, last), (out, output) = layers[-2:]
    # Each unit of the last hidden layer is one group with what reads it: a weight cannot be in two groups,
    # so the layers before are grouped by what leads into their units.
    joint = Term(rows, (Member(into, last.weight, dim=0), Member(out, output.weight, dim=1)))  # type: ignore[arg-type]  # typed as Tensor
    return [*terms, joint]


def _single(name: str, layer: nn.Linear, penalty: Penalty) -> Term:
    return Term(penalty, (Member(name, layer.weight),))  # type: ignore[arg-type]  # typed as Tensor
