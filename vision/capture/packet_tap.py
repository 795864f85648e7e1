"""`PacketTap`, which passes the coded frames of a camera to other processes that record or show them."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

from vision.messaging.packets import FrameTime, PacketHeader, PacketSocket

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream

log = logging.getLogger(__name__)

CODECS: Final = ("h264", "hevc")
"""Codecs, by FFmpeg's names, whose packets are passed on."""


class PacketTap:
    """Tap that passes on the packets of one camera before they are decoded.

    Call all methods from the thread that reads the camera. A packet is copied only if a receiver requests the packets
    of this camera. `recorded` is True if the packets are recorded. In this case, the camera must be opened with a
    library that passes packets on.
    """

    def __init__(self, camera_id: str, socket: PacketSocket, *, recorded: bool = True) -> None:
        self.recorded = recorded
        self._camera_id = camera_id
        self._socket = socket

    def connected(self, stream: VideoStream) -> ConnectionTap | None:
        """Return the tap of a new connection, or None if packets of its codec cannot be passed on.

        If the packets cannot be passed on and the camera is recorded, log a warning.
        """
        codec = stream.codec_context.name
        if codec not in CODECS:
            self.refused(codec)
            return None
        return ConnectionTap(self._camera_id, self._socket, stream)

    def refused(self, codec: str) -> None:
        """Log a warning that the camera is not recorded, because packets of `codec` cannot be passed on.

        If the camera is not to be recorded, do nothing.
        """
        if not self.recorded:
            return
        text = "camera %s: not recorded, because its codec is %s; set it to H.264 or H.265"
        log.warning(text, self._camera_id, codec)


class ConnectionTap:
    """Tap that numbers and sends the packets of one connection. Different threads can call `offer` and `captured`."""

    def __init__(self, camera_id: str, socket: PacketSocket, stream: VideoStream) -> None:
        self._camera_id = camera_id
        self._socket = socket
        self._codec = stream.codec_context.name
        self._extradata = bytes(stream.codec_context.extradata or b"")
        self._connection = time.monotonic_ns()
        self._seq = -1

    def offer(self, packet: Packet[Any], pts_ns: int | None) -> None:
        """Send a packet if a receiver requests the packets of this camera. This call never waits.

        `pts_ns` is the presentation time of the packet, or None if the stream does not contain it.
        """
        self._seq += 1
        if not self._socket.is_wanted(self._camera_id):
            return
        header = PacketHeader(
            self._connection,
            self._seq,
            self._codec,
            packet.is_keyframe,
            pts_ns,
            time.monotonic_ns(),
            time.time_ns(),
            self._extradata if packet.is_keyframe else b"",
        )
        self._socket.send(self._camera_id, header, memoryview(packet))

    def captured(self, pts_ns: int | None, captured_ns: int) -> None:
        """Send the capture time of a decoded frame, if a receiver requests the packets of this camera.

        `pts_ns` is the presentation time of the frame, or None if the stream does not contain it.
        """
        if pts_ns is not None:
            self._socket.send_time(FrameTime(self._camera_id, self._connection, pts_ns, captured_ns))
