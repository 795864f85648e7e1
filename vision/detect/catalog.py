"""What `vision models` tells: the models there are, whether each is sound, and what a description of one looks like."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vision.config import ModelSpec, load_classifier_spec, load_model_spec, shipped_models
from vision.config.load import SPEC_NAME
from vision.detect.classes import class_names
from vision.detect.model_file import checked_model_file
from vision.errors import EXIT_CONFIG, EXIT_OK, DeviceMissing, VisionError

EXPLANATION = """\
`model: NAME` in camera.yaml takes one of these. `model: path/to/folder` takes a model of your own: a folder with an
ONNX file and a model.yaml such as

    name: my-model
    file: my-model.onnx
    input: {width: 640, height: 640, scale: 0.00392156862745098}   # RGB, 0..1
    head: {kind: yolov8}
    classes: [person, car]                                         # or coco80
    nms: {iou_threshold: 0.6}
    licence: AGPL-3.0

The kind of head says what the model's outputs are:

    nanodet      (batch, cells, classes) scores and (batch, cells, 4 x bins) distances
    yolov5       (batch, boxes, 5 + classes)
    yolov8       (batch, 4 + classes, boxes): YOLOv8, v9, 11, 12
    end-to-end   (batch, objects, 6): YOLOv10, YOLO26, exports with NMS inside
    rt-detr      (batch, queries, 4) boxes and (batch, queries, classes) scores: RT-DETR, D-FINE

docs/models.md has a complete example of each."""


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model, as far as it can be read."""

    name: str
    folder: Path
    input: str  # such as "416x416 bgr"
    head: str
    classes: int
    licence: str
    provenance: str
    fault: str  # empty: the file is there, it is the right one, and the head fits its outputs


def list_models(models: Path | None = None) -> list[ModelRow]:
    """Every folder with a model.yaml below `models` (the shipped ones where None), each loaded once to check it."""
    root = shipped_models() if models is None else models
    return [describe_model(spec.parent) for spec in sorted(root.glob(f"*/{SPEC_NAME}"))]


def describe_model(folder: Path) -> ModelRow:
    """What is known of the model in `folder`; whatever is wrong with it is in `fault`."""
    try:
        spec = load_model_spec(folder)
    except VisionError as error:
        second = _describe_classifier(folder)
        return second or ModelRow(folder.name, folder, "", "", 0, "", "", str(error))
    return ModelRow(
        spec.name,
        folder,
        f"{spec.input.width}x{spec.input.height} {spec.input.color}",
        spec.head.kind,
        len(class_names(spec)),
        spec.licence,
        spec.provenance,
        _fault(folder, spec),
    )


def _describe_classifier(folder: Path) -> ModelRow | None:
    """A second model; None where its card is not one of such a model."""
    try:
        spec = load_classifier_spec(folder)
    except VisionError:
        return None
    fault = ""
    try:
        with suppress(DeviceMissing, ImportError):  # a GPU machine without OpenCV and ONNX Runtime
            from vision.detect.onnxruntime.classifier import open_classifier

            open_classifier(folder, spec).close()
    except VisionError as error:
        fault = str(error)
    size = f"{spec.input.width}x{spec.input.height} {spec.input.color}"
    return ModelRow(spec.name, folder, size, spec.head.kind, len(spec.classes), spec.licence, spec.provenance, fault)


def _fault(folder: Path, spec: ModelSpec) -> str:
    try:
        path = checked_model_file(folder, spec)
        try:
            from vision.detect.onnxruntime.detector import OnnxRuntimeDetector
        except ImportError:
            return ""  # a GPU machine without ONNX Runtime: its engine builder checks the rest
        OnnxRuntimeDetector(path, spec, score=1.0, slots=1, threads=1).close()
    except VisionError as error:
        return str(error)
    return ""


def print_models(rows: Sequence[ModelRow], console: Console) -> int:
    """A table and how to add a model; the exit code says whether all of them are sound."""
    table = Table("model", "input", "head", "classes", "licence", "folder")
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        cells = (row.name, row.input, row.head, str(row.classes or ""), row.licence, str(row.folder))
        table.add_row(*map(escape, cells), style="red" if row.fault else "")
    console.print(table)
    for row in rows:
        if row.provenance:
            console.print(f"[bold]{escape(row.name)}[/]: {escape(row.provenance)}", soft_wrap=True)
    for row in rows:
        if row.fault:
            console.print(f"[red]{escape(row.name)}[/]: {escape(row.fault)}", soft_wrap=True)
    console.print(f"\n{escape(EXPLANATION)}", soft_wrap=True, highlight=False)
    return EXIT_CONFIG if any(row.fault for row in rows) else EXIT_OK
