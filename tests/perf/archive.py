"""Measure the size of the archive of a camera-day, and the time of `vision whatif` for it.

python -m tests.perf.archive [--seeds 12] [--hours 24]

The traffic is that of two simulated scenes with people in one frame, which are about 10 objects, at 10 frames/s with
irregular intervals. The bytes per row are measured on different traffic for the whole time (20 minutes with 8 seeds),
because repeated traffic would compress too well. For the time, this traffic is repeated until it fills the hours.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec.structs import replace

from tests.archive_simulation import START_UTC_NS, Recorder, Site, detections_of, live_results, site
from vision.config import AppConfig, CameraConfig
from vision.evaluation.simulation.truth import class_names
from vision.evaluation.whatif.rejudge import Judge, rejudge
from vision.outputs.archive.compaction import compact
from vision.outputs.archive.reader import Archive
from vision.outputs.archive.tables import archive_files
from vision.stages.analytics import TrackStage
from vision.types import Detections, FrameMeta, Result, Tracks

PAIRS: Final = (("plaza", "groups"), ("waiting", "parking"))
FRAMES_PER_DAY: Final = 864_000
OBJECTS: Final = 10
REPEATS: Final = 3  # of each measurement of time, of which the least counts
_JITTER_NS: Final = 1_500_000  # standard deviation of arrival times
_STEP_NS: Final = 100_000_000


def together(first: Site, second: Site) -> Iterator[Detections]:
    """Yield the detections of two scenes as those of one camera."""
    for (_, some), (_, others) in zip(detections_of(first), detections_of(second), strict=False):
        scores = np.concatenate([some.scores, others.scores])
        order = np.argsort(-scores, kind="stable")
        boxes = np.concatenate([some.boxes_xyxy, others.boxes_xyxy])
        classes = np.concatenate([some.class_ids, others.class_ids])
        yield Detections(boxes[order], scores[order], classes[order])


def traffic(seeds: int) -> tuple[Site, list[Result]]:
    """Return a camera, and the live results of its traffic."""
    rng, track, index = np.random.default_rng(1), TrackStage(score=0.35, class_names=class_names()), 0
    base = site("gate", "waiting", 0)
    found: list[tuple[FrameMeta, Detections]] = []
    for seed in range(seeds):
        for names in PAIRS:
            for detections in together(*(site("gate", name, seed) for name in names)):
                after_ns = index * _STEP_NS + round(abs(rng.normal(0.0, _JITTER_NS)))
                times = 10**15 + after_ns, START_UTC_NS + after_ns
                found.append((FrameMeta("gate", index, 0, *times, 1280, 720), detections))
                index += 1
    return base, list(live_results(base, found, track))


def stored(folder: Path, results: list[Result]) -> dict[str, int]:
    """Store results in an archive. Return the size of each table in bytes."""
    recorder = Recorder(folder)
    for result in results:
        recorder.add(result)
    recorder.close()
    compact(folder, START_UTC_NS // 1000 + 10**12, keep_days=10_000, max_mb=1_000_000)
    return {file.table: file.path.stat().st_size for file in archive_files(folder)}


def repeated(results: list[Result], frames: int) -> Iterator[Result]:
    """Yield results for `frames` frames, with new track ids in each repetition."""
    span_ns, last = len(results) * _STEP_NS, max(max(tracks_of(each).track_ids, default=0) for each in results)
    for number in range(frames):
        again, at = divmod(number, len(results))
        meta, tracks = results[at].meta, tracks_of(results[at])
        captured_ns, utc_ns = meta.captured_ns + again * span_ns, meta.captured_utc_ns + again * span_ns
        meta = replace(meta, index=number, captured_ns=captured_ns, captured_utc_ns=utc_ns)
        tracks = replace(tracks, track_ids=tracks.track_ids + again * last)
        yield replace(results[at], meta=meta, objects=tracks, events=(), counts=None)


def tracks_of(result: Result) -> Tracks:
    assert isinstance(result.objects, Tracks)
    return result.objects


def measure(seeds: int, hours: float) -> dict[str, Any]:
    """Return the measurements."""
    base, results = traffic(seeds)
    objects = sum(len(result.objects) for result in results)
    with tempfile.TemporaryDirectory() as folder:
        began_s = time.process_time()
        bytes_of = stored(Path(folder), results)
        store_s = time.process_time() - began_s
    per_row = bytes_of["tracks"] / objects
    per_frame = sum(size for table, size in bytes_of.items() if table != "tracks") / len(results)
    frames = round(FRAMES_PER_DAY * hours / 24)
    config = AppConfig(cameras=(CameraConfig(id="gate", source="synthetic:"),), analytics={"gate": base.section})
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder))
        for result in repeated(results, frames):
            recorder.add(result)
        recorder.close()
        compact(Path(folder), START_UTC_NS // 1000 + 12 * 3_600_000_000, keep_days=10_000, max_mb=1_000_000)
        judge = Judge(config, "gate", class_names())
        judgment, cpu_s = rejudge(Archive(Path(folder)), judge, "gate", 0, 1 << 61), math.inf
        one_by_one_s = math.inf
        for _ in range(REPEATS):
            began_s = time.process_time()
            rejudge(Archive(Path(folder)), judge, "gate", 0, 1 << 61)
            cpu_s = min(cpu_s, time.process_time() - began_s)
            began_s = time.process_time()
            stages = judge.stages()
            for archived in Archive(Path(folder)).frames("gate", 0, 1 << 61):
                stages(archived.result)
            one_by_one_s = min(one_by_one_s, time.process_time() - began_s)
    assert judgment.frames == frames
    return {
        "frames_measured": len(results),
        "objects_per_frame": round(objects / len(results), 2),
        "bytes_per_track_row": round(per_row, 3),
        "bytes_per_frame_besides": round(per_frame, 3),
        "mb_per_camera_day": round((OBJECTS * per_row + per_frame) * FRAMES_PER_DAY / 1e6, 1),
        "storing_and_compressing_cpu_s_per_camera_day": round(store_s * FRAMES_PER_DAY / len(results)),
        "whatif_frames": frames,
        "whatif_events": len(judgment.events),
        "whatif_cpu_s_per_camera_day": round(cpu_s * FRAMES_PER_DAY / frames, 1),
        "one_by_one_cpu_s_per_camera_day": round(one_by_one_s * FRAMES_PER_DAY / frames, 1),
        "speedup_over_frames_one_by_one": round(one_by_one_s / cpu_s, 2),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.perf.archive")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--hours", type=float, default=1.0)
    arguments = parser.parse_args()
    sys.stdout.write(json.dumps(measure(arguments.seeds, arguments.hours), indent=2) + "\n")
