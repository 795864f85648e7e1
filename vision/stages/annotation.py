"""`draw_events` draws events on a snapshot. `FrameAnnotator` draws a complete result on a frame."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from vision.config.analytics import CameraAnalytics
from vision.config.privacy import CameraPrivacy
from vision.config.rules import RULE
from vision.drawing.overlay import Overlay, class_color
from vision.drawing.privacy import PrivacyFilter
from vision.types import Event, FrameMeta, Result, Tracks


def draw_events(image: NDArray[np.uint8], result: Result, sections: Mapping[str, CameraAnalytics]) -> None:
    """Draw the object, the line or zone, and the kind of each event in `result`, and the time of the frame.

    If an event, such as crowding, is not about one object, draw the boxes of all objects. `image` is (H, W, 3) BGR.
    `sections` contains the lines and zones, by camera id.
    """
    overlay = Overlay(image)
    section = sections.get(result.meta.camera_id)
    if section is not None:
        _draw_analytics(overlay, _places(section, result.events), result)
    _draw_objects(overlay, result)
    overlay.banner(_time(result.meta), ", ".join(_title(event) for event in result.events))


class FrameAnnotator:
    """Annotator that draws all objects of a result, all lines and zones with their counts, and the time."""

    def __init__(
        self,
        sections: Mapping[str, CameraAnalytics],
        class_names: Sequence[str],
        privacy: Mapping[str, CameraPrivacy] = MappingProxyType({}),
    ) -> None:
        """Create the annotator.

        Args:
            sections: configured lines and zones, by camera id.
            class_names: class names of the model, by class id.
            privacy: areas to mask and classes of objects to blur, by camera id.
        """
        # The ground points matter only during the setup of a camera.
        without_ground = {"ground": None}
        self._sections = {name: section.model_copy(update=without_ground) for name, section in sections.items()}
        self._class_names = tuple(class_names)
        self._privacy = PrivacyFilter(privacy, class_names)

    def draw(self, image: NDArray[np.uint8], result: Result) -> None:
        """Apply the privacy settings of the camera to `image`, and draw `result` on the image.

        `image` is (H, W, 3) BGR, and has the size of the frame.
        """
        camera_id, objects = result.meta.camera_id, result.objects
        self._privacy.fill(image, camera_id, (image.shape[1], image.shape[0]))
        self._privacy.blur(image, camera_id, objects.boxes_xyxy, objects.class_ids)
        overlay = Overlay(image)
        # The banner comes first, so that names and labels do not cover it.
        overlay.banner(_time(result.meta), f"{len(result.objects)} objects")
        section = self._sections.get(camera_id)
        if section is not None:
            _draw_analytics(overlay, section, result)
        colors = [class_color(class_id) for class_id in objects.class_ids.tolist()]
        overlay.objects(objects.boxes_xyxy, self._labels(result), colors, objects.shapes)

    def _labels(self, result: Result) -> list[str]:
        objects = result.objects
        names = [self._class_names[class_id] for class_id in objects.class_ids.tolist()]
        if not isinstance(objects, Tracks):
            return [f"{name} {score:.2f}" for name, score in zip(names, objects.scores.tolist(), strict=True)]
        labels = []
        for name, track_id in zip(names, objects.track_ids.tolist(), strict=True):
            attributes = result.attributes.get(track_id, ())
            labels.append(" ".join([name, str(track_id), *(attribute.class_name for attribute in attributes)]))
        return labels


def _places(section: CameraAnalytics, events: Sequence[Event]) -> CameraAnalytics:
    """Return a copy of `section` that contains only the lines and zones in which `events` happened."""
    names = {str(event.data.get("place", event.name)) for event in events}
    lines = tuple(line for line in section.lines if line.name in names)
    zones = tuple(zone for zone in section.zones if zone.name in names)
    return section.model_copy(update={"lines": lines, "zones": zones, "ground": None})


def _draw_analytics(overlay: Overlay, section: CameraAnalytics, result: Result) -> None:
    counts = result.counts
    overlay.analytics(section, crossed=counts.lines if counts else {}, inside=counts.occupancy if counts else {})


def _draw_objects(overlay: Overlay, result: Result) -> None:
    if not isinstance(result.objects, Tracks):
        return
    labels = {event.track_id: str(event.data.get("class", event.track_id)) for event in result.events}
    everything = None in labels
    tracks = result.objects
    rows = [row for row, track_id in enumerate(tracks.track_ids.tolist()) if everything or track_id in labels]
    overlay.objects(
        tracks.boxes_xyxy[rows],
        [labels.get(int(tracks.track_ids[row]), "") for row in rows],
        [class_color(int(tracks.class_ids[row])) for row in rows],
        None if tracks.shapes is None else tracks.shapes.take(np.array(rows, np.intp)),
    )


def _time(meta: FrameMeta) -> str:
    seconds, ns = divmod(meta.captured_utc_ns, 1_000_000_000)
    return f"{meta.camera_id}  {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(seconds))}.{ns // 1_000_000:03d} UTC"


def _title(event: Event) -> str:
    if event.kind == RULE:
        return f"{event.name}: {event.data.get('when', '')}"
    direction = event.data.get("direction", event.data.get("phase"))
    return f"{event.name}: {event.kind}{f' {direction}' if direction not in (None, 'instant') else ''}"
