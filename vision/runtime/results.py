"""The queue between the inference thread and the results thread."""

from __future__ import annotations

import queue
from typing import Final

from vision.runtime.inference_loop import Inferred

RESULT_QUEUE_SIZE: Final = 2048
"""Results that wait for the results thread at most, but for the last batch: two seconds of what one interpreter can
publish, so that no camera drops a frame while that thread pauses. In frames, because many cameras make many batches
of one frame. A stage that looks at pixels is bounded by its leases, long before."""


class ResultQueue(queue.Queue[list[Inferred] | None]):
    """Batches for the results thread, counted and bounded by their frames. None: no more come."""

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self._frames = 0

    def _qsize(self) -> int:
        return self._frames

    def _put(self, item: list[Inferred] | None) -> None:
        super()._put(item)
        self._frames += self._weight(item)

    def _get(self) -> list[Inferred] | None:
        item = super()._get()
        self._frames -= self._weight(item)
        return item

    @staticmethod
    def _weight(item: list[Inferred] | None) -> int:
        return max(1, len(item or ()))  # without weight, the last one would not be found
