"""The publisher against real sockets and real processes, and the recorder against real disks."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from tests.messages.processes import Program, python, wait_until
from tests.messages.samples import CLASSES, camera_status, crossed, found, node_status, result
from vision.errors import Closed, ConfigError
from vision.messaging import codec
from vision.messaging.publisher import Publisher, Recorder

ANY_PORT = "tcp://127.0.0.1:*"


class Subscriber:
    """A bare SUB socket, as people who do not use `vision.client` have it."""

    def __init__(self, address: str, *topics: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, 20_000)
        for topic in topics:
            self._socket.subscribe(topic)
        self._socket.connect(address)

    def receive(self) -> codec.AnyMessage:
        topic, payload = self._socket.recv_multipart()
        return codec.decode(topic.decode(), payload)

    def pending(self, wait_ms: int = 0) -> list[codec.AnyMessage]:
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
    """Connect a subscriber and wait until the publisher has its subscription."""
    expected = publisher.joins + len(topics)
    with Subscriber(publisher.address, *topics) as subscriber:
        wait_until(lambda: publisher.joins == expected, "the subscription has arrived")
        yield subscriber


def names(messages: list[codec.AnyMessage]) -> list[tuple[str, int]]:
    return [(message.topic, message.seq) for message in messages]


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_a_result_goes_out_with_its_events_and_counts_up(encoding: codec.Encoding) -> None:
    with (
        Publisher(ANY_PORT, node="n", class_names=CLASSES, encoding=encoding) as publisher,
        joined(publisher, "") as one,
    ):
        publisher.publish(result(events=(crossed(), crossed())))
        publisher.publish(result(camera="yard"))
        publisher.publish(result())
        messages = [one.receive() for _ in range(5)]
    assert names(messages) == [
        ("detections/gate", 1), ("events/gate", 1), ("events/gate", 2), ("detections/yard", 1), ("detections/gate", 2),
    ]  # fmt: skip
    first = messages[0]
    assert isinstance(first, codec.DetectionsMessage)
    assert [found.class_name for found in first.objects] == ["person", "car"]
    assert first.node == "n"


def test_payload_is_what_the_configuration_says() -> None:
    for encoding, beginning in (("json", b'{"schema":"vision.detections/1"'), ("msgpack", b"\xde")):
        context = zmq.Context()
        with Publisher(ANY_PORT, node="n", encoding=encoding) as publisher, context.socket(zmq.SUB) as bare:  # type: ignore[arg-type]
            bare.setsockopt(zmq.RCVTIMEO, 20_000)
            bare.subscribe("")
            bare.connect(publisher.address)
            wait_until(lambda: publisher.joins == 1, "the subscription has arrived")
            publisher.publish(result())
            topic, payload = bare.recv_multipart()
        context.term()
        assert (topic, payload[: len(beginning)]) == (b"detections/gate", beginning)


def test_a_late_joiner_gets_the_last_status_of_every_camera_and_of_the_node() -> None:
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
    assert {one.state for one in messages if isinstance(one, codec.CameraStatusMessage)} == {"streaming"}


def test_a_late_joiner_gets_only_what_it_asked_for() -> None:
    with Publisher(ANY_PORT, node="n") as publisher:
        publisher.publish_status(camera_status("gate"))
        publisher.publish_status(camera_status("yard"))
        with joined(publisher, "detections/") as late:
            assert late.pending(100) == []
            late.subscribe("status/yard")
            assert names([late.receive()]) == [("status/yard", 1)]
            assert late.pending(100) == []


def test_who_was_there_before_sees_a_repeat_with_the_same_number() -> None:
    with Publisher(ANY_PORT, node="n") as publisher, joined(publisher, "status/") as early:
        publisher.publish_status(camera_status())
        with Subscriber(publisher.address, "status/") as late:
            assert names([late.receive()]) == [("status/gate", 1)]
        publisher.publish_status(camera_status())
        assert names([early.receive() for _ in range(3)]) == [
            ("status/gate", 1),
            ("status/gate", 1),
            ("status/gate", 2),
        ]


def test_subscribers_that_join_together_share_a_replay() -> None:
    joiners = 30
    with Publisher(ANY_PORT, node="n") as publisher, joined(publisher, "status/") as early:
        publisher.publish_status(camera_status())
        early.receive()
        started = time.monotonic()
        late = [Subscriber(publisher.address, "status/") for _ in range(joiners)]
        for one in late:
            assert names([one.receive()]) == [("status/gate", 1)]
        repeats = len(early.pending(200))
        for one in late:
            one.__exit__()
        assert 1 <= repeats <= (time.monotonic() - started) / 0.05 + 1
        assert repeats < joiners


@pytest.mark.integration
def test_a_joiner_is_served_while_results_flow() -> None:
    """Sending reads subscriptions from the socket too, and must pass the word on."""
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


def test_numbers_are_gapless_when_threads_publish_at_once() -> None:
    each, cameras = 200, ("a", "b", "c")
    with Publisher(ANY_PORT, node="n", queue=10_000) as publisher, joined(publisher, "") as one:

        def send(camera: str) -> None:
            for _ in range(each):
                publisher.publish(result(camera=camera))
                publisher.publish_status(camera_status("shared"))

        threads = [threading.Thread(target=send, args=(camera,)) for camera in cameras]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        messages = [one.receive() for _ in range(2 * each * len(cameras))]
    by_topic: dict[str, list[int]] = {}
    for topic, seq in names(messages):
        by_topic.setdefault(topic, []).append(seq)
    assert by_topic.pop("status/shared") == list(range(1, each * len(cameras) + 1))
    assert by_topic == {f"detections/{camera}": list(range(1, each + 1)) for camera in cameras}


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.integration
def test_a_stopped_subscriber_loses_its_own_messages_and_delays_nobody() -> None:
    queue, sent, large = 50, 1500, result(found(300))  # 28 kB each
    with (
        Publisher(ANY_PORT, node="n", queue=queue) as publisher,
        python("-m", "tests.messages.subscriber", publisher.address, str(queue)) as stopped,
    ):
        wait_until(lambda: publisher.joins == 1, "the process has subscribed")
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
            # What waited for it comes first; then there is room again, and the next message shows the gap.
            wait_until(lambda: _gap_told(publisher, stopped), "the stopped subscriber reports its loss")
    assert grown < 16e6, f"{sent * 28e3 / 1e6:.0f} MB were sent and {grown / 1e6:.1f} MB kept"


def _gap_told(publisher: Publisher, subscriber: Program) -> bool:
    publisher.publish(result())
    return any(line.startswith("gap") for line in subscriber.pending())


@pytest.mark.integration
def test_a_subscriber_that_is_killed_is_not_missed() -> None:
    with (
        Publisher(ANY_PORT, node="n") as publisher,
        python("-m", "tests.messages.subscriber", publisher.address, "1000") as killed,
    ):
        wait_until(lambda: publisher.joins == 1, "the process has subscribed")
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
def test_a_slow_subscriber_is_neither_cut_off_nor_aborted() -> None:
    """Heartbeats would do both (libzmq issue 3937): nobody answers them while the subscriber's queue is full."""
    with (
        Publisher(ANY_PORT, node="n", queue=10, keepalive_s=1) as publisher,
        python("-m", "tests.messages.subscriber", publisher.address, "10", "--pause", "6") as slow,
    ):
        wait_until(lambda: publisher.joins == 1, "the process has subscribed")
        publisher.publish(result())
        assert slow.line() == "got 1"
        for _ in range(500):
            publisher.publish(result(found(100)))  # 9 kB each: more than both queues and the kernel hold
        wait_until(lambda: _gap_told(publisher, slow), "the slow subscriber reports its loss")
        assert publisher.joins == 1


