"""Messages between a capture worker and the main process.

Frames have their own connection, so that they never wait for other messages. Their messages have a fixed format. The
number of a camera is its position in the list of its worker. The buffers of one camera belong to a generation, which
increases with each change of the frame size.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, get_args

import msgspec

from vision.capture.camera_status import CameraStatus
from vision.types import ClockSource, DropReason, FrameMeta, PixelFormat, YuvEncoding

# --- messages on the connection for frames ----------------------------------------------------------------------------

COMMIT, DROP, FLUSH, END, RETURN = b"A", b"D", b"X", b"E", b"B"
"""Kinds of messages. `RETURN` goes to the worker, and the others to the main process."""

_COMMIT: Final = struct.Struct("<HIHIqqqBB")
_DROP: Final = struct.Struct("<HBI")
_RETURN: Final = struct.Struct("<HIH")
_CAMERA: Final = struct.Struct("<H")

_REASONS: Final = tuple(DropReason)
_CLOCKS: Final[tuple[ClockSource, ...]] = get_args(ClockSource)
_ENCODINGS: Final[tuple[YuvEncoding, ...]] = get_args(YuvEncoding)


@dataclass(frozen=True, slots=True)
class Committed:
    """A frame in a shared buffer."""

    camera: int
    generation: int
    buffer: int
    epoch: int
    index: int
    captured_ns: int
    captured_utc_ns: int
    clock: ClockSource
    yuv: YuvEncoding

    def meta(self, camera_id: str, height_px: int, width_px: int) -> FrameMeta:
        """Return the description of the frame."""
        times = (self.captured_ns, self.captured_utc_ns)
        return FrameMeta(camera_id, self.index, self.epoch, *times, width_px, height_px, self.clock, self.yuv)


def encode_commit(camera: int, generation: int, buffer: int, meta: FrameMeta) -> bytes:
    """Return a message of the kind `COMMIT`."""
    times = (meta.index, meta.captured_ns, meta.captured_utc_ns)
    encodings = (_CLOCKS.index(meta.clock), _ENCODINGS.index(meta.yuv))
    return _COMMIT.pack(camera, generation, buffer, meta.epoch, *times, *encodings)


def decode_commit(data: bytes) -> Committed:
    """Return the content of a message of the kind `COMMIT`."""
    camera, generation, buffer, epoch, index, captured_ns, utc_ns, clock, yuv = _COMMIT.unpack(data)
    encodings = (_CLOCKS[clock], _ENCODINGS[yuv])
    return Committed(camera, generation, buffer, epoch, index, captured_ns, utc_ns, *encodings)


def encode_drop(camera: int, reason: DropReason, frames: int = 0) -> bytes:
    """Return a message of the kind `DROP` for this number of frames, or `FLUSH` for the waiting frame."""
    return _DROP.pack(camera, _REASONS.index(reason), frames)


def decode_drop(data: bytes) -> tuple[int, DropReason, int]:
    """Return the camera, the reason, and the number of frames in a message of the kind `DROP` or `FLUSH`."""
    camera, reason, frames = _DROP.unpack(data)
    return camera, _REASONS[reason], frames


def encode_end(camera: int, failure: str) -> bytes:
    """Return a message of the kind `END`. `failure` is empty if the source has not failed."""
    return _CAMERA.pack(camera) + failure.encode()


def decode_end(data: bytes) -> tuple[int, str]:
    """Return the camera and the failure in a message of the kind `END`."""
    return int(_CAMERA.unpack_from(data)[0]), data[_CAMERA.size :].decode()


def encode_returns(buffers: Sequence[tuple[int, int, int]]) -> bytes:
    """Return a message of the kind `RETURN` for buffers, each of which is (camera, generation, buffer)."""
    return b"".join(_RETURN.pack(*buffer) for buffer in buffers)


def decode_returns(data: bytes) -> list[tuple[int, int, int]]:
    """Return the buffers in a message of the kind `RETURN`."""
    return list(_RETURN.iter_unpack(data))


# --- other messages ---------------------------------------------------------------------------------------------------


class Configure(msgspec.Struct, tag=True, array_like=True):
    """Request of a worker for the buffers of one camera."""

    camera: int
    generation: int
    height_px: int
    width_px: int
    pixel_format: PixelFormat


class Statuses(msgspec.Struct, tag=True, array_like=True):
    """The states of all cameras of a worker."""

    at_ns: int
    cameras: list[tuple[int, CameraStatus, str]]  # number, state, and call in progress


class Configured(msgspec.Struct, tag=True, array_like=True):
    """Reply to `Configure`. Memory of the host comes as a descriptor, and memory of the GPU as a handle."""

    camera: int
    generation: int
    buffers: int = 0
    handle: bytes = b""  # empty if the memory is in the host
    error: str = ""  # why there are no buffers; empty if there are


FromWorker: TypeAlias = Configure | Statuses

encode: Final = msgspec.msgpack.Encoder().encode
decode_from_worker: Final = msgspec.msgpack.Decoder(FromWorker).decode
decode_configured: Final = msgspec.msgpack.Decoder(Configured).decode
