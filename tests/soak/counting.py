"""Simulate one day of traffic with tracker and analytics. Counts must be exact, ids unique, and memory constant.

python -m tests.soak.counting [--hours 24] [--fps 5]
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.soak.traffic import ANALYTICS, CLASS_NAMES, HEIGHT_PX, WIDTH_PX, Traffic
from vision.analytics.camera_analytics import Analytics
from vision.analytics.tracker import Tracker
from vision.state.counters import CameraCounters
from vision.state.database import StateDatabase


@dataclass
class Counted:
    """Results of one run, and the traffic of the run."""

    traffic: Traffic
    frames: int = 0
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)  # kind, phase
    ids: int = 0  # distinct
    reused: int = 0  # ids that reappeared, or that two objects shared
    most_tracks: int = 0
    most_remembered: int = 0
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    occupancy: int = 0
    resident_mib: list[float] = field(default_factory=list)  # every simulated hour


def count(traffic: Traffic, counters: CameraCounters | None = None) -> Counted:
    """Process all frames of the traffic with a tracker and analytics. Return the results."""
    tracker = Tracker()
    analytics = Analytics(ANALYTICS, "road", CLASS_NAMES, WIDTH_PX, HEIGHT_PX, counters=counters)
    counted = Counted(traffic)
    highest, next_sample_s = 0, 0.0
    previous: set[int] = set()
    for frame in traffic:
        tracks = tracker.update(frame.detections, frame.captured_ns)
        now = set(tracks.track_ids.tolist())
        new = now - previous - {i for i in now if i <= highest}
        counted.reused += len(tracks) - len(now)
        counted.ids += len(new)
        highest = max(highest, *now) if now else highest
        previous = now
        for event in analytics.update(tracks, frame.captured_ns):
            counted.kinds[event.kind, event.data["phase"]] += 1
        counted.frames += 1
        counted.most_tracks = max(counted.most_tracks, len(tracker._ids))
        counted.most_remembered = max(counted.most_remembered, len(analytics._objects.table.ids))
        if frame.captured_ns * 1e-9 >= next_sample_s:
            counted.resident_mib.append(_resident_mib())
            next_sample_s += 3600.0
    counts = analytics.counts()
    counted.counts = {name: dict(values) for name, values in (*counts.lines.items(), *counts.zones.items())}
    counted.occupancy = counts.occupancy["middle"]
    return counted


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def differences(counted: Counted) -> list[str]:
    """Return a text for each count that differs from the true count."""
    truth = counted.traffic.truth
    expected: dict[str, Counter[str]] = {"west": Counter(), "east": Counter(), "middle": Counter()}
    for (line, direction, class_name), number in truth.crossings.items():
        expected[line] += Counter({direction: number, f"{direction}:{class_name}": number})
    for class_name, number in truth.entered.items():
        for key in ("entered", "left"):
            expected["middle"] += Counter({key: number, f"{key}:{class_name}": number})
    found = [
        f"{name}.{key}: counted {counted.counts[name].get(key, 0)}, there were {values[key]}"
        for name, values in expected.items()
        for key in sorted({*values, *counted.counts[name]})
        if counted.counts[name].get(key, 0) != values[key]
    ]
    if counted.ids != truth.objects:
        found.append(f"{counted.ids} ids for {truth.objects} objects")
    if counted.reused:
        found.append(f"{counted.reused} ids were used for two objects")
    if counted.occupancy:
        found.append(f"{counted.occupancy} objects in the zone after all have left")
    dwelling = [(phase, counted.kinds["dwelling", phase]) for phase in ("begin", "end")]
    found += [
        f"dwelling {phase}: {number}, there were {truth.dwellers}"
        for phase, number in dwelling
        if number != truth.dwellers
    ]
    return found


def measure(hours: float = 24.0, fps: float = 5.0) -> dict[str, Any]:
    """Return the figures of one run. `differences` is empty if all counts are exact."""
    traffic = Traffic(hours * 3600.0, fps=fps)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with closing(StateDatabase(Path(folder))) as state:
            counted = count(traffic, state.counters("road"))
        seconds = time.perf_counter() - started
        with closing(StateDatabase(Path(folder))) as state:
            counters = state.counters("road")
            stored = {name: {key: counters[name, key] for key in values} for name, values in counted.counts.items()}
    later = counted.resident_mib[1:] or counted.resident_mib
    return {
        "simulated_hours": hours,
        "frames": counted.frames,
        "objects": traffic.truth.objects,
        "crossings": sum(traffic.truth.crossings.values()),
        "differences": differences(counted),
        "stored_equals_counts": stored == counted.counts,
        "most_tracks": counted.most_tracks,
        "most_remembered": counted.most_remembered,
        "resident_mib_after_first_hour": later[0],
        "resident_mib_at_end": later[-1],
        "seconds": seconds,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.soak.counting")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--fps", type=float, default=5.0)
    arguments = parser.parse_args()
    figures = measure(arguments.hours, arguments.fps)
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    sys.exit(1 if figures["differences"] or not figures["stored_equals_counts"] else 0)
