"""Small arrays that the host writes and a device reads, sent over without waiting for it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

_SPARES = 4  # sendings that one CUDA graph may hold, whose memory must be there before


class Mirror:
    """An array of the host and its copy on a device.

    Args:
        device: where the copy lives.

    Example:
        >>> mirror = Mirror(torch.device("cpu"))
        >>> mirror.send(np.arange(3)) is mirror.send(np.arange(3))
        True
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sent: tuple[Any, Tensor] | None = None
        self._spares: list[tuple[Tensor, Tensor]] = []
        self._captured: list[tuple[Tensor, Tensor]] = []  # a graph reads them at each replay

    def send(self, array: Any) -> Tensor:
        """Return the array on the device; nothing is sent if it holds what it held before.

        Args:
            array: in an eight-byte type, always of the same shape.
        """
        capturing = self._device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if self._sent is not None and np.array_equal(self._sent[0], array):
            if capturing:
                self._captured.append((self._sent[1], self._sent[1]))
            return self._sent[1]
        if not capturing and not self._spares:
            self._spares = [self._pair(array) for _ in range(_SPARES)]
        host, there = self._spares.pop() if capturing and self._spares else self._pair(array)
        host.copy_(torch.from_numpy(array))
        there.copy_(host, non_blocking=True)
        if capturing:  # it arrives when the graph is replayed, so that no other step may count on it
            self._captured.append((host, there))
        else:
            self._sent = (array.copy(), there)
        return there

    def _pair(self, array: Any) -> tuple[Tensor, Tensor]:
        pinned = self._device.type == "cuda"
        host = torch.empty(array.shape, dtype=torch.from_numpy(array).dtype, pin_memory=pinned)
        return host, torch.empty_like(host, device=self._device)
