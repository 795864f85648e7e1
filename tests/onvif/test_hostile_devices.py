"""Tests with devices that respond slowly, send too much data, or send malicious documents.

The search must still find the other devices.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler

import pytest

from tests.onvif.device import (
    OnvifDevice,
    answering_probes,
    envelope,
    probe_matches,
    serving_http,
)
from vision.capture.onvif import discovery
from vision.capture.onvif.device import Device, Profile
from vision.capture.onvif.discovery import is_on_host
from vision.capture.onvif.documents import MAX_BYTES, printable
from vision.capture.onvif.find import Target, cameras_of, find_devices
from vision.capture.onvif.soap import Account

BOMB = (
    b'<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a "aaaaaaaaaa">'
    + b"".join(b'<!ENTITY %c "%s">' % (98 + index, b"&%c;" % (97 + index) * 10) for index in range(9))
    + b"]><b>&j;</b>"
)
FILE = b'<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a SYSTEM "file:///etc/passwd">]><b>&a;</b>'
CHUNK = b"<a>" * 20_000
SEARCH_S = 2.0
PROFILE = Profile("t", "n", "s", "H264", 640, 360, 15, "rtsp://127.0.0.1/a")


def respond(status: bytes, body: bytes, *headers: bytes) -> bytes:
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join([b"HTTP/1.1 " + status, length, *headers, b"", body])


def handler(write: Callable[[BaseHTTPRequestHandler], None]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.close_connection = True
            write(self)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    return Handler


def answers_with(data: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    def write(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(data)

    return write


def answer_without_end(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
    for _ in range(1_000_000_000 // len(CHUNK)):
        request.wfile.write(CHUNK)


def answer_slowly(request: BaseHTTPRequestHandler) -> None:
    for _ in range(1000):
        request.wfile.write(b"H")
        request.wfile.flush()
        time.sleep(0.05)


def redirect(request: BaseHTTPRequestHandler) -> None:
    port = request.server.server_address[1]  # type: ignore[index]
    request.wfile.write(respond(b"302 Found", b"", f"Location: http://127.0.0.1:{port}/".encode()))


def close_late(request: BaseHTTPRequestHandler) -> None:
    """Respond, but delay the end of the connection, so that a second request on the connection gets no response."""
    request.wfile.write(respond(b"200 OK", b""))
    request.wfile.flush()
    time.sleep(0.3)


@pytest.mark.parametrize(
    ("write", "codes"),
    [
        (answers_with(respond(b"200 OK", BOMB)), {"onvif-hostile-xml"}),
        (answers_with(respond(b"200 OK", FILE)), {"onvif-hostile-xml"}),
        (answers_with(respond(b"200 OK", b"<a>" * 5000 + b"</a>" * 5000)), {"onvif-hostile-xml"}),
        (answers_with(respond(b"200 OK", b"\xff\xfe<a")), {"onvif-xml"}),
        (answers_with(respond(b"200 OK", b"<?xml version='1.0' encoding='nonsense'?><a/>")), {"onvif-xml"}),
        (answers_with(respond(b"200 OK", b"")), {"onvif-xml"}),
        (answers_with(respond(b"200 OK", b"<html><body>Welcome</body></html>")), {"onvif-xml"}),
        (answers_with(respond(b"200 OK", zlib.compress(b"a" * MAX_BYTES), b"Content-Encoding: gzip")), {"onvif-xml"}),
        (answers_with(respond(b"500 Error", b"no")), {"onvif-http"}),
        (answers_with(respond(b"401 Unauthorized", b"", b'WWW-Authenticate: Basic realm="x"')), {"onvif-account"}),
        (answers_with(respond(b"401 Unauthorized", b"", b"WWW-Authenticate: Digest nonsense")), {"onvif-unreachable"}),
        (answers_with(b"SSH-2.0-OpenSSH\r\n"), {"onvif-unreachable"}),
        (answers_with(b""), {"onvif-unreachable"}),
        (answer_without_end, {"onvif-too-large"}),
        (answer_slowly, {"onvif-slow"}),
        (redirect, {"onvif-xml"}),
        (close_late, {"onvif-xml"}),
    ],
)
def test_reports_a_device_that_answers_badly(write: Callable[[BaseHTTPRequestHandler], None], codes: set[str]) -> None:
    account = Account("viewer", "pa55-word")
    with serving_http(handler(write)) as port, OnvifDevice(password=account.password).serving() as good:
        bad, other = find_devices([Target("127.0.0.1", port), Target(good.host, good.port)], SEARCH_S, account)
    assert {problem.code for problem in bad.problems} == codes
    assert not bad.profiles
    assert len(other.profiles) == len(good.streams)


def search(answers: Callable[[str], Sequence[bytes]], name: str) -> list[Device]:
    """Search for devices. Return those with the name `name`."""
    with answering_probes(answers):
        return [device for device in find_devices([], SEARCH_S, None) if device.name == name]


def scopes(name: str) -> str:
    return f"onvif://www.onvif.org/name/{name}"


def test_a_device_that_names_other_hosts_is_not_asked() -> None:
    with OnvifDevice(host="127.0.0.2", auth="none").serving() as other:
        (found,) = search(lambda number: [probe_matches(number, (other.address, scopes("liar")))], "liar")
    assert found.address is None
    assert [problem.code for problem in found.problems] == ["onvif-elsewhere"]
    assert not other.requests


def test_a_host_may_name_itself_and_another_host() -> None:
    def answers(number: str) -> list[bytes]:
        addresses = ("http://127.0.0.2:9/a", "http://127.0.0.1:9/b", "http://127.0.0.2:9/c")
        return [probe_matches(number, (address, scopes("two-faced"))) for address in addresses]

    found = {device.address for device in search(answers, "two-faced")}
    assert "http://127.0.0.1:9/b" in found
    assert found <= {None, "http://127.0.0.1:9/b"}


def test_ignores_answers_to_other_probes_and_malformed_answers() -> None:
    def answers(number: str) -> list[bytes]:
        stranger = probe_matches("urn:uuid:00000000-0000-0000-0000-00000000000f", ("http://127.0.0.1:9/a", scopes("x")))
        return [
            b"",
            b"<",
            BOMB,
            envelope("").encode(),
            stranger,
            probe_matches(number, ("http://127.0.0.1:9/b", scopes("x"))),
        ]

    (found,) = search(answers, "x")
    assert found.address == "http://127.0.0.1:9/b"


def test_finds_a_thousand_devices() -> None:
    def answers(number: str) -> list[bytes]:
        names = [(f"http://127.0.0.1:9/{index}", scopes("many")) for index in range(1000)]
        return [probe_matches(number, *names[first : first + 50]) for first in range(0, 1000, 50)]

    with answering_probes(answers):
        found = asyncio.run(discovery.search(SEARCH_S))
    assert len([each for each in found if each.name == "many"]) == 1000


def test_ids_of_cameras_differ() -> None:
    devices = [
        Device("127.0.0.1", "http://127.0.0.1/", name, profiles=[PROFILE]) for name in ("node", "", "Gate", "gate!")
    ]
    ids = [camera.id for _, cameras in cameras_of(devices, (416, 416)) for camera in cameras]
    assert ids == ["node-2", "camera-127-0-0-1", "gate", "gate-2"]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://192.0.2.4/a", True),
        ("https://192.0.2.4:8443/a", True),
        ("http://192.0.2.5/a", False),
        ("http://gate.example.com/a", False),
        ("http://192.0.2.4@10.0.0.9/a", False),
        ("http://x:y@192.0.2.4/a", False),
        ("ftp://192.0.2.4/a", False),
        ("http://[::1]/a", False),
        ("http://192.0.2.4:99999/a", False),
        ("http://192.0.2.4/\x9b", False),
        (f"http://192.0.2.4/{'a' * 2000}", False),
        ("", False),
    ],
)
def test_an_address_must_be_on_the_host_that_answers(address: str, expected: bool) -> None:
    assert is_on_host(address, "192.0.2.4") == expected


def test_names_of_devices_cannot_control_the_terminal() -> None:
    assert printable("Gate\x9b2J \u202etxt\n\tend") == "Gate?2J ?txt end"
    assert len(printable("a" * 10_000)) == 200
