"""Tests of the publisher with real sockets and processes, and of the recorder with real disks."""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq
from msgspec.structs import replace

from tests.log_records import log_args
from tests.messages.processes import Program, python, wait_until
from tests.messages.samples import (
    CLASSES,
    HEADER,
    PUBLISHED_NS,
    camera_status,
    crossed,
    found,
    node_status,
    result,
    tracked,
)
from vision.errors import EXIT_CONFIG, EXIT_TEMPORARY, Closed, ConfigError, Unavailable, VisionError
from vision.messaging import codec, schema
from vision.messaging.publisher import Publisher
from vision.messaging.recorder import Recorder
from vision.messaging.shapes import describe_mask
from vision.state.database import StateDatabase
from vision.types import Mask, Shapes

ANY_PORT = "tcp://127.0.0.1:*"


class Subscriber:
    """Subscriber with a bare SUB socket instead of `vision.client`."""

    def __init__(self, address: str, *topics: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, 20_000)
        for topic in topics:
            self._socket.subscribe(topic)
        self._socket.connect(address)

    def receive(self) -> schema.AnyMessage:
        topic, payload = self._socket.recv_multipart()
        return codec.decode(topic.decode(), payload)

    def pending(self, wait_ms: int = 0) -> list[schema.AnyMessage]:
        messages = []
        while self._socket.poll(wait_ms):
            messages.append(self.receive())
        return messages

    def subscribe(self, topic: str) -> None:
        self._socket.subscribe(topic)

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._context.term()


@contextmanager
def joined(publisher: Publisher, *topics: str) -> Iterator[Subscriber]:
    """Connect a subscriber, and wait until the publisher has received its subscription."""
    expected = publisher.socket.joins + len(topics)
    with Subscriber(publisher.address, *topics) as subscriber:
        wait_until(lambda: publisher.socket.joins == expected, "the subscription has arrived")
        yield subscriber


def names(messages: list[schema.AnyMessage]) -> list[tuple[str, int]]:
    return [(message.topic, message.seq) for message in messages]


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_result_is_sent_with_events_and_numbers(encoding: schema.Encoding) -> None:
    with (
        Publisher(ANY_PORT, node="n", class_names=CLASSES, encoding=encoding) as publisher,
        joined(publisher, "") as subscriber,
    ):
        publisher.publish(result(events=(crossed(), crossed())))
        publisher.publish(result(camera="yard"))
        publisher.publish(result())
        messages = [subscriber.receive() for _ in range(5)]
    assert names(messages) == [
        ("detections/gate", 1), ("events/gate", 1), ("events/gate", 2), ("detections/yard", 1), ("detections/gate", 2),
    ]  # fmt: skip
    first = messages[0]
    assert isinstance(first, schema.DetectionsMessage)
    assert [found.class_name for found in first.objects] == ["person", "car"]
    assert first.node == "n"


@pytest.mark.parametrize("masks", ["polygon", "rle"])
def test_event_has_the_mask_of_its_object_in_the_configured_format(masks: schema.MaskFormat) -> None:
    mask = Mask(np.ones((2, 3), np.bool_), (10.0, 20.0, 40.0, 40.0))
    seen = result(replace(tracked(2), shapes=Shapes(masks=(mask, mask))), events=(crossed(),))
    with (
        closing(Publisher(ANY_PORT, node="node-1", class_names=CLASSES, masks=masks)) as publisher,
        joined(publisher, "events/gate") as subscriber,
    ):
        publisher.publish(seen)
        event = subscriber.receive()
    assert isinstance(event, schema.EventMessage)
    assert event.mask == describe_mask(mask, seen.meta.width_px, seen.meta.height_px, masks)
    assert event.mask is not None
    assert (event.mask.polygons is None) == (masks == "rle")


def test_payload_has_configured_encoding() -> None:
    for encoding, beginning in (("json", b'{"schema":"vision.detections/1"'), ("msgpack", b"\xde")):
        context = zmq.Context()
        with Publisher(ANY_PORT, node="n", encoding=encoding) as publisher, context.socket(zmq.SUB) as bare:  # type: ignore[arg-type]
            bare.setsockopt(zmq.RCVTIMEO, 20_000)
            bare.subscribe("")
            bare.connect(publisher.address)
            wait_until(lambda: publisher.socket.joins == 1, "the subscription has arrived")
            publisher.publish(result())
            topic, payload = bare.recv_multipart()
        context.term()
        assert (topic, payload[: len(beginning)]) == (b"detections/gate", beginning)


