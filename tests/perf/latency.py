"""Latency from capture to subscriber, with one camera and with four cameras that together overload the machine."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.perf import deployment
from vision.client import subscribe
from vision.messaging.schema import DetectionsMessage

_WARM_S = 3.0


def measure(quick: bool) -> Mapping[str, Any]:
    """Measure latencies in ms. `age_when_bound` is the age of a frame when the frame enters a batch."""
    seconds = 8.0 if quick else 60.0
    return {
        "one camera, 10 frames/s": _one_camera(seconds),
        "four cameras, 30 frames/s each": _overload(seconds),
    }


def _receive(sources: list[str], seconds: float) -> list[tuple[int, DetectionsMessage]]:
    received: list[tuple[int, DetectionsMessage]] = []
    with tempfile.TemporaryDirectory() as folder:
        config = deployment.write_config(Path(folder) / "camera.yaml", sources)
        with deployment.running(config):
            started = None
            for message in subscribe(f"ipc://{config}.ipc", timeout_s=30):
                now_ns = time.monotonic_ns()
                if not isinstance(message, DetectionsMessage):
                    continue
                started = started or now_ns
                if now_ns - started > (seconds + _WARM_S) * 1e9:
                    return received
                if now_ns - started > _WARM_S * 1e9:
                    received.append((now_ns, message))
    raise RuntimeError(f"`vision run` sent no more messages after {len(received)}")


def _one_camera(seconds: float) -> Mapping[str, Any]:
    received = _receive([str(deployment.CLIP)], seconds)
    total = np.array([(now_ns - message.captured_monotonic_ns) / 1e6 for now_ns, message in received])
    detector = np.array([message.timing_ms.infer for _, message in received])
    return {
        "messages": len(received),
        "capture_to_subscriber_p50": float(np.median(total)),
        "capture_to_subscriber_p99": float(np.quantile(total, 0.99)),
        "detector_p50": float(np.median(detector)),
        "detector_p99": float(np.quantile(detector, 0.99)),
        "besides_detector_p50": float(np.median(total - detector)),
        "besides_detector_p99": float(np.quantile(total - detector, 0.99)),
        "p99 less detector's p99": float(np.quantile(total, 0.99) - np.quantile(detector, 0.99)),
    }


def _overload(seconds: float) -> Mapping[str, Any]:
    received = _receive([f"synthetic:768x576@30?seed={number}" for number in range(4)], seconds)
    waited = np.array([message.timing_ms.wait for _, message in received])
    total = np.array([(now_ns - message.captured_monotonic_ns) / 1e6 for now_ns, message in received])
    drops: Counter[str] = Counter()
    for _, message in received:
        drops.update(message.dropped_before)
    grabbed = 4 * 30 * (received[-1][0] - received[0][0]) / 1e9
    return {
        "messages_per_s": len(received) / ((received[-1][0] - received[0][0]) / 1e9),
        "age_when_bound_p99": float(np.quantile(waited, 0.99)),
        "age_when_bound_max": float(waited.max()),
        "camera_interval": 1000 / 30,
        "capture_to_subscriber_p99": float(np.quantile(total, 0.99)),
        "capture_to_subscriber_max": float(total.max()),
        "dropped": dict(drops),
        "published + dropped over grabbed": (len(received) + sum(drops.values())) / grabbed,
    }
