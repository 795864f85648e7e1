"""`Feet` stores where objects stand whose events differ between two configurations, for the drawing in the report."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from vision.evaluation.whatif.changes import Change
from vision.evaluation.whatif.rejudge import Box, Place
from vision.outputs.archive.reader import ArchivedEvent

Point: TypeAlias = tuple[float, float]


class Feet:
    """Positions of the objects whose events differ between two configurations: the bottom centers of their boxes.

    The positions are in the order in which `Changes` yields the differences.
    """

    def __init__(self) -> None:
        # x and y of the published event, then of the new event, in pixels; NaN if there is no object, or no known box
        self._values = array("d")

    def add(self, changes: Iterable[Change], boxes: Mapping[Place, Box]) -> None:
        """Add the positions of the objects in the next differences.

        `boxes` contains the boxes of objects in pixels, by `Place`. An object without a box there has an unknown
        position.
        """
        for change in changes:
            for event in (change.before, change.after):
                self._values.extend(_feet(event, boxes))

    def __iter__(self) -> Iterator[tuple[Point | None, Point | None]]:
        """Yield the positions of both events of each difference. An unknown position is None."""
        values = iter(self._values)
        for x1, y1, x2, y2 in zip(values, values, values, values, strict=True):
            yield None if math.isnan(x1) else (x1, y1), None if math.isnan(x2) else (x2, y2)


def _feet(event: ArchivedEvent | None, boxes: Mapping[Place, Box]) -> Point:
    box = None
    if event is not None and event.event.track_id is not None:
        box = boxes.get((event.instance, event.epoch, event.frame, event.event.track_id))
    return (math.nan, math.nan) if box is None else ((box[0] + box[2]) / 2, box[3])
