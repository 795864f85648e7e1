"""Metadata of ONNX files, and its comparison with model.yaml.

Ultralytics writes `names`, `imgsz`, `stride`, `task`, `end2end`, `kpt_shape`, and `args`; YOLOv5 writes `names` and
`stride`; PaddlePaddle's tools write `character`. Files from other exporters usually have no metadata.
"""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from vision.config import HeadSpec, ModelSpec
from vision.config.onnx_header import OnnxHeader
from vision.detect.classes import COCO80, class_names
from vision.errors import ModelError

_log = logging.getLogger(__name__)

_NAME_KEYS: Final = ("names", "class_names", "classes", "labels", "id2label", "character")
_DETECTION: Final = ("detect", "detection", "object-detection")
_NO_DETECTOR: Final = "the model does not detect objects; export a detection model"
_MOST_NAMES_SHOWN: Final = 6
_LICENCE: Final = re.compile(r"(?P<name>[A-Za-z0-9.+-]+)(?: License)?(?: \(\S+\))?$")
"""Pattern of a license name, with the text that Ultralytics adds, as in ``AGPL-3.0 License (https://...)``."""


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """Properties of a model according to the metadata of its ONNX file. Unknown properties are None."""

    names: tuple[str, ...] | None = None  # of the classes, by id
    width: int | None = None  # of the input for which the model was exported, pixels
    height: int | None = None
    stride: int | None = None  # pixels; the sides of the input must be multiples of this number
    task: str | None = None  # such as "detect" or "segment"
    suppressed: bool | None = None  # True if the model contains NMS or needs none
    keypoints: tuple[int, int] | None = None  # number of keypoints, and values of each
    licence: str | None = None
    ultralytics: bool = False  # exported by Ultralytics or YOLOv5, which use the same pre-processing

    @property
    def head_task(self) -> str | None:
        """The value of `head.task` in model.yaml that corresponds to `task`.

        If `task` is None, the value is ``detect``. The result is None if no value corresponds to `task`, for example
        for a classifier.
        """
        task = "detect" if self.task is None or self.task in _DETECTION else self.task
        return task if task in get_args(HeadSpec.model_fields["task"].annotation) else None


def read_metadata(header: OnnxHeader) -> ModelMetadata:
    """Return the model's properties from the metadata of its file. Entries that cannot be parsed are ignored."""
    entries = header.metadata
    values = {key: _literal(text) for key, text in entries.items()}
    size = _integers(values.get("imgsz"))
    size = size * 2 if len(size) == 1 else size
    stride = _integers(values.get("stride"))
    keypoints = _integers(values.get("kpt_shape"))
    names = next((found for key in _NAME_KEYS if (found := _names(values.get(key), entries.get(key, "")))), None)
    arguments = values.get("args")
    nms = arguments.get("nms") if isinstance(arguments, dict) else None
    flags = [flag for flag in (values.get("end2end"), values.get("nms"), nms) if isinstance(flag, bool)]
    licence = _LICENCE.match(entries.get("license", "").strip())
    return ModelMetadata(
        names=names,
        height=size[0] if len(size) == 2 else None,
        width=size[1] if len(size) == 2 else None,
        stride=max(stride) if stride else None,
        task=entries.get("task", "").strip().lower() or None,
        suppressed=any(flags) if flags else None,
        keypoints=(keypoints[0], keypoints[1]) if len(keypoints) == 2 else None,
        licence=licence["name"] if licence else None,
        ultralytics=entries.get("author") == "Ultralytics" or {"names", "stride"} <= entries.keys(),
    )


def _literal(text: str) -> Any:
    """Parse `text` as a Python literal or as JSON, and return the value. If `text` is neither, return `text` itself."""
    for parse in (ast.literal_eval, json.loads):
        try:
            return parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return text


def _integers(value: object) -> list[int]:
    """Return `value`, which is a number, or a list or tuple of numbers, as a list.

    Return an empty list if `value` contains anything except positive integers.
    """
    parts = value if isinstance(value, (list, tuple)) else [value]
    numbers = [int(part) for part in parts if isinstance(part, (int, float)) and part > 0 and part == int(part)]
    return numbers if len(numbers) == len(parts) else []


def _names(value: object, text: str) -> tuple[str, ...] | None:
    """Return class names in the order of their ids.

    Return None if there are no names, or if an id or a name is missing.

    Args:
        value: mapping from ids to names, or sequence of names, or text that separates names by line ends or commas.
        text: the entry from which `value` was parsed.
    """
    if isinstance(value, dict):
        try:
            by_id = {int(key): str(name) for key, name in value.items()}
        except (TypeError, ValueError):
            return None
        if sorted(by_id) != list(range(len(by_id))):
            return None
        names: Sequence[str] = [by_id[index] for index in range(len(by_id))]
    elif isinstance(value, (list, tuple)):
        names = [str(name) for name in value]
    elif isinstance(value, str) and len(lines := re.split(r"\n" if "\n" in text.strip() else ",", text.strip())) > 1:
        names = [line.strip() for line in lines]
    else:
        return None
    return tuple(names) if names and all(names) else None