def test_late_subscriber_receives_last_status_of_all_topics() -> None:
    with Publisher(ANY_PORT, node="n") as publisher:
        for camera in ("gate", "yard"):
            for state in ("connecting", "streaming"):
                publisher.publish_status(camera_status(camera, state=state))
        publisher.publish_status(node_status())
        publisher.publish(result())
        with Subscriber(publisher.address, "") as late:
            messages = [late.receive() for _ in range(3)]
            assert late.pending(100) == []
    assert sorted(names(messages)) == [("status/gate", 2), ("status/node", 1), ("status/yard", 2)]
    assert {message.state for message in messages if isinstance(message, schema.CameraStatusMessage)} == {"streaming"}


def test_late_subscriber_receives_only_subscribed_topics() -> None:
    with Publisher(ANY_PORT, node="n") as publisher:
        publisher.publish_status(camera_status("gate"))
        publisher.publish_status(camera_status("yard"))
        with joined(publisher, "detections/") as late:
            assert late.pending(100) == []
            late.subscribe("status/yard")
            assert names([late.receive()]) == [("status/yard", 1)]
            assert late.pending(100) == []


def test_repeated_status_has_same_number() -> None:
    with Publisher(ANY_PORT, node="n") as publisher, joined(publisher, "status/") as early:
        publisher.publish_status(camera_status())
        with Subscriber(publisher.address, "status/") as late:
            assert names([late.receive()]) == [("status/gate", 1)]
        publisher.publish_status(camera_status())
        received = names([early.receive()])
        while received[-1] != ("status/gate", 2):
            received += names([early.receive()])
        # On a busy machine, the connection of `late` can cause more than one repetition.
        assert received[:2] == [("status/gate", 1)] * 2
        assert set(received[2:-1]) <= {("status/gate", 1)}


def test_simultaneous_subscribers_share_one_repetition() -> None:
    joiners = 30
    with Publisher(ANY_PORT, node="n") as publisher, joined(publisher, "status/") as early:
        publisher.publish_status(camera_status())
        early.receive()
        started = time.monotonic()
        late = [Subscriber(publisher.address, "status/") for _ in range(joiners)]
        for subscriber in late:
            assert names([subscriber.receive()]) == [("status/gate", 1)]
        repeats = len(early.pending(200))
        for subscriber in late:
            subscriber.__exit__()
        assert 1 <= repeats <= (time.monotonic() - started) / 0.05 + 1
        assert repeats < joiners


@pytest.mark.integration
def test_new_subscriber_receives_status_during_results() -> None:
    """A send operation also reads new subscriptions, so it must then wake the thread that serves subscribers."""
    stop = threading.Event()
    with Publisher(ANY_PORT, node="n") as publisher:
        publisher.publish_status(camera_status())

        def flow() -> None:
            while not stop.is_set():
                publisher.publish(result())

        thread = threading.Thread(target=flow)
        thread.start()
        try:
            for _ in range(20):
                with Subscriber(publisher.address, "status/gate") as late:
                    assert names([late.receive()]) == [("status/gate", 1)]
        finally:
            stop.set()
            thread.join()


