"""Messages between a capture worker and the main process.

Messages about frames have a fixed format, and their own connection, so that they never wait for other messages.

The number of a camera is unique in the program: a camera that is reopened has a new number. The buffers of one camera
belong to a generation. The number of the generation increases each time that the worker requests new buffers, or
forgets the current buffers.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias, get_args

import msgspec

from vision.capture.camera_status import CameraStatus
from vision.capture.open import NamedOpener
from vision.config import CameraConfig
from vision.config.transfer import plain_section, section_of
from vision.types import ClockSource, DropReason, FrameMeta, PixelFormat, YuvEncoding

# --- messages on the connection for frames ----------------------------------------------------------------------------

COMMIT, DROP, FLUSH, END, RETURN = b"A", b"D", b"X", b"E", b"B"
"""Kinds of messages. The kind is the first byte of a message. The functions `encode_*` omit this byte, and `decode_*`
expect it. `RETURN` goes to the worker, and the other kinds go to the main process."""

_COMMIT: Final = struct.Struct("<IIHIqqqBB")
_DROP: Final = struct.Struct("<IBI")
_RETURN: Final = struct.Struct("<IIH")
_CAMERA: Final = struct.Struct("<I")

_REASONS: Final = tuple(DropReason)
_CLOCKS: Final[tuple[ClockSource, ...]] = get_args(ClockSource)
_ENCODINGS: Final[tuple[YuvEncoding, ...]] = get_args(YuvEncoding)

CommittedFrame: TypeAlias = Sequence[int]
"""Fields of a frame in a message. `frame_meta` decodes them."""


def encode_commit(camera: int, generation: int, buffer: int, meta: FrameMeta) -> bytes:
    """Return a message of the kind `COMMIT`, which reports that a buffer contains the frame of `meta`."""
    times = (meta.index, meta.captured_ns, meta.captured_utc_ns)
    encodings = (_CLOCKS.index(meta.clock), _ENCODINGS.index(meta.yuv))
    return _COMMIT.pack(camera, generation, buffer, meta.epoch, *times, *encodings)


def decode_commit(data: bytes) -> tuple[int, int, int, CommittedFrame]:
    """Return the camera, the generation, the buffer, and the frame in a message of the kind `COMMIT`."""
    camera, generation, buffer, *frame = _COMMIT.unpack_from(data, 1)
    return camera, generation, buffer, frame


def frame_meta(frame: CommittedFrame, camera_id: str, height_px: int, width_px: int) -> FrameMeta:
    """Return the metadata of a frame. `frame` contains the fields that `decode_commit` returned."""
    epoch, index, captured_ns, utc_ns, clock, yuv = frame
    times, size = (captured_ns, utc_ns), (width_px, height_px)
    return FrameMeta(camera_id, index, epoch, *times, *size, _CLOCKS[clock], _ENCODINGS[yuv])


def encode_drop(camera: int, reason: DropReason, frames: int = 0) -> bytes:
    """Return a message of the kind `DROP` about `frames` dropped frames.

    If `frames` is 0, return a message of the kind `FLUSH`, which drops the waiting frames.
    """
    return _DROP.pack(camera, _REASONS.index(reason), frames)


def decode_drop(data: bytes) -> tuple[int, DropReason, int]:
    """Return the camera, the reason, and the number of frames in a message of the kind `DROP` or `FLUSH`."""
    camera, reason, frames = _DROP.unpack_from(data, 1)
    return camera, _REASONS[reason], frames


def encode_end(camera: int, failure: str) -> bytes:
    """Return a message of the kind `END`. `failure` is empty if the source has not failed."""
    return _CAMERA.pack(camera) + failure.encode()


def decode_end(data: bytes) -> tuple[int, str]:
    """Return the camera and the failure in a message of the kind `END`."""
    return int(_CAMERA.unpack_from(data, 1)[0]), data[1 + _CAMERA.size :].decode()


def encode_returns(buffers: Sequence[tuple[int, int, int]]) -> bytes:
    """Return a message of the kind `RETURN` for buffers, which are tuples (camera, generation, buffer)."""
    return b"".join(_RETURN.pack(*buffer) for buffer in buffers)


def decode_returns(data: bytes) -> list[tuple[int, int, int]]:
    """Return the buffers in a message of the kind `RETURN`, as tuples (camera, generation, buffer)."""
    return list(_RETURN.iter_unpack(memoryview(data)[1:]))


# --- other messages ---------------------------------------------------------------------------------------------------


class CapturedCamera(msgspec.Struct, array_like=True, frozen=True):
    """Description of one camera, which the worker that reads the camera receives."""

    config: CameraConfig
    nvdec: bool  # see `vision.capture.open.open_source`
    lossless: bool
    epoch: int  # epoch of its first connection in the worker
    recorded: bool = False  # True if its packets are recorded


class CaptureSetup(msgspec.Struct, array_like=True, frozen=True):
    """The configuration of a capture worker. It contains passwords, so it is sent only in a message."""

    cameras: Mapping[int, CapturedCamera]  # by the number of the camera in messages
    pixel_formats: tuple[PixelFormat, ...]
    offline: bool
    hang_s: float  # time in seconds after which a call to a source, or the worker, counts as hanging
    opener: NamedOpener | None = None  # replaces `vision.capture.open.open_source`
    packets: str | None = None  # address of the packet socket; None means that no packets are passed on


class Configure(msgspec.Struct, tag=True, array_like=True):
    """Request of a worker for the buffers of one camera."""

    camera: int
    generation: int
    height_px: int
    width_px: int
    pixel_format: PixelFormat


class Statuses(msgspec.Struct, tag=True, array_like=True):
    """The states of all cameras of a worker."""

    at_ns: int  # monotonic time of the states
    cameras: list[tuple[int, CameraStatus, str]]  # number, state, and call in progress


class Configured(msgspec.Struct, tag=True, array_like=True):
    """Reply to `Configure` that describes the buffers. For host memory, the message carries a file descriptor."""

    camera: int
    generation: int
    buffers: int = 0
    handle: bytes = b""  # handle with which the worker opens GPU memory; empty for host memory
    error: str = ""  # why there are no buffers; empty if there are buffers


class Open(msgspec.Struct, tag=True, array_like=True):
    """Request to a worker to read one more camera."""

    camera: int
    captured: CapturedCamera


class Close(msgspec.Struct, tag=True, array_like=True):
    """Request to a worker to stop reading a camera. The worker replies with `ClosedCamera`."""

    camera: int


class ClosedCamera(msgspec.Struct, tag=True, array_like=True):
    """A worker's report that the thread of a closed camera has ended, or that this thread hangs and was abandoned."""

    camera: int


FromWorker: TypeAlias = Configure | Statuses | ClosedCamera
ToWorker: TypeAlias = Configured | Open | Close

encode: Final = msgspec.msgpack.Encoder(enc_hook=plain_section).encode
decode_from_worker: Final = msgspec.msgpack.Decoder(FromWorker).decode
decode_to_worker: Final = msgspec.msgpack.Decoder(ToWorker, dec_hook=section_of).decode
decode_setup: Final = msgspec.msgpack.Decoder(CaptureSetup, dec_hook=section_of).decode
