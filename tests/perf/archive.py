"""Measure the size of an archive and the CPU time of `vision whatif`, both per day of one camera.

python -m tests.perf.archive [--seeds 8] [--frames 12000] [--detections FOUND.jsonl] [--truth gt.txt] [--save MACHINE]

Each kind of tracks comes from detections at 10 frames/s with irregular intervals:

* `simulated`: two simulated scenes in one frame, with about 12 people in total.
* `detected`: the detections of a video, repeated with noise until there are enough frames. `vision run CONFIG --offline
  --record FOUND.jsonl` writes them, with the pipeline `detect`.
* `labeled`: labeled boxes in the format of MOTChallenge, repeated with noise and with missing detections.

No part of the traffic repeats exactly, because repeated traffic would compress too well.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow
import pyarrow.parquet as pq

from tests.archive_simulation import START_UTC_NS, Recorder, Site, detections_of, live_results, site
from tests.perf.results import PerfResult, save
from tests.rejudge import rejudge
from vision.config import AppConfig, CameraAnalytics, CameraConfig
from vision.config.analytics import LineConfig, ZoneConfig
from vision.config.rules import RuleConfig
from vision.evaluation.simulation.truth import class_names
from vision.evaluation.whatif.judge import Judge
from vision.outputs.archive.compaction import compact
from vision.outputs.archive.reader import Archive
from vision.outputs.archive.tables import archive_files
from vision.stages.analytics import TrackStage
from vision.types import Detections, FrameMeta, Result

PAIRS: Final = (("plaza", "groups"), ("waiting", "parking"))
SIMULATED_PX: Final = (1280, 720)
VIDEO_PX: Final = (768, 576)  # of PETS09-S2L1
FRAMES_PER_DAY: Final = 864_000
OBJECTS: Final = 10
REPEATS: Final = 2  # number of measurements of each time, of which the shortest counts
_JITTER_NS: Final = 1_500_000  # standard deviation of arrival times
_STEP_NS: Final = 100_000_000
_DETECTED_NOISE_PX: Final = 1.0  # in addition to the noise of the detector
_LABEL_NOISE_PX: Final = 1.5
_LABEL_MISSES: Final = 0.1  # fraction of boxes that are not detected


def together(first: Site, second: Site) -> Iterator[Detections]:
    """Yield the detections of two scenes, frame by frame, as if one camera saw both. Stop with the shorter scene."""
    for (_, some), (_, others) in zip(detections_of(first), detections_of(second), strict=False):
        scores = np.concatenate([some.scores, others.scores])
        order = np.argsort(-scores, kind="stable")
        boxes = np.concatenate([some.boxes_xyxy, others.boxes_xyxy])
        classes = np.concatenate([some.class_ids, others.class_ids])
        yield Detections(boxes[order], scores[order], classes[order])


def simulated(seeds: int) -> Iterator[Detections]:
    for seed in range(seeds):
        for names in PAIRS:
            yield from together(*(site("gate", name, seed) for name in names))


def noisy(video: Sequence[Detections], frames: int, noise_px: float, misses: float) -> Iterator[Detections]:
    """Repeat a video up to `frames` frames. Add different noise to each frame, and omit some of its detections.

    Args:
        noise_px: standard deviation of the noise of each coordinate.
        misses: fraction of the detections to omit.
    """
    rng = np.random.default_rng(7)
    limits = np.array([*VIDEO_PX, *VIDEO_PX], np.float32)
    for number in range(frames):
        found = video[number % len(video)]
        noise = rng.normal(0.0, noise_px, found.boxes_xyxy.shape).astype(np.float32)
        boxes = np.clip(found.boxes_xyxy + noise, np.float32(0.0), limits)
        kept = (rng.random(len(boxes)) >= misses) & (boxes[:, 2:] - boxes[:, :2] > 2.0).all(axis=1)
        yield Detections(boxes[kept], found.scores[kept], found.class_ids[kept])


def recorded_detections(path: Path) -> list[Detections]:
    """Return the detections in a file that ``vision run --record`` wrote."""
    frames = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        Detections(
            np.array([each["box"] for each in frame["objects"]], np.float32).reshape(-1, 4),
            np.array([each["score"] for each in frame["objects"]], np.float32),
            np.array([each["class_id"] for each in frame["objects"]], np.int32),
        )
        for frame in frames
        if "objects" in frame
    ]


def labeled_boxes(path: Path) -> list[Detections]:
    rows = np.loadtxt(path, delimiter=",")
    found = []
    for frame in range(1, int(rows[:, 0].max()) + 1):
        left_top, size = rows[rows[:, 0] == frame][:, 2:4], rows[rows[:, 0] == frame][:, 4:6]
        boxes = np.concatenate([left_top, left_top + size], axis=1).astype(np.float32)
        found.append(Detections(boxes, np.full(len(boxes), 0.8, np.float32), np.zeros(len(boxes), np.int32)))
    return found


def tracked(
    detections: Iterator[Detections], section: CameraAnalytics | None, size_px: tuple[int, int]
) -> list[Result]:
    """Track these detections of a camera, and return its live results.

    If `section` is None, the analytics are those of a simulated scene.
    """
    rng, track = np.random.default_rng(1), TrackStage(score=0.35, class_names=class_names())
    base = site("gate", "waiting", 0)
    found: list[tuple[FrameMeta, Detections]] = []
    for index, each in enumerate(detections):
        after_ns = index * _STEP_NS + round(abs(rng.normal(0.0, _JITTER_NS)))
        found.append((FrameMeta("gate", index, 0, 10**15 + after_ns, START_UTC_NS + after_ns, *size_px), each))
    return list(live_results(base, found, track, section))


def sections(size_px: tuple[int, int]) -> dict[str, AppConfig]:
    """Return three configurations by name: with one line, with one line and zone, and with four of each and rules."""
    width, height = size_px
    starts = ((0.0, 0.15), (0.2, 0.35), (0.4, 0.55), (0.7, 0.75))
    lines = [
        LineConfig(name=f"line-{at}", points=((width * x, height * 0.1), (width * (x + 0.1), height * 0.95)))
        for _, x in starts
        for at in [round(100 * x)]
    ]
    zones = [
        ZoneConfig(
            name=f"zone-{number}",
            polygon=tuple((width * (x + dx), height * y) for dx, y in ((0, 0.2), (0.3, 0.2), (0.25, 0.9), (0, 0.9))),
            dwell_s=4 if number % 2 else None,
            crowd_threshold=2 if number < 2 else None,
            crowded_for_s=1.0,
        )
        for number, (x, _) in enumerate(starts)
    ]
    rules = ("line_crossed line-15", "dwelling zone-1 for 6s", "crowded zone-0 for 5s")
    cameras = (CameraConfig(id="gate", source="synthetic:"),)
    return {
        "line": AppConfig(cameras=cameras, analytics={"gate": CameraAnalytics(lines=(lines[2],))}),
        "line_and_zone": AppConfig(
            cameras=cameras, analytics={"gate": CameraAnalytics(lines=(lines[2],), zones=(zones[3],))}
        ),
        "four_lines_and_zones": AppConfig(
            cameras=cameras,
            analytics={"gate": CameraAnalytics(lines=tuple(lines), zones=tuple(zones))},
            rules=tuple(RuleConfig(name=f"rule-{number}", when=when) for number, when in enumerate(rules)),
        ),
    }


def stored(folder: Path, results: Sequence[Result]) -> dict[str, Any]:
    """Store results in an archive. Return its size and number of events per camera-day, and the CPU time of storage."""
    began_s, recorder = time.process_time(), Recorder(folder)
    for result in results:
        recorder.add(result)
    recorder.close()
    compact(folder, START_UTC_NS // 1000 + 10**12, keep_days=10_000, max_mb=1_000_000)
    store_s = time.process_time() - began_s
    sizes = {file.table: file.path.stat().st_size for file in archive_files(folder)}
    rows = {file.table: pq.read_metadata(file.path).num_rows for file in archive_files(folder)}
    days = len(results) / FRAMES_PER_DAY
    mb = {table: size / days / 1e6 for table, size in sizes.items()}
    mb["tracks"] = OBJECTS * FRAMES_PER_DAY * sizes["tracks"] / rows["tracks"] / 1e6
    return {
        "rows": rows,
        "objects_per_frame": round(rows["tracks"] / len(results), 2),
        "bytes_per_row": {table: round(size / rows[table], 3) for table, size in sizes.items()},
        "mb_per_camera_day": {
            **{table: round(value, 2) for table, value in mb.items()},
            "all": round(sum(mb.values()), 1),
        },
        "events_per_camera_day": round(rows.get("events", 0) / days),
        "storing_and_compressing_cpu_s_per_camera_day": round(store_s / days),
    }


def judged(folder: Path, config: AppConfig, frames: int) -> dict[str, Any]:
    """Run `vision whatif` on the archive. Return the number of events and the CPU time per camera-day."""
    judge, archive, best_s = Judge(config, "gate", class_names()), Archive(folder), math.inf
    for _ in range(REPEATS):
        began_s = time.process_time()
        judgment = rejudge(archive, judge, "gate", 0, 1 << 61)
        best_s = min(best_s, time.process_time() - began_s)
    assert judgment.frames == frames
    return {
        "events_per_camera_day": round(len(judgment.events) * FRAMES_PER_DAY / frames),
        "cpu_s_per_camera_day": round(best_s * FRAMES_PER_DAY / frames, 1),
    }


def measure(kinds: dict[str, tuple[Iterator[Detections], tuple[int, int]]]) -> dict[str, Any]:
    """Measure the archive and `vision whatif` for each kind of tracks. Return the measurements by kind."""
    found: dict[str, Any] = {}
    for kind, (detections, size_px) in kinds.items():
        configs = sections(size_px)
        section = None if kind == "simulated" else configs["line_and_zone"].analytics["gate"]
        results = tracked(detections, section, size_px)
        with tempfile.TemporaryDirectory() as folder:
            found[kind] = {"frames": len(results), **stored(Path(folder), results)}
            times = {name: judged(Path(folder), config, len(results)) for name, config in configs.items()}
        found[kind]["whatif"] = times
        sys.stderr.write(f"{kind}: {json.dumps(found[kind])}\n")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.perf.archive")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--frames", type=int, default=12_000)
    parser.add_argument("--detections", type=Path)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--save", metavar="MACHINE", help="folder of tests/perf/results")
    given = parser.parse_args()
    kinds = {"simulated": (simulated(given.seeds), SIMULATED_PX)}
    if given.detections is not None:
        video = noisy(recorded_detections(given.detections), given.frames, _DETECTED_NOISE_PX, 0.0)
        kinds["detected"] = video, VIDEO_PX
    if given.truth is not None:
        kinds["labeled"] = noisy(labeled_boxes(given.truth), given.frames, _LABEL_NOISE_PX, _LABEL_MISSES), VIDEO_PX
    figures = measure(kinds)
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    if given.save is not None:
        today, cores = date.today().isoformat(), len(os.sched_getaffinity(0))
        title = "Size of a camera-day in the archive, and CPU time of `vision whatif` for it."
        note = (
            "The size of `tracks` is that of 10 objects per frame; all other values are those of the frames that were "
            "measured."
        )
        save(
            PerfResult(
                name="archive",
                title=title,
                measured_on=f"{cores} cores of {given.save}, {today}",
                date=today,
                machine=given.save,
                versions={"pyarrow": pyarrow.__version__, "numpy": np.__version__},
                commit=None,
                note=note,
                figures=figures,
            )
        )


if __name__ == "__main__":
    main()