def test_numbers_have_no_gap_with_concurrent_publishers() -> None:
    per_camera, cameras = 200, ("a", "b", "c")
    with Publisher(ANY_PORT, node="n", queue=10_000) as publisher, joined(publisher, "") as subscriber:

        def send(camera: str) -> None:
            for _ in range(per_camera):
                publisher.publish(result(camera=camera))
                publisher.publish_status(camera_status("shared"))

        threads = [threading.Thread(target=send, args=(camera,)) for camera in cameras]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found: dict[tuple[str, int], None] = {}  # a status can be repeated for a subscriber that has just joined
        while len(found) < 2 * per_camera * len(cameras):
            found.update(dict.fromkeys(names([subscriber.receive()])))
    by_topic: dict[str, list[int]] = {}
    for topic, seq in found:
        by_topic.setdefault(topic, []).append(seq)
    assert by_topic.pop("status/shared") == list(range(1, per_camera * len(cameras) + 1))
    assert by_topic == {f"detections/{camera}": list(range(1, per_camera + 1)) for camera in cameras}


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.integration
def test_stopped_subscriber_loses_only_its_own_messages() -> None:
    queue, sent, large = 50, 1500, result(found(300))  # 28 kB each
    with (
        Publisher(ANY_PORT, node="n", queue=queue) as publisher,
        python("-m", "tests.messages.subscriber", publisher.address, str(queue)) as stopped,
    ):
        wait_until(lambda: publisher.socket.joins == 1, "the process has subscribed")
        with joined(publisher, "detections/") as healthy:
            publisher.publish(large)
            assert stopped.line() == "got 1"
            assert names([healthy.receive()]) == [("detections/gate", 1)]
            stopped.send(signal.SIGSTOP)
            before = _resident_bytes()
            for seq in range(2, sent + 2):
                publisher.publish(large)
                assert names([healthy.receive()]) == [("detections/gate", seq)]
            grown = _resident_bytes() - before
            stopped.send(signal.SIGCONT)
            # The queued messages arrive first. Then there is room again, and the next message shows the gap.
            wait_until(lambda: _reports_gap(publisher, stopped), "the stopped subscriber reports its loss")
    assert grown < 16e6, f"{sent * 28e3 / 1e6:.0f} MB were sent and {grown / 1e6:.1f} MB kept"


def _reports_gap(publisher: Publisher, subscriber: Program) -> bool:
    publisher.publish(result())
    return any(line.startswith("gap") for line in subscriber.pending())


@pytest.mark.integration
def test_killed_subscriber_does_not_affect_others() -> None:
    with (
        Publisher(ANY_PORT, node="n") as publisher,
        python("-m", "tests.messages.subscriber", publisher.address, "1000") as killed,
    ):
        wait_until(lambda: publisher.socket.joins == 1, "the process has subscribed")
        with joined(publisher, "detections/") as healthy:
            publisher.publish(result())
            assert killed.line() == "got 1"
            healthy.receive()
            killed.send(signal.SIGKILL)
            killed.wait()
            for seq in range(2, 100):
                publisher.publish(result())
                assert names([healthy.receive()]) == [("detections/gate", seq)]


@pytest.mark.integration
def test_slow_subscriber_stays_connected() -> None:
    """With heartbeats, ZeroMQ would disconnect a slow subscriber that does not respond while its queue is full."""
    with (
        Publisher(ANY_PORT, node="n", queue=10, keepalive_s=1) as publisher,
        python("-m", "tests.messages.subscriber", publisher.address, "10", "--pause", "6") as slow,
    ):
        wait_until(lambda: publisher.socket.joins == 1, "the process has subscribed")
        publisher.publish(result())
        assert slow.line() == "got 1"
        for _ in range(500):
            publisher.publish(result(found(100)))  # 9 kB each: more than both queues and the kernel hold
        wait_until(lambda: _reports_gap(publisher, slow), "the slow subscriber reports its loss")
        assert publisher.socket.joins == 1


def test_foreign_traffic_on_port_is_ignored() -> None:
    with Publisher(ANY_PORT, node="n") as publisher, joined(publisher, "detections/") as healthy:
        port = int(publisher.address.rpartition(":")[2])
        for noise in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\xff" + b"\0" * 8 + b"\x01\x7f" + b"\xff" * 100):
            with socket.create_connection(("127.0.0.1", port)) as foreign:
                foreign.sendall(noise)
        publisher.publish(result())
        assert names([healthy.receive()]) == [("detections/gate", 1)]


def test_oversized_subscription_is_refused() -> None:
    with Publisher(ANY_PORT, node="n") as publisher, Subscriber(publisher.address, "x" * 5000):
        with joined(publisher, "detections/") as healthy:
            publisher.publish(result())
            assert names([healthy.receive()]) == [("detections/gate", 1)]
        assert publisher.socket.joins == 1


