"""Functions that convert the counters of cameras and the detector to the parts of a `Report`.

The runtime builds a report once per interval. The terminal shows the report, and the publisher sends it as messages.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

import msgspec

from vision.capture.camera_status import CameraStatus
from vision.detect.detector import Detector, ReportsMemory
from vision.errors import redact
from vision.messaging import codec
from vision.messaging.schema import (
    REMOVED,
    CameraReport,
    CountsReport,
    DetectorStatus,
    LatencyPercentiles,
)
from vision.messaging.times import rfc3339
from vision.metrics import LatencyHistogram, Percentiles, Rate
from vision.runtime.latest_slot import SlotCounts
from vision.stages.stage import Report
from vision.types import Counts


@dataclass(slots=True)
class CameraMetrics:
    """Measurements of one camera's published results."""

    latency: LatencyHistogram  # time from capture to publication
    rate: Rate  # rate of published results
    published: int = 0  # number of published results
    objects: int = 0  # number of objects in the last frame
    counts: Counts | None = None  # of the lines and zones; None if the camera has none
    has_reported_counts: bool = False  # True if the last report contained counts of lines or zones


@dataclass(frozen=True, slots=True)
class Instant:
    """One moment on the monotonic clock and in UTC, in nanoseconds."""

    monotonic_ns: int
    utc_ns: int


def camera_status(
    camera_id: str, status: CameraStatus, slot: SlotCounts, metrics: CameraMetrics, now: Instant, *, published: int
) -> CameraReport:
    """Build the report of one camera. Latencies cover the time since the camera's previous report.

    `published` is the number of published frames. The caller must read it before or together with `slot`.
    """
    latency = metrics.latency.snapshot(reset=True)
    return CameraReport(
        camera=camera_id,
        at=rfc3339(now.utc_ns),
        at_monotonic_ns=now.monotonic_ns,
        state=status.state,
        state_for_s=round(max(0, now.monotonic_ns - status.since_ns) / 1e9, 3),
        epoch=status.epoch,
        reconnects=status.reconnects,
        grabbed=slot.grabbed,
        published=published,
        dropped={reason.value: count for reason, count in slot.dropped.items() if count},
        dropped_by_stage={stage: count for stage, count in slot.dropped_by_stage.items() if count},
        fps=round(status.fps, 2),
        published_fps=round(metrics.rate.per_s(), 2),
        objects=metrics.objects,
        latency_ms=percentiles(latency) if latency.count else None,
        last_frame_age_s=_rounded(status.last_frame_age_s),
        last_error=redact(status.last_error) or None,
        hint=redact(status.last_hint) or None,
        error_code=status.last_code or None,
        next_retry_in_s=_rounded(status.next_retry_in_s),
        width=status.width_px or None,
        height=status.height_px or None,
        decoder=status.decoder or None,
        clock=status.clock,
    )


def camera_counts(camera_id: str, metrics: CameraMetrics, now: Instant) -> CountsReport | None:
    """Build the report of the counts of one camera. Return None if the camera has no lines and zones.

    After the last line or zone was removed, build one report without counts, so that receivers discard the old counts.
    """
    counts = metrics.counts
    if counts is None and not metrics.has_reported_counts:
        return None
    metrics.has_reported_counts = counts is not None
    return codec.counts(camera_id, counts or Counts({}, {}, {}), now.monotonic_ns, now.utc_ns)


def removed(last: CameraReport) -> CameraReport:
    """Return the final report of a removed camera, which is its most recent report with the state `REMOVED`."""
    return msgspec.structs.replace(last, state=REMOVED, state_for_s=0.0, fps=0.0, published_fps=0.0, objects=0)


def detector_status(detector: Detector) -> DetectorStatus:
    """Build the part of the program's report that describes the detector."""
    spec = detector.spec
    memory = detector.memory() if isinstance(detector, ReportsMemory) else None
    return DetectorStatus(
        batches_in_flight=spec.batches_in_flight,
        max_batch=spec.max_batch,
        graphs=None if spec.gpu is None else spec.gpu.graphs,
        graphs_off=None if spec.gpu is None else spec.gpu.graphs_off or None,
        gpu_unused=spec.gpu_unused or None,
        device_bytes=None if memory is None else memory.device_bytes,
        page_locked_bytes=None if memory is None else memory.page_locked_bytes,
    )


def summary(report: Report) -> str:
    """Return the status of the program in one line, for the service manager."""
    up = sum(camera.state == "streaming" for camera in report.cameras)
    late_ms = max((camera.latency_ms.p99 for camera in report.cameras if camera.latency_ms is not None), default=None)
    latency = "" if late_ms is None else f", p99 {late_ms:.1f} ms"
    return f"{up} of {len(report.cameras)} cameras up, {report.node.rates['published']:.1f} frames/s{latency}"


def resident_bytes() -> int:
    """Return the resident memory of this process, in bytes."""
    return int(os.pread(_memory_file(), 100, 0).split()[1]) * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def _memory_file() -> int:
    """Return the descriptor of the kernel's file about the memory of this process.

    The first call opens the file and keeps it open, because all descriptors can be in use at a subsequent call.
    """
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


def percentiles(latency: Percentiles) -> LatencyPercentiles:
    """Convert latency percentiles to their form in messages: milliseconds, rounded to three decimals."""
    return LatencyPercentiles(p50=round(latency.p50_ms, 3), p99=round(latency.p99_ms, 3), max=round(latency.max_ms, 3))


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
