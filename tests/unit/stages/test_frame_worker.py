"""Tests of the frame copies of a `FrameWorker`: their size limit, and the memory that the worker keeps."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from tests.messages.processes import wait_until
from vision.stages.frame_worker import FrameWorker
from vision.types import Detections, Frame, FrameMeta, Result, Timing

pytestmark = pytest.mark.unit

NONE = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int32))


def add(worker: FrameWorker, nbytes: int) -> bool:
    meta = FrameMeta("gate", 0, 0, 0, 0, nbytes // 3, 1)
    frame = Frame.wrap(meta, np.zeros((1, nbytes // 3, 3), np.uint8), "bgr")
    return worker.add(frame, Result(meta, NONE, Timing(0, 0, 0)))


@pytest.mark.parametrize("lossless", [False, True])
def test_copies_are_limited_in_bytes_unless_they_are_lossless(lossless: bool) -> None:
    go, done = threading.Event(), []

    def work(copies: Iterator[tuple[Frame, Result]]) -> None:
        for frame, _ in copies:
            assert go.wait(60)
            done.append(frame.pixels.nbytes)

    worker = FrameWorker("test", work, buffers=4, lossless=lossless, most_bytes=1000)
    added = [add(worker, nbytes) for nbytes in (900, 600, 90)]  # 900 + 90 bytes are less than the limit
    assert added == [True, lossless, True]
    assert worker.skipped == (0 if lossless else 1)
    go.set()
    wait_until(lambda: worker.progress() is None, "free copies", 60)
    assert add(worker, 3000)  # a frame that is larger than the limit has all of the memory
    wait_until(lambda: worker.progress() is None, "free copies", 60)
    assert done == [900, 600, 90, 3000] if lossless else done == [900, 90, 3000]
    worker.finish()
    worker.join(60)
    assert sum(len(worker._free.get(timeout=60).memory) for _ in range(4)) <= 1000
