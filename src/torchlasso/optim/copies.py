"""Copies of an attached optimizer: torch copies no hooks, so a copy would train without its penalty."""

import copy
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from torchlasso.errors import InputError


class Detached:
    """A step hook of a copied or unpickled optimizer that asks for the penalty back.

    Args:
        saved: what the original's handle remembered when the copy was made; ``attach`` takes it over.
    """

    def __init__(self, saved: dict[str, Any]) -> None:
        self.saved = saved

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Refuse to step."""
        msg = (
            "this optimizer is a copy of an attached one, and copies carry no hooks; call "
            "attach(copy, regularizer) with a regularizer of the copied model, and it goes on where it was"
        )
        raise InputError(msg)


class _Guard:
    """Takes the guard off an optimizer again, like the handles of torch's hooks."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def remove(self) -> None:
        self.optimizer.__dict__.pop("__reduce_ex__", None)


def guard_copies(optimizer: Optimizer, detached: Callable[[], Detached]) -> _Guard:
    """Make every copy and pickle of an optimizer refuse to step until it is attached again.

    Both ask the object itself how to be rebuilt, so an attribute of this one instance is enough.

    Args:
        optimizer: the original.
        detached: makes the hook of a copy.

    Returns:
        An object whose ``remove`` undoes it.
    """
    kind = type(optimizer)

    def reduce(protocol: Any) -> Any:
        parts: tuple[Any, ...] = kind.__reduce_ex__(optimizer, protocol)  # type: ignore[assignment]  # never a name
        rebuild, arguments, state, *rest = parts
        # torch's __setstate__ takes over every attribute that is in the state.
        hooks = copy.copy(optimizer._optimizer_step_pre_hooks)
        hooks.clear()
        hooks[0] = detached()
        return rebuild, arguments, {**state, "_optimizer_step_pre_hooks": hooks}, *rest

    optimizer.__dict__["__reduce_ex__"] = reduce
    return _Guard(optimizer)


def take_detached(optimizer: Optimizer) -> Detached | None:
    """Return the hook of a copied optimizer and take it off, or None if it is no copy.

    Args:
        optimizer: about to be attached.
    """
    hooks = optimizer._optimizer_step_pre_hooks
    for key, hook in list(hooks.items()):
        if isinstance(hook, Detached):
            del hooks[key]
            return hook
    return None
