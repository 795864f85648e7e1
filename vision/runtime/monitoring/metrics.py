"""Metrics in the format of Prometheus, from the messages of the program, the GPUs, and the kernel."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from vision.client import Item
from vision.messaging.gap_recovery import Gap
from vision.messaging.open_states import VIEW_FAULTS
from vision.messaging.schema import (
    REMOVED,
    CameraStatusMessage,
    DetectionsMessage,
    EventMessage,
    NodeStatusMessage,
)
from vision.messaging.times import utc_ns
from vision.outputs.hardware import GpuSampler, temperatures
from vision.runtime.monitoring.gpu import gpu_metrics

STATES: Final = ("connecting", "streaming", "frozen", "backing-off", "ended")

_BUCKETS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_LONGEST_LABEL: Final = 200  # maximum number of characters of a reason
_STAGES: Final = ("wait", "submit", "infer", "publish", "total")


class ProgramState:
    """The values from which metrics are made: the latest status of the program and of each camera, and counters.

    It is thread-safe.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._node: NodeStatusMessage | None = None
        self._node_at_s = 0.0
        self._cameras: dict[str, CameraStatusMessage] = {}
        self.registry = CollectorRegistry()
        self._stages = Histogram(
            "vision_stage_seconds",
            "Duration of each stage of a published frame, and the total from capture to publication.",
            ["camera", "stage"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._events = Counter("vision_events", "Events.", ["camera", "kind"], registry=self.registry)
        self._kinds: dict[str, set[str]] = {}  # kinds of the events of each camera
        self._lost = Counter(
            "vision_monitor_lost_messages",
            "Messages that did not reach the process which computes these metrics.",
            registry=self.registry,
        )
        self._objects = Gauge("vision_camera_objects", "Objects in the last frame.", ["camera"], registry=self.registry)
        self.registry.register(_StatusCollector(self))

    def add(self, item: Item) -> None:
        """Update the metrics with a message, or with the lost messages of a `Gap`. Ignore items of other types."""
        if isinstance(item, DetectionsMessage):
            self._objects.labels(item.camera).set(len(item.objects))
            for stage in _STAGES:
                duration_ms: float = getattr(item.timing_ms, stage)
                if item.clock != "media" or stage not in ("wait", "total"):  # a recording has other timestamps
                    self._stages.labels(item.camera, stage).observe(duration_ms / 1e3)
        elif isinstance(item, EventMessage) and item.amends is None:
            self._events.labels(item.camera, item.kind).inc()
            self._kinds.setdefault(item.camera, set()).add(item.kind)
        elif isinstance(item, Gap):
            self._lost.inc(item.lost)
        elif isinstance(item, CameraStatusMessage | NodeStatusMessage):
            if isinstance(item, CameraStatusMessage) and item.state == REMOVED:
                self._forget(item.camera)
                return
            with self._lock:
                if isinstance(item, NodeStatusMessage):
                    self._node, self._node_at_s = item, self._clock()
                else:
                    self._cameras[item.camera] = item

    def _forget(self, camera: str) -> None:
        """Remove all metrics of a camera."""
        with self._lock:
            self._cameras.pop(camera, None)
        labels: list[tuple[MetricWrapperBase, tuple[str, ...]]] = [(self._objects, (camera,))]
        labels += [(self._stages, (camera, stage)) for stage in _STAGES]
        labels += [(self._events, (camera, kind)) for kind in self._kinds.pop(camera, ())]
        for metric, values in labels:
            with contextlib.suppress(KeyError):  # the camera has published nothing
                metric.remove(*values)

    def status(self) -> tuple[NodeStatusMessage | None, dict[str, CameraStatusMessage], float]:
        """Return the latest status of the program and of each camera, and the age of the program's status in seconds.

        Before the first status message of the program, the status is None, and the age has no meaning.
        """
        with self._lock:
            return self._node, dict(self._cameras), self._clock() - self._node_at_s

    def exposition(self) -> bytes:
        """Return all metrics in the text format of Prometheus, encoded as UTF-8."""
        return generate_latest(self.registry)


class _StatusCollector(Collector):
    """Metrics of the GPUs and the thermal zones, and metrics from the latest status messages."""

    def __init__(self, state: ProgramState) -> None:
        self._state = state
        self._gpus = GpuSampler()

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Yield the metrics. `prometheus_client` calls this method for each request."""
        node, cameras, age_s = self._state.status()
        yield from gpu_metrics(self._gpus.read())
        yield from _temperatures()
        if node is None:
            return
        yield _gauge("vision_status_age_seconds", "Age of the last status of the program.", age_s)
        yield from _camera_metrics(cameras)
        yield from _node_metrics(node)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


_Key = TypeVar("_Key", bound=tuple[str, ...])


def _labeled(
    name: str, text: str, labels: list[str], values: Mapping[_Key, float], *, counts: bool = False
) -> CounterMetricFamily | GaugeMetricFamily:
    family: CounterMetricFamily | GaugeMetricFamily
    family = CounterMetricFamily(name, text, labels=labels) if counts else GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family


def _camera_metrics(
    cameras: Mapping[str, CameraStatusMessage],
) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    each = [((name,), camera) for name, camera in cameras.items()]
    states = {(name, state): float(camera.state == state) for name, camera in cameras.items() for state in STATES}
    yield _labeled("vision_camera_state", "1 for the present state of the camera.", ["camera", "state"], states)
    for name, text, values in (
        ("grabbed", "Frames received from the camera.", {key: camera.grabbed for key, camera in each}),
        ("published", "Frames whose detections were published.", {key: camera.published for key, camera in each}),
    ):
        yield _labeled(f"vision_frames_{name}", text, ["camera"], values, counts=True)
    reconnects = {key: camera.reconnects for key, camera in each}
    yield _labeled("vision_camera_reconnects", "Connections after the first.", ["camera"], reconnects, counts=True)
    dropped = {(name, reason): n for name, camera in cameras.items() for reason, n in camera.dropped.items()}
    yield _labeled("vision_frames_dropped", "Dropped frames.", ["camera", "reason"], dropped, counts=True)
    slow = {(name, stage): n for name, camera in cameras.items() for stage, n in camera.dropped_by_stage.items()}
    text = "Superseded and stale frames, by the stage that was too slow."
    yield _labeled("vision_frames_dropped_by_stage", text, ["camera", "stage"], slow, counts=True)
    yield _labeled("vision_camera_fps", "Frames received per second.", ["camera"], {k: c.fps for k, c in each})
    faults = {
        (name, fault): float(camera.view_fault == fault)
        for name, camera in cameras.items()
        for fault in VIEW_FAULTS.values()
    }
    yield _labeled("vision_camera_view_fault", "1 while the camera is moved or covered.", ["camera", "kind"], faults)
    ages = {key: camera.last_frame_age_s for key, camera in each if camera.last_frame_age_s is not None}
    yield _labeled("vision_camera_last_frame_age_seconds", "Seconds since the last frame.", ["camera"], ages)


def _node_metrics(node: NodeStatusMessage) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    info = {(node.node, node.version, node.backend, node.model): 1.0}
    yield _labeled("vision_info", "The program.", ["node", "version", "backend", "model"], info)
    yield _gauge("vision_uptime_seconds", "Seconds since the start of the program.", node.uptime_s)
    if node.started_at is not None:
        started_s = utc_ns(node.started_at) / 1e9
        yield _gauge("vision_start_time_seconds", "Start of the program, in seconds since 1970.", started_s)
    yield _gauge("vision_resident_bytes", "Resident memory of the main process.", node.rss_bytes)
    memory = {(name,): float(used) for name, used in node.memory_bytes.items()}
    yield _labeled("vision_memory_bytes", "Memory, by process.", ["process"], memory)
    queues = {(name,): float(frames) for name, frames in node.queues.items()}
    yield _labeled("vision_queue_frames", "Frames that wait, by queue.", ["queue"], queues)
    ports = {(name,): node.counters.get(f"{name}.connected") for name in ("publish", "replay")}
    subscribers = {key: float(count) for key, count in ports.items() if count is not None}
    yield _labeled("vision_subscribers", "Connections of subscribers.", ["socket"], subscribers)
    counters = {(name,): float(value) for name, value in node.counters.items()}
    yield _labeled("vision_counter", "Other counters and sizes of the program, by name.", ["name"], counters)
    yield from _sink_metrics(node)
    yield from _disk_metrics(node)
    detector = node.detector
    if detector is not None:
        text = "1 if the detector runs on the CPU although the machine has an NVIDIA GPU."
        yield _gauge("vision_gpu_unused", text, float(detector.gpu_unused is not None))
    if detector is not None and detector.graphs is not None:
        yield _gauge("vision_detector_graphs", "1 if batches run as CUDA graphs.", float(detector.graphs))
        off = {} if detector.graphs_off is None else {(detector.graphs_off[:_LONGEST_LABEL],): 1.0}
        yield _labeled("vision_detector_graphs_off", "Why batches do not run as CUDA graphs.", ["reason"], off)
    if detector is not None and detector.device_bytes is not None:
        yield _gauge("vision_detector_device_bytes", "GPU memory of the detector.", detector.device_bytes)


def _sink_metrics(node: NodeStatusMessage) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    each = {(name, sink.protocol): sink for name, sink in node.sinks.items()}
    labels = ["sink", "protocol"]
    connected = {key: float(sink.connected) for key, sink in each.items()}
    yield _labeled("vision_sink_connected", "1 if the last call to the sink succeeded.", labels, connected)
    for name, text, values in (
        ("queued", "Messages that wait on disk.", {key: sink.queued for key, sink in each.items()}),
        ("queued_bytes", "Size of the messages that wait on disk.", {key: s.queued_bytes for key, s in each.items()}),
    ):
        yield _labeled(f"vision_sink_{name}", text, labels, values)
    sent = {key: sink.sent for key, sink in each.items()}
    yield _labeled("vision_sink_sent", "Messages that the sink has confirmed.", labels, sent, counts=True)
    lost = {key: sink.lost for key, sink in each.items()}
    yield _labeled("vision_sink_lost", "Messages that were lost.", labels, lost, counts=True)


def _disk_metrics(node: NodeStatusMessage) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    for name, text, values in (
        ("free", "Free space.", {(folder,): disk.free_bytes for folder, disk in node.disks.items()}),
        ("size", "Size of the disk.", {(folder,): disk.size_bytes for folder, disk in node.disks.items()}),
        ("min_free", "Limit of the event `disk_low`.", {(f,): disk.min_free_bytes for f, disk in node.disks.items()}),
    ):
        yield _labeled(f"vision_disk_{name}_bytes", text, ["folder"], values)


def _temperatures() -> Iterator[GaugeMetricFamily]:
    """Yield the temperatures that the kernel measures, such as the temperatures of a Jetson's thermal zones."""
    family = GaugeMetricFamily("vision_temperature_celsius", "Temperature of a thermal zone.", labels=["zone"])
    for zone, value in temperatures().items():
        family.add_metric([zone], value)
    yield family
