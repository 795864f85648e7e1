"""Tests of `FrameTaps`: responses to requests for single frames over a real socket."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import numpy as np
import pytest

from tests.frame_buffers import wrap
from vision.capture.frame_tap import FrameTap, FrameTaps
from vision.messaging.packets import Image, ImageRequest, LiveReceiver, PacketSocket, packet_address_prefix
from vision.types import FrameMeta

WAIT_S = 20


class Rig:
    """Frame tap of one camera, and a receiver of its images."""

    def __init__(self, stack: ExitStack) -> None:
        address = packet_address_prefix()
        self._socket = stack.enter_context(closing(PacketSocket(address)))
        self._taps = stack.enter_context(closing(FrameTaps(self._socket)))
        self.tap: FrameTap = self._taps.tap("gate")
        self._receiver = stack.enter_context(closing(LiveReceiver([address])))
        self._receiver.want_images("gate", wanted=True)
        end_s = time.monotonic() + WAIT_S
        while not self._taps.wants("gate"):
            assert time.monotonic() < end_s
            time.sleep(0.01)

    def offer(self, captured_ns: int) -> None:
        buffer = wrap(np.full((64, 96, 3), 90, np.uint8))
        self.tap.offer(buffer, FrameMeta("gate", 0, 0, captured_ns, 0, 96, 64))

    def request(self, captured_ns: int) -> Image:
        """Request a frame, and return the response."""
        self._receiver.request(ImageRequest("gate", captured_ns, 1280))
        assert self._receiver.socket.poll(WAIT_S * 1000)
        image = self._receiver.receive()
        assert isinstance(image, Image)
        assert image.captured_ns == captured_ns
        return image


@pytest.fixture
def rig() -> Iterator[Rig]:
    with ExitStack() as stack:
        yield Rig(stack)


def test_a_requested_frame_arrives_as_a_jpeg(rig: Rig) -> None:
    rig.offer(captured_ns=5)
    assert rig.request(captured_ns=5).jpeg.startswith(b"\xff\xd8")


def test_the_response_for_a_frame_that_is_not_in_memory_is_empty(rig: Rig) -> None:
    rig.offer(captured_ns=5)
    assert rig.request(captured_ns=4).jpeg == b""
