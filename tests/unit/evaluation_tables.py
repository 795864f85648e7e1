"""Small tables of boxes for evaluation tests, and exact ground truth of synthetic video."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import pytest

from vision.capture.synthetic.source import SyntheticSource
from vision.capture.synthetic.spec import SyntheticSpec
from vision.evaluation.mot import Boxes
from vision.evaluation.tracks import INSTALL

needs_trackeval = pytest.mark.skipif(find_spec("trackeval") is None, reason=f"needs TrackEval: {INSTALL}")

Row = tuple[float, ...]
"""Frame, id, left, top, width, height and, if it is not 1, the score."""


def boxes(*rows: Row) -> Boxes:
    """Convert rows to a table of boxes."""
    return Boxes.of(
        [
            (frame, object_id, x, y, x + width, y + height, score[0] if score else 1.0)
            for frame, object_id, x, y, width, height, *score in rows
        ]
    )


def random_boxes(seed: int, *, frames: int = 40, objects: int = 6, gaps: bool = True) -> tuple[Boxes, Boxes]:
    """Return a ground truth, and the output of a poor tracker with jitter, misses, false boxes, and changing ids."""
    rng = np.random.default_rng(seed)
    truth: list[Row] = []
    found: list[Row] = []
    for object_id in range(objects):
        x, y, width, height = rng.uniform(0, 300), rng.uniform(0, 200), rng.uniform(20, 40), rng.uniform(40, 80)
        speed = rng.uniform(-5, 5, 2)
        track_id = object_id + 1
        for frame in range(1, frames + 1):
            left, top = x + speed[0] * frame, y + speed[1] * frame
            truth.append((frame, object_id, left, top, width, height))
            track_id += objects * int(rng.random() < 0.05)
            if not gaps or rng.random() < 0.85:
                off = rng.normal(0, 4, 2)
                found.append((frame, track_id, left + off[0], top + off[1], width, height, rng.uniform(0.1, 1)))
    false_frames = [frame for frame in range(1, frames + 1) if rng.random() < 0.3]
    found += [(frame, 10_000, *rng.uniform(0, 200, 2), 30.0, 60.0, rng.uniform(0.1, 0.6)) for frame in false_frames]
    return boxes(*truth), boxes(*found)


def synthetic_rows(source: str, class_id: int) -> list[str]:
    """Return the objects of one class in a ``synthetic:`` source as lines of a ground-truth file.

    The address `source` must contain the parameter `frames`, which is the number of frames.
    """
    spec = SyntheticSpec.parse(source)
    camera = SyntheticSource(spec)
    rows = []
    for index in range(spec.frames or 0):
        found, class_ids = camera.truth(index)
        for object_id in np.flatnonzero(class_ids == class_id):
            x1, y1, x2, y2 = found[object_id].tolist()
            rows.append(f"{index + 1},{object_id},{x1:g},{y1:g},{x2 - x1:g},{y2 - y1:g},1,-1,-1,-1")
    return rows


def as_rows(table: Boxes) -> Sequence[Row]:
    """Return the rows of a table in the format of `tests.accuracy.average_precision`."""
    sides = table.boxes_xyxy[:, 2:] - table.boxes_xyxy[:, :2]
    columns = (table.frames, table.ids, *table.boxes_xyxy[:, :2].T, *sides.T, table.scores)
    return list(zip(*(column.tolist() for column in columns), strict=True))
