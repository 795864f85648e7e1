"""A camera that is made up: frames whose content is known exactly, and every fault that a camera can have, on demand.

``synthetic:768x576@30?objects=5&seed=1`` in camera.yaml. Size, rate and every option may be left out:

===========  =====================  ==================================================================================
option       example                meaning
===========  =====================  ==================================================================================
objects      ``5``                  rectangles in a frame; 3 or as many as have room where absent
seed         ``1``                  of their sizes, colours and ways
frames       ``100``                frames until the end of the stream; endless where absent
format       ``nv12``               pixel format; the detector's favourite where absent
overlap      ``1``                  objects may cover each other
freeze       ``50``                 the frame stands still from this one on
freeze_pts   ``50``                 the stream's time stands still from this frame on
resize       ``50:320x240``         another frame size from this frame on
stall        ``50:3``               nothing comes for 3 s before this frame
hang         ``50:3``               as ``stall``, but in a call that nothing interrupts
fail         ``50``                 the connection breaks at this frame
corrupt      ``50:60``              frames 50 to 59 are marked as damaged
===========  =====================  ==================================================================================

Objects are as `vision.test_pattern` says, so the fake detector finds them all, and `Synthetic.truth` tells where
they are.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from vision.capture.pacing import FramePacer
from vision.capture.source import Grab, StreamInfo
from vision.capture.synthetic.scene import Scene
from vision.errors import EndOfStream, SizeChanged, SourceError
from vision.types import FrameBuffer, PixelFormat, frame_shape

_FORM: Final = re.compile(
    r"synthetic:(?:(?P<width>\d{1,5})x(?P<height>\d{1,5}))?(?:@(?P<fps>[\d.]{1,8}))?(?:\?(?P<query>.*))?"
)
_EXAMPLE: Final = "synthetic:768x576@30?objects=5&seed=1"
_OBJECTS: Final = 3
_FORMATS: Final[dict[str, PixelFormat]] = {name: name for name in get_args(PixelFormat)}


@dataclass(frozen=True, slots=True)
class SyntheticSpec:
    """What a ``synthetic:`` source says. Faults name the frame at which they begin."""

    width_px: int = 768
    height_px: int = 576
    fps: float = 30.0
    objects: int | None = None
    seed: int = 0
    frames: int | None = None
    pixel_format: PixelFormat | None = None
    overlap: bool = False
    freeze: int | None = None
    freeze_pts: int | None = None
    resize: tuple[int, int, int] | None = None  # frame, width, height
    stall: tuple[int, float] | None = None  # frame, seconds
    hang: tuple[int, float] | None = None
    fail: int | None = None
    corrupt: tuple[int, int] | None = None  # first frame, first that is whole again

    @staticmethod
    def parse(source: str) -> SyntheticSpec:
        """The text of camera.yaml.

        Raises:
            SourceError: what was expected and what came.
        """
        match = _FORM.fullmatch(source)
        if match is None:
            raise SourceError(f"expected {_EXAMPLE}, got {source!r}")
        given: dict[str, Any] = {}
        if match["width"]:
            given.update(width_px=int(match["width"]), height_px=int(match["height"]))
        if match["fps"]:
            given["fps"] = _value("fps", match["fps"], _rate)
        for option in filter(None, (match["query"] or "").split("&")):
            key, _, text = option.partition("=")
            if key not in _OPTIONS:
                near = get_close_matches(key, _OPTIONS, 1)
                raise SourceError(
                    f"synthetic: unknown option {key!r}", hint=f"did you mean {near[0]}?" if near else _known()
                )
            name, convert = _OPTIONS[key]
            given[name] = _value(key, text, convert)
        return SyntheticSpec(**given)


class Synthetic:
    """A made-up camera at its own pace; `offline`, as fast as it is read, with times as if it were not."""

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
        self._playback = FramePacer(offline=offline, clock=clock, utc=utc, wait=wait or self._interrupted.wait)
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
        self._playback.start()
        return StreamInfo(scene.width_px, scene.height_px, self._pixel_format, self._spec.fps, "synthetic")

    def grab(self, timeout_s: float) -> Grab | None:
        if self._scenes is None:
            raise SourceError("synthetic: grab before open, or after close")
        spec, index = self._spec, self._index
        self._grabbed = False
        if spec.frames is not None and index >= spec.frames:
            raise EndOfStream(f"synthetic: ended after {index} frames")
        if spec.fail == index:
            raise SourceError(f"synthetic: failed at frame {index}, as asked for")
        media_ns = self._media_ns(index)
        if self._interrupted.is_set() or not self._playback.due(media_ns, timeout_s):
            return None
        if spec.hang is not None and spec.hang[0] == index:
            time.sleep(spec.hang[1])
            self._playback.due(media_ns, 0.0)  # it comes after that, and is not late by it
        self._index += 1
        self._grabbed = True
        return self._mark(self._playback.stamp(media_ns), index)

    def retrieve(self, out: FrameBuffer) -> None:
        if not self._grabbed:
            raise SourceError("synthetic: retrieve without a frame grabbed")
        scene, shown = self._shown(self._index - 1)
        pixels = out.require_host()
        # A size that this format cannot have is announced too: the format changes when the source opens again.
        if not _fits(scene, self._pixel_format) or pixels.shape != frame_shape(
            scene.height_px, scene.width_px, self._pixel_format
        ):
            raise SizeChanged(scene.height_px, scene.width_px)
        scene.draw(shown, pixels, self._pixel_format)

    def interrupt(self) -> None:
        """Final: from now on `grab` finds nothing."""
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
        """The scene, and which of its frames is seen as frame `index`."""
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
        """The one asked for, or the detector's favourite; NV12 and I420 have no odd sides."""
        wanted = (self._spec.pixel_format,) if self._spec.pixel_format is not None else self._pixel_formats
        for pixel_format in (*wanted, *self._pixel_formats):
            if pixel_format in self._pixel_formats and _fits(scene, pixel_format):
                return pixel_format
        raise SourceError(
            f"synthetic: no pixel format for frames of {scene.width_px}x{scene.height_px}: "
            f"the detector takes {', '.join(self._pixel_formats)}"
        )


