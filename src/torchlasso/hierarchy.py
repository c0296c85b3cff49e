"""LassoNet's regularizer on a residual network, from the names of its two first layers."""

from torch import nn

from torchlasso.errors import RuleError
from torchlasso.penalties.base import Strength
from torchlasso.penalties.hierarchical import Hierarchical
from torchlasso.regularizer import Regularizer
from torchlasso.terms import Member, Term


def hierarchical(
    model: nn.Module, *, skip: str, first: str, strength: Strength, M: float = 10.0, inner: float = 0.0
) -> Regularizer:
    """Return the regularizer that selects input features through a linear skip connection.

    ``strength · Σ_j (‖θ_j‖₂ + inner·‖W_j‖₁)`` with ``‖W_j‖_∞ ≤ M·‖θ_j‖₂`` for every input feature ``j``, with
    ``θ_j`` its column of the skip layer and ``W_j`` its column of the first hidden layer.  A feature whose
    columns are zero is not used by the model, if both layers read the same inputs and nothing else does.

    All other parameters are left alone.  The bound is on the weights of the first layer, so what follows it
    can undo the bound by growing; a little ``weight_decay`` on the later layers keeps ``M`` to what it says.

    Args:
        model: a module whose output is ``skip(x) + rest(first(x))``.
        skip: the name of the linear skip layer in ``model.named_modules()``, from the inputs to the outputs.
        first: the name of the first hidden layer.
        strength: λ ≥ 0, or a function of the step, or a fraction such as ``"0.1max"``.
        M: how far the hidden layer may use a feature, relative to its skip weight; 0 leaves a linear model.
        inner: an L1 penalty on the first hidden layer, as a multiple of the strength.

    Returns:
        A regularizer of one block, whose rows are the features.

    Raises:
        RuleError: a name is not that of an ``nn.Linear`` that can be trained, both are the same layer, or the
            two read a different number of features.
        InputError: the strength, ``M`` or ``inner`` is negative or not finite.

    Example:
        >>> class ResidualNet(nn.Module):
        ...     def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        ...         super().__init__()
        ...         self.skip = nn.Linear(inputs, outputs, bias=False)
        ...         self.first = nn.Linear(inputs, hidden)
        ...         self.last = nn.Linear(hidden, outputs)
        ...
        ...     def forward(self, x):
        ...         return self.skip(x) + self.last(self.first(x).relu())
        >>> model = ResidualNet(12, 16, 1)
        >>> regularizer = hierarchical(model, skip="skip", first="first", strength=0.1)
        >>> regularizer.terms[0].name, tuple(regularizer.terms[0].shape)
        ('skip.weight+first.weight', (12, 17))

    References:
        Lemhadri, Ruan, Abraham and Tibshirani, "LassoNet: a neural network with feature sparsity", J. Mach.
        Learn. Res. 22 (2021).
    """
    linear, hidden = _linear(model, skip, "skip"), _linear(model, first, "first")
    if linear is hidden:
        msg = (
            f"skip={skip!r} and first={first!r} are the same layer; the skip connection needs one of its own"
        )
        raise RuleError(msg)
    if linear.in_features != hidden.in_features:
        msg = (
            f"both layers must read the same features, but {skip!r} reads {linear.in_features} and "
            f"{first!r} reads {hidden.in_features}"
        )
        raise RuleError(msg)
    penalty = Hierarchical(strength, M=M, skip=linear.out_features, inner=inner)
    layers = {skip: linear, first: hidden}
    columns = tuple(Member(f"{name}.weight", _weight(layer), dim=1) for name, layer in layers.items())
    return Regularizer.from_terms([Term(penalty, columns)])


def _linear(model: nn.Module, name: str, argument: str) -> nn.Linear:
    """Return the linear layer of a name, whose weights must be open to training."""
    layers = {n: module for n, module in model.named_modules() if n and isinstance(module, nn.Linear)}
    if name not in layers:
        shown = ", ".join(layers) or "none"
        msg = f"{argument}={name!r} is no nn.Linear in the model; its linear layers are: {shown}"
        raise RuleError(msg)
    if not layers[name].weight.requires_grad:
        msg = f"{name}.weight is frozen (requires_grad is False); unfreeze it before it is penalised"
        raise RuleError(msg)
    return layers[name]


def _weight(layer: nn.Linear) -> nn.Parameter:
    return layer.weight  # type: ignore[return-value]  # typed as Tensor
