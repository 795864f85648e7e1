"""Tests of the second model in ONNX Runtime: its crops, its scores, and its errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import tiny_models
from tests.letterbox_reference import to_bgr
from tests.paths import ROOT
from tests.unit.detect.test_crops import noise, scene
from vision.config import load_classifier_spec
from vision.detect.catalog import list_models
from vision.detect.onnxruntime.classifier import OnnxRuntimeClassifier
from vision.detect.open import open_classifier
from vision.errors import Closed, DeviceError, ModelError
from vision.types import Frame, FrameMeta, PixelFormat

RED, GREEN, BLUE = (0, 0, 255), (0, 255, 0), (255, 0, 0)


def save(folder: Path, *changes: tuple[str, str], **options: Any) -> Path:
    spec = tiny_models.CLASSIFIER_CARD
    for old, new in changes:
        assert old in spec
        spec = spec.replace(old, new)
    folder.mkdir(exist_ok=True)
    (folder / "model.yaml").write_text(spec)
    tiny_models.save_classifier(folder / "paint.onnx", **options)
    return folder


def opened(folder: Path, **options: Any) -> closing[OnnxRuntimeClassifier]:
    return closing(open_classifier(folder, load_classifier_spec(folder), **options))


def plain(*colour: int, shape: tuple[int, int, int] = (24, 16, 3)) -> NDArray[np.uint8]:
    return np.full(shape, colour, np.uint8)


def test_classifier_reports_the_mean_color(tmp_path: Path) -> None:
    with opened(save(tmp_path)) as opened_classifier:
        assert (opened_classifier.name, opened_classifier.class_names, opened_classifier.exclusive) == (
            "paint",
            ("reddish", "greenish", "bluish"),
            True,
        )
        assert opened_classifier.crop_shape == (24, 16, 3)
        scores = opened_classifier.classify([plain(*RED), plain(*GREEN), plain(*BLUE), plain(51, 102, 153)])
    np.testing.assert_allclose(scores, np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.4, 0.2]]), atol=1e-5)
    assert scores.dtype == np.float32


def test_channels_and_scale_follow_the_spec(tmp_path: Path) -> None:
    spread = "color: bgr, mean: [0.1, 0.2, 0.3], std: [2.0, 4.0, 5.0]"
    folder = save(tmp_path, ("height: 24,", f"height: 24, {spread},"), ("none", "sigmoid"))
    with opened(folder) as opened_classifier:
        (scores,) = opened_classifier.classify([plain(51, 102, 153)])
    expected = (np.array([0.2, 0.4, 0.6]) - [0.1, 0.2, 0.3]) / [2, 4, 5]
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-expected)), atol=1e-5)


def softmax(values: NDArray[np.float64]) -> Any:
    return np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)


def sigmoid(values: NDArray[np.float64]) -> Any:
    return 1 / (1 + np.exp(-values))


@pytest.mark.parametrize("activation", [softmax, sigmoid])
def test_classifier_applies_the_activation_of_its_spec(
    tmp_path: Path, activation: Callable[[NDArray[np.float64]], Any]
) -> None:
    with opened(save(tmp_path, ("none", activation.__name__), gain=100.0)) as opened_classifier:
        scores = opened_classifier.classify([plain(51, 102, 153), plain(*RED)])
    np.testing.assert_allclose(scores, activation(np.array([[60.0, 40, 20], [100, 0, 0]])), atol=1e-4)


@pytest.mark.parametrize("batch", ["batch", 1, 3])
def test_classify_accepts_any_number_of_crops(tmp_path: Path, batch: int | str) -> None:
    crops = [plain(0, 0, 10 * at) for at in range(7)]
    with opened(save(tmp_path, batch=batch), max_batch=7) as opened_classifier:
        assert opened_classifier.max_batch == 7
        for count in (1, 2, 3, 7):
            scores = opened_classifier.classify(crops[:count])
            np.testing.assert_allclose(scores[:, 0], np.arange(count) * 10 / 255, atol=1e-5)
        for count in (0, 8):
            with pytest.raises(ValueError):
                opened_classifier.classify([crops[0]] * count)


@pytest.mark.parametrize("pixel_format", ["bgr", "bgrx", "nv12", "i420"])
def test_crop_equals_the_section_of_the_frame(tmp_path: Path, pixel_format: PixelFormat) -> None:
    frame = noise(pixel_format)
    whole = to_bgr(frame.pixels, pixel_format)
    out = np.zeros((24, 16, 3), np.uint8)
    with opened(save(tmp_path)) as opened_classifier:
        opened_classifier.crop(frame, (5, 7, 21, 31), out)  # as large as the model's frame: nothing is scaled
    np.testing.assert_array_equal(out, whole[7:31, 5:21])


@pytest.mark.parametrize("box", [(0, 0, 640, 480), (100, 50, 180, 290), (600, 440, 604, 444)])
def test_crop_is_scaled_to_the_input_size(tmp_path: Path, box: tuple[int, int, int, int]) -> None:
    frame = scene("bgr")
    out = np.zeros((24, 16, 3), np.uint8)
    with opened(save(tmp_path)) as opened_classifier:
        opened_classifier.crop(frame, box, out)
    left, top, right, bottom = box
    part = frame.pixels[top:bottom, left:right].astype(float)
    np.testing.assert_allclose(out.mean(axis=(0, 1)), part.mean(axis=(0, 1)), atol=1.5)


def test_letterboxed_crop_keeps_its_proportions(tmp_path: Path) -> None:
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[:] = RED
    frame = Frame.wrap(FrameMeta("a", 0, 0, 0, 0, 100, 100), pixels, "bgr")
    out = np.zeros((24, 16, 3), np.uint8)
    with opened(save(tmp_path, ("height: 24,", "height: 24, fit: letterbox, fill: 7,"))) as opened_classifier:
        opened_classifier.crop(frame, (0, 0, 100, 100), out)
        assert (out[4:20] == RED).all()
        assert (out[:4] == 7).all() and (out[20:] == 7).all()
        opened_classifier.crop(frame, (0, 0, 10, 100), out)
    assert (out[:, :6] == 7).all() and (out[:, 10:] == 7).all() and (out[:, 7:9] == RED).all()


def test_crop_and_classify_allocate_no_buffers(tmp_path: Path) -> None:
    frame, out = scene("i420"), np.zeros((24, 16, 3), np.uint8)
    with opened(save(tmp_path)) as opened_classifier:
        opened_classifier.crop(frame, (0, 0, 640, 480), out)
        opened_classifier.classify([out])
        before = (opened_classifier._tensor.ctypes.data, opened_classifier._parts._planes._memory.ctypes.data)
        for at in range(20):
            opened_classifier.crop(frame, (at, at, 100 + 5 * at, 300), out)
            opened_classifier.classify([out] * (1 + at % 8))
        assert (opened_classifier._tensor.ctypes.data, opened_classifier._parts._planes._memory.ctypes.data) == before


@pytest.mark.parametrize(
    ("changes", "options", "code"),
    [
        ([("[reddish, greenish, bluish]", "[a, b]")], {}, "output-mismatch"),
        ([("width: 16", "width: 32")], {}, "input-mismatch"),
        ([], {"axes": (1, 2, 3)}, "output-mismatch"),
        ([("scale: 0.00392156862745098", "mean: [-9.0, 0.0, 0.0]")], {}, "scores-out-of-range"),
    ],
)
def test_model_that_contradicts_its_spec_is_refused(
    tmp_path: Path, changes: list[tuple[str, str]], options: dict[str, Any], code: str
) -> None:
    folder = save(tmp_path, *changes, **options)
    with pytest.raises(ModelError) as caught:
        opened(folder)
    assert caught.value.code == code


def test_file_that_is_not_onnx_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path)
    (folder / "paint.onnx").write_bytes(b"onnx")
    with pytest.raises(ModelError) as caught:
        opened(folder)
    assert caught.value.code == "model-format"
    (folder / "paint.onnx").unlink()
    with pytest.raises(ModelError) as caught:
        opened(folder)
    assert caught.value.code == "model-missing"


def test_detector_spec_is_refused_as_classifier(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text(tiny_models.COLOUR_CARD)
    with pytest.raises(ModelError) as caught:
        load_classifier_spec(tmp_path)
    assert "head.kind" in str(caught.value)


def test_failed_and_closed_classifier_raises(tmp_path: Path) -> None:
    with opened(save(tmp_path, fragile=True)) as opened_classifier:
        np.testing.assert_allclose(opened_classifier.classify([plain(*GREEN)]), [[0, 1, 0]], atol=1e-5)
        with pytest.raises(DeviceError):
            opened_classifier.classify([plain(*RED)])
    opened_classifier.close()
    with pytest.raises(Closed):
        opened_classifier.classify([plain(*GREEN)])


def test_documented_spec_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"<!-- classifier -->\n```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "model.yaml").write_text(example)
    tiny_models.save_classifier(tmp_path / "clothes.onnx", sides=(256, 128))
    with opened(tmp_path) as opened_classifier:
        assert opened_classifier.crop_shape == (256, 128, 3)
        np.testing.assert_allclose(
            opened_classifier.classify([plain(1, 2, 3, shape=opened_classifier.crop_shape)]).sum(), 1.0, atol=1e-5
        )


def test_vision_models_lists_classifiers(tmp_path: Path) -> None:
    save(tmp_path / "paint")
    (tmp_path / "broken").mkdir()
    save(tmp_path / "broken", ("[reddish, greenish, bluish]", "[a, b]"))
    broken, sound = list_models(tmp_path)
    assert (sound.name, sound.input, sound.head, len(sound.class_names), sound.fault) == (
        "paint",
        "16x24 rgb",
        "classifier",
        3,
        "",
    )
    assert "(batch, 2)" in broken.fault
