"""Tests that the control socket handles only valid requests of its owner, and that no client can block it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.messages.processes import wait_until
from vision.errors import ConfigError, Unavailable
from vision.messaging.control_protocol import (
    LENGTH_BYTES,
    MAX_MESSAGE_BYTES,
    AddCameraRequest,
    ChangedReply,
    RefusedRequest,
    ReloadRequest,
    RemoveCameraRequest,
    Reply,
    Request,
    ask,
    find_socket,
    socket_name,
)
from vision.messaging.control_server import MAX_CONNECTIONS, ControlServer, remove_unused_sockets

NOTHING = ChangedReply(added=[], removed=[], reopened=[], adjusted=[], stages=[])


class Handler:
    """Handler that stores the requests that it receives."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __call__(self, request: Request) -> Reply:
        self.requests.append(request)
        if isinstance(request, RemoveCameraRequest) and request.id == "bug":
            raise ZeroDivisionError
        return NOTHING


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="vc-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ControlServer]:
    with ControlServer(folder / "x.control", Handler()) as server:
        yield server


def exchange(path: Path, data: bytes, *, shut: bool = True) -> bytes:
    """Send bytes. Return all data that the server sends until it closes the connection."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(str(path))
        received = b""
        try:
            sock.sendall(data)
            if shut:
                sock.shutdown(socket.SHUT_WR)
            while part := sock.recv(65536):
                received += part
        except (ConnectionError, BrokenPipeError):  # the server closed the connection before it had read everything
            pass
        return received


def framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


def test_only_the_owner_can_use_the_socket(server: ControlServer) -> None:
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600
    assert ask(server.path, ReloadRequest()) == NOTHING


def test_other_users_are_refused(folder: Path) -> None:
    handler = Handler()
    with ControlServer(folder / "other.control", handler, users=(os.geteuid() + 1,)) as server:
        assert exchange(server.path, framed(b'{"request":"reload"}')) == b""
    assert handler.requests == []


def test_request_during_a_long_reload_waits_for_its_turn(folder: Path) -> None:
    handling, done = threading.Event(), threading.Event()

    def handle(request: Request) -> Reply:
        if isinstance(request, ReloadRequest):
            handling.set()
            done.wait(60)
        return NOTHING

    message = framed(b'{"request":"remove-camera","id":"gate"}')
    with ControlServer(folder / "long.control", handle, request_s=0.5) as server, socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(str(server.path))
        sock.sendall(message[:1])
        reload = threading.Thread(target=ask, args=(server.path, ReloadRequest()))
        reload.start()
        assert handling.wait(60)
        sock.sendall(message[1:])
        time.sleep(1.0)  # longer than `request_s`
        done.set()
        assert sock.recv(65536)
        reload.join()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
names = st.sampled_from(["status", "reload", "add-camera", "remove-camera", "set-analytics", "exec", ""])
requests = st.fixed_dictionaries(
    {"request": names | json_values},
    optional=dict.fromkeys(("id", "camera", "analytics", "path", "config", "command"), json_values),
).map(lambda value: json.dumps(value).encode())
payloads = requests.map(framed) | st.binary(max_size=200) | st.binary(max_size=200).map(framed)


@given(data=payloads, cut=st.integers(0, 250))
@settings(max_examples=60, deadline=None)
def test_any_bytes_get_a_reply_or_are_dropped(server: ControlServer, data: bytes, cut: int) -> None:
    reply = exchange(server.path, data[:cut])
    if reply:
        assert int.from_bytes(reply[:LENGTH_BYTES], "big") == len(reply) - LENGTH_BYTES
        assert json.loads(reply[LENGTH_BYTES:])["reply"] in ("changed", "error")
    assert ask(server.path, ReloadRequest()) == NOTHING


@pytest.mark.parametrize(
    "payload",
    [
        b'{"request":"reload","config":"/etc/passwd"}',
        b'{"request":"exec","command":"id"}',
        b'{"request":"add-camera"}',
        b'{"request":"add-camera","camera":["a"]}',
        b'{"request":"remove-camera","id":7}',
        b"[" * 100_000,
        b'{"request":"add-camera","camera":' + b'{"a":' * 50_000,
        b"\x80\x04\x95",  # pickle
        b"\xff\xfe",
        b"",
    ],
)
def test_invalid_request_is_refused(server: ControlServer, payload: bytes) -> None:
    reply = json.loads(exchange(server.path, framed(payload))[LENGTH_BYTES:])
    assert (reply["reply"], reply["code"]) == ("error", "request-invalid")


def test_long_request_is_refused_at_once(server: ControlServer) -> None:
    length = (MAX_MESSAGE_BYTES + 1).to_bytes(LENGTH_BYTES, "big")
    reply = json.loads(exchange(server.path, length, shut=False)[LENGTH_BYTES:])
    assert reply["code"] == "request-too-long"


def test_exception_of_the_handler_is_reported(server: ControlServer) -> None:
    with pytest.raises(RefusedRequest) as caught:
        ask(server.path, RemoveCameraRequest(id="bug"))
    assert (caught.value.code, caught.value.exit_code) == ("control-bug", 1)
    assert ask(server.path, AddCameraRequest(camera={"id": "x"})) == NOTHING


def test_silent_connections_are_limited_and_dropped(folder: Path) -> None:
    with ControlServer(folder / "silent.control", Handler(), request_s=0.5) as server:
        silent = [socket.socket(socket.AF_UNIX) for _ in range(3 * MAX_CONNECTIONS)]
        for sock in silent:
            sock.connect(str(server.path))
            sock.settimeout(60)
        assert len(server._connections) <= MAX_CONNECTIONS
        for sock in silent:
            assert sock.recv(1) == b""  # closed by the server
            sock.close()
        assert ask(server.path, ReloadRequest()) == NOTHING


def test_socket_of_a_killed_program_is_replaced_and_that_of_a_running_one_is_not(folder: Path) -> None:
    path = folder / "killed.control"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    with ControlServer(path, Handler()) as server:
        with pytest.raises(Unavailable):
            ControlServer(path, Handler())
        os.utime(path, (0, 0))
        remove_unused_sockets(folder)
        assert ask(server.path, ReloadRequest()) == NOTHING
    assert not path.exists()
    path.write_text("a file")
    with pytest.raises(ConfigError):
        ControlServer(path, Handler())
    path.unlink()


def test_abandoned_sockets_are_removed(folder: Path) -> None:
    path = folder / "old.control"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    remove_unused_sockets(folder)
    assert path.exists()  # a program that is just starting does not listen yet
    os.utime(path, (time.time() - 120, time.time() - 120))
    remove_unused_sockets(folder)
    assert not path.exists()


def test_program_is_found_by_its_configuration(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = folder / "run"
    own.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(own))
    first, second = folder / "a.yaml", folder / "b.yaml"
    with pytest.raises(Unavailable) as caught:
        find_socket(first)
    assert (caught.value.code, caught.value.exit_code) == ("not-running", 75)
    with ControlServer(own / socket_name(first), Handler()) as one, ControlServer(own / socket_name(second), Handler()):
        assert find_socket(first).samefile(one.path)
        with pytest.raises(ConfigError) as several:
            find_socket(None)
        assert several.value.code == "several-programs"


def test_reload_can_be_requested_by_a_signal(folder: Path) -> None:
    handler = Handler()
    with ControlServer(folder / "signal.control", handler) as server:
        for _ in range(3):
            threading.Thread(target=server.request_reload).start()
        wait_until(lambda: bool(handler.requests), "the reload", 60)
    assert set(map(type, handler.requests)) == {ReloadRequest}
