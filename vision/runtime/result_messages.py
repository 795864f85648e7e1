"""Messages between the main process and a result worker, in MessagePack.

The main process sends one `Begin`, and then lists of encoded results (`Results`) and new configurations (`NewConfig`).
The worker sends one `Answer` per list. It sends `Totals` after an answer (at most once per second), after each new
configuration, and at the end.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from vision.config import AppConfig
from vision.config.fields import ConfigSection
from vision.config.transfer import plain_section, section_of
from vision.messaging import codec
from vision.messaging.schema import EventMessage, ObjectMessage
from vision.runtime.shared_frames import map_file
from vision.state.counters import CounterRow
from vision.types import (
    ClockSource,
    Counts,
    Detections,
    Frame,
    FrameBuffer,
    FrameMeta,
    Mask,
    PixelFormat,
    Result,
    Shapes,
    SharedMemory,
    Timing,
    YuvEncoding,
    frame_shape,
)


class WorkerSetup(msgspec.Struct, array_like=True, frozen=True):
    """The configuration that all result workers share.

    The setup contains passwords, so it is sent only in a message, and not on a command line.
    """

    pipeline: str  # name or path of the pipeline
    config: AppConfig
    secrets: Mapping[str, str]  # as `vision.errors.registered_secrets` returns them
    offline: bool
    private: str  # address of the proxy
    instance: str  # instance of the publisher
    node: str
    class_names: tuple[str, ...]
    records: bool  # if True, answers contain the detections messages
    inquiries: str = ""  # address of the process that asks the language model; empty if there is none
    number: int = 0  # number of the configuration; increases with each change while the program runs

    def encode(self) -> bytes:
        """Return the setup as bytes, for `decode_setup`."""
        return _encoder.encode(self)


class Begin(msgspec.Struct, array_like=True):
    """The first message to a worker process. It contains the cameras, and the numbers and counters to continue from."""

    cameras: Mapping[str, int]  # number of each of the worker's cameras in messages
    sequences: Mapping[str, int]  # last number of the detections messages of each camera
    last_ids: Mapping[str, int]  # upper limit of the track ids of each camera
    counters: Sequence[CounterRow]


class _Mask(msgspec.Struct, array_like=True, gc=False):
    height: int
    width: int
    cells: bytes  # one bit per cell
    region_xyxy: tuple[float, float, float, float]


class _Shapes(msgspec.Struct, array_like=True, gc=False):
    masks: list[_Mask] | None
    keypoints: bytes | None  # float32 (N, K, 3)
    keypoint_names: tuple[str, ...]
    rotated_boxes: bytes | None  # float32 (N, 5)


class _EncodedResult(msgspec.Struct, array_like=True, gc=False):
    camera: int  # number of the camera
    index: int
    epoch: int
    captured_ns: int
    captured_utc_ns: int
    width_px: int
    height_px: int
    clock: ClockSource
    yuv: YuvEncoding
    batched_ns: int
    submitted_ns: int
    inferred_ns: int
    expires_ns: int | None
    dropped_before: dict[str, int]
    boxes_xyxy: bytes
    scores: bytes
    class_ids: bytes
    truncated_candidates: int
    shapes: _Shapes | None
    pixels: tuple[int, int, PixelFormat] | None  # number of the file, offset in it, and format; None without the frame


class Results(msgspec.Struct, array_like=True, gc=False, tag="results"):
    """Results of frames of different cameras: at most one frame of each camera."""

    files: list[tuple[int, int]]  # number and size of each file whose descriptor comes with the message
    results: list[_EncodedResult]


class NewConfig(msgspec.Struct, array_like=True, tag="config"):
    """A new configuration. Once the stages of the worker use the configuration, the worker replies with `Totals`."""

    number: int  # number of the configuration
    config: AppConfig
    secrets: Mapping[str, str]  # as in `WorkerSetup`
    begin: Begin  # the numbers and counters of the new cameras of the worker
    removed: Sequence[str]  # ids of the cameras that were removed from the worker
    last_id: int  # upper limit of all track ids so far; 0 if no camera is new in the program


Outcome: TypeAlias = tuple[int, int]
"""Time of publication in ns, and number of objects. The time is 0 if the result was too old."""


class Answer(msgspec.Struct, array_like=True, tag="answer"):
    """A worker's reply to one `Results` message: the changed counts and the events, and one outcome for each result."""

    outcomes: list[Outcome]
    counts: dict[int, Counts | None]  # changed counts, by number of the camera; None without lines and zones
    events: list[EventMessage]  # events without numbers
    counters: list[CounterRow]  # changed counters
    records: list[bytes]  # detections messages in JSON
    objects: list[ObjectMessage]  # summaries of objects that left, without numbers


