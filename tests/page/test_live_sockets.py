"""Tests of the web socket of the live view: the data that it sends, and its response to slow and incorrect clients."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any, Final

import cv2
import httpx
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.page.harness import until
from tests.page.live_site import Site
from vision.capture.zoo.barcode import read_number
from vision.capture.zoo.camera import Camera
from vision.capture.zoo.persona import Persona, RtspStream
from vision.capture.zoo.zoo import Zoo, running_zoo
from vision.config import CameraConfig
from vision.outputs.page import live
from vision.outputs.page.live_viewer import Viewer

pytestmark = pytest.mark.integration

PATIENCE_S: Final = 60.0
WIDTH, HEIGHT = 160, 128  # of the zoo's frames


@pytest.fixture(scope="module")
def zoo() -> Iterator[Zoo]:
    with running_zoo() as started:
        yield started


def add(site: Site, zoo: Zoo, name: str) -> None:
    """Add a camera that paints numbers into frames and sends 20 frames/s."""
    camera = Camera(Persona("plain", "nothing", RtspStream(fps=20)), "none", fault_after_s=1, repeats=False)
    zoo.start([camera])
    keys = {"source": camera.address, "reader": "ffmpeg", "open_timeout_s": 30, "read_timeout_s": 10}
    site.add_camera(CameraConfig.model_validate({"id": name, **keys}))


def socket_of(site: Site) -> ClientConnection:
    return connect(f"ws{site.url.removeprefix('http')}api/live", max_size=None)


def silent_viewer(site: Site, text: bytes) -> socket.socket:
    """Return a connection that sends the message `text` and never reads.

    The message is a web socket frame (RFC 6455, section 5.2) with a mask of zeros.
    """
    host, _, port = site.url.removeprefix("http://").strip("/").partition(":")
    client = socket.create_connection((host, int(port)))
    head = ["GET /api/live HTTP/1.1", f"Host: {host}:{port}", "Upgrade: websocket", "Connection: Upgrade"]
    head += ["Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13", "", ""]
    client.sendall("\r\n".join(head).encode())
    client.recv(1)
    client.sendall(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)
    return client


def wish(client: ClientConnection, **content: Any) -> None:
    client.send(msgspec.json.encode(content).decode())


def records(client: ClientConnection) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield the header and the data of each record."""
    while True:
        message = client.recv(PATIENCE_S)
        assert isinstance(message, bytes)
        yield from split(message)


