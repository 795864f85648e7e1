"""Synthetic camera: frames with known content, and every fault of a real camera on demand.

`vision.capture.synthetic.spec` describes the address.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.capture.pacing import FramePacer
from vision.capture.source import Grab, StreamInfo, not_open
from vision.capture.synthetic.frames import Scene
from vision.capture.synthetic.spec import SyntheticSpec
from vision.errors import EndOfStream, SizeChanged, SourceError
from vision.types import FrameBuffer, PixelFormat, frame_shape

_DEFAULT_OBJECTS: Final = 3


class SyntheticSource:
    """A synthetic camera. Satisfies `vision.capture.source.Source`.

    Frames are due at the configured rate. Offline, they come as fast as they are read, with the same times.
    """

    def __init__(
        self,
        spec: SyntheticSpec,
        pixel_formats: tuple[PixelFormat, ...] = ("bgr",),
        *,
        offline: bool = False,
        clock: Callable[[], int] = time.monotonic_ns,
        utc: Callable[[], int] = time.time_ns,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._spec = spec
        self._pixel_formats = pixel_formats
        self._offline = offline
        self._interrupted = threading.Event()
        self._pacer = FramePacer(offline=offline, clock=clock, utc=utc, wait=wait or self._interrupted.wait)
        self._scenes: tuple[Scene, Scene] | None = None  # before and after `resize`
        self._pixel_format: PixelFormat = "bgr"
        self._index = 0  # of the next frame
        self._grabbed = False

    @property
    def live(self) -> bool:
        return not self._offline

    def truth(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Return the objects of frame `index`: boxes (N, 4) float32 xyxy in pixels, class ids (N,) int32."""
        scene, shown = self._shown(index)
        return scene.truth(shown)

    def open(self) -> StreamInfo:
        self.close()
        scene = self._make_scenes()[0]
        self._pixel_format = self._choose_format(scene)
        self._pacer.start()
        return StreamInfo(scene.width_px, scene.height_px, self._pixel_format, self._spec.fps, "synthetic")

    def grab(self, timeout_s: float) -> Grab | None:
        if self._scenes is None:
            raise not_open("synthetic", "grab")
        spec, index = self._spec, self._index
        self._grabbed = False
        if spec.frames is not None and index >= spec.frames:
            raise EndOfStream(f"synthetic: ended after {index} frames")
        if spec.fail == index:
            raise SourceError(f"synthetic: failed at frame {index}, as configured")
        media_ns = self._media_ns(index)
        if self._interrupted.is_set() or not self._pacer.due(media_ns, timeout_s):
            return None
        if spec.hang is not None and spec.hang[0] == index:
            time.sleep(spec.hang[1])
            self._pacer.due(media_ns, 0.0)  # the frame is due after the hang, and is not late
        self._index += 1
        self._grabbed = True
        return self._mark(self._pacer.stamp(media_ns), index)

    def retrieve(self, out: FrameBuffer) -> None:
        if not self._grabbed:
            raise not_open("synthetic", "retrieve")
        scene, shown = self._shown(self._index - 1)
        pixels = out.require_host()
        # Report also a size that this format does not allow: the format changes when the source is opened again.
        if not _fits(scene, self._pixel_format) or pixels.shape != frame_shape(
            scene.height_px, scene.width_px, self._pixel_format
        ):
            raise SizeChanged(scene.height_px, scene.width_px)
        scene.draw(shown, pixels, self._pixel_format)

    def interrupt(self) -> None:
        """Make `grab` return None from now on."""
        self._interrupted.set()

    def close(self) -> None:
        self._scenes = None
        self._index = 0
        self._grabbed = False

    def _make_scenes(self) -> tuple[Scene, Scene]:
        if self._scenes is None:
            spec = self._spec
            first = _scene(spec, spec.width_px, spec.height_px)
            self._scenes = (first, first if spec.resize is None else _scene(spec, *spec.resize[1:]))
        return self._scenes

    def _shown(self, index: int) -> tuple[Scene, int]:
        """Return the scene, and the index within it, of frame `index`."""
        spec = self._spec
        shown = index if spec.freeze is None else min(index, spec.freeze)
        return self._make_scenes()[spec.resize is not None and index >= spec.resize[0]], shown

    def _media_ns(self, index: int) -> int:
        stall = self._spec.stall
        late_s = stall[1] if stall is not None and index >= stall[0] else 0.0
        return round((index / self._spec.fps + late_s) * 1e9)

    def _mark(self, grab: Grab, index: int) -> Grab:
        spec = self._spec
        if spec.freeze_pts is not None and index > spec.freeze_pts:
            grab = replace(grab, pts_ns=self._media_ns(spec.freeze_pts))
        if spec.corrupt is not None and spec.corrupt[0] <= index < spec.corrupt[1]:
            grab = replace(grab, corrupt=True)
        return grab

    def _choose_format(self, scene: Scene) -> PixelFormat:
        """Return the configured format, or the first one that the detector prefers and the size allows."""
        preferred = (self._spec.pixel_format,) if self._spec.pixel_format is not None else self._pixel_formats
        for pixel_format in (*preferred, *self._pixel_formats):
            if pixel_format in self._pixel_formats and _fits(scene, pixel_format):
                return pixel_format
        raise SourceError(
            f"synthetic: no pixel format for frames of {scene.width_px}x{scene.height_px}: "
            f"the detector accepts {', '.join(self._pixel_formats)}",
            code="pixel-format",
        )


def _fits(scene: Scene, pixel_format: PixelFormat) -> bool:
    even = scene.width_px % 2 == 0 and scene.height_px % 2 == 0
    return even or pixel_format in ("bgr", "bgrx")


def _scene(spec: SyntheticSpec, width_px: int, height_px: int) -> Scene:
    objects = min(_DEFAULT_OBJECTS, Scene.most_objects(height_px, width_px)) if spec.objects is None else spec.objects
    try:
        return Scene(height_px, width_px, objects, spec.seed, spec.overlap)
    except ValueError as error:
        raise SourceError(f"synthetic: {error}") from error
