"""Results and statuses for the tests of messages."""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec.structs import replace

from vision.messaging import codec
from vision.messaging.schema import (
    CameraReport,
    Header,
    LatencyPercentiles,
    NodeReport,
    StatusMessage,
    StatusReport,
)
from vision.messaging.times import rfc3339
from vision.types import Detections, DropReason, Event, FrameMeta, Result, Timing, Tracks

HEADER: Header = {"node": "node-1", "instance": "cafe", "boot": "b007", "seq": 1}
CLASSES = ("person", "car")
META = FrameMeta("gate", 17, 2, 5_000_000_000, 1_700_000_000_123_456_789, 640, 480, "rtcp")
TIMING = Timing(5_003_000_000, 5_003_200_000, 5_027_200_000)
PUBLISHED_NS = 5_027_800_000


def found(n: int = 2) -> Detections:
    """Return `n` detections with fixed boxes, scores, and classes."""
    boxes = np.arange(4 * n, dtype=np.float32).reshape(n, 4) + np.float32(0.123)
    return Detections(boxes, np.linspace(0.87654321, 0.1, n, dtype=np.float32), np.arange(n, dtype=np.int32) % 2)


def tracked(n: int = 2) -> Tracks:
    """Return `found(n)` as tracks, with ids from 40."""
    one = found(n)
    return Tracks(one.boxes_xyxy, one.scores, one.class_ids, np.arange(n) + 40, np.full(n, 1500, np.int64))


def result(
    objects: Detections | Tracks | None = None, *, camera: str = "gate", index: int = 17, **changes: Any
) -> Result:
    """Return the result of frame `index` of a camera, with dropped frames and timing."""
    given: dict[str, Any] = {"timing": TIMING, "dropped_before": {DropReason.STALE: 3, DropReason.MAX_FPS: 0}}
    meta = replace(META, camera_id=camera, index=index)
    return Result(meta, objects if objects is not None else found(), **(given | changes))


def camera_status(camera: str = "gate", **changes: Any) -> CameraReport:
    """Return the status of a camera that streams."""
    fields: dict[str, Any] = {
        "at": rfc3339(0), "at_monotonic_ns": 9_000_000_000, "state": "streaming", "state_for_s": 1.5, "epoch": 1,
        "reconnects": 0, "grabbed": 10, "published": 8, "dropped": {"stale": 2}, "fps": 24.99, "published_fps": 20.0,
        "objects": 2,
    }  # fmt: skip
    return CameraReport(camera=camera, **(fields | changes))


def node_status() -> NodeReport:
    """Return the status of a running program."""
    return NodeReport(
        at=rfc3339(0), at_monotonic_ns=1, uptime_s=1.235, version="0.1.0", backend="fake cpu",
        model="fake", rates={"published": 24.99}, dropped={"stale": 1}, queues={"results": 0}, rss_bytes=1 << 20,
        latency_ms={"detect": LatencyPercentiles(p50=1.235, p99=2.0, max=3.0)},
    )  # fmt: skip


def published(report: StatusReport) -> StatusMessage:
    """Return the status message that the publisher sends for a report."""
    return codec.status(HEADER, report)


def crossed(camera: str = "gate") -> Event:
    """Return the event of three objects that cross the line `door`."""
    return Event("line_crossed", "door", camera, 40, 5_001_000_000, {"direction": "in", "count": np.int64(3)})
