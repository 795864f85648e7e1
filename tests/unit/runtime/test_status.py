"""Tests of the status messages that are built from the counters of the runtime."""

from __future__ import annotations

from collections import Counter

from vision.capture.camera_status import CameraStatus
from vision.messaging.schema import CameraReport
from vision.metrics import LatencyHistogram, Rate
from vision.runtime.latest_slot import SlotCounts
from vision.runtime.status import CameraMetrics, Instant, camera_counts, camera_status
from vision.types import Counts, DropReason

NOW = Instant(9_000_000_000, 0)
DOWN = CameraStatus(
    state="backing-off",
    since_ns=7_500_000_000,
    epoch=1,
    grabbed=10,
    fps=24.987,
    last_frame_age_s=None,
    reconnects=0,
    last_error="rtsp://user:secret@host/x: refused",
    last_hint="is the camera on?",
    last_code="port-closed",
    width_px=0,
    height_px=0,
    decoder="",
    clock=None,
    next_retry_in_s=1.23456,
)


def build(status: CameraStatus, *latencies_ms: int) -> CameraReport:
    metrics = CameraMetrics(LatencyHistogram(), Rate(lambda: 0), published=8, objects=3)
    for latency_ms in latencies_ms:
        metrics.latency.observe(latency_ms * 1_000_000)
    slot = SlotCounts(grabbed=10, taken=8, waiting=0, dropped=Counter({DropReason.STALE: 2, DropReason.MAX_FPS: 0}))
    return camera_status("gate", status, slot, metrics, NOW, published=8)


def test_camera_status_is_rounded_and_has_no_secrets() -> None:
    message = build(DOWN)
    assert message.last_error == "rtsp://***@host/x: refused"
    assert message.hint == "is the camera on?"
    assert (message.state_for_s, message.fps, message.next_retry_in_s) == (1.5, 24.99, 1.235)
    assert (message.grabbed, message.published, message.objects) == (10, 8, 3)
    assert message.dropped == {"stale": 2}
    assert (message.width, message.decoder, message.clock, message.last_frame_age_s) == (None, None, None, None)


def test_camera_status_has_latency_percentiles_if_frames_were_published() -> None:
    assert build(DOWN).latency_ms is None
    latency = build(DOWN, 20, 30).latency_ms
    assert latency is not None
    assert latency.max == 30


def test_counts_are_empty_once_after_the_last_line_was_removed() -> None:
    metrics = CameraMetrics(LatencyHistogram(), Rate(lambda: 0))
    assert camera_counts("gate", metrics, NOW) is None
    metrics.counts = Counts({"door": {"in": 2}}, {}, {})
    counted = camera_counts("gate", metrics, NOW)
    assert counted is not None
    assert counted.lines["door"].in_ == 2
    metrics.counts = None
    counted = camera_counts("gate", metrics, NOW)
    assert counted is not None
    assert (counted.lines, counted.zones) == ({}, {})
    assert camera_counts("gate", metrics, NOW) is None
