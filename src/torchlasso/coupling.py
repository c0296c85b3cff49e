"""Penalised weights whose scale is free, so that the penalty can shrink them at no price.

Two symmetries make a scale free.  A normalisation undoes the scale of the weights in front of it.  And
between two layers with only ReLU-like maps between them, one can shrink and the other grow without any
change of the output, which a penalty on one of them alone invites.

What a model does with its weights is read from one call of it: every torch function is recorded with the
tensors that go in and come out.  What is not understood counts as a use that fixes the scale.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from torchlasso.gradients import evaluation_mode, tensors_in, uncompiled
from torchlasso.terms import Term

# Where the weight stands among the positional arguments, after the data at 0.
_LAYERS = {"linear": 1, "conv1d": 1, "conv2d": 1, "conv3d": 1} | {
    f"conv_transpose{dim}d": 1 for dim in (1, 2, 3)
}
_NORMALISATIONS = {"batch_norm": 3, "instance_norm": 3, "layer_norm": 2, "group_norm": 2, "rms_norm": 2}
# Maps f of their first argument with f(c·x) = c·f(x) for every c > 0.
_HOMOGENEOUS = {
    *("relu", "relu_", "leaky_relu", "leaky_relu_", "prelu"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"),
    *(f"{kind}_pool{dim}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for dim in (1, 2, 3)),
    *("flatten", "unflatten", "view", "reshape", "contiguous", "squeeze", "unsqueeze"),
    *("permute", "transpose", "to", "float", "mean"),
}


@dataclass(eq=False)
class _Call:
    """One call of a torch function on the way through the model.

    Attributes:
        weight: the parameter of a layer or of a normalisation.
        normalises: whether the result does not depend on the scale of its input.
        passes_scale: whether the scale of its input is the scale of the result.
        readers: the calls that take its result.
    """

    weight: Tensor | None = None
    normalises: bool = False
    passes_scale: bool = False
    readers: "list[_Call]" = field(default_factory=list)

    def ends(self) -> Iterator["_Call"]:
        """Yield the first calls after this one that do more than pass the scale of its result on."""
        if not self.readers:
            yield _Call()  # the result is the model's output, or goes where nobody looked
        for reader in self.readers:
            if reader.passes_scale:
                yield from reader.ends()
            else:
                yield reader

    @property
    def is_layer(self) -> bool:
        """Whether the result is proportional to a weight that can be trained, and to the input."""
        return self.weight is not None and self.weight.requires_grad and not self.normalises


class _Recorder(TorchFunctionMode):
    """Records the calls while it is active."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self.parameters = set(parameters)
        self.used_elsewhere: set[Tensor] = set()
        self.calls: list[_Call] = []
        self.made_by: Any = WeakTensorKeyDictionary()  # tensors are not kept alive by it

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if result is None or any(True for _ in tensors_in(result)):  # else it only asks for a shape, say
            self._record(_name(func), args, kwargs, result)
        return result

    def read(self, values: Any) -> None:
        """Note that something reads tensors as they are, so that their scale matters."""
        for tensor in tensors_in(values):
            if tensor in self.made_by:
                self.made_by[tensor].readers.append(_Call())
            if tensor in self.parameters:
                self.used_elsewhere.add(tensor)

    def uses(self) -> dict[Tensor, list[_Call]]:
        """Return the calls in which a weight is that of a layer or a normalisation, and nothing else."""
        found: dict[Tensor, list[_Call]] = {}
        for call in self.calls:
            if call.weight in self.used_elsewhere:
                call.weight = None
            if call.weight is not None:
                found.setdefault(call.weight, []).append(call)
        return found

    def _record(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        call = _Call(passes_scale=name in _HOMOGENEOUS, normalises=name in _NORMALISATIONS)
        place = (_LAYERS | _NORMALISATIONS).get(name)
        named = {**{str(i): value for i, value in enumerate(args)}, **kwargs}
        if place is not None:
            weight = named.pop(str(place), named.pop("weight", None))
            call.weight = weight if weight in self.parameters else None
        if call.passes_scale or place is not None:
            data = named.pop("0", None)
            if isinstance(data, Tensor) and data in self.made_by:
                self.made_by[data].readers.append(call)
        self.read(named)
        self.calls.append(call)
        for tensor in tensors_in(result):
            self.made_by[tensor] = call


def scale_notes(model: nn.Module, terms: Sequence[Term], inputs: Any) -> tuple[str, ...]:
    """Name the penalised weights whose scale is free, and say what to do.

    Args:
        model: the module, called once in evaluation mode and left as it was.
        terms: what is penalised.
        inputs: a batch of inputs.

    Returns:
        One sentence for each kind of freedom; none for a model that cannot be followed.
    """
    recorder = _Recorder(model.parameters())
    try:
        with ExitStack() as stack:
            stack.enter_context(evaluation_mode(model))
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.random.fork_rng(devices=[]))
            stack.enter_context(uncompiled())
            stack.enter_context(recorder)
            recorder.read(model(inputs))
    except Exception:  # advice that cannot be given is no reason to fail
        return ()
    penalised = {parameter for term in terms for parameter in term.parameters}
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    uses = recorder.uses()
    undone = {w: scales for w in uses if w in penalised and (scales := _undone_by(uses[w])) is not None}
    coupled = [pair for w in uses if w not in undone and (pair := _coupled(w, uses, penalised)) is not None]
    coupled = [(free, partner) for free, partner in coupled if free not in undone]
    return (*_undone_notes(undone, names), *_coupled_notes(coupled, names))


def _undone_by(calls: list[_Call]) -> set[Tensor] | None:
    """Return the scales of the normalisations that alone read a weight's results, or None if others do."""
    ends = [end for call in calls for end in call.ends()]
    if any(call.normalises for call in calls) or not all(end.normalises for end in ends):
        return None
    return {end.weight for end in ends if end.weight is not None}


def _coupled(
    first: Tensor, uses: Mapping[Tensor, list[_Call]], penalised: set[nn.Parameter]
) -> tuple[Tensor, Tensor] | None:
    """Return the penalised weight and the free one of two layers that can trade their scales."""
    ends = [end for call in uses[first] for end in call.ends()]
    if not first.requires_grad or not all(end.is_layer for end in ends):
        return None
    weights = [end.weight for end in ends if end.weight is not None]
    if any(len(uses[w]) > 1 for w in weights):
        return None
    partners = [w for w in weights if w in penalised]
    if first in penalised:
        return None if partners else (first, weights[0])
    return (partners[0], first) if partners else None


def _undone_notes(undone: Mapping[Tensor, set[Tensor]], names: Mapping[Tensor, str]) -> Iterator[str]:
    if not undone:
        return
    scales = [names[s] for s in dict.fromkeys(s for found in undone.values() for s in found)]
    advice = "choose normalisations with a scale of their own and penalise that"
    if scales:
        advice = f"penalise its scale instead ({_listed(scales)}, named in the rules)"
    yield (
        f"a normalisation undoes the scale of {_listed([names[w] for w in undone])}, so a penalty there can "
        f"shrink at no price; {advice}"
    )


def _coupled_notes(coupled: Sequence[tuple[Tensor, Tensor]], names: Mapping[Tensor, str]) -> Iterator[str]:
    for weight, partner in dict(coupled).items():
        yield (
            f"{names[weight]} is penalised and {names[partner]} is not, but one can shrink and the other "
            "grow at no price, as only ReLU-like maps lie between them; penalise both"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", "")
