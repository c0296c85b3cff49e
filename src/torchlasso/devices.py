"""Which device to train on."""

import torch

from torchlasso.errors import InputError


def resolve_device(device: str) -> str:
    """Return the device that a name stands for, checked to be there.

    Args:
        device: ``"auto"`` for CUDA if there is one and else the CPU, or a torch device.

    Raises:
        InputError: torch does not know the name, or has no such device.

    Example:
        >>> resolve_device("cpu")
        'cpu'
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()  # "meta" and the like hold no values
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        msg = f"device {device!r} cannot be used ({reason}); give 'auto', 'cpu' or one that torch has"
        raise InputError(msg) from None
    return device
