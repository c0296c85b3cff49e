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

    def again(self) -> "Detached":
        """Return the hook for a copy of the copy."""
        return self


class Guard:
    """What makes the copies and pickles of one optimizer, each with a hook that refuses to step.

    Args:
        optimizer: the original, or a copy that was not attached.
        detached: makes the hook of a copy.
    """

    def __init__(self, optimizer: Optimizer, detached: Callable[[], Detached]) -> None:
        self.optimizer, self.detached = optimizer, detached

    def __call__(self, protocol: Any) -> Any:
        """Return how to rebuild the optimizer, as ``__reduce_ex__`` does."""
        reduced: Any = type(self.optimizer).__reduce_ex__(self.optimizer, protocol)
        rebuild, arguments, state, *rest = reduced
        # torch's __setstate__ takes over every attribute that is in the state.
        hooks = copy.copy(self.optimizer._optimizer_step_pre_hooks)
        hooks.clear()
        hooks[0] = hook = self.detached()
        again = Guard(self.optimizer, hook.again)  # a copy of the copy refuses too
        return (
            rebuild,
            arguments,
            {**state, "_optimizer_step_pre_hooks": hooks, "__reduce_ex__": again},
            *rest,
        )

    def remove(self) -> None:
        """Let copies be plain again."""
        self.optimizer.__dict__.pop("__reduce_ex__", None)


def guard_copies(optimizer: Optimizer, detached: Callable[[], Detached]) -> Guard:
    """Make every copy and pickle of an optimizer refuse to step until it is attached again.

    Both ask the object itself how to be rebuilt, so an attribute of this one instance is enough.

    Args:
        optimizer: the original.
        detached: makes the hook of a copy.

    Returns:
        An object whose ``remove`` undoes it.
    """
    guard = Guard(optimizer, detached)
    optimizer.__dict__["__reduce_ex__"] = guard
    return guard


def take_detached(optimizer: Optimizer) -> Detached | None:
    """Return the hook of a copied optimizer and take it off, or None if it is no copy.

    Args:
        optimizer: about to be attached.
    """
    hooks = optimizer._optimizer_step_pre_hooks
    for key, hook in list(hooks.items()):
        if isinstance(hook, Detached):
            del hooks[key]
            optimizer.__dict__.pop("__reduce_ex__", None)
            return hook
    return None
