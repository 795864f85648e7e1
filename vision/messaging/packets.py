"""Sockets that pass video from the processes that read cameras to processes of the same user on this machine.

Each process that reads cameras binds a `PacketSocket`. Any number of `PacketReceiver` and `LiveReceiver` objects can
connect, and request the packets of some cameras. A packet that no receiver requests is not sent. The sender never
waits, so a receiver that is too slow loses packets. Gaps in `PacketHeader.seq` show the loss.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any, Final, TypeAlias

import msgspec
import zmq

_WAITING_PACKETS: Final = 1000  # maximum number in the sender, and also in the receiver
_RECONNECT_MS: Final = 50
_RECONNECT_MAX_MS: Final = 500
_WAITING_REQUESTS: Final = 64  # requests for images in one process
_LENGTH_BYTES: Final = 4  # of the length of an encoded header
_TIMES: Final = b"\0times\0"
_IMAGES: Final = b"\0images\0"
_SUBSCRIBE, _UNSUBSCRIBE, _REQUEST = b"\1", b"\0", b"\2"
"""First bytes of a receiver's messages. ZeroMQ defines the first two, and passes on messages with other first bytes."""


class PacketHeader(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The properties of one coded frame. Coded frames arrive in decoding order."""

    connection: int  # identifies the connection to the camera; later connections have larger numbers
    seq: int  # 0, 1, 2, ... in each connection; a missing number means a lost packet
    codec: str  # FFmpeg's name, such as h264
    key: bool
    pts_ns: int | None  # presentation time in the stream; None if the stream does not contain it
    arrived_ns: int  # monotonic
    arrived_utc_ns: int
    extradata: bytes = b""  # parameters for the decoder, only with key frames; empty if the stream has none


class CodedPacket(msgspec.Struct, frozen=True, gc=False):
    """One coded frame of a camera."""

    camera: str
    header: PacketHeader
    data: bytes


class FrameTime(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The capture time of a decoded frame, which is used in messages, and the timestamp of the frame's packet."""

    camera: str
    connection: int  # connection of the packet, as in `PacketHeader`
    pts_ns: int
    captured_ns: int  # monotonic


class ImageRequest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A request for a frame of a camera as a JPEG, at most `max_width_px` wide."""

    camera: str
    captured_ns: int  # identifies the frame
    max_width_px: int


class Image(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The response to an `ImageRequest`: the frame as a JPEG."""

    camera: str
    captured_ns: int
    jpeg: bytes  # empty if the frame is not in memory


LiveItem: TypeAlias = CodedPacket | FrameTime | Image

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(PacketHeader).decode
_decode_time = msgspec.msgpack.Decoder(FrameTime).decode
_decode_image = msgspec.msgpack.Decoder(Image).decode
_decode_request = msgspec.msgpack.Decoder(ImageRequest).decode


def packet_addresses(prefix: str, processes: int) -> list[str]:
    """Return one address for each process that reads cameras. The `PacketSocket` of the process binds this address.

    `prefix` comes from `packet_address_prefix`. `processes` is the number of these processes.
    """
    return [f"{prefix}-{number}" for number in range(processes)]


def packet_address_prefix() -> str:
    """Return a new prefix for `packet_addresses`. Only processes on this machine can connect to these addresses."""
    return f"ipc://@vision-packets-{os.getpid()}-{secrets.token_hex(8)}"


class PacketSocket:
    """Socket that sends the packets of the cameras that a process reads. It is thread-safe."""

    def __init__(self, address: str) -> None:
        """Bind the socket. Raise `zmq.ZMQError` if the address cannot be bound."""
        self._lock = threading.Lock()
        self._wanted: set[bytes] = set()
        self._requests: deque[ImageRequest] = deque(maxlen=_WAITING_REQUESTS)
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.SNDHWM, _WAITING_PACKETS)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
        try:
            self._socket.bind(address)
        except zmq.ZMQError:
            self._context.destroy(linger=0)
            raise

    def is_wanted(self, camera_id: str) -> bool:
        """Return True if a receiver requests the packets of this camera. After `close`, return False."""
        with self._lock:
            self._read()
            return _topic(camera_id) in self._wanted

    def wants_images(self, camera_id: str) -> bool:
        """Return True if a receiver may request images of this camera. After `close`, return False."""
        with self._lock:
            self._read()
            return _IMAGES + _topic(camera_id) in self._wanted

    def requests(self) -> list[ImageRequest]:
        """Return the requests for images since the previous call, oldest first, but only the newest 64 requests."""
        with self._lock:
            self._read()
            requests = list(self._requests)
            self._requests.clear()
        return requests

    def _read(self) -> None:
        if self._context.closed:
            self._wanted.clear()
            return
        while int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            message = bytes(self._socket.recv())
            kind, content = message[:1], message[1:]
            if kind == _SUBSCRIBE:
                self._wanted.add(content)
            elif kind == _UNSUBSCRIBE:
                self._wanted.discard(content)
            elif kind == _REQUEST:
                self._requests.append(_decode_request(content))

    def send(self, camera_id: str, header: PacketHeader, data: Any) -> None:
        """Send a packet without waiting. `data` is any bytes-like object, and is copied. Do nothing after `close`."""
        head = _encode(header)
        self._send(_topic(camera_id), len(head).to_bytes(_LENGTH_BYTES, "big"), head, data)

    def send_time(self, time: FrameTime) -> None:
        """Send a frame's capture time to each `LiveReceiver` of the camera's packets. Do nothing after `close`."""
        topic = _TIMES + _topic(time.camera)
        if topic in self._wanted:
            self._send(topic, _encode(time))

    def send_image(self, image: Image) -> None:
        """Send an image without waiting. Do nothing after `close`."""
        self._send(_IMAGES + _topic(image.camera), _encode(image))

    def _send(self, *content: Any) -> None:
        message = b"".join(content)  # one part, because each part takes time in the sender and the receivers
        with self._lock:
            if not self._context.closed:
                self._socket.send(message)

    def close(self) -> None:
        """Close the socket. Idempotent."""
        with self._lock:
            self._context.destroy(linger=0)