def _fits(scene: Scene, pixel_format: PixelFormat) -> bool:
    even = scene.width_px % 2 == 0 and scene.height_px % 2 == 0
    return even or pixel_format in ("bgr", "bgrx")


def _scene(spec: SyntheticSpec, width_px: int, height_px: int) -> Scene:
    objects = min(_OBJECTS, Scene.most_objects(height_px, width_px)) if spec.objects is None else spec.objects
    try:
        return Scene(height_px, width_px, objects, spec.seed, spec.overlap)
    except ValueError as error:
        raise SourceError(f"synthetic: {error}") from error


# --- options ----------------------------------------------------------------------------------------------------------


def _value(key: str, text: str, convert: Callable[[str], Any]) -> Any:
    try:
        return convert(text)
    except ValueError as error:
        raise SourceError(f"synthetic: {key}: expected {error}, got {text!r}", hint=f"such as {_EXAMPLE}") from None


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("a whole number")
    return int(text)


def _rate(text: str) -> float:
    rate = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else 0.0
    if not 0 < rate <= 1000:
        raise ValueError("frames per second, above 0 and up to 1000")
    return rate


def _switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("0 or 1")
    return text == "1"


def _format(text: str) -> PixelFormat:
    if text not in _FORMATS:
        raise ValueError(f"one of {', '.join(_FORMATS)}")
    return _FORMATS[text]


def _at_size(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d+):(\d{1,5})x(\d{1,5})", text)
    if match is None:
        raise ValueError("FRAME:WIDTHxHEIGHT")
    return int(match[1]), int(match[2]), int(match[3])


def _at_seconds(text: str) -> tuple[int, float]:
    match = re.fullmatch(r"(\d+):(\d+(?:\.\d+)?)", text)
    if match is None:
        raise ValueError("FRAME:SECONDS")
    return int(match[1]), float(match[2])


def _range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        raise ValueError("FIRST:END")
    return int(match[1]), int(match[2])


_OPTIONS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "objects": ("objects", _count),
    "seed": ("seed", _count),
    "frames": ("frames", _count),
    "format": ("pixel_format", _format),
    "overlap": ("overlap", _switch),
    "freeze": ("freeze", _count),
    "freeze_pts": ("freeze_pts", _count),
    "resize": ("resize", _at_size),
    "stall": ("stall", _at_seconds),
    "hang": ("hang", _at_seconds),
    "fail": ("fail", _count),
    "corrupt": ("corrupt", _range),
}


def _known() -> str:
    return f"known are {', '.join(_OPTIONS)}"