def test_port_in_use_is_refused() -> None:
    with Publisher(ANY_PORT, node="n") as first, pytest.raises(Unavailable) as caught:
        Publisher(first.address, node="n")
    port = first.address.rpartition(":")[2]
    assert caught.value.code == "address-in-use"
    assert "publish.bind" in str(caught.value)
    assert f":{port}" in caught.value.hint
    assert "--bind" in caught.value.hint


@pytest.mark.parametrize(
    ("bind", "code", "exit_code"),
    [
        ("tcp://203.0.113.7:5555", "address-not-local", EXIT_TEMPORARY),
        ("tcp://eth99:5555", "address-not-local", EXIT_TEMPORARY),
        ("ipc:///nonexistent/folder/socket", "no-folder", EXIT_CONFIG),
    ],
)
def test_unusable_bind_address_is_refused(bind: str, code: str, exit_code: int) -> None:
    with pytest.raises(VisionError) as caught:
        Publisher(bind, node="n")
    assert (caught.value.code, caught.value.exit_code) == (code, exit_code)
    assert bind in str(caught.value)


def test_ipc_socket_is_created_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with Publisher(f"ipc://{path}", node="n") as publisher:
        assert stat.S_ISSOCK(path.stat().st_mode)
        with joined(publisher, "") as subscriber:
            publisher.publish(result())
            assert names([subscriber.receive()]) == [("detections/gate", 1)]
    assert not path.exists()


def test_group_can_connect_to_ipc_sockets_in_the_runtime_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, other = tmp_path / "run", tmp_path / "other"
    for folder in (runtime, other):
        folder.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{runtime}:{tmp_path / 'second'}")
    modes = {}
    for umask in (0o027, 0o000):
        before = os.umask(umask)
        try:
            for folder in (runtime, other):
                bind, replay = f"ipc://{folder}/out", f"ipc://{folder}/replay"
                with (
                    closing(StateDatabase(folder / "state")) as state,
                    Publisher(bind, node="n", event_log=state.events, replay=replay),
                ):
                    files = [folder / "out", folder / "replay"]
                    modes[umask, folder.name] = {stat.S_IMODE(file.stat().st_mode) for file in files}
        finally:
            os.umask(before)
    assert modes == {
        (0o027, "run"): {0o660},
        (0o027, "other"): {0o750},
        (0o000, "run"): {0o660},
        (0o000, "other"): {0o777},
    }


def test_ipc_socket_of_running_publisher_is_not_replaced(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path / 'out'}"
    with Publisher(address, node="n") as first:
        with pytest.raises(Unavailable) as caught:
            Publisher(address, node="n")
        assert caught.value.code == "address-in-use"
        with joined(first, "") as subscriber:
            first.publish(result())
            subscriber.receive()


def test_ipc_socket_of_killed_publisher_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Publisher(f"ipc://{path}", node="n") as publisher, joined(publisher, "") as subscriber:
        publisher.publish(result())
        subscriber.receive()


def test_file_is_not_replaced_by_socket(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ConfigError) as caught:
        Publisher(f"ipc://{path}", node="n")
    assert caught.value.code == "path-in-use"
    assert path.read_text() == "data"