def check_metadata(spec: ModelSpec, metadata: ModelMetadata) -> None:
    """Compare model.yaml with the metadata of its ONNX file.

    A difference that makes results wrong raises an error. A difference that can be intended, such as translated class
    names or a different input size, is logged as a warning.

    Raises:
        ModelError: model.yaml contradicts the metadata in the task, the classes, or the number of keypoints; or a side
            of the input is not a multiple of the stride.
    """
    if metadata.task is not None and metadata.head_task != spec.head.task:
        fitting = metadata.head_task
        raise ModelError(
            f"{spec.name}: the task of {spec.file} is {metadata.task!r}, according to its metadata; model.yaml expects "
            f"{spec.head.task!r}",
            hint=f"write `task: {fitting}` under `head` in model.yaml" if fitting else _NO_DETECTOR,
            code="wrong-task",
        )
    if metadata.names is not None:
        _check_names(spec, metadata.names)
    if metadata.keypoints is not None and spec.head.keypoints is not None:
        _check_keypoints(spec, metadata.keypoints[0])
    size, stride = spec.input, metadata.stride
    if stride is not None and (size.width % stride or size.height % stride):
        raise ModelError(
            f"{spec.name}: the sides of the input must be multiples of {stride}, according to the metadata of "
            f"{spec.file}; `input` in model.yaml is {size.width}x{size.height}",
            hint="" if metadata.width is None else f"the model was exported for {metadata.width}x{metadata.height}",
            code="input-size",
        )
    if metadata.width is not None and (size.width, size.height) != (metadata.width, metadata.height):
        _log.warning(
            "%s: the model was exported for %dx%d, but `input` in model.yaml is %dx%d; small and large objects can be "
            "missed", spec.name, metadata.width, metadata.height, size.width, size.height,
        )  # fmt: skip


def _check_keypoints(spec: ModelSpec, count: int) -> None:
    """Raise `ModelError` unless model.yaml lists a name for each of the model's `count` keypoints."""
    names = spec.head.keypoints or ()
    if len(names) != count:
        raise ModelError(
            f"{spec.name}: `keypoints` in model.yaml has {len(names)} names, but the model has {count} keypoints, "
            f"according to the metadata of {spec.file}",
            hint="list one name for each keypoint, in the order of the model",
            code="keypoints-mismatch",
        )


def _check_names(spec: ModelSpec, names: tuple[str, ...]) -> None:
    """Compare the classes in model.yaml with `names`, the class names in the metadata of the ONNX file.

    For errors and warnings, see `check_metadata`.
    """
    given = class_names(spec)
    ours, theirs = _folded(given), _folded(names)
    if ours == theirs:
        return
    problem = ""
    if len(ours) != len(theirs):
        problem = f"the file has {len(theirs)} class{'es' * (len(theirs) > 1)}, but model.yaml has {len(ours)}"
    elif isinstance(spec.classes, str):
        problem = f"the classes of the file are not {spec.classes}"
    elif sorted(ours) == sorted(theirs):
        problem = "the classes in model.yaml have a different order than those in the file"
    if problem:
        raise ModelError(
            f"{spec.name}: {problem}: {in_short(names)}",
            hint=f"write `classes: {yaml_list(names)}` in model.yaml",
            code="classes-mismatch",
        )
    pairs = [
        f"{name!r} as {own!r}" for name, own in zip(names, given, strict=True) if _folded([name]) != _folded([own])
    ]
    _log.warning("%s: model.yaml renames classes of the file: %s", spec.name, in_short(pairs))


def _folded(names: Sequence[str]) -> list[str]:
    """Return class names in a form that can be compared: in lower case, with spaces as separators.

    Replace old names of COCO classes with the current names.
    """
    plain = [re.sub(r"[\s_-]+", " ", name.strip().casefold()) for name in names]
    return [_OLD_NAMES.get(name, name) for name in plain]


_OLD_NAMES: Final[Mapping[str, str]] = {
    "motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "pottedplant": "potted plant",
    "diningtable": "dining table", "tvmonitor": "tv", "hair dryer": "hair drier",
}  # fmt: skip
"""Names of COCO classes in older lists, with the names that replace them in `COCO80`."""


def is_coco80(names: Sequence[str]) -> bool:
    """Return True if `names` match `COCO80` in the same order, apart from case, separators, and old names."""
    return _folded(names) == list(COCO80)


def in_short(names: Sequence[str]) -> str:
    """Return up to `_MOST_NAMES_SHOWN` names, comma-separated, followed by the number of further names, if any."""
    rest = len(names) - _MOST_NAMES_SHOWN
    return ", ".join(names[:_MOST_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def yaml_list(names: Sequence[str]) -> str:
    """Return names as a list in YAML. Quote the names that YAML could misread."""
    return f"[{', '.join(map(_yaml_text, names))}]"


def _yaml_text(name: str) -> str:
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_. /-]*[A-Za-z0-9]|[A-Za-z]", name)
    reserved = name.lower() in {"yes", "no", "on", "off", "true", "false", "null", "y", "n"}
    return name if plain and not reserved else json.dumps(name, ensure_ascii=False)