def test_strangers_on_the_port_disturb_nobody() -> None:
    with Publisher(ANY_PORT, node="n") as publisher, joined(publisher, "detections/") as healthy:
        port = int(publisher.address.rpartition(":")[2])
        for noise in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\xff" + b"\0" * 8 + b"\x01\x7f" + b"\xff" * 100):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(noise)
        publisher.publish(result())
        assert names([healthy.receive()]) == [("detections/gate", 1)]


def test_a_subscription_longer_than_any_topic_is_refused() -> None:
    with Publisher(ANY_PORT, node="n") as publisher, Subscriber(publisher.address, "x" * 5000):
        with joined(publisher, "detections/") as healthy:
            publisher.publish(result())
            assert names([healthy.receive()]) == [("detections/gate", 1)]
        assert publisher.joins == 1


def test_a_port_in_use_is_named() -> None:
    with Publisher(ANY_PORT, node="n") as first, pytest.raises(ConfigError) as caught:
        Publisher(first.address, node="n")
    port = first.address.rpartition(":")[2]
    assert f"publish.bind: port in use by another program: tcp://127.0.0.1:{port}" in str(caught.value)
    assert f"ss -ltnp 'sport = :{port}'" in caught.value.hint
    assert "--bind" in caught.value.hint


@pytest.mark.parametrize(
    ("bind", "words"),
    [
        ("tcp://127.0.0.1:99999", "expected tcp://ADDRESS:PORT"),
        ("127.0.0.1:5555", "expected tcp://ADDRESS:PORT"),
        ("http://127.0.0.1:5555", "expected tcp://ADDRESS:PORT"),
        ("tcp://127.0.0.1", "expected tcp://ADDRESS:PORT"),
        ("tcp://203.0.113.7:5555", "no network interface of this machine has this address"),
        ("tcp://eth99:5555", "no network interface of this machine has this name"),
        ("ipc:///nonexistent/folder/socket", "the folder of the socket does not exist"),
        (f"ipc:///tmp/{'x' * 200}", "the path of the socket is too long"),
    ],
)
def test_an_address_that_cannot_be_bound_is_a_configuration_error(bind: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Publisher(bind, node="n")
    assert words in str(caught.value)
    assert bind in str(caught.value)


def test_an_ipc_socket_is_made_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with Publisher(f"ipc://{path}", node="n") as publisher:
        assert stat.S_ISSOCK(path.stat().st_mode)
        with joined(publisher, "") as one:
            publisher.publish(result())
            assert names([one.receive()]) == [("detections/gate", 1)]
    assert not path.exists()


def test_an_ipc_socket_of_a_living_publisher_is_not_taken_over(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path / 'out'}"
    with Publisher(address, node="n") as first:
        with pytest.raises(ConfigError, match="socket in use by another program"):
            Publisher(address, node="n")
        with joined(first, "") as one:
            first.publish(result())
            one.receive()


def test_what_a_killed_publisher_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Publisher(f"ipc://{path}", node="n") as publisher, joined(publisher, "") as one:
        publisher.publish(result())
        one.receive()


def test_a_file_is_never_replaced_by_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ConfigError, match="expected a free path for a socket, got a file"):
        Publisher(f"ipc://{path}", node="n")
    assert path.read_text() == "data"


