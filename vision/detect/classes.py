"""Names of the classes that models detect, and the conversion of configured names to class ids."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Final

from vision.config import ModelSpec
from vision.config.wording import did_you_mean_class
from vision.errors import ConfigError

_log = logging.getLogger(__name__)

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

BACKGROUND: Final = "background"
"""Name of the class that stands for the absence of an object. Detectors never report this class."""

_NEVER_LABELED: Final[Mapping[int, str]] = {
    0: BACKGROUND, 12: "street sign", 26: "hat", 29: "shoe", 30: "eye glasses", 45: "plate", 66: "mirror",
    68: "window", 69: "desk", 71: "door", 83: "blender",
}  # fmt: skip


def _coco91() -> tuple[str, ...]:
    labeled = iter(COCO80)
    return tuple(_NEVER_LABELED.get(index) or next(labeled) for index in range(91))


COCO91: Final = _coco91()
"""Names of COCO's category ids 0 to 90. Id 0 is the background. For ten other ids, COCO has a name, but no labels."""

_LISTS: Final[Mapping[str, tuple[str, ...]]] = {"coco80": COCO80, "coco91": COCO91}


def class_names(spec: ModelSpec) -> tuple[str, ...]:
    """Return the names of the classes that a model detects, sorted by class id."""
    return _LISTS[spec.classes] if isinstance(spec.classes, str) else spec.classes


def background_ids(spec: ModelSpec) -> tuple[int, ...]:
    """Return the ids of the classes that stand for the absence of an object, such as ``__background__``."""
    return tuple(index for index, name in enumerate(class_names(spec)) if name.strip("_").lower() == BACKGROUND)


def class_ids(names: Sequence[str], wanted: Sequence[str] | None, model: str) -> tuple[int, ...]:
    """Return the class ids of the `wanted` names, or all class ids if `wanted` is None, in ascending order.

    Raises:
        ConfigError: a name in `wanted` is not the name of a class. The hint suggests a similar name, if there is one.
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


class UnnamedClasses:
    """Counter of boxes whose class id has no name in model.yaml. It logs one warning, and is thread-safe."""

    def __init__(self, model: str, names: int) -> None:
        """Create the counter for the model `model`, whose model.yaml lists `names` class names."""
        self._model = model
        self._names = names
        self._lock = threading.Lock()
        self._count = 0

    def add(self, count: int) -> None:
        """Add `count`, the number of unnamed boxes in a frame or batch.

        Log a warning the first time `count` is not 0.
        """
        if not count:
            return
        with self._lock:
            first = not self._count
            self._count += count
        if first:
            _log.warning(
                "%s: boxes are not published because their class id has no name, so far %d; `classes` in model.yaml "
                "lists %d names (ids 0 to %d); `detector.unnamed_classes` in status messages counts these boxes",
                *(self._model, count, self._names, self._names - 1),
            )

    def counters(self) -> Mapping[str, int]:
        """Return a dict with the number of all unnamed boxes, for status messages.

        The dict is empty if there were none.
        """
        return {"detector.unnamed_classes": self._count} if self._count else {}
