"""The scenes of synthetic cameras: numbered frames, colored rectangles, or a street in a video of this package."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from typing import Final, Literal

import av
import numpy as np
from numpy.typing import NDArray

from vision.capture.synthetic.frames import Scene as Rectangles
from vision.capture.zoo.barcode import paint_number
from vision.config import shipped_configs

Size = tuple[int, int]
"""Width and height in pixels."""

Scene = Literal["numbers", "rectangles", "street"]
"""`numbers` shows the number of each frame, `rectangles` the objects of the fake detector, and `street` people."""

_OBJECTS: Final = 3
_STREET: Final = "vtest.mp4"


def draw_scene(scene: Scene, size: Size, count: int) -> Iterator[av.VideoFrame]:
    """Yield `count` frames of a scene. The `pts` of a frame is its number."""
    match scene:
        case "numbers":
            frames = _numbers(size, count)
        case "rectangles":
            frames = _rectangles(size, count)
        case "street":
            frames = _street(size, count)
    for number, frame in enumerate(frames):
        frame.pts = number
        yield frame


def _numbers(size: Size, count: int) -> Iterator[av.VideoFrame]:
    """Yield frames that show their number on a moving texture, with noise so that each frame needs several packets."""
    width_px, height_px = size
    random = np.random.default_rng(1)
    texture = random.integers(64, 192, (height_px // 8, width_px // 8), np.uint8).repeat(8, 0).repeat(8, 1)
    chroma = np.full((height_px // 2, width_px), 128, np.uint8)
    for number in range(count):
        luma: NDArray[np.uint8] = np.roll(texture, 3 * number, axis=1)
        luma = luma + random.integers(0, 24, luma.shape, np.uint8)
        paint_number(luma, number)
        yield av.VideoFrame.from_ndarray(np.concatenate((luma, chroma)), "yuv420p")


def _rectangles(size: Size, count: int) -> Iterator[av.VideoFrame]:
    width_px, height_px = size
    scene = Rectangles(height_px, width_px, _OBJECTS, seed=1)
    for number in range(count):
        pixels = np.empty((height_px * 3 // 2, width_px), np.uint8)
        scene.draw(number, pixels, "i420")
        yield av.VideoFrame.from_ndarray(pixels, "yuv420p")


def _street(size: Size, count: int) -> Iterator[av.VideoFrame]:
    """Yield the street video of this package forward and backward, so that it continues without a jump."""
    width_px, height_px = size
    path = next(iter(shipped_configs().values())).parent / _STREET
    with av.open(str(path)) as container:
        frames = list(islice(container.decode(video=0), count // 2 + 1))
    for frame in islice(cycle([*frames, *frames[-2:0:-1]]), count):
        pixels = frame.reformat(width_px, height_px, "yuv420p").to_ndarray()
        yield av.VideoFrame.from_ndarray(pixels, "yuv420p")
