"""Messages between the main process and a result worker, in MessagePack.

To the worker: one `Begin`, then one list of encoded results per batch. To the main process: one `Answer` per batch, and
`Totals` once per second.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import msgspec
import numpy as np

from vision.config import AppConfig
from vision.messaging import codec
from vision.messaging.schema import EventMessage
from vision.state.counters import CounterRow
from vision.types import (
    ClockSource,
    Counts,
    Detections,
    FrameMeta,
    Mask,
    Result,
    Shapes,
    Timing,
    YuvEncoding,
)


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What all result workers of a program have in common. It contains passwords, so it is only in messages."""

    pipeline: str  # name or path of the pipeline
    config: AppConfig
    secrets: Mapping[str, str]  # as `vision.errors.registered_secrets` returns them
    offline: bool
    private: str  # address of the proxy
    instance: str  # of the publisher
    node: str
    class_names: tuple[str, ...]
    records: bool  # if True, answers contain the detections messages

    def encode(self) -> bytes:
        """Return the setup as bytes, for `pickle.loads`."""
        return pickle.dumps(self)


class Begin(msgspec.Struct, array_like=True):
    """The first message to a worker process: where an earlier process ended."""

    sequences: Mapping[str, int]  # last number of the detections messages of each camera
    last_ids: Mapping[str, int]  # upper limits of the track ids of each camera
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
    camera: int  # index of the camera in the configuration
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


Outcome: TypeAlias = tuple[int, int]
"""Time of publication in ns, and number of objects. The time is 0 if the result was too old."""


class Answer(msgspec.Struct, array_like=True, tag="answer"):
    """What a worker did with the results of one message, in their order."""

    outcomes: list[Outcome]
    counts: dict[int, Counts]  # changed counts, by index of the camera
    events: list[EventMessage]  # not numbered yet
    counters: list[CounterRow]  # changed counters
    records: list[bytes]  # detections messages in JSON


class Totals(msgspec.Struct, array_like=True, tag="totals"):
    """Counters of the stages of a worker, and the highest track id of each camera."""

    counters: dict[str, int]
    last_ids: dict[str, int]


_encoder = msgspec.msgpack.Encoder(enc_hook=codec.plain)  # a custom stage can put NumPy values into an event
_results = msgspec.msgpack.Decoder(list[_EncodedResult])
_begin = msgspec.msgpack.Decoder(Begin)
_replies = msgspec.msgpack.Decoder(Answer | Totals)


def encode(message: Begin | Answer | Totals) -> bytes:
    """Encode a message."""
    return _encoder.encode(message)


def encode_result(result: Result, camera: int, expires_ns: int | None) -> bytes:
    """Encode a result of the detector.

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
        )
    )


def join_results(encoded: Sequence[bytes]) -> bytes:
    """Return the message that contains encoded results."""
    return _encoder.encode([msgspec.Raw(each) for each in encoded])


def decode_results(data: bytes, camera_ids: Sequence[str]) -> list[tuple[Result, int | None]]:
    """Return each result in a message, and the time from which it is too old; None means never.

    Raises:
        msgspec.MsgspecError: the message has a different form.
    """
    return [(_decoded(each, camera_ids[each.camera]), each.expires_ns) for each in _results.decode(data)]


def decode_begin(data: bytes) -> Begin:
    """Decode the first message to a worker."""
    return _begin.decode(data)


def decode_reply(data: bytes) -> Answer | Totals:
    """Decode a message of a worker. Raise `msgspec.MsgspecError` if it has a different form."""
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