class PacketReceiver:
    """Receiver of the packets of some cameras. It is not thread-safe."""

    def __init__(self, addresses: Sequence[str], cameras: Collection[str]) -> None:
        """Connect to all packet sockets, which need not exist yet, and request the packets of `cameras`."""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, _WAITING_PACKETS)
        self._socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
        self._cameras: frozenset[str] = frozenset()
        self.request(cameras)
        for address in addresses:
            self._socket.connect(address)

    def request(self, cameras: Collection[str]) -> None:
        """Request the packets of `cameras`, and stop requesting the packets of other cameras."""
        before, self._cameras = self._cameras, frozenset(cameras)
        for camera in self._cameras - before:
            self._socket.subscribe(_topic(camera))
        for camera in before - self._cameras:
            self._socket.unsubscribe(_topic(camera))

    def receive(self, timeout_s: float) -> CodedPacket | None:
        """Return the next packet, or None if no packet arrives within `timeout_s` seconds."""
        if not self._socket.poll(round(timeout_s * 1e3)):
            return None
        return _packet(self._socket.recv())

    def close(self) -> None:
        """Disconnect. Idempotent."""
        with contextlib.suppress(zmq.ZMQError):
            self._context.destroy(linger=0)


class LiveReceiver:
    """Receiver of packets with their capture times, and of images. The requested cameras can change.

    It is not thread-safe.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        """Connect to all packet sockets, which need not exist yet. Request nothing."""
        self._context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.XSUB)  # for `zmq.Poller`
        self.socket.setsockopt(zmq.RCVHWM, _WAITING_PACKETS)
        self.socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
        for address in addresses:
            self.socket.connect(address)

    def want_packets(self, camera_id: str, *, wanted: bool) -> None:
        """Start or stop receiving the packets of a camera, and the capture times of its frames."""
        for topic in (_TIMES + _topic(camera_id), _topic(camera_id)):  # no packet may arrive without its time
            self.socket.send((_SUBSCRIBE if wanted else _UNSUBSCRIBE) + topic)

    def want_images(self, camera_id: str, *, wanted: bool) -> None:
        """Tell the process that reads a camera whether to keep the camera's latest frames, which `request` needs."""
        self.socket.send((_SUBSCRIBE if wanted else _UNSUBSCRIBE) + _IMAGES + _topic(camera_id))

    def request(self, request: ImageRequest) -> None:
        """Request an image. If the frame is not in memory, an `Image` without content arrives."""
        self.socket.send(_REQUEST + _encode(request))

    def receive(self) -> LiveItem | None:
        """Return the next packet, time, or image without waiting. Return None if none of these has arrived."""
        if not zmq.zmq_poll([(self.socket, zmq.POLLIN)], 0):  # cheaper than the error of a call that does not wait
            return None
        message = self.socket.recv()
        if message.startswith(_TIMES):
            return _decode_time(message[message.index(0, len(_TIMES)) + 1 :])
        if message.startswith(_IMAGES):
            return _decode_image(message[message.index(0, len(_IMAGES)) + 1 :])
        return _packet(message)

    def close(self) -> None:
        """Disconnect. Idempotent."""
        self._context.destroy(linger=0)


def _packet(message: bytes) -> CodedPacket:
    start = message.index(0) + 1
    head = start + _LENGTH_BYTES
    data = head + int.from_bytes(message[start:head], "big")
    return CodedPacket(message[: start - 1].decode(), _decode(message[head:data]), message[data:])


def _topic(camera_id: str) -> bytes:
    return camera_id.encode() + b"\0"  # ZeroMQ compares prefixes, and an id can be the start of a different id
