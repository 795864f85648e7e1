"""Limits how many batches compute at the same time: enough to fill the GPU, but no more than its cache holds.

Batches in flight overlap: one is copied while others compute. Each layer reads what the layer before it wrote. Batches
that compute at the same time evict each other's data from the GPU's cache, so beyond a few, each batch gets slower.
On an H100 (50 MB of cache), batches of 32 with six in flight take 0.81 ms each if all compute at once, and 0.78 ms if
three do. Batches of 1, of which many fit, are fastest all at once.
"""

from __future__ import annotations

from typing import Final

from vision.detect.tensorrt.completion import Completion
from vision.gpu.cuda import Stream

_MIN_BATCHES: Final = 3  # with fewer, the GPU is idle between layers and in the tails of kernels


class ConcurrencyLimit:
    """Orders the batches of all slots. For one thread."""

    def __init__(self, cache_bytes: int, frame_bytes: int) -> None:
        """
        Args:
            cache_bytes: size of the GPU's last-level cache.
            frame_bytes: size of the network's input for one frame.
        """
        self._frames = cache_bytes // max(frame_bytes, 1)
        self._order: list[Completion] = []  # of each slot's newest batch, the newest of all last

    def at_once(self, batch: int) -> int:
        """Return how many batches of this size may compute at the same time."""
        return max(_MIN_BATCHES, self._frames // batch)

    def begin(self, stream: Stream, batch: int) -> None:
        """Make the next batch on `stream` wait for its turn on the GPU. The host does not wait."""
        count = self.at_once(batch)
        if len(self._order) >= count:
            self._order[-count].before(stream)

    def queued(self, end: Completion) -> None:
        """Note that the batch is queued and that `end` is recorded behind it."""
        if end in self._order:
            self._order.remove(end)
        self._order.append(end)
