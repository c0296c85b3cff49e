"""Which parameters a rule selects, and which are left alone unless they are named.

By default biases, normalisation parameters, embeddings, reparametrised weights (weight_norm), PReLU
slopes, scalars and frozen parameters are not penalised.  A rule that *names* such a parameter overrides
that: the ``Parameter`` itself; for a bias or a scalar a pattern whose last part has no wildcard
(``"fc.bias"``, ``"*.bias"``); for the weight of a normalisation or an embedding a pattern that also
names the layer (``"*.norm1.weight"``, as ``"*.weight"`` speaks of weights at large), the module or the
module type.  Frozen parameters are never penalised.
"""

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import UninitializedParameter

from torchlasso.errors import RuleError

RuleKey = str | re.Pattern[str] | type[nn.Module] | nn.Module | nn.Parameter
"""A glob on the parameter's name, a compiled regex, a module type, a module, or a parameter."""

_BIAS = re.compile(r"(^|_)bias(_|$)")
_REPARAMETRISED = re.compile(r"(^|\.)parametrizations\.|(^|[._])weight_[gv]$")
_NORMALISATIONS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_CUSTOM_NORMALISATION = re.compile(r"Norm(\dd)?$")  # LlamaRMSNorm, LayerNorm2d
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A parameter of the model under all its names, with the modules that own it.

    Attributes:
        names: every name of the parameter; several if it is tied.
        parameter: the parameter.
        owners: the module that holds it under each name.
        ancestors: every module that contains it, for rules that give a module.
    """

    names: tuple[str, ...]
    parameter: nn.Parameter
    owners: tuple[nn.Module, ...]
    ancestors: frozenset[int]

    @property
    def exclusion(self) -> str | None:
        """Why the parameter is left alone by default, or None."""
        if any(_BIAS.search(name.rsplit(".", 1)[-1]) for name in self.names):
            return "bias"
        if any(_is_normalisation(owner) for owner in self.owners):
            return "normalisation"
        if any(isinstance(owner, _EMBEDDINGS) for owner in self.owners):
            return "embedding"
        if any(_REPARAMETRISED.search(name) for name in self.names):
            return "reparametrised"  # a direction without a scale: shrunk to zero, weight_norm divides by it
        if any(isinstance(owner, nn.PReLU) for owner in self.owners):
            return "activation"
        if self.parameter.ndim == 0:
            return "scalar"
        return None


def candidates(model: nn.Module) -> Iterator[Candidate]:
    """Yield every distinct parameter of a model, tied ones once.

    Args:
        model: any module.

    Raises:
        RuleError: a parameter of a lazy module has no shape yet.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    for parameter, aliases in names.items():
        if isinstance(parameter, UninitializedParameter):
            msg = f"parameter {aliases[0]!r} has no shape yet; pass one batch through the model first"
            raise RuleError(msg)
        paths = [alias.rpartition(".")[0] for alias in aliases]
        ancestors = {id(modules[prefix]) for path in paths for prefix in _prefixes(path)}
        yield Candidate(tuple(aliases), parameter, tuple(modules[p] for p in paths), frozenset(ancestors))


def matches(key: object, candidate: Candidate) -> bool:
    """Return whether a rule's key selects a parameter.

    Args:
        key: a glob on the name (``"encoder.*"``), a compiled regex that must match the whole name, a
            module type (of the module that owns the parameter), a module that contains it, or itself.
        candidate: the parameter.

    Raises:
        RuleError: the key is of another kind.
    """
    if isinstance(key, str):
        return any(fnmatch.fnmatchcase(name, key) for name in candidate.names)
    if isinstance(key, re.Pattern):
        return any(key.fullmatch(name) for name in candidate.names)
    if isinstance(key, nn.Parameter):
        return key is candidate.parameter
    if isinstance(key, nn.Module):
        return id(key) in candidate.ancestors
    if isinstance(key, type) and issubclass(key, nn.Module):
        return any(isinstance(owner, key) for owner in candidate.owners)
    msg = (
        "a rule's key must be a glob on the parameter name, a compiled regex, a module type, a module or a "
        f"parameter, got {key!r}"
    )
    raise RuleError(msg)


def names_exactly(key: RuleKey, candidate: Candidate) -> bool:
    """Return whether the key names the parameter so clearly that default exclusions do not apply.

    Args:
        key: a key that matches the candidate.
        candidate: the parameter.
    """
    if isinstance(key, nn.Parameter):
        return True
    own_name_tells = candidate.exclusion in ("bias", "scalar")
    if isinstance(key, str):
        parts = key.split(".")[-1 if own_name_tells else -2 :]
        return not any(c in part for part in parts for c in "*?[")
    if isinstance(key, re.Pattern) or own_name_tells:
        return False
    if isinstance(key, nn.Module):
        return any(owner is key for owner in candidate.owners)
    return _is_normalisation(key) or issubclass(key, _EMBEDDINGS)


def describe_key(key: object) -> str:
    """Return a rule's key as a reader wrote it.

    Args:
        key: any rule key.
    """
    if isinstance(key, str):
        return repr(key)
    if isinstance(key, re.Pattern):
        return f"re {key.pattern!r}"
    if isinstance(key, type):
        return key.__name__
    return f"this {type(key).__name__}"


def _is_normalisation(module: nn.Module | type[nn.Module]) -> bool:
    """Return whether a module (or type) normalises; custom ones are known by their name."""
    kind = module if isinstance(module, type) else type(module)
    return issubclass(kind, _NORMALISATIONS) or bool(_CUSTOM_NORMALISATION.search(kind.__name__))


def _prefixes(path: str) -> Iterator[str]:
    """Yield ``""``, ``"a"``, ``"a.b"`` for ``"a.b"``."""
    yield ""
    parts = path.split(".") if path else []
    for length in range(1, len(parts) + 1):
        yield ".".join(parts[:length])
