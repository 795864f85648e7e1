"""Comparison of ``letterbox.cu`` with `sample` and `normalized` of `tests.letterbox_reference`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
import pytest

from tests.gpu.launching import letterbox
from tests.letterbox_reference import normalized, sample
from vision.config import InputSpec
from vision.detect.reference.letterbox import Letterbox
from vision.detect.tensorrt.kernels import FrameLayout
from vision.types import PixelFormat, YuvEncoding, frame_shape

Placement: TypeAlias = Literal["top-left", "center"]

CLIP = Path(__file__).parents[2] / "configs" / "vtest.mp4"
FORMATS: tuple[PixelFormat, ...] = ("bgr", "bgrx", "nv12", "i420")
ENCODINGS: tuple[YuvEncoding, ...] = ("bt601", "bt601-full", "bt709", "bt709-full")
ODD = [(1, 1), (1, 2), (2, 1), (1, 700), (700, 1), (31, 33), (5, 3), (401, 17)]
EVEN = [(2, 2), (64, 96), (576, 768), (100, 34), (1080, 1920), (2, 400), (400, 2)]
PLANES = (("float32", 0), ("float16", 0))
PIXELS = (("float32", 3), ("float16", 3), ("uint8", 3))
INPUTS: Mapping[tuple[int, int], tuple[tuple[str, int], ...]] = {
    (416, 416): (*PLANES, ("float16", 4)),
    (96, 64): (*PLANES, ("float16", 4), ("float32", 4), *PIXELS, ("uint8", 0)),
    (50, 34): PLANES,
    (33, 17): (*PLANES, ("float16", 4), *PIXELS, ("uint8", 0)),
}
"""Types and channels for each width and height of the input. Variants of one size follow each other, because they have
the same reference."""


@lru_cache(64)
def frame(layout: FrameLayout, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    shape = frame_shape(layout.height_px, layout.width_px, layout.pixel_format)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def levels(spec: InputSpec, pixels: Any, layout: FrameLayout) -> Any:
    """Return the levels, without rounding, that the reference computes."""
    fit = Letterbox.fit(layout.width_px, layout.height_px, spec.width, spec.height, spec.letterbox)
    return sample(
        pixels,
        layout.pixel_format,
        fit,
        model_width_px=spec.width,
        model_height_px=spec.height,
        fill=spec.fill,
        encoding=layout.yuv,
    )


@lru_cache(64)
def levels_of_frame(size: tuple[int, int], letterbox: Placement, fill: int, layout: FrameLayout, seed: int) -> Any:
    """Return the `levels` of a `frame`. The result is cached, because the reference is slower than the kernel."""
    spec = InputSpec(width=size[0], height=size[1], letterbox=letterbox, fill=fill)
    return levels(spec, frame(layout, seed), layout)


def assert_rounded(spec: InputSpec, given: Any, expected: Any, *, half: bool, said: str) -> None:
    """Check that `given` is the normalized tensor of the rounded levels `expected`. Ties may be rounded up or down."""
    spread = max(spec.scale * 255 / min(spec.std), *np.abs(np.array(spec.mean) / spec.std))
    below, above = (
        normalized(np.rint(expected + much), spec.color, spec.scale, spec.mean, spec.std) for much in (-1e-3, 1e-3)
    )
    nearest = np.minimum(np.abs(given - below), np.abs(given - above))
    assert nearest.max() <= spread * (1e-3 if half else 2e-6), said


def check(
    device: Any, spec: InputSpec, layouts: list[FrameLayout], *, dtype: str = "float32", channels: int = 0
) -> None:
    pixels = [frame(layout, seed) for seed, layout in enumerate(layouts)]
    given = [*zip(pixels, layouts, strict=True), None]
    tensor, counts = letterbox(device, spec, given, dtype=dtype, channels=channels)
    assert not counts.any()
    assert (np.ascontiguousarray(tensor[-1]).view(np.uint8) == 0xA7).all(), "a row without a frame was written"
    assert tensor.shape[1] == (channels or 3)
    assert not tensor[:-1, 3:].any(), "the fourth channel counts for something"
    for seed, (row, layout) in enumerate(zip(tensor[:, :3], layouts, strict=False)):
        expected = levels_of_frame((spec.width, spec.height), spec.letterbox, spec.fill, layout, seed)
        assert_rounded(spec, row.astype(np.float32), expected, half=dtype == "float16", said=str(layout))


@pytest.mark.parametrize(
    ("width", "height", "dtype", "channels"),
    [(*size, dtype, channels) for size, variants in INPUTS.items() for dtype, channels in variants],
)
def test_letterbox_kernel_matches_the_reference_for_mixed_sizes_and_formats(
    device: Any, width: int, height: int, dtype: str, channels: int
) -> None:
    layouts = [
        FrameLayout(height_px, width_px, pixel_format)
        for pixel_format, (height_px, width_px) in itertools.product(FORMATS, EVEN)
    ]
    layouts += [FrameLayout(*size, pixel_format) for pixel_format in FORMATS[:2] for size in ODD]
    spec = InputSpec(width=width, height=height)
    if dtype != "uint8":
        spec = InputSpec(width=width, height=height, mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395))
    check(device, spec, layouts, dtype=dtype, channels=channels)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_letterbox_kernel_matches_the_reference_for_each_yuv_encoding(device: Any, encoding: YuvEncoding) -> None:
    layouts = [FrameLayout(64, 96, "nv12", encoding), FrameLayout(34, 50, "i420", encoding)]
    check(device, InputSpec(width=96, height=64), layouts)


@pytest.mark.parametrize("color", ["bgr", "rgb"])
@pytest.mark.parametrize("placement", ["top-left", "center"])
def test_letterbox_kernel_matches_the_reference_for_each_color_order_and_placement(
    device: Any, color: Any, placement: Any
) -> None:
    spec = InputSpec(
        width=96,
        height=64,
        color=color,
        letterbox=placement,
        scale=1 / 255,
        mean=(0.1, 0.2, 0.3),
        std=(1, 2, 3),
        fill=0,
    )
    check(device, spec, [FrameLayout(*size, "bgr") for size in EVEN])


def test_letterbox_kernel_matches_the_reference_for_an_8k_frame(device: Any) -> None:
    check(device, InputSpec(width=96, height=64), [FrameLayout(4320, 7680, "bgr")])


def test_row_pitch_can_exceed_the_row_length(device: Any) -> None:
    """Decoders pad rows. In this test, the frame is the left part of a wider frame."""
    spec = InputSpec(width=96, height=64)
    wide = frame(FrameLayout(48, 128, "nv12"), 5)
    narrow = np.ascontiguousarray(wide[:, :100])
    layout = FrameLayout(48, 100, "nv12", pitch_bytes=128)
    tensor, _ = letterbox(device, spec, [(wide, layout)], dtype="float32")
    expected = levels(spec, narrow, FrameLayout(48, 100, "nv12"))
    assert_rounded(spec, tensor[0], expected, half=False, said="a wide pitch")


def test_rounding_matches_opencv(device: Any) -> None:
    """Most levels of a real frame are equal. Levels may differ by 1, because OpenCV's weights have fewer bits."""
    capture = cv2.VideoCapture(str(CLIP))
    frame_bgr = np.asarray(capture.read()[1], np.uint8)
    capture.release()
    spec = InputSpec(width=416, height=416, color="bgr", letterbox="top-left")
    tensor, _ = letterbox(device, spec, [(frame_bgr, FrameLayout(576, 768, "bgr"))], dtype="float32")
    expected = cv2.resize(frame_bgr, (416, 312), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)
    away = np.abs(tensor[0, :, :312] - expected)
    assert away.max() <= 1
    assert (away == 0).mean() > 0.85
