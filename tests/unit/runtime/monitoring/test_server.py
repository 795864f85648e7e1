"""Tests of metrics and health over HTTP: contents, tokens, headers, and hostile requests."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import ASGIApp

from tests.messages.samples import CLASSES, HEADER, PUBLISHED_NS, camera_status, node_status, result
from vision.client import Gap
from vision.messaging import codec
from vision.messaging.http_server import http_server
from vision.messaging.schema import (
    REMOVED,
    CameraStatusMessage,
    DetectorStatus,
    DiskStatus,
    NodeStatusMessage,
    SinkStatus,
)
from vision.messaging.times import rfc3339
from vision.outputs.hardware import GpuSampler
from vision.runtime.monitoring.gpu import gpu_metrics
from vision.runtime.monitoring.metrics import ProgramState
from vision.runtime.monitoring.server import CONNECTIONS, Endpoints
from vision.types import Event

TOKEN = "0123456789abcdef"
CAMERA_URL = "rtsp://viewer:hunter2hunter2@192.0.2.4/1"


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def state_of(*states: str, clock: Clock | None = None) -> ProgramState:
    """Return the state of a program with one camera in each of `states`."""
    state = ProgramState(clock or Clock())
    for number, name in enumerate(states):
        report = camera_status(f"c{number}", state=name, dropped_by_stage={"detector": 1})
        message = codec.status(HEADER, report, view_fault=None if number else "covered")
        assert isinstance(message, CameraStatusMessage)
        state.add(message)
    if states:
        node = codec.status(HEADER, node_status())
        assert isinstance(node, NodeStatusMessage)
        counters = {"publish.connected": 3, "journal.lost": 1}
        sinks = {"home": SinkStatus(protocol="mqtt", connected=True, queued=3, sent=7, lost=1)}
        detector = DetectorStatus(batches_in_flight=3, max_batch=1, gpu_unused="no driver")
        disks = {"/state": DiskStatus(free_bytes=400, size_bytes=9000, min_free_bytes=500)}
        fields = {"counters": counters, "sinks": sinks, "detector": detector, "disks": disks}
        state.add(msgspec.structs.replace(node, **fields, started_at=rfc3339(1_000_000_000)))
    return state


class Client:
    """Client that sends requests to an application without a socket."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self._app), base_url="http://x") as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())


def client_of(state: ProgramState, token: str | None = None) -> Client:
    return Client(Endpoints(state, token=token, interval_s=1.0).app())


def codes(client: Client) -> list[int]:
    return [client.get(path).status_code for path in ("/livez", "/readyz", "/healthz")]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ((), [200, 503, 503]),
        (("connecting",), [200, 503, 503]),
        (("streaming", "streaming"), [200, 200, 200]),
        (("streaming", "ended"), [200, 200, 200]),
        (("streaming", "frozen"), [200, 200, 503]),
        (("backing-off", "frozen"), [200, 503, 503]),
    ],
)
def test_health_follows_the_cameras(states: tuple[str, ...], expected: list[int]) -> None:
    assert codes(client_of(state_of(*states))) == expected


def test_program_without_status_is_not_live() -> None:
    clock = Clock()
    client = client_of(state_of("streaming", clock=clock))
    clock.now_s += 9
    assert codes(client) == [200, 200, 200]
    clock.now_s += 2
    assert codes(client) == [503, 503, 503]
    assert client.get("/healthz").json()["problem"]


