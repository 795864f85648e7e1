"""How the program and its cameras are, once an interval: the same numbers for the terminal and for status messages."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vision.capture.supervisor import CameraStatus
from vision.messaging import codec
from vision.metrics import Percentiles
from vision.runtime.latest_slot import SlotCounts
from vision.types import Counts
from vision.version import version


@dataclass(frozen=True, slots=True)
class CameraReport:
    """What is published about one camera."""

    camera_id: str
    status: CameraStatus
    counts: SlotCounts
    published: int
    published_fps: float
    latency: Percentiles  # capture to publish, since the last report
    objects: int  # in the last frame
    counted: Counts | None = None  # by its lines and zones, where the pipeline watches them


@dataclass(frozen=True, slots=True)
class DetectorReport:
    """How the detector runs."""

    slots: int
    max_batch: int
    graphs: bool | None = None  # None: not on a GPU
    graphs_off: str = ""  # why not
    device_bytes: int | None = None  # of the GPU's memory
    page_locked_bytes: int | None = None  # of the host's


@dataclass(frozen=True, slots=True)
class Report:
    """What is published about the program."""

    uptime_s: float
    cameras: tuple[CameraReport, ...]
    stages: Mapping[str, Percentiles]  # since the last report: "queue", "detect", "results"
    queued_frames: int  # between detector and results thread
    backend: str  # the detector's name
    model: str
    counters: Mapping[str, int] = field(default_factory=dict)  # of detector, stages and sinks, since the start
    detector: DetectorReport | None = None


def status_messages(report: Report) -> Iterator[codec.StatusMessage]:
    """One or two messages a camera, then one about the program."""
    now_ns, now_utc_ns = time.monotonic_ns(), time.time_ns()
    for camera in report.cameras:
        status = camera.status
        yield codec.camera_status(
            camera=camera.camera_id,
            now_ns=now_ns,
            now_utc_ns=now_utc_ns,
            state=status.state,
            since_ns=status.since_ns,
            epoch=status.epoch,
            reconnects=status.reconnects,
            grabbed=camera.counts.grabbed,
            published=camera.published,
            dropped={reason.value: count for reason, count in camera.counts.dropped.items()},
            fps=status.fps,
            published_fps=camera.published_fps,
            last_frame_age_s=status.last_frame_age_s,
            last_error=status.last_error,
            next_retry_in_s=status.next_retry_in_s,
            width=status.width_px,
            height=status.height_px,
            decoder=status.decoder,
            clock=status.clock,
        )
        if camera.counted is not None:
            yield codec.counts(camera.camera_id, camera.counted, now_ns, now_utc_ns)
    yield _node_status(report, now_ns, now_utc_ns)


def _node_status(report: Report, now_ns: int, now_utc_ns: int) -> codec.NodeStatusMessage:
    dropped: Counter[str] = Counter()
    for camera in report.cameras:
        dropped.update({reason.value: count for reason, count in camera.counts.dropped.items()})
    return codec.node_status(
        now_ns=now_ns,
        now_utc_ns=now_utc_ns,
        uptime_s=report.uptime_s,
        version=version(),
        backend=report.backend,
        model=report.model,
        rates={
            "grabbed": sum(camera.status.fps for camera in report.cameras),
            "published": sum(camera.published_fps for camera in report.cameras),
        },
        latency=report.stages,
        dropped=dropped,
        queues={"results": report.queued_frames},
        rss_bytes=resident_bytes(),
        counters=report.counters,
        detector=_detector_status(report.detector),
    )


def _detector_status(told: DetectorReport | None) -> codec.DetectorStatus | None:
    if told is None:
        return None
    return codec.DetectorStatus(
        slots=told.slots,
        max_batch=told.max_batch,
        graphs=told.graphs,
        graphs_off=told.graphs_off or None,
        device_bytes=told.device_bytes,
        page_locked_bytes=told.page_locked_bytes,
    )


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
