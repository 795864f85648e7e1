"""Compile-time constants, launch sizes, and memory sizes of the CUDA kernels for one model.

The NumPy dtypes have the layout of the structures in ``cuda/`` that host and kernels exchange. Values that depend on
the size of a frame are computed once per buffer, so that the host copies only 112 bytes per frame for a launch.

This module needs no GPU, so that tests can compare the kernels with `vision.detect.reference` on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vision.config import InputSpec, ModelSpec
from vision.config.model_spec import CropSpec
from vision.detect.reference.decoder import Coding, Decoder, Rules
from vision.detect.reference.heads import Head
from vision.detect.reference.layout import Layout, Values
from vision.detect.reference.letterbox import Letterbox, gain_and_offset
from vision.detect.reference.postprocess import Overlaps
from vision.detect.reference.rotated import distance_limit
from vision.detect.reference.shapes import CandidateShapes, CroppedMasks, mask_scale
from vision.detect.reference.yuv import FRACTION_BITS, yuv_coefficients
from vision.types import FrameMeta, PixelFormat, YuvEncoding

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
"""Memory layout of ``struct Frame`` in ``device.cuh``. If all values are zero, the row of the batch has no frame."""

NORMALIZE: Final = np.dtype([("gain", np.float32, 3), ("offset", np.float32, 3), ("fill", np.float32, 3)])
"""Memory layout of ``struct Normalize`` in ``letterbox.cu``."""

_FORMATS: Final[dict[PixelFormat, int]] = {"bgr": 0, "bgrx": 1, "nv12": 2, "i420": 3}

THRESHOLD: Final = np.dtype([("score", np.float32), ("floor", np.float32), ("keep", np.uint64)])
"""Memory layout of ``struct Threshold`` in ``heads.cuh``."""

RESULT: Final = np.dtype(
    [("count", np.uint32), ("truncated", np.uint32), ("candidates", np.uint32), ("unnamed", np.uint32)]
)
"""Memory layout of ``struct Result`` in ``postprocess.cu``."""

_PAIR_CAPACITY: Final = 16384
"""Maximum number of stored pairs (box and class) per frame, unless the maximum number of candidates is larger.