def samples(state: ProgramState) -> dict[tuple[str, ...], float]:
    """Return the value of each metric sample, by name and labels."""
    families = text_string_to_metric_families(state.exposition().decode())
    return {
        (sample.name, *(f"{key}={value}" for key, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_have_the_values_of_the_messages() -> None:
    state = state_of("streaming", "frozen")
    for _ in range(3):
        state.add(codec.detections(HEADER, result(camera="c0"), CLASSES, PUBLISHED_NS))
    state.add(codec.event(HEADER, Event("line_crossed", "door", "c0", 1, 0), result()))
    state.add(Gap("detections/c0", 3, 7))
    found = samples(state)
    total_s = (PUBLISHED_NS - 5_000_000_000) / 1e9
    assert found["vision_stage_seconds_count", "camera=c0", "stage=total"] == 3
    assert found["vision_stage_seconds_sum", "camera=c0", "stage=total"] == pytest.approx(3 * total_s)
    assert found["vision_stage_seconds_bucket", "camera=c0", "le=0.02", "stage=total"] == 0
    assert found["vision_stage_seconds_bucket", "camera=c0", "le=0.05", "stage=total"] == 3
    assert found["vision_events_total", "camera=c0", "kind=line_crossed"] == 1
    assert found["vision_monitor_lost_messages_total",] == 4
    assert found["vision_frames_grabbed_total", "camera=c1"] == 10
    assert found["vision_frames_dropped_total", "camera=c1", "reason=stale"] == 2
    assert found["vision_frames_dropped_by_stage_total", "camera=c1", "stage=detector"] == 1
    assert found["vision_camera_state", "camera=c1", "state=frozen"] == 1
    assert found["vision_camera_state", "camera=c1", "state=streaming"] == 0
    assert found["vision_subscribers", "socket=publish"] == 3
    assert found["vision_counter", "name=journal.lost"] == 1
    assert found["vision_camera_view_fault", "camera=c0", "kind=covered"] == 1
    assert found["vision_camera_view_fault", "camera=c0", "kind=moved"] == 0
    assert found["vision_camera_view_fault", "camera=c1", "kind=covered"] == 0
    assert found["vision_start_time_seconds",] == 1
    sizes = {name: found[f"vision_disk_{name}_bytes", "folder=/state"] for name in ("free", "size", "min_free")}
    assert sizes == {"free": 400, "size": 9000, "min_free": 500}
    values = {"connected": 1, "queued": 3, "sent_total": 7, "lost_total": 1}
    assert {name: found[f"vision_sink_{name}", "protocol=mqtt", "sink=home"] for name in values} == values


def test_metrics_of_a_removed_camera_disappear() -> None:
    state = state_of("streaming", "streaming")
    removed = codec.status(HEADER, camera_status("c0", state=REMOVED))
    assert isinstance(removed, CameraStatusMessage)
    state.add(removed)
    cameras = {label for sample in samples(state) for label in sample[1:] if label.startswith("camera=")}
    assert cameras == {"camera=c1"}


def test_times_of_recordings_are_not_latencies() -> None:
    state = ProgramState()
    message = codec.detections(HEADER, result(), CLASSES, PUBLISHED_NS)
    state.add(msgspec.structs.replace(message, clock="media"))
    found = samples(state)
    assert ("vision_stage_seconds_count", "camera=gate", "stage=infer") in found
    assert ("vision_stage_seconds_count", "camera=gate", "stage=total") not in found


class NvmlError(Exception):
    pass


def _unsupported(*_: object) -> Any:
    raise NvmlError


def test_gpu_metrics_leave_out_what_the_gpu_does_not_support() -> None:
    nvml = SimpleNamespace(
        NVMLError=NvmlError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=5, total=8),
        nvmlDeviceGetTemperature=lambda *_: 61,
        nvmlDeviceGetClockInfo=lambda *_: 1500,
        nvmlDeviceGetUtilizationRates=_unsupported,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda _: 0x20,
        nvmlClocksThrottleReasonSwThermalSlowdown=0x20,
        nvmlClocksThrottleReasonSwPowerCap=0x4,
        nvmlClocksThrottleReasonHwSlowdown=0x8,
    )
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in gpu_metrics(GpuSampler(nvml).read())
        for sample in family.samples
    }
    assert found == {
        ("vision_gpu_memory_used_bytes", "0"): 5,
        ("vision_gpu_memory_total_bytes", "0"): 8,
        ("vision_gpu_temperature_celsius", "0"): 61,
        ("vision_gpu_clock_hertz", "0"): 1.5e9,
        ("vision_gpu_throttled", "0", "power"): 0,
        ("vision_gpu_throttled", "0", "thermal"): 1,
        ("vision_gpu_throttled", "0", "hardware"): 0,
    }


@pytest.mark.parametrize("reason", [None, 'a "layer" uses the DLA', "long" * 100])
def test_cause_of_missing_cuda_graphs_is_a_label(reason: str | None) -> None:
    state = state_of("streaming")
    node = codec.status(HEADER, node_status())
    assert isinstance(node, NodeStatusMessage)
    detector = DetectorStatus(batches_in_flight=3, max_batch=1, graphs=reason is None, graphs_off=reason)
    state.add(msgspec.structs.replace(node, detector=detector))
    samples = [
        sample
        for family in text_string_to_metric_families(state.exposition().decode())
        for sample in family.samples
        if sample.name.startswith("vision_detector_graphs")
    ]
    found = {sample.name: (sample.labels, sample.value) for sample in samples}
    expected: dict[str, tuple[dict[str, str], float]] = {"vision_detector_graphs": ({}, float(reason is None))}
    if reason is not None:
        expected["vision_detector_graphs_off"] = ({"reason": reason[:200]}, 1.0)
    assert found == expected


# --- attacks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
@pytest.mark.parametrize(
    "given",
    ["", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer \xff"],
)
def test_wrong_token_is_refused(path: str, given: str) -> None:
    client = client_of(state_of("streaming"), TOKEN)
    headers = {"authorization": given.encode("latin-1")} if given else {}
    answer = client.get(path, headers=headers)
    assert answer.status_code == 401
    assert "c0" not in answer.text
    assert client.get(f"{path}?token={TOKEN}").status_code == 401
    assert client.get(path, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/", "/../../etc/passwd", "/metrics/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/config",
     "/static/camera.yaml", "/metrics%00", "/api/config", "/docs", "/openapi.json", "/metrics/"],
)  # fmt: skip
def test_other_paths_are_not_found(path: str) -> None:
    client = client_of(state_of("streaming"), TOKEN)
    answer = client.get(path, headers={"authorization": f"Bearer {TOKEN}"}, follow_redirects=False)
    assert answer.status_code in (307, 404)
    assert "root:" not in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_only_reading_methods_are_allowed(method: str) -> None:
    answer = client_of(state_of("streaming")).request(method, "/metrics", content=b"x" * 100_000)
    assert answer.status_code == 405


def test_every_answer_has_security_headers() -> None:
    client = client_of(state_of("streaming"), TOKEN)
    for path in ("/livez", "/metrics", "/healthz", "/nowhere"):
        headers = client.get(path).headers
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers


def test_answers_contain_no_address_of_a_camera() -> None:
    state = ProgramState()
    error = f"cannot open {CAMERA_URL}"
    message = codec.status(HEADER, camera_status("c0", state="backing-off", last_error=error, hint=error))
    assert isinstance(message, CameraStatusMessage)
    state.add(message)
    client = client_of(state)
    for path in ("/livez", "/readyz", "/healthz", "/metrics"):
        assert not re.search(r"rtsp|hunter2|192\.0\.2\.4", client.get(path).text)


@pytest.fixture
def port() -> Iterator[int]:
    """Run the HTTP server in a thread. Yield the port of the server."""
    server = http_server(
        Endpoints(state_of("streaming"), token=None, interval_s=1.0).app(), connections=CONNECTIONS, request_s=2.0
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield int(listener.getsockname()[1])
        server.should_exit = True
        thread.join()


def answer_to(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        answer = b""
        try:
            with suppress(BrokenPipeError):  # the server answers before it has read everything
                client.sendall(request)
            while part := client.recv(65_536):
                answer += part
        except ConnectionError:
            pass
        return answer


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"200"),
        (b"GET /" + b"a" * 4_000_000, b"400"),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 700_000, b"400"),
        (b"\x00\x01\x02\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", b"400"),
    ],
)
def test_malformed_and_large_requests_are_answered(port: int, request_bytes: bytes, status: bytes) -> None:
    assert status in answer_to(port, request_bytes).partition(b"\r\n")[0] or len(request_bytes) > 1_000_000
    assert b"200" in answer_to(port, b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")


def test_web_socket_is_not_opened(port: int) -> None:
    upgrade = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n"
    upgrade += b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    assert b" 101 " not in answer_to(port, upgrade).partition(b"\r\n")[0]


def test_unfinished_requests_are_closed_and_leave_room(port: int) -> None:
    slow = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(70)]
    for each in slow:
        each.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
    for each in slow:
        try:
            while each.recv(4096):
                pass
        except ConnectionError:
            pass
        each.close()
    assert b"200" in answer_to(port, b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