def test_close_keeps_socket_of_successor(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with Publisher(f"ipc://{path}", node="n"):
        path.rename(tmp_path / "moved")
        path.write_text("somebody else's")
    assert path.exists()


def test_close_frees_the_port_and_ends_the_thread() -> None:
    before = threading.active_count()
    publisher = Publisher(ANY_PORT, node="n")
    assert threading.active_count() == before + 1
    publisher.close()
    publisher.close()
    assert threading.active_count() == before
    with pytest.raises(Closed):
        publisher.publish(result())
    with pytest.raises(Closed):
        publisher.publish_status(node_status())
    Publisher(publisher.address, node="n").close()


@pytest.mark.integration
def test_close_does_not_wait_for_a_stopped_subscriber() -> None:
    publisher = Publisher(ANY_PORT, node="n", linger_s=0.1)
    with python("-m", "tests.messages.subscriber", publisher.address, "10") as stopped:
        wait_until(lambda: publisher.socket.joins == 1, "the process has subscribed")
        stopped.send(signal.SIGSTOP)
        for _ in range(1000):
            publisher.publish(result(found(100)))  # 9 MB: more than the buffers of the kernel
        closing = threading.Thread(target=publisher.close)
        closing.start()
        closing.join(60)
        assert not closing.is_alive()


def test_close_sends_pending_messages() -> None:
    publisher = Publisher(ANY_PORT, node="n", linger_s=5)
    with joined(publisher, "") as subscriber:
        for _ in range(500):
            publisher.publish(result())
        publisher.close()
        assert names([subscriber.receive() for _ in range(500)]) == [("detections/gate", seq) for seq in range(1, 501)]


def test_recording_contains_sent_json(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with (
        closing(Recorder(path)) as recorder,
        Publisher(ANY_PORT, node="n", class_names=CLASSES, encoding="msgpack", recorder=recorder) as publisher,
    ):
        with joined(publisher, "") as subscriber:
            for camera in ("gate", "yard", "gate"):
                publisher.publish(result(camera=camera))
            sent = [subscriber.receive() for _ in range(3)]
        assert path.read_bytes() == b"".join(codec.encode(message) + b"\n" for message in sent)  # before the close


PAYLOAD = codec.encode(codec.detections(HEADER, result(), CLASSES, PUBLISHED_NS))
LINE = PAYLOAD + b"\n"


def test_recording_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.touch()
    recorder = Recorder(path)  # empty: nothing can be lost
    recorder.write(PAYLOAD)
    recorder.close()
    for _ in range(2):  # within the same second
        os.utime(path, (0, 0))
        second = Recorder(path)
        assert path.read_bytes() == b""
        second.write(PAYLOAD)
        second.close()
    rotated = [tmp_path / "results-19700101T000000Z.jsonl", tmp_path / "results-19700101T000000Z-2.jsonl"]
    assert sorted(tmp_path.iterdir()) == sorted([path, *rotated])
    assert [file.read_bytes() for file in rotated] == [LINE, LINE]
    assert stat.S_IMODE(path.stat().st_mode) & 0o027 == 0
    with pytest.raises(Closed):
        recorder.write(PAYLOAD)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("", errno.EISDIR), ("no/such/folder/file", errno.ENOENT), ("file/below", errno.ENOTDIR)],
)
def test_unusable_recording_path_raises_config_error(tmp_path: Path, path: str, reason: int) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        Recorder(tmp_path / path)
    assert os.strerror(reason) in str(caught.value)


def test_recording_to_pipe_is_written(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    received: list[bytes] = []
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # does not wait for a writer
    recorder = Recorder(path)
    os.set_blocking(descriptor, True)

    def read() -> None:
        with os.fdopen(descriptor, "rb") as pipe:
            received.append(pipe.read())

    reader = threading.Thread(target=read)
    reader.start()
    recorder.write(PAYLOAD)
    recorder.close()
    reader.join(60)
    assert received == [LINE]


def test_full_disk_is_logged_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder("/dev/full")
    for _ in range(3):
        recorder.write(PAYLOAD)
    assert (recorder.lost, recorder.written) == (3, 0)
    recorder.close()
    failed, summary = log_args(caplog, "vision.messaging.recorder", logging.ERROR)
    assert failed == (Path("/dev/full"), os.strerror(errno.ENOSPC))
    assert summary == (Path("/dev/full"), 3, 3)


_SCRIPT_OF_A_SMALL_DISK = """
import resource, sys
from tests.unit.messaging.test_publisher import PAYLOAD
from vision.messaging.recorder import Recorder

size = len(PAYLOAD) + 1
recorder = Recorder(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size * 5 // 2, resource.RLIM_INFINITY))
for _ in range(4):
    recorder.write(PAYLOAD)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
recorder.write(PAYLOAD)
print(recorder.written, recorder.lost)
recorder.close()
"""


@pytest.mark.integration
def test_partial_line_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with python("-c", _SCRIPT_OF_A_SMALL_DISK, path) as program:
        program.wait_line(lambda line: line == "3 2")
        assert program.wait() == 0
    assert path.read_bytes() == LINE * 3