class Totals(msgspec.Struct, array_like=True, tag="totals"):
    """Counters of the stages of a worker, and the highest track id of each camera."""

    counters: dict[str, int]
    last_ids: dict[str, int]
    config: int  # number of the configuration in use


def _plain(value: object) -> object:
    """Convert a value for which MessagePack has no type to plain data.

    Such values are sections of the configuration, and NumPy values in the `data` of events from custom stages.
    """
    return plain_section(value) if isinstance(value, ConfigSection) else codec.plain(value)


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_setup = msgspec.msgpack.Decoder(WorkerSetup, dec_hook=section_of)
_work = msgspec.msgpack.Decoder(Results | NewConfig, dec_hook=section_of)
_begin = msgspec.msgpack.Decoder(Begin)
_replies = msgspec.msgpack.Decoder(Answer | Totals)


def encode(message: Begin | NewConfig | Answer | Totals) -> bytes:
    """Return a message as MessagePack."""
    return _encoder.encode(message)


def encode_result(result: Result, camera: int, expires_ns: int | None, frame: FrameBuffer | None) -> bytes:
    """Encode a result of the detector, and the place of its frame in shared memory.

    If `frame` is None or not in shared memory, the worker gets no frame.

    Raises:
        TypeError: a stage has already processed the result.
    """
    meta, timing, found = result.meta, result.timing, result.objects
    if not isinstance(found, Detections):
        raise TypeError(f"expected detections, got {type(found).__name__}")
    return _encoder.encode(
        _EncodedResult(
            camera,
            meta.index,
            meta.epoch,
            meta.captured_ns,
            meta.captured_utc_ns,
            meta.width_px,
            meta.height_px,
            meta.clock,
            meta.yuv,
            timing.batched_ns,
            timing.submitted_ns,
            timing.inferred_ns,
            expires_ns,
            dict(result.dropped_before),
            found.boxes_xyxy.tobytes(),
            found.scores.tobytes(),
            found.class_ids.tobytes(),
            found.truncated_candidates,
            None if found.shapes is None else _encoded_shapes(found.shapes),
            None if frame is None or frame.shared is None else _place(frame.shared, frame.pixel_format),
        )
    )


def _place(shared: tuple[SharedMemory, int], pixel_format: PixelFormat) -> tuple[int, int, PixelFormat]:
    return shared[0].number, shared[1], pixel_format


def join_results(encoded: Sequence[bytes], files: Sequence[SharedMemory] = ()) -> bytes:
    """Return the message that contains encoded results. Send it with the descriptors of `files`, in this order."""
    return _encoder.encode(
        ("results", [(file.number, file.nbytes) for file in files], [msgspec.Raw(each) for each in encoded])
    )


class FrameFiles:
    """The files with frames that a worker has mapped, one for each camera."""

    def __init__(self) -> None:
        self._files: dict[int, NDArray[np.uint8]] = {}  # by number
        self._current: dict[int, int] = {}  # number of the file of each camera

    def open(self, number: int, nbytes: int, fd: int) -> None:
        """Map a file, and close its descriptor. Raise `MemoryError` if the file cannot be mapped."""
        try:
            self._files[number] = map_file(fd, nbytes)
        finally:
            os.close(fd)

    def frame(self, meta: FrameMeta, camera: int, place: tuple[int, int, PixelFormat]) -> Frame:
        """Return the frame at a place in a mapped file. If the camera previously had a different file, unmap that file.

        `camera` is the number of the camera. `place` is the number of the file, the offset in bytes, and the format.
        """
        number, offset, pixel_format = place
        before = self._current.get(camera, number)
        self._current[camera] = number
        if before != number:
            del self._files[before]
        shape = frame_shape(meta.height_px, meta.width_px, pixel_format)
        pixels = self._files[number][offset : offset + math.prod(shape)].reshape(shape)
        return Frame.wrap(meta, pixels, pixel_format)


