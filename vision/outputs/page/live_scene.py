"""The content of the live view: the lines, zones, and masks of each camera, and the objects in each frame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from vision.config import AppConfig
from vision.config.analytics import CameraAnalytics
from vision.config.privacy import CameraPrivacy
from vision.drawing.skeleton import drawn_keypoints
from vision.messaging.message_fields import MaskOfObject
from vision.messaging.schema import DetectedObject, DetectionsMessage

_MASK_COLUMNS: Final = 100
"""Maximum number of columns, approximately, in which run lengths of a mask are drawn, because a path can be long."""

Points: TypeAlias = Sequence[Sequence[float]]
"""The x and y of successive points."""

_STYLES: Final = {
    "mask": {"fill": "#000"},
    "zone": {"stroke": "#78a0ff", "fill": "#78a0ff2e", "width": 1},
    "line": {"stroke": "#ffe13c", "width": 2},
}
"""Colors in the form of CSS. Widths of strokes are multiples of the thinnest stroke."""


class LiveSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The part of the configuration that the live view needs. All values can be encoded as JSON.

    `analytics` and `privacy` contain the sections by camera id.
    """

    packets: tuple[str, ...] = ()  # addresses of the packet sockets
    analytics: dict[str, dict[str, Any]] = {}
    privacy: dict[str, dict[str, Any]] = {}

    @classmethod
    def of(cls, config: AppConfig, packets: tuple[str, ...]) -> LiveSettings:
        """Return the settings of a configuration. `packets` are the addresses of the packet sockets."""
        return cls(packets=packets, analytics=_dumped(config.analytics), privacy=_dumped(config.privacy))

    def privacy_sections(self) -> dict[str, CameraPrivacy]:
        """Return the sections of `privacy` that contain masks or hidden classes, by camera id."""
        sections = {camera: CameraPrivacy.model_validate(section) for camera, section in self.privacy.items()}
        return {camera: section for camera, section in sections.items() if section.masks or section.blur}


def _dumped(sections: Mapping[str, CameraAnalytics] | Mapping[str, CameraPrivacy]) -> dict[str, dict[str, Any]]:
    return {camera: section.model_dump(mode="json") for camera, section in sections.items()}


def scene(analytics: Mapping[str, Any] | None, privacy: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the masks, zones, and lines of a camera, in the order in which they are drawn, as dictionaries.

    In each dictionary, ``path`` is the outline, and ``at`` is the position of the name. Both are in fractions of the
    frame if ``relative`` is True, and otherwise in pixels. If ``moves`` is True, the shape follows the view of a camera
    that was moved. ``key``, such as ``line NAME``, is the key of the shape's text in the record ``counts``.
    """
    places, hidden = analytics or {}, privacy or {}
    zones, lines = places.get("zones", ()), places.get("lines", ())
    return {
        "shapes": [
            *(_shape("mask", "", [mask], hidden) for mask in hidden.get("masks", ())),
            *(_shape("zone", zone["name"], [zone["polygon"], *(zone.get("holes") or ())], places) for zone in zones),
            *(_shape("line", line["name"], [line["points"]], places) for line in lines),
        ]
    }


def _shape(kind: str, name: str, rings: Sequence[Points], section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mask, zone, or line (`kind`) as a dictionary, as `scene` describes it.

    `rings` are its outlines, in the units of `section`, which is a section of `analytics` or `privacy`.
    """
    units = section.get("units", "pixels")
    part = 100 if units == "percent" else 1
    scaled = [[(x / part, y / part) for x, y in ring] for ring in rings]
    return {
        "key": f"{kind} {name}",
        "name": name,
        "moves": kind != "mask",
        "relative": units != "pixels",
        "path": _path(scaled),
        "at": scaled[0][0],
        "style": _STYLES[kind],
    }


def drawing(message: DetectionsMessage) -> dict[str, Any]:
    """Return the drawing of the live view on a frame: the text of each object, and its paths with their styles.

    The paths are those of the pixels, the outline, and the keypoints of the object. `foot` is the bottom center of the
    object, through which its trail passes.
    """
    return {
        "epoch": message.epoch,
        "frame": message.frame,
        "width": message.width,
        "height": message.height,
        "objects": [_drawn(each) for each in message.objects],
    }


def _drawn(found: DetectedObject) -> dict[str, Any]:
    left, top, right, bottom = found.box
    names = [found.class_name] if found.track_id is None else [found.class_name, str(found.track_id)]
    hue = round(found.class_id * 137.5 + 200) % 360  # classes differ by the golden angle
    color = f"hsl({hue} 90% 70%)"
    outline = f"M{left} {top}H{right}V{bottom}H{left}Z" if found.corners is None else _path([found.corners])
    paths: list[tuple[str, Mapping[str, Any]]] = [(outline, {"stroke": color, "width": 1.5})]
    if found.mask is not None:
        paths.insert(0, (_mask_path(found.mask, right - left), {"fill": f"hsl({hue} 90% 70% / 0.4)"}))
    if found.keypoints is not None:
        paths += _keypoint_paths(found.keypoints, color)
    drawn: dict[str, Any] = {
        "color": color,
        "text": " ".join([*names, *(each.class_name for each in found.attributes or ())]),
        "at": (left, top),
        "paths": paths,
    }
    if found.track_id is not None:
        drawn |= {"id": found.track_id, "foot": ((left + right) / 2, bottom)}
    return drawn


def _keypoint_paths(points: Sequence[tuple[float, float, float]], color: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the SVG paths of an object's keypoints and of the limbs between them, each with its style."""
    dots, limbs = drawn_keypoints([score for _, _, score in points])
    lines = "".join("M{} {}L{} {}".format(*points[first][:2], *points[second][:2]) for first, second in limbs)
    short = "".join("M{} {}h.01".format(*points[dot][:2]) for dot in dots)  # a dot, because the ends are round
    return [(lines, {"stroke": color, "width": 1.5}), (short, {"stroke": color, "width": 5})]


def _mask_path(mask: MaskOfObject, width_px: float) -> str:
    """Return an SVG path that encloses the pixels of an object's mask. `width_px` is the width of the object's box."""
    if mask.polygons is not None:
        return _path(mask.polygons)
    if mask.size is None or mask.counts is None:
        return ""
    height, step = mask.size[0], max(1, round(width_px / _MASK_COLUMNS))
    parts, start = [], 0
    for number, count in enumerate(mask.counts):
        end = start + count
        if number % 2 and count:  # a run inside the object, which can continue in the next columns
            for column in range(start // height, (end - 1) // height + 1):
                if column % step == 0:
                    top = max(start - column * height, 0)
                    parts.append(f"M{column} {top}h{step}V{min(end - column * height, height)}h-{step}Z")
        start = end
    return "".join(parts)


def _path(rings: Iterable[Points]) -> str:
    """Return closed rings of points as the path of an SVG, such as "M0 0L1 0L1 1Z"."""
    return "".join("M" + "L".join(f"{x} {y}" for x, y in ring) + "Z" for ring in rings)
