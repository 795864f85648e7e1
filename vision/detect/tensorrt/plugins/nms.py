"""Plugin `VisionNMS`: decoding of the raw outputs of a detection network, and non-maximum suppression, on the GPU.

A network that ends with this node returns its objects in outputs of fixed size, so that it can run as a CUDA graph. The
plugin runs the kernels of the detector (``postprocess.cu``), with the same results as `vision.detect.reference`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Final, get_args

import numpy as np

from vision.config import HeadSpec, ModelSpec, load_model_spec_text
from vision.detect.reference.heads import Head, make_head
from vision.detect.tensorrt.kernels import (
    RESULT,
    FrameLayout,
    Output,
    PostprocessProgram,
    describe_frame,
    kept_classes,
    overlaps,
    threshold,
)
from vision.detect.tensorrt.plugins.base import KernelPlugin, Step, dtype_of
from vision.engine.library import trt
from vision.errors import ModelError

if TYPE_CHECKING:
    from vision.gpu.cuda import BorrowedStream

LAYOUTS: Final = get_args(HeadSpec.model_fields["kind"].annotation)
"""Values of `head.kind` in model.yaml. The field `layout` is an index of this tuple, so add values only at its end."""
ACTIVATIONS: Final = get_args(HeadSpec.model_fields["activation"].annotation)
"""Values of `head.activation` in model.yaml. The field `activation` is an index of this tuple."""

_ALIGNMENT = 256


@dataclass(frozen=True, slots=True)
class NmsSettings:
    """Settings of the plugin `VisionNMS`. Settings named as in model.yaml or camera.yaml have the same meaning."""

    layout: int  # index of `head.kind` in LAYOUTS
    classes: int  # number of classes
    width: int  # of the network's input, in pixels
    height: int
    fraction: int = 0  # 1 if boxes are fractions of the input, as `box_scale: fraction`
    activation: int = 0  # index of `head.activation` in ACTIVATIONS
    score_threshold: float = 0.25
    iou_threshold: float = 0.6
    iou_across_classes: float = 0.7
    max_candidates: int = 1024
    max_objects: int = 300

    def spec(self) -> ModelSpec:
        """Return the specification of a model with these settings. Raise `ModelError` if a field is out of range."""
        numbers = {"layout": len(LAYOUTS) - 1, "fraction": 1, "activation": len(ACTIVATIONS) - 1}
        for name, largest in numbers.items():
            if not 0 <= getattr(self, name) <= largest:
                text = (
                    f"VisionNMS: expected a number from 0 to {largest} in the field {name}, got {getattr(self, name)}"
                )
                raise ModelError(text, code="plugin-field")
        head = {
            "kind": LAYOUTS[self.layout],
            "box_scale": "fraction" if self.fraction else "pixels",
            "activation": ACTIVATIONS[self.activation],
        }
        values = {
            "name": "VisionNMS",
            "file": "network.onnx",
            "licence": "none",
            "input": {"width": self.width, "height": self.height, "letterbox": "top-left"},
            "head": head,
            "classes": [f"class {number}" for number in range(self.classes)],
            "nms": {
                # float32 fields are written in full, such as 0.6000000238418579
                "iou_threshold": round(self.iou_threshold, 6),
                "iou_across_classes": round(self.iou_across_classes, 6),
                "max_candidates": self.max_candidates,
                "max_objects": self.max_objects,
            },
        }
        return load_model_spec_text(json.dumps(values), "the fields of VisionNMS")

    def head(self) -> Head:
        """Return the head that reads the network's outputs."""
        return make_head(self.spec(), self.classes, round(self.score_threshold, 6))


