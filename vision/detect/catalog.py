"""Functions that describe the available models, and print the descriptions for `vision models`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vision.config import (
    ClassifierSpec,
    DetectConfig,
    ModelSpec,
    load_classifier_spec,
    load_model_spec,
    shipped_models,
)
from vision.config.load import SPEC_NAME
from vision.config.model_file import ONNX_SUFFIX
from vision.detect.classes import class_names
from vision.detect.open import check_model, open_classifier
from vision.errors import EXIT_CONFIG, EXIT_OK, ConfigError, DeviceMissing, VisionError

EXPLANATION = """\
To use one of these models, write `model: NAME` in camera.yaml. To use your own model, write `model: path/to/folder`.
The folder must contain an ONNX file and a model.yaml, for example:

    name: my-model
    file: my-model.onnx
    input: {width: 640, height: 640, scale: 0.00392156862745098}   # RGB, 0..1
    head: {kind: yolov8}
    classes: [person, car]                                         # or coco80, coco91
    nms: {iou_threshold: 0.6}
    licence: AGPL-3.0

Choose the kind of head that fits the layout of the model's outputs:

    nanodet        (batch, cells, classes) scores and (batch, cells, 44) distances, in one, two, or six outputs
    nanodet-plus   (batch, cells, classes + 32)
    picodet        (batch, cells, classes) scores and (batch, cells, 32) distances, for each of four strides
    yolov5         (batch, boxes, 5 + classes)
    yolox          (batch, cells, 5 + classes), with boxes relative to the cells
    yolov7         (objects, 7) with frame number, corners, class, and score: YOLOv7, including NMS
    yolov8         (batch, 4 + classes, boxes): YOLOv8, v9, 11, 12
    yolo-nas-flat  (objects, 7) with frame number, corners, score, and class: YOLO-NAS, including NMS
    yunet          scores, objectness, boxes, and landmarks of faces, for each of three strides
    corners        (batch, boxes, 4) corners and (batch, boxes, classes) scores: SSD, YOLO-NAS, YOLOv4, PP-YOLOE
    end-to-end     (batch, objects, 6), or boxes, scores, and classes: YOLOv10, YOLO26, exports that include NMS
    rt-detr        (batch, queries, 4) boxes and (batch, queries, classes) scores: RT-DETR, RF-DETR, D-FINE, DETR
    paddle         (objects, 6) with class, score, and corners: PaddleDetection, including NMS
    tensorflow     detection_boxes, detection_scores, and detection_classes of TensorFlow's object detection API

Models that also find keypoints, oriented boxes, or masks need `task: pose`, `task: obb`, or `task: segment` in `head`.

For a complete example of each kind, see docs/models.md."""


@dataclass(frozen=True, slots=True)
class ModelRow:
    """Description of one model, for the table of `vision models`. Properties that the model's files lack are empty."""

    name: str
    folder: Path
    input: str = ""  # such as "416x416 bgr"
    head: str = ""  # kind of the head, such as "yolov8"
    class_names: tuple[str, ...] = ()
    licence: str = ""
    provenance: str = ""
    fault: str = ""
    """Reason why the model cannot be used. Empty if no check failed. Without ONNX Runtime, outputs are not checked."""


def list_models(models: Path | None = None) -> list[ModelRow]:
    """Return a description of the model in the folder `models`, or else of each model in direct subfolders of `models`.

    If `models` is None, describe the shipped models. Each model is loaded once, to check it.

    Raises:
        ConfigError: `models` does not exist, or contains no model.yaml, not even in a direct subfolder.
    """
    root = shipped_models() if models is None else models
    if (root / SPEC_NAME).exists():
        return [_describe(root)]
    found = sorted(root.glob(f"*/{SPEC_NAME}"))
    if not found and models is not None:
        files = sorted(path for path in (root, *root.glob("*"), *root.glob("*/*")) if path.suffix == ONNX_SUFFIX)
        hint = f"`vision models add {files[0]}` writes a {SPEC_NAME}" if files else "a model is a folder with that file"
        text = f"{root} contains no {SPEC_NAME}, and neither do its folders" if root.exists() else f"no folder {root}"
        raise ConfigError(text, hint=hint, code="no-models")
    return [_describe(spec.parent) for spec in found]


def _describe(folder: Path) -> ModelRow:
    """Return the description of the detector or second model in `folder`.

    If the model cannot be used, raise no error, but store the reason in the field `fault`.
    """
    config = DetectConfig(backend="onnxruntime")
    try:
        spec = load_model_spec(folder)
    except VisionError as error:
        with suppress(VisionError):
            second = load_classifier_spec(folder)
            return _row(folder, second, second.classes, lambda: open_classifier(folder, second).close())
        return ModelRow(folder.name, folder, fault=str(error))
    return _row(folder, spec, class_names(spec), lambda: check_model(folder, spec, config))


def _row(
    folder: Path, spec: ModelSpec | ClassifierSpec, names: tuple[str, ...], check: Callable[[], object]
) -> ModelRow:
    fault = ""
    try:
        with suppress(DeviceMissing):  # a GPU machine may lack ONNX Runtime and OpenCV
            check()
    except VisionError as error:
        fault = str(error)
    return ModelRow(
        name=spec.name,
        folder=folder,
        input=f"{spec.input.width}x{spec.input.height} {spec.input.color}",
        head=spec.head.kind,
        class_names=names,
        licence=spec.licence,
        provenance=spec.provenance,
        fault=fault,
    )


def print_models(rows: Sequence[ModelRow], console: Console, *, explain: bool = True) -> int:
    """Print a table of the models. If `explain` is True, also print how to add a model. Return the exit code.

    The exit code is 0 if no model has a fault, and otherwise `EXIT_CONFIG`.
    """
    table = Table("model", "input", "head", "classes", "licence")
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        cells = (row.name, row.input, row.head, str(len(row.class_names) or ""), row.licence)
        table.add_row(*map(escape, cells), style="red" if row.fault else "")
    console.print(table)
    for row in rows:
        text = f"{row.folder}; {row.provenance}" if row.provenance else str(row.folder)
        console.print(f"[bold]{escape(row.name)}[/]: {escape(text)}", soft_wrap=True)
        console.print(f"classes: {escape(', '.join(row.class_names))}", soft_wrap=True, highlight=False)
    for row in rows:
        if row.fault:
            console.print(f"[red]{escape(row.name)}[/]: {escape(row.fault)}", soft_wrap=True)
    if explain:
        console.print(f"\n{escape(EXPLANATION)}", soft_wrap=True, highlight=False)
    return EXIT_CONFIG if any(row.fault for row in rows) else EXIT_OK
