"""Linear layers with two zeros in every four weights, in the form that NVIDIA's tensor cores take (2:4)."""

import copy
import warnings

import torch
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured

_CAPABILITY = (8, 0)  # Ampere, the first with such tensor cores
_TYPES = (torch.float16, torch.bfloat16)


def follows_two_of_four(weight: Tensor) -> bool:
    """Return whether every four neighbours in a row hold at least two zeros.

    Args:
        weight: a matrix.

    Example:
        >>> follows_two_of_four(torch.tensor([[1.0, 0.0, 0.0, 2.0]]))
        True
        >>> follows_two_of_four(torch.tensor([[1.0, 0.0, 3.0, 2.0]]))
        False
    """
    if weight.ndim != 2 or weight.shape[1] % 4:
        return False
    return bool(((weight.detach() != 0).unflatten(1, (-1, 4)).sum(dim=2) <= 2).all())


def semi_structured(linear: nn.Linear) -> nn.Linear | None:
    """Return the layer with its weight in torch's 2:4 form, or None where that cannot be.

    It takes a CUDA device of capability 8.0 or more, half precision, the pattern, and sizes that torch's
    kernels accept.

    Args:
        linear: a dense layer, which stays as it is.
    """
    weight = linear.weight.detach()
    if not (weight.is_cuda and weight.dtype in _TYPES and follows_two_of_four(weight)):
        return None
    if torch.cuda.get_device_capability(weight.device) < _CAPABILITY:
        return None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*SparseSemiStructuredTensor is a prototype", UserWarning)
            packed = to_sparse_semi_structured(weight)
    except (RuntimeError, ValueError):  # sizes or a build of torch that its kernels do not take
        return None
    layer = copy.copy(linear)
    layer._parameters = dict(linear._parameters)
    layer.weight = nn.Parameter(packed, requires_grad=False)
    return layer


def unpacked(linear: nn.Linear) -> nn.Linear:
    """Return the layer with an ordinary dense weight; one that has it already comes back itself.

    Args:
        linear: what `semi_structured` returned, or any other.
    """
    if not isinstance(linear.weight.detach(), SparseSemiStructuredTensor):
        return linear
    layer = copy.copy(linear)
    layer._parameters = dict(linear._parameters)
    layer.weight = nn.Parameter(linear.weight.detach().to_dense())
    return layer
