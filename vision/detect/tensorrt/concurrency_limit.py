"""Which batches compute at the same time: enough to fill the GPU, and no more than its cache holds.

Batches in flight overlap: one is copied while others compute. But each layer reads what the one before it wrote, and
batches that compute together push that out of the GPU's cache: beyond a few, each gets slower and none comes earlier.
On an H100 (50 MB of cache), batches of 32 with six in flight take 0.81 ms each if all compute at once, and 0.78 ms if
three do; batches of 1, of which many fit, are fastest all at once.
"""

from __future__ import annotations

from typing import Final

from vision.detect.tensorrt.completion import Completion
from vision.gpu.cuda import Stream

_LEAST: Final = 3  # where fewer compute, the GPU is idle between the layers of one and in the tails of its kernels


class ConcurrencyLimit:
    """The order of the batches of all slots. For one thread."""

    def __init__(self, cache_bytes: int, frame_bytes: int) -> None:
        """
        Args:
            cache_bytes: of the GPU, at its last level.
            frame_bytes: what the network reads of one frame.
        """
        self._frames = cache_bytes // max(frame_bytes, 1)
        self._order: list[Completion] = []  # the ends of each slot's newest batch, that of the newest of all last

    def at_once(self, batch: int) -> int:
        """How many batches of this size compute at the same time."""
        return max(_LEAST, self._frames // batch)

    def begin(self, stream: Stream, batch: int) -> None:
        """Let a batch of this size, about to be queued on `stream`, compute once it is its turn. The host goes on."""
        count = self.at_once(batch)
        if len(self._order) >= count:
            self._order[-count].before(stream)

    def queued(self, end: Completion) -> None:
        """The batch has been queued, and `end` is recorded behind it."""
        if end in self._order:
            self._order.remove(end)
        self._order.append(end)
