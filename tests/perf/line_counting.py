"""Comparison of this project's lines with `LineZone` of the package `supervision`, on the same hostile tracks.

    python -m tests.perf.line_counting [--tracks 20000]

The command prints the numbers of counted, invented, and missed crossings of both according to
`tests.soak.hostile_tracks`, and their times in seconds. If `supervision` is not installed, only this project is
measured. The measurement uses `LineZone` with two settings. An object has crossed when all four corners of its box have
crossed (the default), or when the bottom center of the box has crossed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import time
from typing import Any

import numpy as np

from tests.soak.hostile_tracks import CONFIG, LINES, TRACKS, Batch, Faults, bounds, make_batch, run_batch


def run_supervision(batch: Batch, anchors: str) -> tuple[np.ndarray[Any, np.dtype[np.int64]], float]:
    """Return the crossings (N, L, 2) that `LineZone` counts, and the elapsed time in seconds."""
    sv: Any = importlib.import_module("supervision")
    options = {} if anchors == "corners" else {"triggering_anchors": [sv.Position.BOTTOM_CENTER]}
    zones = [sv.LineZone(*(sv.Point(*point) for point in line.points), **options) for line in CONFIG.lines]
    counted = np.zeros((TRACKS, len(LINES), 2), np.int64)
    began = time.perf_counter()
    for seen, boxes in zip(batch.seen, batch.boxes_xyxy, strict=True):
        ids = np.flatnonzero(seen)
        found = sv.Detections(xyxy=boxes[ids], tracker_id=ids, class_id=np.zeros(len(ids), int))
        for line, zone in enumerate(zones):
            to_left, to_right = zone.trigger(found)  # `in` of this package is from right to left
            counted[ids[to_right], line, 0] += 1
            counted[ids[to_left], line, 1] += 1
    return counted, time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.perf.line_counting")
    parser.add_argument("--tracks", type=int, default=20_000)
    tracks = parser.parse_args().tracks
    rng, own, seconds = np.random.default_rng(0), Faults(), 0.0
    names = ("corners", "bottom-center") if importlib.util.find_spec("supervision") else ()
    others = {name: {"crossings": 0, "invented": 0, "missed": 0, "seconds": 0.0} for name in names}
    while own.tracks < tracks:
        batch = make_batch(rng)
        began = time.perf_counter()
        run_batch(batch, own)
        seconds += time.perf_counter() - began
        limits = bounds(batch)
        for name, sums in others.items():
            counted, elapsed_s = run_supervision(batch, name)
            sums["crossings"] += int(counted.sum())
            sums["invented"] += int(np.maximum(counted - limits.most, 0).sum())
            sums["missed"] += int(np.maximum(limits.least - counted, 0).sum())
            sums["seconds"] += elapsed_s
    result = {"vision": {**vars(own), "seconds": seconds}, "supervision": others}
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
