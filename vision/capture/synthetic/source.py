"""Synthetic camera, which delivers frames with known content and simulates the faults of real cameras.

`vision.capture.synthetic.spec` describes its address and options.
"""

from __future__ import annotations

import time
from functools import cached_property
from typing import Final

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from vision.capture.pacing import FramePacer, PacedSource
from vision.capture.planes import allowed_formats, has_shape
from vision.capture.source import Grab, StreamInfo
from vision.capture.synthetic.frames import Scene
from vision.capture.synthetic.spec import SyntheticSpec
from vision.errors import EndOfStream, SizeChanged, SourceError
from vision.types import FrameBuffer, PixelFormat

_DEFAULT_OBJECTS: Final = 3


class SyntheticSource(PacedSource[int]):
    """A synthetic camera. Frames are due at the configured rate, or immediately in an offline run."""

    def __init__(
        self, spec: SyntheticSpec, pixel_formats: tuple[PixelFormat, ...] = ("bgr",), pacer: FramePacer | None = None
    ) -> None:
        super().__init__("synthetic", pacer)
        self.live = not self._pacer.offline
        self._spec = spec
        self._pixel_formats = pixel_formats
        self._pixel_format: PixelFormat = "bgr"
        self._index = 0  # number of the next frame

    @cached_property
    def _scenes(self) -> tuple[Scene, Scene]:
        """The scenes before and after the option `resize` takes effect."""
        spec = self._spec
        first = _scene(spec, spec.width_px, spec.height_px)
        return first, first if spec.resize is None else _scene(spec, *spec.resize[1:])

    def truth(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Return the boxes, (N, 4) float32 xyxy in pixels, and the class ids, (N,) int32, of frame `index`."""
        scene, shown = self._shown(index)
        return scene.truth(shown)

    def _open(self) -> StreamInfo:
        scene = self._scenes[0]
        formats = allowed_formats(self._pixel_formats, scene.height_px, scene.width_px)
        self._pixel_format = self._spec.pixel_format if self._spec.pixel_format in formats else formats[0]
        return StreamInfo(scene.width_px, scene.height_px, self._pixel_format, self._spec.fps, "synthetic")

    def _read(self) -> tuple[int, int]:
        spec, index = self._spec, self._index
        if spec.frames is not None and index >= spec.frames:
            raise EndOfStream(f"synthetic: ended after {index} frames")
        if spec.fail == index:
            raise SourceError(f"synthetic: failed at frame {index}, as configured", code="synthetic-failure")
        if spec.hang is not None and spec.hang[0] == index:
            time.sleep(spec.hang[1])
        self._index += 1
        return self._media_ns(index), index

    def _mark(self, grab: Grab, index: int) -> Grab:
        spec = self._spec
        if spec.freeze_pts is not None and index > spec.freeze_pts:
            grab = replace(grab, pts_ns=self._media_ns(spec.freeze_pts))
        if spec.corrupt is not None and spec.corrupt[0] <= index < spec.corrupt[1]:
            grab = replace(grab, corrupt=True)
        return grab

    def _write(self, index: int, out: FrameBuffer) -> None:
        scene, shown = self._shown(index)
        pixels = out.require_host()
        # This includes sizes that the format does not allow, because a reopened source chooses a different format.
        if not has_shape(pixels, scene.height_px, scene.width_px, self._pixel_format):
            raise SizeChanged(scene.height_px, scene.width_px)
        scene.draw(shown, pixels, self._pixel_format)

    def _shown(self, index: int) -> tuple[Scene, int]:
        """Return the scene that frame `index` shows, and the number of the frame in that scene."""
        spec = self._spec
        shown = index if spec.freeze is None else min(index, spec.freeze)
        return self._scenes[spec.resize is not None and index >= spec.resize[0]], shown

    def _media_ns(self, index: int) -> int:
        stall = self._spec.stall
        late_s = stall[1] if stall is not None and index >= stall[0] else 0.0
        return round((index / self._spec.fps + late_s) * 1e9)

    def _close(self) -> None:
        self._index = 0


def _scene(spec: SyntheticSpec, width_px: int, height_px: int) -> Scene:
    objects = min(_DEFAULT_OBJECTS, Scene.most_objects(height_px, width_px)) if spec.objects is None else spec.objects
    return Scene(height_px, width_px, objects, spec.seed, spec.overlap)
