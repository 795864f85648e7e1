"""Names of the classes that models detect, and the conversion of configured names to class ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vision.config import ModelSpec
from vision.config.wording import did_you_mean_class
from vision.errors import ConfigError

COCO80: Final[tuple[str, ...]] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)  # fmt: skip
"""The 80 classes of the COCO detection challenge (Lin et al., ECCV 2014), sorted by class id."""


def class_names(spec: ModelSpec) -> tuple[str, ...]:
    """Return the names of the classes that a model detects, sorted by class id."""
    return COCO80 if isinstance(spec.classes, str) else spec.classes


def class_ids(names: Sequence[str], wanted: Sequence[str] | None, model: str) -> tuple[int, ...]:
    """Return the class ids of the `wanted` names, or all class ids if `wanted` is None, in ascending order.

    Raises:
        ConfigError: the model has no class with one of the names. The hint suggests a similar name.
    """
    if wanted is None:
        return tuple(range(len(names)))
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ConfigError(
            f"detect.classes: the model {model} has no class {' and no '.join(map(repr, unknown))}",
            hint="; ".join(_advice(name, names) for name in unknown),
            code="unknown-class",
        )
    return tuple(sorted({names.index(name) for name in wanted}))


def _advice(name: str, names: Sequence[str]) -> str:
    return did_you_mean_class(name, names) or f"`vision models` lists its {len(names)} classes"
