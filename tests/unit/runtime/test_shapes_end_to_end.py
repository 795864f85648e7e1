"""Tests of `vision run` with models with keypoints, oriented boxes, or masks, from model.yaml to the video."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from tests.shape_outputs import HEIGHT, NAMES, SHAPED, WIDTH, to_source
from tests.tiny_models import save_typed_model
from vision.client import DetectionsMessage, read_recording
from vision.detect.reference.extras import FACE_KEYPOINTS

pytestmark = pytest.mark.integration

SIZE = (320, 120)  # as wide as the frames of the tests of the detector
FRAMES = 6


def site(folder: Path, name: str, *, pipeline: str, masks: str) -> Path:
    """Write a model, gray images, and a configuration. Return the path of the configuration."""
    shaped = SHAPED[name]
    model, images = folder / "model", folder / "images"
    model.mkdir()
    images.mkdir()
    for index in range(FRAMES):
        cv2.imwrite(str(images / f"{index}.png"), np.full((SIZE[1], SIZE[0], 3), 90, np.uint8))
    save_typed_model(model / "tiny.onnx", shaped.outputs, sides=(HEIGHT, WIDTH))
    card = {"name": "tiny", "file": "tiny.onnx", "input": {"width": WIDTH, "height": HEIGHT}, "head": dict(shaped.head)}
    (model / "model.yaml").write_text(yaml.safe_dump({**card, "classes": list(NAMES), "licence": "CC0-1.0"}))
    config = {
        "pipeline": pipeline,
        "model": "./model",
        "detect": {"backend": "onnxruntime"},
        "cameras": [{"id": "gate", "source": "images", "fps": 10}],
        "publish": {"bind": f"ipc://{folder}/out", "masks": masks},
    }
    (folder / "camera.yaml").write_text(yaml.safe_dump(config))
    return folder / "camera.yaml"


def vision(*arguments: str) -> None:
    """Run a command of `vision`. Fail if the command fails."""
    command = [sys.executable, "-m", "vision", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]


def run(folder: Path, name: str, *, pipeline: str, masks: str, offline: tuple[str, ...]) -> list[DetectionsMessage]:
    config, record = site(folder, name, pipeline=pipeline, masks=masks), folder / "recording.jsonl"
    vision("run", str(config), "--offline", "--record", str(record), *offline)
    return list(read_recording(record))


def test_keypoints_survive_tracking(tmp_path: Path) -> None:
    messages = run(
        tmp_path, "pose, yolov8", pipeline="track", masks="polygon", offline=("--video", str(tmp_path / "gate.mp4"))
    )
    known = SHAPED["pose, yolov8"].keypoints
    assert known is not None
    wanted = to_source(known[..., :2], SIZE)
    assert messages[-1].keypoint_names is not None
    assert len(messages[-1].keypoint_names) == known.shape[1]
    by_class = {detected.class_name: detected for detected in messages[-1].objects}
    assert set(by_class) == set(NAMES)
    for row, name in enumerate(("car", "person")):
        assert by_class[name].track_id is not None
        points = by_class[name].keypoints
        assert points is not None
        np.testing.assert_allclose(np.array(points)[:, :2], np.clip(wanted[row], 0, SIZE), atol=0.06)
    assert is_drawn(str(tmp_path / "gate.mp4"), *wanted[0, 0].round().astype(int))


@pytest.mark.parametrize("name", ["pose, yolov8", "obb, yolov8", "segment, yolov8"])
def test_video_of_an_evaluation_shows_the_shapes_of_the_class(name: str, tmp_path: Path) -> None:
    config, video, truth = (
        site(tmp_path, name, pipeline="detect", masks="rle"),
        tmp_path / "out.mp4",
        tmp_path / "gt.txt",
    )
    truth.write_text("".join(f"{frame},1,10,10,20,20,1\n" for frame in range(1, FRAMES + 1)))
    vision("eval", str(config), "--truth", str(truth), "--class", "car", "--video", str(video))
    shaped = SHAPED[name]
    if shaped.keypoints is not None:
        at = shaped.keypoints[0, 16, :2]
    elif shaped.rotated is not None:
        x, y, length, _, angle = shaped.rotated[0]
        at = np.array([x + length / 2 * np.cos(angle), y + length / 2 * np.sin(angle)])  # the middle of a short side
    else:
        at = np.array([66.0, 50.0])  # within the ellipse, far from the box
    assert is_drawn(str(video), *to_source(at, SIZE).round().astype(int))


def is_drawn(video: str, x: int, y: int) -> bool:
    """Return True if the pixel at (`x`, `y`) in the first frame of a video differs from the gray background."""
    clip = cv2.VideoCapture(video)
    found, image = clip.read()
    clip.release()
    assert found
    return bool((np.abs(image[y, x].astype(int) - 90) > 40).any())


def test_landmarks_of_faces_are_published_as_keypoints(tmp_path: Path) -> None:
    video = str(tmp_path / "gate.mp4")
    messages = run(tmp_path, "faces, yunet", pipeline="track", masks="polygon", offline=("--video", video))
    assert messages[-1].keypoint_names == list(FACE_KEYPOINTS)
    known = SHAPED["faces, yunet"].keypoints
    assert known is not None
    wanted = to_source(known[..., :2], SIZE)
    for row, name in enumerate(("car", "person")):
        (points,) = (detected.keypoints for detected in messages[-1].objects if detected.class_name == name)
        assert points is not None
        np.testing.assert_allclose(np.array(points)[:, :2], np.clip(wanted[row], 0, SIZE), atol=0.06)
        assert [score for _, _, score in points] == [1.0] * len(FACE_KEYPOINTS)
    assert is_drawn(video, *wanted[0, 4].round().astype(int))


def test_oriented_boxes_are_published(tmp_path: Path) -> None:
    messages = run(tmp_path, "obb, end-to-end", pipeline="detect", masks="polygon", offline=())
    assert len(messages) == FRAMES
    angles = [detected.angle_deg for detected in messages[0].objects]
    np.testing.assert_allclose(np.array(angles, np.float64), np.rad2deg([0.5, 0.25 + np.pi / 2]), atol=0.06)
    assert all(detected.corners is not None and len(detected.corners) == 4 for detected in messages[0].objects)


def test_masks_are_published_in_the_configured_format(tmp_path: Path) -> None:
    messages = run(tmp_path, "segment, yolov8", pipeline="detect", masks="rle", offline=())
    for detected in messages[0].objects:
        assert detected.mask is not None
        assert detected.mask.counts is not None
        assert sum(detected.mask.counts) == SIZE[0] * SIZE[1]
