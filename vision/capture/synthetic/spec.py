"""The address of a synthetic camera in camera.yaml, such as ``synthetic:768x576@30?objects=5&seed=1``.

Size, rate and options are optional:

===========  =====================  ==================================================================================
option       example                meaning
===========  =====================  ==================================================================================
objects      ``5``                  rectangles in each frame; default: 3, or fewer in a small frame
seed         ``1``                  seed of their sizes, colours and paths
frames       ``100``                number of frames; default: no end
format       ``nv12``               pixel format; default: the detector's preferred format
overlap      ``1``                  objects may overlap
freeze       ``50``                 repeat this frame from here on
freeze_pts   ``50``                 repeat the presentation time of this frame from here on
resize       ``50:320x240``         change the frame size at frame 50
stall        ``50:3``               pause for 3 s before frame 50
hang         ``50:3``               as ``stall``, inside a call that cannot be interrupted
fail         ``50``                 fail at frame 50
corrupt      ``50:60``              mark frames 50 to 59 as damaged
===========  =====================  ==================================================================================

Objects follow `vision.test_pattern`, so that the fake detector finds all of them. `SyntheticSource.truth` returns
their boxes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, get_args

from vision.errors import SourceError
from vision.types import PixelFormat

_FORM: Final = re.compile(
    r"synthetic:(?:(?P<width>\d{1,5})x(?P<height>\d{1,5}))?(?:@(?P<fps>[\d.]{1,8}))?(?:\?(?P<query>.*))?"
)
_EXAMPLE: Final = "synthetic:768x576@30?objects=5&seed=1"
_FORMATS: Final[dict[str, PixelFormat]] = {name: name for name in get_args(PixelFormat)}


@dataclass(frozen=True, slots=True)
class SyntheticSpec:
    """A parsed ``synthetic:`` address. Faults name the frame at which they begin."""

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
        """Parse the address in camera.yaml.

        Raises:
            SourceError: the address is invalid. The text names the expected form.
        """
        match = _FORM.fullmatch(source)
        if match is None:
            raise SourceError(f"expected {_EXAMPLE}, got {source!r}", code="synthetic-address")
        values: dict[str, Any] = {}
        if match["width"]:
            values.update(width_px=int(match["width"]), height_px=int(match["height"]))
        if match["fps"]:
            values["fps"] = _value("fps", match["fps"], _rate)
        for option in filter(None, (match["query"] or "").split("&")):
            key, _, text = option.partition("=")
            if key not in _OPTIONS:
                near = get_close_matches(key, _OPTIONS, 1)
                raise SourceError(
                    f"synthetic: unknown option {key!r}",
                    hint=f"did you mean {near[0]}?" if near else f"options: {', '.join(_OPTIONS)}",
                    code="synthetic-address",
                )
            name, convert = _OPTIONS[key]
            values[name] = _value(key, text, convert)
        return SyntheticSpec(**values)


def _value(key: str, text: str, convert: Callable[[str], Any]) -> Any:
    try:
        return convert(text)
    except ValueError as error:
        raise SourceError(
            f"synthetic: {key}: expected {error}, got {text!r}", hint=f"example: {_EXAMPLE}", code="synthetic-address"
        ) from None


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