Typically, a hundred pairs reach a threshold of 0.35, and a few thousand reach 0.05. If a frame has more pairs than this
maximum, the kernel reads the scores again, which is slower but correct.
"""

OVERLAPS: Final = np.dtype([("same", np.float32), ("across", np.float32)])
"""Memory layout of ``struct Overlaps`` in ``nms.cuh``."""

MASKED: Final = np.dtype([("box", np.uint32), ("crop", np.int32, 4)])
"""Memory layout of ``struct Masked`` in ``postprocess.cu``."""

_CODINGS: Final[Mapping[Coding, int]] = {
    "distances": 0, "grid": 1, "centers": 2, "corners": 3, "corners-yx": 4, "rotated": 5,
}  # fmt: skip
_INTEGERS: Final[Mapping[str, int]] = {"int32": 1, "int64": 2, "float32": 3, "float16": 4}


@dataclass(frozen=True, slots=True)
class LetterboxProgram:
    """Compile-time constants and launch size of the kernel in ``letterbox.cu``, for the input of one model."""

    spec: InputSpec
    dtype: str  # of the tensor: float32, float16, or uint8
    channels: int = 0  # 3 or 4 if the tensor is (B, H, W, channels); 0 if it is (B, 3, H, W)

    file: ClassVar[str] = "letterbox.cu"
    block: ClassVar[Grid] = (256, 1, 1)
    pixels: ClassVar[tuple[int, int]] = (2, 4)  # columns and rows that one thread writes

    @property
    def definitions(self) -> Definitions:
        return {
            "WIDTH": self.spec.width,
            "HEIGHT": self.spec.height,
            "INPUT_TYPE": {"float32": 0, "float16": 1, "uint8": 2}[self.dtype],
            "INTERLEAVED": self.channels,
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
    def size(self) -> int:
        """Number of values of the output for one frame."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.size * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class PostprocessProgram:
    """Compile-time constants and launch sizes of the kernels in ``postprocess.cu``, for one layout of outputs."""

    definitions: Definitions
    input: InputSpec
    decoder: Decoder
    candidates: int  # maximum number of candidates per frame
    objects: int  # maximum number of objects per frame
    extras: int  # number of values per object in addition to its box
    mask_shape: tuple[int, int] | None  # rows and columns of the prototypes; None without masks
    work_bytes: int  # size of the work memory per frame
    shared_work: bool  # True if the work memory is shared memory, not global memory
    _pairs_blocks: int

    file: ClassVar[str] = "postprocess.cu"
    pairs_block: ClassVar[Grid] = (256, 1, 1)
    objects_block: ClassVar[Grid] = (512, 1, 1)
    masks_block: ClassVar[Grid] = (256, 1, 1)

    @classmethod
    def of(cls, spec: ModelSpec, head: Head, outputs: Mapping[str, Output], shared_bytes: int) -> PostprocessProgram:
        """Create the constants and launch sizes for a model with these `outputs`, which `head` reads.

        Args:
            shared_bytes: size of the shared memory that one block can use on the GPU.

        Raises:
            ModelError: the outputs do not fit the head, or the kernels cannot read them.
        """
        decoder = head.bind({name: (None, *output.shape) for name, output in outputs.items()})
        tensors = [outputs[name] for name in decoder.outputs]
        decoder.check_types([tensor.dtype for tensor in tensors])
        places = _places(decoder.layout, decoder.rules, tensors)
        candidates, objects = decoder.limit, spec.nms.max_objects
        work_bytes = _work_bytes(candidates, rotated=decoder.rules.coding == "rotated")
        masks = _masks(spec, decoder, tensors)
        extras = 4 if masks["MASKS"] else decoder.width_of_extra
        shared_work = work_bytes <= shared_bytes - _STATIC_SHARED
        per_load = 8 if places["HALF_SCORES"] else 4
        elements = _elements(decoder.layout, decoder.rules, tensors)
        definitions: Definitions = {
            **places,
            **_coding(spec, decoder.rules),
            **masks,
            "RESULT_EXTRAS": extras,
            "CANDIDATES": candidates,
            "OBJECTS": objects,
            "PAIR_CAPACITY": max(_PAIR_CAPACITY, candidates),
            "NMS": int(decoder.needs_nms),
            "SHARED_WORK": int(shared_work),
            "WHOLE_LOADS": int(all(number % per_load == 0 for numbers in elements for number in numbers)),
        }
        blocks = -(-max(count for count, _, _ in elements) // (256 * 2 * per_load))
        shape = (int(masks["MASK_ROWS"]), int(masks["MASK_COLUMNS"])) if masks["MASKS"] else None
        return cls(
            definitions, spec.input, decoder, candidates, objects, extras, shape, work_bytes, shared_work, blocks
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the engine's outputs that the kernels read."""
        return self.decoder.outputs

    def tensors(self, addresses: Mapping[str, int]) -> NDArray[np.void]:
        """Return the ``struct Tensors`` of ``heads.cuh``, through which the kernels find the outputs.

        `addresses` contains the device address of each output by name.
        """
        layout = self.decoder.layout
        parts = layout.parts

        def at(values: Values | None) -> int:
            return 0 if values is None else addresses[layout.outputs[values.output]]

        row = np.zeros((), [(name, np.uint64, len(parts)) for name in _PER_PART] + _SINGLE)
        row["scores"] = [at(part.scores) for part in parts]
        row["objectness"] = [at(part.objectness) for part in parts]
        row["boxes"] = [at(part.boxes) for part in parts]
        row["extras"] = [at(part.extra) for part in parts]
        row["classes"] = at(layout.class_ids)
        row["number"] = 0 if layout.count is None else addresses[layout.outputs[layout.count]]
        row["prototypes"] = 0 if layout.prototypes is None else addresses[layout.outputs[layout.prototypes]]
        return row

    def pairs_grid(self, batch: int) -> Grid:
        return (self._pairs_blocks, batch, len(self.decoder.layout.parts))

    def objects_grid(self, batch: int) -> Grid:
        return (batch, 1, 1)

    def masks_grid(self, batch: int) -> Grid:
        return (self.objects, batch, 1)

    def letterbox(self, meta: FrameMeta) -> Letterbox:
        """Return the scale and the position of a frame in the model's input."""
        size = self.input
        return Letterbox.fit(meta.width_px, meta.height_px, size.width, size.height, size.letterbox)

    @property
    def masked_bytes(self) -> int:
        """Size in bytes of the list of objects that the kernel `masks` reads for one frame.

        It is 0 if the model finds no masks.
        """
        return 0 if self.mask_shape is None else MASKED.itemsize * self.objects

    @property
    def mask_bytes(self) -> int:
        """Size in bytes of the mask of one object, with a bit per cell. It is 0 if the model finds no masks."""
        return 0 if self.mask_shape is None else -(-math.prod(self.mask_shape) // 32) * 4

    def shapes(self, extras: NDArray[np.float32], masks: NDArray[np.uint8]) -> CandidateShapes | None:
        """Return the shapes of the objects of one frame, or None if the model finds only boxes.

        Args:
            extras: values (N, `self.extras`) that the kernel `objects` wrote.
            masks: bits (N, `mask_bytes`) that the kernel `masks` wrote.
        """
        if self.mask_shape is None:
            return self.decoder.shapes(extras)
        crops = extras.astype(np.int64)
        cells = []
        for bits, (left, top, right, bottom) in zip(masks, crops.tolist(), strict=True):
            rows, columns = bottom - top, right - left
            unpacked = np.unpackbits(bits[: -(-rows * columns // 8)], count=rows * columns, bitorder="little")
            cells.append(unpacked.view(np.bool_).reshape(rows, columns))
        return CroppedMasks(cells, crops, self.decoder.cell_px(self.mask_shape))

    @property
    def keys_bytes(self) -> int:
        """Size in bytes of the memory that stores the pairs of a box and a class for one frame."""
        return 8 * int(self.definitions["PAIR_CAPACITY"])


_STATIC_SHARED: Final = 4096
"""Size in bytes, rounded up, of the shared memory that a block needs in addition to ``struct Work``."""


def _work_bytes(candidates: int, *, rotated: bool) -> int:
    """Return the size of ``struct Work`` in bytes."""
    ordered = max(64, 1 << (candidates - 1).bit_length())
    return -(-(8 * ordered + candidates * (16 + 4 + 4 + 28 * rotated + 1)) // 16) * 16


_PER_PART: Final = ("scores", "objectness", "boxes", "extras")
_SINGLE: Final[list[tuple[str, type[np.uint64]]]] = [(name, np.uint64) for name in ("classes", "number", "prototypes")]


def _masks(spec: ModelSpec, decoder: Decoder, tensors: Sequence[Output]) -> dict[str, int | float]:
    """Return the preprocessor definitions with which the kernels compute masks from prototypes."""
    if decoder.layout.prototypes is None:
        return {"MASKS": 0}
    prototypes = tensors[decoder.layout.prototypes]
    count, rows, columns = prototypes.shape
    scale_x, scale_y = mask_scale((spec.input.width, spec.input.height), (columns, rows))
    return {
        "MASKS": 1,
        "PROTOTYPES": count,
        "MASK_ROWS": rows,
        "MASK_COLUMNS": columns,
        "MASK_SCALE_X": scale_x,
        "MASK_SCALE_Y": scale_y,
        "HALF_PROTOTYPES": int(prototypes.half),
    }


def _boxes_of(values: Values, tensor: Output) -> int:
    """Return the number of boxes for which a tensor contains values."""
    return tensor.size // tensor.shape[0] if values.by_column else tensor.shape[0]


def _columns(values: Values | None, tensors: Sequence[Output]) -> int:
    """Return the number of values that the tensor of `values` contains for each box, or 0 if `values` is None."""
    if values is None:
        return 0
    tensor = tensors[values.output]
    return tensor.size // max(1, _boxes_of(values, tensor))


def _places(layout: Layout, rules: Rules, tensors: Sequence[Output]) -> dict[str, int | float | str]:
    """Return the preprocessor definitions that locate scores, boxes, and classes in the tensors."""
    part, class_ids = layout.parts[0], layout.class_ids
    boxes = [_boxes_of(each.boxes, tensors[each.boxes.output]) for each in layout.parts]
    number = "" if layout.count is None else tensors[layout.count].dtype
    return {
        "PARTS": len(layout.parts),
        "PART_BOXES": ",".join(map(str, boxes)),
        "BOXES": sum(boxes),
        "CLASSES": rules.class_count,
        "SCORE_COLUMNS": _columns(part.scores, tensors),
        "SCORE_FIRST": part.scores.first,
        "SCORES_BY_COLUMN": int(part.scores.by_column),
        "OBJECTNESS_COLUMNS": _columns(part.objectness, tensors),
        "OBJECTNESS_FIRST": 0 if part.objectness is None else part.objectness.first,
        "FACTOR": 0 if part.objectness is None else 1 + int(rules.root),
        "BOX_COLUMNS": _columns(part.boxes, tensors),
        "BOX_FIRST": part.boxes.first,
        "BOXES_BY_COLUMN": int(part.boxes.by_column),
        "EXTRAS": layout.extra_count,
        "EXTRA_COLUMNS": _columns(part.extra, tensors),
        "EXTRA_FIRST": 0 if part.extra is None else part.extra.first,
        "EXTRAS_BY_COLUMN": int(part.extra is not None and part.extra.by_column),
        "LABELED": int(class_ids is not None),
        "CLASS_COLUMNS": _columns(class_ids, tensors),
        "CLASS_FIRST": 0 if class_ids is None else class_ids.first,
        "CLASS_TYPE": 0 if class_ids is None else _INTEGERS[tensors[class_ids.output].dtype],
        "NUMBER_TYPE": _INTEGERS.get(number, 0),
        "HALF_SCORES": int(tensors[part.scores.output].half),
        "HALF_BOXES": int(tensors[part.boxes.output].half),
    }


def _elements(layout: Layout, rules: Rules, tensors: Sequence[Output]) -> list[tuple[int, int, int]]:
    """Return the positions of the values that the kernel reads in the score tensors of one frame.

    Returns:
        For each part of the layout, the number of values, the index of the first value, and the size of the tensor.
    """
    found = []
    for part in layout.parts:
        tensor = tensors[part.scores.output]
        boxes = _boxes_of(part.scores, tensor)
        by_column = part.scores.by_column
        count = rules.class_count * boxes if by_column else tensor.size
        found.append((count, part.scores.first * boxes if by_column else 0, tensor.size))
    return found


def _coding(spec: ModelSpec, rules: Rules) -> dict[str, int | float | str]:
    """Return the preprocessor definitions that state how to decode the values of boxes and scores."""
    fraction = spec.head.box_scale == "fraction"
    return {
        "CODING": _CODINGS[rules.coding],
        "SIGMOID": int(rules.sigmoid),
        "SOFTMAX": int(rules.softmax),
        "UNIT_X": spec.input.width if fraction else 1,
        "UNIT_Y": spec.input.height if fraction else 1,
        "BINS": max(1, rules.bins),
        "STRIDES": ",".join(map(str, rules.strides)),
        "CENTER_SCALE": rules.center[0],
        "CENTER_SHIFT": rules.center[1],
        "WIDTH": spec.input.width,
        "HEIGHT": spec.input.height,
    }


def overlaps(spec: ModelSpec) -> NDArray[np.void]:
    """Return the `OVERLAPS` structure with the IoU thresholds of NMS, converted to distances for rotated boxes."""
    row, given = np.zeros((), OVERLAPS), Overlaps.of(spec.nms)
    row["same"], row["across"] = given.same, given.across
    if spec.head.task == "obb":
        row["same"], row["across"] = distance_limit(given.same), distance_limit(given.across)
    return row


def threshold(rules: Rules, keep_address: int) -> NDArray[np.void]:
    """Return the `THRESHOLD` structure, from which the kernels read the score threshold and the classes to report.

    `keep_address` is the device address of `kept_classes`.
    """
    row = np.zeros((), THRESHOLD)
    floor = -np.inf if rules.softmax else rules.floor  # a raw value alone does not show the result of a softmax
    row["score"], row["floor"], row["keep"] = rules.score, floor, keep_address
    return row


def kept_classes(rules: Rules) -> NDArray[np.uint8]:
    """Return one byte per class: 1 if the detector reports the class, otherwise 0."""
    keep = np.zeros(rules.class_count, np.uint8)
    keep[rules.classes] = 1
    return keep


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """Memory layout of a frame. The planes of the frame follow one another, as in `vision.types.Frame`."""

    height_px: int
    width_px: int
    pixel_format: PixelFormat
    yuv: YuvEncoding = "bt601"
    pitch_bytes: int | None = None  # distance between rows; None if rows have no padding


def frame_planes(frame: FrameLayout, address: int) -> NDArray[np.void]:
    """Return a `FRAME` structure with the planes, size, format, and color encoding of a frame at a device address."""
    width_px, height_px, pixel_format = frame.width_px, frame.height_px, frame.pixel_format
    row = np.zeros((), FRAME)
    pitch = frame.pitch_bytes or width_px * {"bgr": 3, "bgrx": 4}.get(pixel_format, 1)
    row["pitch"] = (pitch, pitch // 2 if pixel_format == "i420" else pitch)
    chroma = address + pitch * height_px
    row["plane"] = (address, chroma, chroma + pitch // 2 * (height_px // 2))
    row["width"], row["height"], row["format"] = width_px, height_px, _FORMATS[pixel_format]
    (
        row["luma_offset"], row["luma"], row["u_blue"], row["u_green"], row["v_green"], row["v_red"],
    ) = yuv_coefficients(frame.yuv)  # fmt: skip
    return row


def describe_frame(spec: InputSpec, frame: FrameLayout, address: int) -> bytes:
    """Return the bytes of a `FRAME` structure for a frame at a device address."""
    width_px, height_px = frame.width_px, frame.height_px
    letterbox = Letterbox.fit(width_px, height_px, spec.width, spec.height, spec.letterbox)
    content_width, content_height = letterbox.content(width_px, height_px)
    row = frame_planes(frame, address)
    row["content_width"], row["content_height"] = content_width, content_height
    row["pad_x"], row["pad_y"] = letterbox.pad_x_px, letterbox.pad_y_px
    row["ratio_x"], row["ratio_y"] = width_px / content_width, height_px / content_height
    row["step"], row["step_rest"] = divmod(2 * height_px, 2 * content_height)
    row["per_x"], row["per_y"] = 1 / (2 * content_width), 1 / (2 * content_height)
    return row.tobytes()


def describe_normalization(spec: InputSpec | CropSpec) -> NDArray[np.void]:
    """Return the `NORMALIZE` structure, from which the kernels read how to normalize pixels for a model's input."""
    row = np.zeros((), NORMALIZE)
    gain, offset = gain_and_offset(spec.scale, spec.mean, spec.std)
    row["gain"], row["offset"], row["fill"] = gain, offset, spec.fill * gain + offset
    return row
