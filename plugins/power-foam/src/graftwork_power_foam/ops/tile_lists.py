"""How long the tiles' lists get on a CUDA device, known without waiting for it.

The lists of a frame are made on the device into memory that was taken before. How much they need is read back
while later frames are already under way; the first frame of a size waits for the answer.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

_FIRST = 1 << 20
_HEADROOM = 1.5

_log = logging.getLogger("graftwork")


class TileLists:
    """Capacity of the lists for one device and image size.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._capacity = _FIRST
        self._known = False
        self._pending: list[tuple[torch.cuda.Event, Tensor, int]] = []

    def run(self, render: Callable[[int, Tensor], object], cameras: int, *, exact: bool) -> None:
        """Render with enough room, as far as that is known.

        Args:
            render: Called with a capacity and a tensor ``(C,)`` int64 that receives the lengths needed.
            cameras: C.
            exact: Wait for the lengths if nothing is known yet, and render again if the room was too small.
        """
        self._look_back()
        while True:
            pairs = torch.zeros(cameras, dtype=torch.int64, device=self._device)
            render(self._capacity, pairs)
            if self._known or not exact:
                break
            needed = int(pairs.max())
            self._known = True
            if needed <= self._capacity:
                self._grow(needed)
                return
            self._grow(needed)
        lengths = torch.empty(cameras, dtype=torch.int64, pin_memory=True)
        lengths.copy_(pairs, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending.append((event, lengths, self._capacity))

    def _look_back(self) -> None:
        while self._pending and self._pending[0][0].query():
            _, lengths, capacity = self._pending.pop(0)
            needed = int(lengths.max())
            if needed > capacity:
                _log.warning(
                    "power-foam: a frame needed %d entries in the tiles' lists and had room for %d; its "
                    "rearmost cells were left out. The next frames have room.",
                    needed,
                    capacity,
                )
            self._grow(needed)

    def _grow(self, needed: int) -> None:
        if needed * 1.2 > self._capacity:
            self._capacity = int(needed * _HEADROOM)


@functools.cache
def estimate(device: torch.device, width: int, height: int) -> TileLists:
    """Return what is known for a device and an image size."""
    return TileLists(device)
