"""Compile-time constants, launch sizes, and memory sizes of the CUDA kernels for one model.

The NumPy dtypes equal the structures in ``cuda/`` that the host and the kernels exchange. Values that depend on the
size of a frame are computed once per buffer, so that the host copies only 112 bytes per frame for a launch.

This module needs no GPU, so that tests can compare the kernels with `vision.detect.reference` on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vision.config import HeadSpec, InputSpec, ModelSpec
from vision.detect.reference.heads import Head
from vision.detect.reference.letterbox import Letterbox, gain_and_offset
from vision.detect.reference.yuv import FRACTION_BITS, yuv_coefficients
from vision.errors import ModelError
from vision.types import PixelFormat, YuvEncoding

KERNELS: Final = Path(__file__).with_name("cuda")

Grid: TypeAlias = tuple[int, int, int]
Definitions: TypeAlias = Mapping[str, int | float | str]

FRAME: Final = np.dtype(
    [
        ("plane", np.uint64, 3),
        ("pitch", np.int32, 2),
        ("width", np.int32),
        ("height", np.int32),
        ("format", np.int32),
        ("content_width", np.int32),
        ("content_height", np.int32),
        ("pad_x", np.int32),
        ("pad_y", np.int32),
        ("luma_offset", np.int32),
        ("luma", np.int32),
        ("u_blue", np.int32),
        ("u_green", np.int32),
        ("v_green", np.int32),
        ("v_red", np.int32),
        ("ratio_x", np.float32),
        ("ratio_y", np.float32),
        ("step", np.int32),
        ("step_rest", np.int32),
        ("per_x", np.float32),
        ("per_y", np.float32),
        ("reserved", np.int32),
    ]
)
"""Memory layout of ``struct Frame`` in ``device.cuh``. All zeros mean that this row of the batch has no frame."""

NORMALIZE: Final = np.dtype([("gain", np.float32, 3), ("offset", np.float32, 3), ("fill", np.float32, 3)])
"""Memory layout of ``struct Normalize`` in ``letterbox.cu``."""

_FORMATS: Final[dict[PixelFormat, int]] = {"bgr": 0, "bgrx": 1, "nv12": 2, "i420": 3}

THRESHOLD: Final = np.dtype([("score", np.float32), ("floor", np.float32), ("keep", np.uint64)])
"""Memory layout of ``struct Threshold`` in ``heads.cuh``."""

RESULT: Final = np.dtype(
    [("count", np.uint32), ("truncated", np.uint32), ("candidates", np.uint32), ("reserved", np.uint32)]
)
"""Memory layout of ``struct Result`` in ``postprocess.cu``."""

_PAIR_CAPACITY: Final = 16384
"""Maximum number of pairs per frame that are stored. Typically, a hundred pairs reach a threshold of 0.35, and a few
thousand reach 0.05. If there are more pairs, the kernel reads the scores again, which is slower but correct."""

_HEADS: Final[Mapping[str, int]] = {"nanodet": 0, "yolov5": 1, "yolov8": 2, "end-to-end": 3, "rt-detr": 4}
_EFFICIENT_NMS: Final = 5


@dataclass(frozen=True, slots=True)
class LetterboxProgram:
    """Constants and launch size of ``letterbox.cu`` for one model input."""

    spec: InputSpec
    half_input: bool
    interleaved: bool = False  # True if the tensor is (B, H, W, 4) instead of (B, 3, H, W)

    file: ClassVar[str] = "letterbox.cu"
    block: ClassVar[Grid] = (256, 1, 1)
    pixels: ClassVar[tuple[int, int]] = (2, 4)  # columns and rows that one thread writes

    @property
    def definitions(self) -> Definitions:
        return {
            "WIDTH": self.spec.width,
            "HEIGHT": self.spec.height,
            "HALF_INPUT": int(self.half_input),
            "INTERLEAVED": int(self.interleaved),
            "RED_FIRST": int(self.spec.color == "rgb"),
            "FRACTION_BITS": FRACTION_BITS,
            "DOWN": self.pixels[1],
        }

    def grid(self, batch: int) -> Grid:
        across, down = self.pixels
        threads = -(-self.spec.width // across) * -(-self.spec.height // down)
        return (-(-threads // self.block[0]), batch, 1)


@dataclass(frozen=True, slots=True)
class Output:
    """Shape and type of one output of the engine, for one frame."""

    shape: tuple[int, ...]  # without the batch axis
    dtype: str  # name of the NumPy type

    @property
    def half(self) -> bool:
        return self.dtype == "float16"

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class PostprocessProgram:
    """Constants and launch sizes of ``postprocess.cu`` for one head."""

    definitions: Definitions
    outputs: tuple[str, ...]  # names of the outputs to read, in the order of `Head.decode`
    scores: str  # name of the output with scores
    boxes: str  # name of the output with boxes, which can be the same output
    extra: tuple[str, str]  # names of the outputs with classes and counts of EfficientNMS_TRT; otherwise empty
    candidates: int  # maximum number of candidates per frame
    objects: int  # maximum number of objects per frame
    work_bytes: int  # size of the work memory per frame
    shared_work: bool  # True if the work memory is shared memory, not global memory
    _pairs_blocks: int

    file: ClassVar[str] = "postprocess.cu"
    pairs_block: ClassVar[Grid] = (256, 1, 1)
    objects_block: ClassVar[Grid] = (512, 1, 1)

    @classmethod
    def of(
        cls, spec: ModelSpec, head: Head, class_count: int, outputs: Mapping[str, Output], shared_bytes: int
    ) -> PostprocessProgram:
        """Create the program for the outputs that `head` reads.

        Args:
            shared_bytes: size of the shared memory that one block can use on the GPU.

        Raises:
            ModelError: the outputs do not fit the head, or the kernels cannot read them.
        """
        names = head.choose_outputs({name: (None, *output.shape) for name, output in outputs.items()})
        scores, boxes, extra = _roles(spec.head, names)
        for name in (scores, boxes):
            _require(spec, name, outputs[name].dtype, ("float32", "float16"))
        for name in filter(None, extra):
            _require(spec, name, outputs[name].dtype, ("int32",))
        layout = _layout(spec.head, class_count, outputs[scores].shape, outputs[boxes].shape, scores == boxes)
        objects = spec.nms.max_objects
        candidates = spec.nms.max_candidates if head.needs_nms else objects
        work_bytes = _work_bytes(candidates)
        shared_work = work_bytes <= shared_bytes - _STATIC_SHARED
        unit = (spec.input.width, spec.input.height) if spec.head.box_scale == "fraction" else (1, 1)
        definitions: Definitions = {
            **layout,
            "HEAD": _HEADS[spec.head.kind] if not any(extra) else _EFFICIENT_NMS,
            "CLASSES": class_count,
            "SIGMOID": int(spec.head.activation == "sigmoid"),
            "HALF_SCORES": int(outputs[scores].half),
            "HALF_BOXES": int(outputs[boxes].half),
            "UNIT_X": unit[0],
            "UNIT_Y": unit[1],
            "BINS": spec.head.bins,
            "STRIDES": ",".join(map(str, spec.head.strides)),
            "WIDTH": spec.input.width,
            "HEIGHT": spec.input.height,
            "CANDIDATES": candidates,
            "OBJECTS": objects,
            "PAIR_CAPACITY": max(_PAIR_CAPACITY, candidates),
            "NMS": int(head.needs_nms),
            "CLASS_AWARE": int(spec.nms.class_aware),
            "SHARED_WORK": int(shared_work),
        }
        per_block = 256 * 2 * (8 if outputs[scores].half else 4)
        elements = layout["BOXES"] * (class_count if spec.head.kind == "yolov8" else layout["SCORE_COLUMNS"])
        blocks = -(-elements // per_block)
        return cls(definitions, names, scores, boxes, extra, candidates, objects, work_bytes, shared_work, blocks)

    def pairs_grid(self, batch: int) -> Grid:
        return (self._pairs_blocks, batch, 1)

    def objects_grid(self, batch: int) -> Grid:
        return (batch, 1, 1)

    @property
    def keys_bytes(self) -> int:
        """Size in bytes of the memory that stores the pairs of one frame."""
        return 8 * int(self.definitions["PAIR_CAPACITY"])


_STATIC_SHARED: Final = 4096
"""Size in bytes, rounded up, of the shared memory that a block needs in addition to ``struct Work``."""


def _work_bytes(candidates: int) -> int:
    """Return the size of ``struct Work`` in bytes."""
    ordered = max(64, 1 << (candidates - 1).bit_length())
    return -(-(8 * ordered + candidates * (16 + 4 + 4 + 1)) // 16) * 16


def _require(spec: ModelSpec, name: str, dtype: str, dtypes: tuple[str, ...]) -> None:
    """Check that an output has one of the types `dtypes`.

    Raises:
        ModelError: the kernels cannot read this output.
    """
    if dtype not in dtypes:
        raise ModelError(
            f"{spec.name}: expected {' or '.join(dtypes)} for output {name}, got {dtype}",
            hint="export the model with outputs in fp32",
        )


def _roles(head: HeadSpec, outputs: tuple[str, ...]) -> tuple[str, str, tuple[str, str]]:
    """Return the names of the outputs with scores, with boxes, and (EfficientNMS_TRT only) with classes and counts."""
    if head.kind == "end-to-end" and len(outputs) == 4:
        number, boxes, scores, classes = outputs
        return scores, boxes, (classes, number)
    if head.kind == "rt-detr":
        return outputs[1], outputs[0], ("", "")
    return outputs[0], outputs[-1], ("", "")


def _layout(
    head: HeadSpec, class_count: int, scores: tuple[int, ...], boxes: tuple[int, ...], shared: bool
) -> dict[str, int]:
    """Return the kernel constants for the positions of scores and boxes in the outputs."""
    if head.kind == "yolov8":
        return {"BOXES": scores[1], "SCORE_COLUMNS": 0, "BOX_COLUMNS": 0, "BOX_OFFSET": 0}
    if len(scores) == 1:
        return {"BOXES": scores[0], "SCORE_COLUMNS": 1, "BOX_COLUMNS": 4, "BOX_OFFSET": 0}
    offset = class_count if head.kind == "nanodet" and shared else 0
    return {"BOXES": scores[0], "SCORE_COLUMNS": scores[1], "BOX_COLUMNS": boxes[1], "BOX_OFFSET": offset}


def threshold(head: Head, keep_address: int) -> NDArray[np.void]:
    """Return the `THRESHOLD` structure of a head. `keep_address` is the device address of its `kept_classes`."""
    row = np.zeros((), THRESHOLD)
    row["score"], row["floor"], row["keep"] = head.score, head.floor, keep_address
    return row


def kept_classes(head: Head, class_count: int) -> NDArray[np.uint8]:
    """Return one byte per class: 1 if the detector reports the class, otherwise 0."""
    keep = np.zeros(class_count, np.uint8)
    keep[head.classes] = 1
    return keep


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """Memory layout of a frame. Its planes follow one another, as in `vision.types.Frame`."""

    height_px: int
    width_px: int
    pixel_format: PixelFormat
    yuv: YuvEncoding = "bt601"
    pitch_bytes: int | None = None  # distance between rows; None if rows have no padding


def describe_frame(spec: InputSpec, frame: FrameLayout, address: int) -> bytes:
    """Return the bytes of a `FRAME` structure for a frame at a device address."""
    width_px, height_px, pixel_format = frame.width_px, frame.height_px, frame.pixel_format
    letterbox = Letterbox.fit(width_px, height_px, spec.width, spec.height, spec.letterbox)
    content_width, content_height = letterbox.content(width_px, height_px)
    row = np.zeros((), FRAME)
    pitch = frame.pitch_bytes or width_px * {"bgr": 3, "bgrx": 4}.get(pixel_format, 1)
    row["pitch"] = (pitch, pitch // 2 if pixel_format == "i420" else pitch)
    chroma = address + pitch * height_px
    row["plane"] = (address, chroma, chroma + pitch // 2 * (height_px // 2))
    row["width"], row["height"], row["format"] = width_px, height_px, _FORMATS[pixel_format]
    row["content_width"], row["content_height"] = content_width, content_height
    row["pad_x"], row["pad_y"] = letterbox.pad_x_px, letterbox.pad_y_px
    (
        row["luma_offset"], row["luma"], row["u_blue"], row["u_green"], row["v_green"], row["v_red"],
    ) = yuv_coefficients(frame.yuv)  # fmt: skip
    row["ratio_x"], row["ratio_y"] = width_px / content_width, height_px / content_height
    row["step"], row["step_rest"] = divmod(2 * height_px, 2 * content_height)
    row["per_x"], row["per_y"] = 1 / (2 * content_width), 1 / (2 * content_height)
    return row.tobytes()


def describe_normalization(spec: InputSpec) -> NDArray[np.void]:
    """Return the `NORMALIZE` structure of a model input."""
    row = np.zeros((), NORMALIZE)
    gain, offset = gain_and_offset(spec.scale, spec.mean, spec.std)
    row["gain"], row["offset"], row["fill"] = gain, offset, spec.fill * gain + offset
    return row