def split(message: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield the header and the data of each record in a message."""
    at = 0
    while at < len(message):
        head, length = struct.unpack_from("!II", message, at)
        start = at + 8 + head
        yield msgspec.json.decode(message[at + 8 : start]), message[start : start + length]
        at = start + length


def images(client: ClientConnection, count: int) -> tuple[list[NDArray[np.uint8]], Counter[str]]:
    """Return the next `count` images, and the number of records of each kind up to the last of these images."""
    found: list[NDArray[np.uint8]] = []
    kinds: Counter[str] = Counter()
    for header, data in records(client):
        kinds[header["kind"]] += 1
        if header["kind"] == "image":
            image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            found.append(image)
        if len(found) == count:
            return found, kinds
    raise AssertionError


@pytest.mark.parametrize("units", ["pixels", "fraction"])
def test_a_camera_with_masks_sends_only_images_without_the_masked_area(zoo: Zoo, units: str) -> None:
    width, height = (WIDTH, HEIGHT) if units == "pixels" else (1, 1)
    mask = [[0.0, 0.0], [width / 2, 0.0], [width / 2, height], [0.0, height]]
    with ExitStack() as stack:
        site = Site(stack, settings={"privacy": {"gate": {"units": units, "masks": [mask], "blur": None}}})
        add(site, zoo, "gate")
        with socket_of(site) as client:
            wish(client, watch="gate", codecs=["h264", "hevc"])
            found, kinds = images(client, 8)
        still = httpx.get(f"{site.url}api/still/gate", timeout=PATIENCE_S)
    assert set(kinds) == {"scene", "image"}
    shown: Any = cv2.imdecode(np.frombuffer(still.content, np.uint8), cv2.IMREAD_COLOR)
    for image in [*found, shown]:
        assert image.shape == (HEIGHT, WIDTH, 3)
        assert image[:, : WIDTH // 2 - 8].max() < 24
    # The other half shows the low bits of the number of the frame, which are not all 0 in successive frames.
    assert max(image[: HEIGHT // 4, WIDTH // 2 + 8 :].max() for image in found) > 150


def test_masks_of_a_running_program_apply_to_viewers_that_decode_packets(zoo: Zoo) -> None:
    mask = {"units": "fraction", "masks": [[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]], "blur": None}
    with ExitStack() as stack:
        site = Site(stack)
        add(site, zoo, "gate")
        client = stack.enter_context(socket_of(site))
        wish(client, watch="gate", codecs=["h264"])
        received = records(client)
        assert any(header["kind"] == "packet" for header, _ in received)
        site.change(privacy={"gate": mask})
        assert any(header["kind"] == "scene" and header["shapes"] for header, _ in received)
        kinds = [next(received) for _ in range(40)]
        assert {header["kind"] for header, _ in kinds} <= {"image", "counts", "status"}
        for header, data in kinds:
            image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else np.zeros(1)
            assert image.max() < 24, header
        site.change(privacy={})
        assert any(header["kind"] == "packet" for header, _ in received)


def test_objects_of_hidden_classes_are_unrecognizable_in_each_frame(zoo: Zoo) -> None:
    with ExitStack() as stack:
        box = (0.0, 0.0, float(WIDTH), HEIGHT / 4)  # the number
        site = Site(stack, settings={"privacy": {"gate": {"masks": [], "blur": ["person"]}}}, box=box)
        add(site, zoo, "gate")
        add(site, zoo, "open")
        with socket_of(site) as client:
            wish(client, watch="gate", codecs=["h264"])
            hidden, kinds = images(client, 8)
        with socket_of(site) as client:
            wish(client, watch="open", codecs=[])
            visible, _ = images(client, 3)
    assert set(kinds) == {"scene", "image"}
    assert all(read_number(image[..., 1]) is not None for image in visible)
    assert [read_number(image[..., 1]) for image in hidden] == [None] * 8


def test_nothing_is_received_while_nobody_looks(zoo: Zoo) -> None:
    with ExitStack() as stack:
        site = Site(stack)
        add(site, zoo, "gate")
        with socket_of(site) as client:
            wish(client, watch="gate", codecs=["h264"])
            next(each for each, _ in records(client) if each["kind"] == "packet")
            assert site.is_wanted("gate")
            wish(client, leave="gate")
            until(lambda: not site.is_wanted("gate"), "packets are received after `leave`")
            wish(client, watch="gate", codecs=[])
            until(lambda: site.is_wanted("gate"), "images are not requested")
        until(lambda: not site.is_wanted("gate"), "images are requested after the connection was closed")


def test_packets_and_results_share_messages(zoo: Zoo) -> None:
    """Each message takes CPU time. The site publishes the result of a frame 30 ms after the packet of this frame."""
    with ExitStack() as stack:
        site = Site(stack)
        add(site, zoo, "gate")
        with socket_of(site) as client:
            wish(client, watch="gate", codecs=["h264"])
            assert any(header["kind"] == "result" for header, _ in records(client))
            shared = 0
            for _ in range(40):
                message = client.recv(PATIENCE_S)
                assert isinstance(message, bytes)
                shared += {"packet", "result"} <= {header["kind"] for header, _ in split(message)}
    assert shared > 20


def test_a_viewer_that_does_not_read_delays_nobody(zoo: Zoo) -> None:
    with ExitStack() as stack:
        site = Site(stack)
        add(site, zoo, "gate")
        for _ in range(20):
            stack.enter_context(silent_viewer(site, b'{"watch": "gate", "codecs": ["h264"]}'))
        with socket_of(site) as client:
            wish(client, watch="gate", codecs=["h264"])
            times = [each["time"] for each, _ in records_until(client, 60) if each["kind"] == "packet"]
    assert {round((later - earlier) / 1000) for earlier, later in pairwise(times)} == {50}  # ms


def records_until(client: ClientConnection, packets: int) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield the header and the data of each record, until `packets` packets have arrived."""
    for header, data in records(client):
        yield header, data
        packets -= header["kind"] == "packet"
        if not packets:
            return


def test_a_viewer_that_is_behind_loses_records_and_nothing_else_waits() -> None:
    async def run() -> tuple[list[bool], bytes, bytes]:
        viewer = Viewer(max_bytes=100)
        accepted = [viewer.push(b"a" * 60)]
        viewer.flush()
        accepted += [viewer.push(b"b" * 60), viewer.push(b"c")]
        lost = await viewer.take()
        accepted.append(viewer.push(b"d"))  # the browser can still be receiving
        viewer.flush()
        taking = asyncio.create_task(viewer.take())
        await asyncio.sleep(0)
        accepted.append(viewer.push(b"e"))
        received = await taking
        viewer.close()
        return [*accepted, viewer.push(b"f")], lost, received

    accepted, lost, received = asyncio.run(run())
    assert accepted == [True, False, False, True, True, False]
    assert (lost, received[:1]) == (b"", b"d")


@pytest.mark.parametrize("content", ["{", "[]", '{"watch": 1}', '{"unknown": 1}', b"\x00"])
def test_a_wrong_message_closes_the_connection(content: str | bytes) -> None:
    with ExitStack() as stack:
        site = Site(stack)
        with socket_of(site) as client:
            client.send(content)
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(PATIENCE_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


def test_the_number_of_viewers_and_cameras_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_VIEWERS", 1)
    with ExitStack() as stack:
        site = Site(stack)
        with socket_of(site) as first:
            wish(first, watch="a")
            next(records(first))
            with socket_of(site) as second, pytest.raises(ConnectionClosed) as closed:
                second.recv(PATIENCE_S)
            for number in range(live.MAX_CAMERAS):
                wish(first, watch=f"camera-{number}")
            with pytest.raises(ConnectionClosed) as too_many:
                for _ in records(first):
                    pass
    assert closed.value.rcvd is not None
    assert too_many.value.rcvd is not None
    assert (closed.value.rcvd.code, too_many.value.rcvd.code) == (1013, 1008)


def test_changed_lines_are_shown_without_a_new_connection() -> None:
    with ExitStack() as stack:
        site = Site(stack)
        with socket_of(site) as client:
            wish(client, watch="gate")
            received = records(client)
            assert next(received)[0]["shapes"] == []
            line = {"name": "door", "points": [[0, 0], [9, 9]]}
            site.change(analytics={"gate": {"units": "pixels", "lines": [line], "zones": []}})
            (shape,) = next(received)[0]["shapes"]
            assert (shape["key"], shape["name"], shape["relative"]) == ("line door", "door", False)
            assert (shape["path"], shape["at"]) == ("M0.0 0.0L9.0 9.0Z", [0.0, 0.0])


def test_a_still_of_a_camera_without_frames_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "STILL_S", 0.1)
    with ExitStack() as stack:
        site = Site(stack)
        response = httpx.get(f"{site.url}api/still/nobody", timeout=PATIENCE_S)
    assert (response.status_code, response.json()["code"]) == (503, "no-image")