@dataclass(frozen=True, slots=True)
class Workspace:
    """Offsets in bytes of the arrays in the temporary GPU memory that TensorRT gives the plugin, and the total size."""

    keys: int
    counts: int
    work: int
    results: int
    size: int  # of the whole workspace, in bytes

    @classmethod
    def of(cls, program: PostprocessProgram, batch: int) -> Workspace:
        """Return the offsets for a batch of `batch` frames.

        Space for the array `work` is reserved even if the array fits into the shared memory of the GPU.
        """
        sizes = (program.keys_bytes, 4, program.work_bytes, RESULT.itemsize)
        aligned = (-(-batch * size // _ALIGNMENT) * _ALIGNMENT for size in sizes)
        return cls(0, *itertools.accumulate(aligned))


class VisionNms(KernelPlugin):
    """Plugin for the raw outputs of a network, each float32 or float16, in the order of the network.

    Its outputs are the number of objects (B, 1) int32, boxes (B, max_objects, 4) float32 as x1, y1, x2, y2 in pixels of
    the network's input, scores (B, max_objects) float32, and class ids (B, max_objects) int32. Rows after the last
    object are 0.
    """

    name: ClassVar[str] = "VisionNMS"
    settings_type: ClassVar[type[Any]] = NmsSettings
    outputs: ClassVar[int] = 4

    def __init__(self, settings: NmsSettings) -> None:
        super().__init__(settings)
        self.head = settings.head()  # an invalid field must fail when the network is parsed

    @cached_property
    def spec(self) -> ModelSpec:
        spec: ModelSpec = self.settings.spec()
        return spec

    def get_output_data_types(self, _input_types: Sequence[Any]) -> list[Any]:
        return [trt.DataType.INT32, trt.DataType.FLOAT, trt.DataType.FLOAT, trt.DataType.INT32]

    def get_output_shapes(self, inputs: Sequence[Any], _shape_inputs: Sequence[Any], builder: Any) -> list[Any]:
        batch, rows = inputs[0][0], builder.constant(self.settings.max_objects)
        shapes = ([batch, builder.constant(1)], [batch, rows, builder.constant(4)], [batch, rows], [batch, rows])
        return [trt.DimsExprs(shape) for shape in shapes]

    def supports_format_combination(self, position: int, tensors: Sequence[Any], inputs: int) -> bool:
        """Return True if the plugin supports the type and format of the tensor at `position`."""
        desc = tensors[position].desc
        types: tuple[str, ...] = ("FLOAT", "HALF")
        if position >= inputs:
            types = (self.get_output_data_types(())[position - inputs].name,)
        return desc.type.name in types and desc.format == trt.TensorFormat.LINEAR

    def get_workspace_size(self, inputs: Sequence[Any], _outputs: Sequence[Any]) -> int:
        """Return the size of the workspace in bytes for the largest batch.

        Raises:
            ModelError: the inputs do not fit the layout.
        """
        shapes = [tuple(each.max) or tuple(each.desc.dims) for each in inputs]
        program = self._program(shapes, [dtype_of(each.desc) for each in inputs], shared_bytes=0)
        return Workspace.of(program, shapes[0][0]).size

    def _program(
        self, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str], shared_bytes: int
    ) -> PostprocessProgram:
        given = {
            f"input{number}": Output(shape[1:], dtype)
            for number, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
        }
        return PostprocessProgram.of(self.spec, self.head, given, shared_bytes)

    def prepare(self, inputs: Sequence[Any], _outputs: Sequence[Any]) -> Step:
        from vision.gpu.cuda import open_device
        from vision.gpu.memory import DeviceBuffer, copy_rows, fill

        shapes = [tuple(desc.dims) for desc in inputs]
        program = self._program(shapes, [dtype_of(desc) for desc in inputs], open_device().shared_bytes)
        batch, objects = shapes[0][0], program.objects
        module = self.load(program.file, program.definitions)
        find_pairs = module.kernel("find_pairs")
        find_objects = module.kernel("objects", shared_bytes=program.work_bytes if program.shared_work else 0)
        frame = describe_frame(self.spec.input, FrameLayout(self.settings.height, self.settings.width, "bgr"), 0)
        frames = self.keep(DeviceBuffer(batch * len(frame), f"frames of {self.name}"))
        frames.write(np.frombuffer(frame * batch, np.uint8))
        kept = kept_classes(program.decoder.rules)
        classes = self.keep(DeviceBuffer(kept.nbytes, f"classes of {self.name}"))
        classes.write(kept)
        limit, iou, parts = (
            threshold(program.decoder.rules, classes.address),
            overlaps(self.spec),
            Workspace.of(program, batch),
        )
        sizes = (16 * objects, 4 * objects, 4 * objects)

        def step(given: Sequence[int], found: Sequence[int], workspace: int, stream: BorrowedStream) -> None:
            number, boxes, scores, class_ids = found
            tensors = program.tensors({f"input{at}": address for at, address in enumerate(given)})
            counts, results = workspace + parts.counts, workspace + parts.results
            read = (frames.address, tensors, workspace + parts.keys, counts, limit)
            fill(counts, 0, 4 * batch, stream)
            for address, size in zip((boxes, scores, class_ids), sizes, strict=True):
                fill(address, 0, batch * size, stream)
            find_pairs.bind(program.pairs_grid(batch), program.pairs_block, *read).enqueue(stream)
            written = (iou, workspace + parts.work, 0, results, boxes, scores, class_ids, 0)
            find_objects.bind(program.objects_grid(batch), program.objects_block, *read, *written).enqueue(stream)
            copy_rows(number, results, stream, rows=batch, row_bytes=4, pitch_bytes=RESULT.itemsize)

        return step
