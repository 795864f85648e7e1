"""Tests of the letterbox: geometry, the reference against OpenCV, and pre-processing against the reference."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.letterbox_reference import normalized, sample, to_bgr
from vision.config import InputSpec
from vision.detect.reference import preprocess
from vision.detect.reference.letterbox import Letterbox, gain_and_offset
from vision.detect.reference.preprocess import Preprocessor
from vision.types import PixelFormat, YuvEncoding, frame_shape

SIZES = [(1, 1), (2, 2), (768, 576), (640, 480), (800, 2), (2, 800), (98, 58), (416, 320), (1, 1000)]  # width, height

Placement = Literal["top-left", "center"]


@pytest.fixture(params=["opencv", "numpy"], autouse=True)
def scaler_of_both_kinds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "numpy":
        monkeypatch.setattr(preprocess, "cv2", None)


def noise(width_px: int, height_px: int, pixel_format: PixelFormat) -> NDArray[np.uint8]:
    shape = frame_shape(height_px, width_px, pixel_format)
    return np.random.default_rng(width_px).integers(0, 256, shape, np.uint8)


def input_card(**changes: object) -> InputSpec:
    return InputSpec.model_validate({"width": 416, "height": 320, **changes})


@pytest.mark.parametrize(
    ("source", "model", "placement", "letterbox", "content"),
    [
        ((768, 576), (416, 416), "top-left", Letterbox(416 / 768, 0, 0), (416, 312)),
        ((768, 576), (416, 416), "center", Letterbox(416 / 768, 0, 52), (416, 312)),
        ((576, 768), (416, 416), "center", Letterbox(416 / 768, 52, 0), (312, 416)),
        ((1920, 1080), (640, 640), "center", Letterbox(1 / 3, 0, 140), (640, 360)),
        ((320, 240), (640, 640), "top-left", Letterbox(2.0, 0, 0), (640, 480)),  # enlarged
        ((1, 1), (640, 480), "center", Letterbox(480.0, 80, 0), (480, 480)),
        ((10000, 1), (416, 416), "center", Letterbox(0.0416, 0, 207), (416, 1)),  # never thinner than a pixel
        ((704, 576), (416, 416), "center", Letterbox(416 / 704, 0, 38), (416, 340)),  # 340.36 rounds down
        ((8, 7), (4, 4), "center", Letterbox(0.5, 0, 0), (4, 4)),  # 3.5 rounds up
        ((8, 5), (4, 4), "center", Letterbox(0.5, 0, 0), (4, 3)),  # 2.5 rounds up; an odd rest lies below
    ],
)
def test_letterbox_fits_the_frame_into_the_canvas(
    source: tuple[int, int],
    model: tuple[int, int],
    placement: Placement,
    letterbox: Letterbox,
    content: tuple[int, int],
) -> None:
    fitted = Letterbox.fit(*source, *model, placement)
    assert fitted == letterbox
    assert fitted.content(*source) == content


@given(
    st.integers(1, 9000),
    st.integers(1, 9000),
    st.integers(16, 1300),
    st.integers(16, 1300),
    st.sampled_from(["top-left", "center"]),
)
def test_letterbox_fills_one_side_of_the_canvas(
    width_px: int, height_px: int, model_width_px: int, model_height_px: int, placement: Placement
) -> None:
    letterbox = Letterbox.fit(width_px, height_px, model_width_px, model_height_px, placement)
    content_width, content_height = letterbox.content(width_px, height_px)
    assert content_width == model_width_px or content_height == model_height_px
    assert 1 <= content_width <= model_width_px - letterbox.pad_x_px
    assert 1 <= content_height <= model_height_px - letterbox.pad_y_px


@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from(["top-left", "center"]))
def test_corners_map_back_exactly(width_px: int, height_px: int, placement: Placement) -> None:
    letterbox = Letterbox.fit(width_px, height_px, 416, 320, placement)
    x, y = letterbox.pad_x_px, letterbox.pad_y_px
    content_width, content_height = letterbox.content(width_px, height_px)
    box = np.array([[x, y, x + content_width, y + content_height]], np.float32)
    back = letterbox.to_source(box, width_px, height_px)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, np.array([[0, 0, width_px, height_px]]), rtol=1e-6)


def test_boxes_are_clipped_to_the_frame_in_a_new_array() -> None:
    letterbox = Letterbox.fit(768, 576, 416, 416, "center")
    boxes = np.array([[-50, 0, 500, 500], [104, 104, 208, 156], [0, 0, 20, 20]], np.float32)
    before = boxes.copy()
    back = letterbox.to_source(boxes, 768, 576)
    np.testing.assert_array_equal(boxes, before)
    expected = np.array([[0, 0, 768, 576], [192, 96, 384, 192], [0, 0, 768 * 20 / 416, 0]])
    np.testing.assert_allclose(back, expected, rtol=1e-6)
    assert letterbox.to_source(np.zeros((0, 4), np.float32), 768, 576).shape == (0, 4)


@pytest.mark.parametrize(("pixel_format", "code"), [("nv12", cv2.COLOR_YUV2BGR_NV12), ("i420", cv2.COLOR_YUV2BGR_I420)])
def test_reference_conversion_equals_opencv(pixel_format: PixelFormat, code: int) -> None:
    pixels = noise(640, 480, pixel_format)
    np.testing.assert_array_equal(to_bgr(pixels, pixel_format), cv2.cvtColor(pixels, code))


@pytest.mark.parametrize(
    ("encoding", "yuv", "bgr"),
    [
        ("bt601", (16, 128, 128), (0, 0, 0)),
        ("bt601", (235, 128, 128), (255, 255, 255)),
        ("bt601", (3, 128, 128), (0, 0, 0)),  # below black
        ("bt601", (82, 90, 240), (0, 1, 255)),  # red
        ("bt601-full", (0, 128, 128), (0, 0, 0)),
        ("bt601-full", (76, 85, 255), (0, 0, 254)),
        ("bt709", (235, 128, 128), (255, 255, 255)),
        ("bt709", (63, 102, 240), (1, 0, 255)),
        ("bt709-full", (255, 128, 128), (255, 255, 255)),
        ("bt709-full", (54, 99, 255), (0, 0, 254)),
    ],
)
def test_yuv_encodings_give_the_standard_colors(
    encoding: YuvEncoding, yuv: tuple[int, int, int], bgr: tuple[int, int, int]
) -> None:
    pixels = np.array([[yuv[0]] * 2] * 2 + [[yuv[1], yuv[2]]], np.uint8)
    np.testing.assert_allclose(to_bgr(pixels, "nv12", encoding)[0, 0].astype(int), bgr, atol=1)


@pytest.mark.parametrize(("width_px", "height_px"), SIZES)
def test_reference_sampling_equals_opencv(width_px: int, height_px: int) -> None:
    pixels = noise(width_px, height_px, "bgr")
    letterbox = Letterbox.fit(width_px, height_px, 416, 320, "center")
    canvas = sample(pixels, "bgr", letterbox, model_width_px=416, model_height_px=320, fill=7)
    content_width, content_height = letterbox.content(width_px, height_px)
    expected = np.full((320, 416, 3), 7, np.float32)
    top, left = letterbox.pad_y_px, letterbox.pad_x_px
    expected[top : top + content_height, left : left + content_width] = cv2.resize(
        pixels.astype(np.float32), (content_width, content_height), interpolation=cv2.INTER_LINEAR
    )
    np.testing.assert_allclose(canvas, expected.transpose(2, 0, 1), atol=2e-2)  # OpenCV computes in float32


@pytest.mark.parametrize(("width_px", "height_px"), SIZES)
@pytest.mark.parametrize("pixel_format", ["bgr", "bgrx"])
@pytest.mark.parametrize(("placement", "color"), [("top-left", "bgr"), ("center", "rgb")])
def test_preprocessing_agrees_with_the_reference(
    width_px: int, height_px: int, pixel_format: PixelFormat, placement: Placement, color: Literal["bgr", "rgb"]
) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    spec = input_card(color=color, scale=1 / 255, mean=mean, std=std, letterbox=placement, fill=33)
    tensor = np.full((2, 3, 320, 416), np.nan, np.float32)
    pixels = noise(width_px, height_px, pixel_format)
    letterbox = Preprocessor(spec, tensor).write(1, pixels)
    assert letterbox == Letterbox.fit(width_px, height_px, 416, 320, placement)
    levels = sample(pixels, pixel_format, letterbox, model_width_px=416, model_height_px=320, fill=33)
    one_level = 1 / 255 / min(std)
    np.testing.assert_allclose(tensor[1], normalized(levels, color, 1 / 255, mean, std), atol=one_level)
    assert np.isnan(tensor[0]).all()


def test_canvas_is_repainted_when_the_frame_moves() -> None:
    spec = input_card(color="bgr", fill=200, letterbox="center")
    tensor = np.zeros((1, 3, 320, 416), np.float32)
    preprocessor = Preprocessor(spec, tensor)
    for width_px, height_px in [(416, 320), (100, 320), (416, 50), (300, 300), (416, 50)]:
        black = np.zeros((height_px, width_px, 3), np.uint8)
        letterbox = preprocessor.write(0, black)
        expected = sample(black, "bgr", letterbox, model_width_px=416, model_height_px=320, fill=200)
        np.testing.assert_array_equal(tensor[0], expected)


def test_8k_frame_is_letterboxed() -> None:
    tensor = np.zeros((1, 3, 320, 416), np.float32)
    pixels = np.full((4320, 7680, 3), 50, np.uint8)
    letterbox = Preprocessor(input_card(color="bgr", fill=9), tensor).write(0, pixels)
    assert letterbox.content(7680, 4320) == (416, 234)
    assert np.count_nonzero(np.isclose(tensor, 50)) == 3 * 416 * 234
    assert np.count_nonzero(tensor == 9) == 3 * 416 * (320 - 234)


def test_gain_and_offset_equal_the_normalisation() -> None:
    mean, std = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
    gain, offset = gain_and_offset(1.0, mean, std)
    levels = np.arange(256, dtype=np.float32).reshape(1, 1, 256).repeat(3, 0)
    expected = normalized(levels, "bgr", 1.0, mean, std)
    np.testing.assert_allclose(levels * gain[:, None, None] + offset[:, None, None], expected, atol=1e-6)
