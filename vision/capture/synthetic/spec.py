"""The address of a synthetic camera in camera.yaml, such as ``synthetic:768x576@30?objects=5&seed=1``.

Size (default: 768x576), rate (default: 30 frames/s), and options are optional:

===========  =====================  ==================================================================================
option       example                meaning
===========  =====================  ==================================================================================
objects      ``5``                  rectangles in each frame; default: 3, or fewer in a small frame
seed         ``1``                  random seed for the sizes, colors, and paths of the rectangles
frames       ``100``                number of frames; default: no end
format       ``nv12``               pixel format; default: the detector's preferred format
overlap      ``1``                  objects may overlap
freeze       ``50``                 repeat frame 50 without end
freeze_pts   ``50``                 repeat the presentation time of frame 50 without end
resize       ``50:320x240``         change the frame size at frame 50
stall        ``50:3``               pause for 3 s before frame 50
hang         ``50:3``               like ``stall``, but in a call that cannot be interrupted
fail         ``50``                 fail at frame 50
corrupt      ``50:60``              mark frames 50 to 59 as damaged
===========  =====================  ==================================================================================

Without `overlap`, objects follow `vision.drawing.test_pattern`, so that the fake detector finds all of them.
`SyntheticSource.truth` returns their boxes.
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
_FORMATS: Final[tuple[PixelFormat, ...]] = get_args(PixelFormat)


@dataclass(frozen=True, slots=True)
class SyntheticSpec:
    """A parsed ``synthetic:`` address. Each simulated fault contains the number of the frame at which it starts."""

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
    hang: tuple[int, float] | None = None  # frame, seconds
    fail: int | None = None
    corrupt: tuple[int, int] | None = None  # first damaged frame, first intact frame after it

    @staticmethod
    def parse(source: str) -> SyntheticSpec:
        """Parse the address of a synthetic camera.

        Raises:
            SourceError: the address is invalid. The error shows the expected form.
        """
        match = _FORM.fullmatch(source)
        if match is None:
            raise _error(f"expected {_EXAMPLE}, got {source!r}")
        values: dict[str, Any] = {}
        if match["width"]:
            values.update(width_px=int(match["width"]), height_px=int(match["height"]))
        if match["fps"]:
            values["fps"] = _parse_fps(match["fps"])
        for option in filter(None, (match["query"] or "").split("&")):
            name, _, text = option.partition("=")
            if name not in _OPTIONS:
                near = get_close_matches(name, _OPTIONS, 1)
                hint = f"did you mean {near[0]}?" if near else f"options: {', '.join(_OPTIONS)}"
                raise _error(f"synthetic: unknown option {name!r}", hint)
            values["pixel_format" if name == "format" else name] = _parse_option(name, text)
        return SyntheticSpec(**values)


_OPTIONS: Final[dict[str, tuple[str, str, tuple[Callable[[str], Any], ...]]]] = {
    **dict.fromkeys(
        ("objects", "seed", "frames", "freeze", "freeze_pts", "fail"), (r"(\d+)", "a whole number", (int,))
    ),
    "format": (f"({'|'.join(_FORMATS)})", f"one of {', '.join(_FORMATS)}", (str,)),
    "overlap": ("([01])", "0 or 1", ("1".__eq__,)),
    "resize": (r"(\d+):(\d{1,5})x(\d{1,5})", "FRAME:WIDTHxHEIGHT", (int, int, int)),
    **dict.fromkeys(("stall", "hang"), (r"(\d+):(\d+(?:\.\d+)?)", "FRAME:SECONDS", (int, float))),
    "corrupt": (r"(\d+):(\d+)", "FIRST:END", (int, int)),
}
"""For each option, its form as a regular expression and in words, and the types of its groups."""


def _parse_option(name: str, text: str) -> Any:
    form, expected, types = _OPTIONS[name]
    match = re.fullmatch(form, text)
    if match is None:
        raise _error(f"synthetic: {name}: expected {expected}, got {text!r}", f"example: {_EXAMPLE}")
    values = tuple(convert(group) for convert, group in zip(types, match.groups(), strict=True))
    return values if len(values) > 1 else values[0]


def _parse_fps(text: str) -> float:
    fps = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else 0.0
    if not 0 < fps <= 1000:
        expected = "frames per second, above 0 and up to 1000"
        raise _error(f"synthetic: fps: expected {expected}, got {text!r}", f"example: {_EXAMPLE}")
    return fps


def _error(text: str, hint: str = "") -> SourceError:
    return SourceError(text, hint=hint, code="synthetic-address")
