"""Expected texts of messages, and of reports to subscribers."""

from collections.abc import Callable

import zmq

from vision.client import Gap, NewJournal, Restart, Silence, subscribe
from vision.errors import VisionError
from vision.messaging import codec
from vision.messaging.sockets import BoundSocket


def _text(action: Callable[[], object]) -> str:
    """Return the text of the error that `action` raises."""
    try:
        action()
    except VisionError as error:
        return str(error)
    raise AssertionError("expected an error")


def _bind(address: str) -> BoundSocket:
    return BoundSocket(zmq.XPUB, address, key="publish.bind", keepalive_s=10, options={})


ROWS = [
    (
        "a gap",
        lambda: str(Gap("detections/gate", 5, 9)),
        "detections/gate: lost 4 messages (expected 5, got 9)",
    ),
    ("a restart", lambda: str(Restart("n", "a", "b")), "n: the publisher was restarted"),
    (
        "silence of a publisher that is not there",
        lambda: str(Silence("tcp://x:1", 5.0, False)),
        (
            "no messages from tcp://x:1 for 5 s: check that `vision run` is running, and that this machine can reach "
            "its publish.bind"
        ),
    ),
    (
        "silence of a connected publisher",
        lambda: str(Silence("tcp://x:1", 5.0, True)),
        "no messages from tcp://x:1 for 5 s: connected, but no subscribed message is published",
    ),
    (
        "a new journal",
        lambda: str(NewJournal("n", "one", "two")),
        "n: events are stored in a new journal; events that only the old one contains are lost",
    ),
    (
        "an address without a scheme",
        lambda: _text(lambda: subscribe("127.0.0.1:5555")),
        (
            "address: expected tcp://HOST:PORT or ipc:///PATH/OF/SOCKET, got '127.0.0.1:5555'\n"
            "  hint: did you mean tcp://127.0.0.1:5555"
        ),
    ),
    (
        "an unknown kind",
        lambda: _text(lambda: subscribe("tcp://127.0.0.1:5555", kinds=["detection"])),  # type: ignore[list-item]
        "kinds: expected one or more of detections, status, events, counts, objects, got detection",
    ),
    (
        "an address of another machine",
        lambda: _text(lambda: _bind("tcp://203.0.113.7:5555")),
        (
            "publish.bind: no network interface of this machine has this name or address: tcp://203.0.113.7:5555\n"
            "  hint: list them with: ip address"
        ),
    ),
    (
        "a message of another version",
        lambda: _text(lambda: codec.decode("detections/gate", b'{"schema": "vision.detections/2"}')),
        (
            "detections/gate: expected schema vision.detections/1, got vision.detections/2\n"
            "  hint: publisher and subscriber have different versions: install the same version of vision on both sides"
        ),
    ),
]
