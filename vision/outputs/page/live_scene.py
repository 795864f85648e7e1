"""The lines, zones, and masks of each camera, for the live view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from vision.config import AppConfig
from vision.config.analytics import CameraAnalytics
from vision.config.privacy import CameraPrivacy


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
        """Return the sections of `privacy` of the cameras of which something is hidden, by camera id."""
        sections = {camera: CameraPrivacy.model_validate(section) for camera, section in self.privacy.items()}
        return {camera: section for camera, section in sections.items() if section.masks or section.blur}


def _dumped(sections: Mapping[str, CameraAnalytics] | Mapping[str, CameraPrivacy]) -> dict[str, dict[str, Any]]:
    return {camera: section.model_dump(mode="json") for camera, section in sections.items()}


def scene(analytics: Mapping[str, Any] | None, privacy: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the masks, zones, and lines of a camera, in the order in which they are drawn.

    A shape has the unit of its points, and rings: its points, and the holes of a zone.
    """
    places, hidden = analytics or {}, privacy or {}
    unit = places.get("units", "pixels")
    shapes = [("mask", "", hidden.get("units", "pixels"), [mask]) for mask in hidden.get("masks", ())]
    shapes += [
        ("zone", zone["name"], unit, [zone["polygon"], *(zone.get("holes") or ())]) for zone in places.get("zones", ())
    ]
    shapes += [("line", line["name"], unit, [line["points"]]) for line in places.get("lines", ())]
    return {"shapes": [dict(zip(("kind", "name", "units", "rings"), shape, strict=True)) for shape in shapes]}