def decode_setup(data: bytes) -> WorkerSetup:
    """Return the setup that `WorkerSetup.encode` converted to bytes."""
    return _setup.decode(data)


def decode_work(data: bytes) -> Results | NewConfig:
    """Decode a message to a worker, except the first one. Raise `msgspec.MsgspecError` if the message is invalid."""
    work: Results | NewConfig = _work.decode(data)
    return work


def decode_results(
    content: Results, fds: Sequence[int], camera_ids: Mapping[int, str], files: FrameFiles
) -> list[tuple[Result, Frame | None, int | None]]:
    """Return each result in a message, its frame, and the time in ns after which the result is too old.

    The frame is None if the message does not contain the place of the frame. A time of None means that the result is
    never too old. This function closes the file descriptors.

    Args:
        content: the message.
        fds: file descriptors that arrived with the message.
        camera_ids: the cameras by number.
        files: the files with frames.

    Raises:
        MemoryError: a file with frames cannot be mapped.
    """
    for (number, nbytes), fd in zip(content.files, fds, strict=True):
        files.open(number, nbytes, fd)
    decoded = []
    for each in content.results:
        result = _decoded(each, camera_ids[each.camera])
        frame = None if each.pixels is None else files.frame(result.meta, each.camera, each.pixels)
        decoded.append((result, frame, each.expires_ns))
    return decoded


def decode_begin(data: bytes) -> Begin:
    """Decode the first message to a worker. Raise `msgspec.MsgspecError` if the message is invalid."""
    return _begin.decode(data)


def decode_reply(data: bytes) -> Answer | Totals:
    """Decode a message from a worker. Raise `msgspec.MsgspecError` if the message is invalid."""
    reply: Answer | Totals = _replies.decode(data)
    return reply


def _decoded(each: _EncodedResult, camera_id: str) -> Result:
    meta = FrameMeta(
        camera_id,
        each.index,
        each.epoch,
        each.captured_ns,
        each.captured_utc_ns,
        each.width_px,
        each.height_px,
        each.clock,
        each.yuv,
    )
    found = Detections(
        np.frombuffer(each.boxes_xyxy, np.float32).reshape(-1, 4),
        np.frombuffer(each.scores, np.float32),
        np.frombuffer(each.class_ids, np.int32),
        each.truncated_candidates,
        None if each.shapes is None else _decoded_shapes(each.shapes, len(each.scores) // 4),
    )
    return Result(meta, found, Timing(each.batched_ns, each.submitted_ns, each.inferred_ns), each.dropped_before)


def _encoded_shapes(shapes: Shapes) -> _Shapes:
    masks = shapes.masks
    return _Shapes(
        None if masks is None else [_encoded_mask(mask) for mask in masks],
        None if shapes.keypoints is None else shapes.keypoints.tobytes(),
        shapes.keypoint_names,
        None if shapes.rotated_boxes is None else shapes.rotated_boxes.tobytes(),
    )


def _encoded_mask(mask: Mask) -> _Mask:
    height, width = mask.cells.shape
    return _Mask(height, width, np.packbits(mask.cells).tobytes(), mask.region_xyxy)


def _decoded_shapes(shapes: _Shapes, objects: int) -> Shapes:
    keypoints, rotated = shapes.keypoints, shapes.rotated_boxes
    return Shapes(
        None if shapes.masks is None else tuple(_decoded_mask(mask) for mask in shapes.masks),
        None if keypoints is None else _keypoints(keypoints, objects),
        shapes.keypoint_names,
        None if rotated is None else np.frombuffer(rotated, np.float32).reshape(-1, 5),
    )


def _keypoints(data: bytes, objects: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    flat = np.frombuffer(data, np.float32)
    return flat.reshape(objects, len(flat) // (3 * max(1, objects)), 3)


def _decoded_mask(mask: _Mask) -> Mask:
    bits = np.unpackbits(np.frombuffer(mask.cells, np.uint8), count=mask.height * mask.width)
    return Mask(bits.astype(np.bool_).reshape(mask.height, mask.width), mask.region_xyxy)