def test_at_close_another_publishers_socket_stays(tmp_path: Path) -> None:
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
        wait_until(lambda: publisher.joins == 1, "the process has subscribed")
        stopped.send(signal.SIGSTOP)
        for _ in range(1000):
            publisher.publish(result(found(100)))  # 9 MB: more than the kernel takes
        closing = threading.Thread(target=publisher.close)
        closing.start()
        closing.join(10)
        assert not closing.is_alive()


def test_what_was_sent_last_still_leaves_at_close() -> None:
    publisher = Publisher(ANY_PORT, node="n", linger_s=5)
    with joined(publisher, "") as one:
        for _ in range(500):
            publisher.publish(result())
        publisher.close()
        assert names([one.receive() for _ in range(500)]) == [("detections/gate", seq) for seq in range(1, 501)]


def test_a_recording_holds_the_json_that_was_sent(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with Publisher(ANY_PORT, node="n", class_names=CLASSES, encoding="msgpack", recorder=Recorder(path)) as publisher:
        with joined(publisher, "") as one:
            for camera in ("gate", "yard", "gate"):
                publisher.publish(result(camera=camera))
            sent = [one.receive() for _ in range(3)]
        assert path.read_bytes() == b"".join(codec.encode(message) + b"\n" for message in sent)  # before the close


def test_no_recording_stays_open_when_the_address_is_wrong(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "results.jsonl")
    with pytest.raises(ConfigError):
        Publisher("tcp://nonsense", node="n", recorder=recorder)
    with pytest.raises(Closed):
        recorder.write(_message())
    Recorder(tmp_path / "results.jsonl").close()  # still empty, so it may be used


def _message() -> codec.DetectionsMessage:
    return codec.detections(result(), CLASSES)


LINE = codec.encode(_message()) + b"\n"


def test_a_recording_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.touch()
    recorder = Recorder(path)  # empty: nothing can be lost
    recorder.write(_message())
    recorder.close()
    recorder.close()
    with pytest.raises(ConfigError, match=f"holds {len(LINE)} bytes already, and a recording is never overwritten"):
        Recorder(path)
    assert path.read_bytes() == LINE
    with pytest.raises(Closed):
        recorder.write(_message())


@pytest.mark.parametrize(
    ("path", "reason"),
    [("", errno.EISDIR), ("no/such/folder/file", errno.ENOENT), ("file/below", errno.ENOTDIR)],
)
def test_a_recording_that_cannot_be_made_is_a_configuration_error(tmp_path: Path, path: str, reason: int) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=os.strerror(reason)):
        Recorder(tmp_path / path)


def test_a_recording_may_go_to_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(path.read_bytes()))
    reader.start()
    recorder = Recorder(path)
    recorder.write(_message())
    recorder.close()
    reader.join(10)
    assert received == [LINE]


def test_a_full_disk_is_told_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder("/dev/full")
    for _ in range(3):
        recorder.write(_message())
    assert (recorder.lost, recorder.written) == (3, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "cannot record to /dev/full: No space left on device; going on without, and trying again each time"
    ]
    recorder.close()
    assert caplog.records[-1].getMessage() == "/dev/full lacks 3 of 3 results"


_SCRIPT_OF_A_SMALL_DISK = """
import resource, sys
from tests.messages.samples import CLASSES, result
from vision.messaging import codec
from vision.messaging.publisher import Recorder

message = codec.detections(result(), CLASSES)
size = len(codec.encode(message)) + 1
recorder = Recorder(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size * 5 // 2, resource.RLIM_INFINITY))
for _ in range(4):
    recorder.write(message)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
recorder.write(message)
print(recorder.written, recorder.lost)
recorder.close()
"""


@pytest.mark.integration
def test_a_line_that_fits_only_in_part_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with python("-c", _SCRIPT_OF_A_SMALL_DISK, path) as program:
        program.wait_line(lambda line: line == "3 2")
        assert program.wait() == 0
    assert path.read_bytes() == LINE * 3
