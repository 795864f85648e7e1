"""Functions that find the values that a task adds to each box: keypoints, an angle, or the coefficients of a mask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from vision.config import HeadSpec, ModelSpec
from vision.detect.reference.layout import Layout, Shape, Values, joined
from vision.errors import ModelError

TASKS: Final[Mapping[str, tuple[str, ...]]] = {
    "segment": ("yolov5", "yolov8", "end-to-end"),
    "pose": ("yolov8", "end-to-end", "yunet"),
    "obb": ("yolov8", "end-to-end"),
}
"""Kinds of heads that support each task. All kinds support the task `detect`, which is not listed."""

SOFTMAX_KINDS: Final = ("corners", "rt-detr")
"""Kinds of heads that support `activation: softmax`."""

_KEYPOINT_VALUES: Final = (3, 2)
MOST_KEYPOINTS: Final = 256
"""Maximum number of keypoints. An output with space for more is not the output of a pose model."""
_MOST_COEFFICIENTS: Final = 256

COCO_KEYPOINTS: Final = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
"""Names of the 17 keypoints of COCO (Lin et al., ECCV 2014), in order."""

FACE_KEYPOINTS: Final = ("right_eye", "left_eye", "nose", "right_mouth_corner", "left_mouth_corner")
"""Names of the 5 landmarks of YuNet, in order. The right eye is the person's right eye."""


@dataclass(frozen=True, slots=True)
class Extra:
    """Number and meaning of the values that the task of a model, such as ``pose``, adds to each box."""

    count: int = 0
    keypoint_values: int = 0  # number of values of a keypoint; 0 without keypoints
    prototypes: str | None = None  # name of the output with the prototypes of masks

    def added_to(self, layout: Layout, first: int) -> Layout:
        """Return `layout` with these values added. The values of each box contain them from the index `first`."""
        if not self.count:
            return layout
        part = layout.parts[0]
        return replace(
            layout,
            outputs=layout.outputs if self.prototypes is None else (*layout.outputs, self.prototypes),
            parts=(replace(part, extra=Values(part.boxes.output, first, part.boxes.by_column)),),
            extra_count=self.count,
            keypoint_values=self.keypoint_values,
            prototypes=None if self.prototypes is None else len(layout.outputs),
        )


def check_options(spec: ModelSpec) -> None:
    """Check that the kind of the head supports the task and the activation.

    Raises:
        ModelError: the head does not support the task or the activation, or `keypoints` is set but the task is not
            `pose`.
    """
    head = spec.head
    if head.activation == "softmax" and head.kind not in SOFTMAX_KINDS:
        raise ModelError(
            f"{spec.name}: expected head `{'` or `'.join(SOFTMAX_KINDS)}` for `activation: softmax`, got `{head.kind}`",
            code="head-activation",
        )
    kinds = TASKS.get(head.task)
    if kinds is not None and head.kind not in kinds:
        raise ModelError(
            f"{spec.name}: expected head `{'` or `'.join(kinds)}` for `task: {head.task}`, got `{head.kind}`",
            code="head-task",
        )
    if head.keypoints is not None and head.task != "pose":
        raise ModelError(
            f"{spec.name}: expected `task: pose` with `keypoints`, got `task: {head.task}`", code="head-task"
        )


def expected_extra(head: HeadSpec) -> str:
    """Return text that describes the values that the task adds to each box.

    Return an empty string if the task adds no values.
    """
    match head.task:
        case "obb":
            return ", plus the angle of each box as its last value"
        case "pose" if head.kind != "yunet":
            if head.keypoints is None:
                values = "x, y, and score of each keypoint as the last values of each box"
                return f", plus {values} (if keypoints have no scores, list their names in `keypoints`)"
            count = len(head.keypoints)
            return f", plus {3 * count} values (x, y, score) or {2 * count} values (x, y) of keypoints for each box"
        case "segment":
            values = "coefficients as the last values of each box"
            return f", plus {values}, and prototypes (batch, coefficients, rows, columns)"
        case _:
            return ""


def extras(head: HeadSpec, shapes: Mapping[str, Shape], space: int | None, class_count: int) -> Iterator[Extra]:
    """Yield each possible number and meaning of the values that the task adds to each box.

    Args:
        shapes: shapes of all outputs.
        space: number of values of a box for its class scores and the task. None if the model does not fix it.
        class_count: number of class scores of a box. It is 0 if the model outputs class ids instead.
    """
    match head.task:
        case "detect":
            yield Extra()
        case "obb":
            yield Extra(1)
        case "segment":
            for name, shape in shapes.items():
                if len(shape) == 4 and shape[1] is not None and 1 <= shape[1] <= _MOST_COEFFICIENTS:
                    yield Extra(shape[1], prototypes=name)
        case "pose":
            yield from _keypoints(head, space, class_count)


def _keypoints(head: HeadSpec, space: int | None, class_count: int) -> Iterator[Extra]:
    """Yield the values of the configured keypoints, first with scores, then without.

    If no keypoints are configured, yield as many keypoints as fill the space exactly, then the 17 keypoints of COCO.
    """
    if head.keypoints is not None:
        for values in _KEYPOINT_VALUES:
            yield Extra(values * len(head.keypoints), values)
        return
    if space is not None and 0 < space - class_count <= 3 * MOST_KEYPOINTS and (space - class_count) % 3 == 0:
        yield Extra(space - class_count, 3)
    yield Extra(3 * len(COCO_KEYPOINTS), 3)


def joined_with_extra(
    head: HeadSpec, shapes: Mapping[str, Shape], axis: int, before: int, class_count: int
) -> Iterator[tuple[str, int | None, Extra]]:
    """Yield each output whose axis `axis` can hold `before` values, the scores of classes, and the values of the task.

    Yields:
        Name of the output, number of classes (None if the length of the axis is not known), and values of the task.
    """
    for name, _, space in joined(shapes, axis, before):
        for extra in extras(head, shapes, space, class_count):
            if space is None or space > extra.count:
                yield name, None if space is None else space - extra.count, extra


def is_clear(spec: ModelSpec, layout: Layout) -> bool:
    """Return True if the shapes of the outputs clearly show the task of this layout.

    Keypoints are clear if their names are known. Masks are always clear. The angle of an oriented box is clear only if
    the layout has class ids. Otherwise, the angle could also be the score of one more class.
    """
    if spec.head.task == "pose":
        return len(keypoint_names(spec, layout)) > 0
    return layout.prototypes is not None or layout.class_ids is not None


def keypoint_names(spec: ModelSpec, layout: Layout) -> tuple[str, ...]:
    """Return the names of the keypoints in order.

    Return an empty tuple if the names are not known, or if there are no keypoints.
    """
    if spec.head.keypoints is not None:
        return spec.head.keypoints
    count = layout.extra_count // layout.keypoint_values if layout.keypoint_values else 0
    known = FACE_KEYPOINTS if spec.head.kind == "yunet" else COCO_KEYPOINTS
    return known if count == len(known) else ()
