"""Apply `vision whatif` to twenty recorded days. With the live configuration, all events must be repeated bit for bit.

python -m tests.soak.whatif_days [--days 20] [--recordings 3]

Each day has several recordings of simulated scenes with vehicles and people. The rows of the archive pass through the
encoder, the live database, and the Parquet files.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.archive_simulation import START_UTC_NS, Recorder, Site, detections_of, live_results, site
from tests.rejudge import rejudge
from vision.config import AppConfig, CameraAnalytics, CameraConfig
from vision.config.rules import RuleConfig
from vision.evaluation.simulation.scenes import SCENES
from vision.evaluation.simulation.truth import class_names
from vision.evaluation.whatif.difference import compare
from vision.evaluation.whatif.judge import Judge
from vision.outputs.archive.compaction import compact
from vision.outputs.archive.reader import Archive

DAY_S = 86_400.0


def rules_of(section: CameraAnalytics) -> tuple[RuleConfig, ...]:
    """Return a rule for the first line and a rule for the first zone of a camera."""
    lines = [RuleConfig(name="line", when=f"line_crossed {line.name}", cooldown="3s") for line in section.lines[:1]]
    zones = [RuleConfig(name="zone", when=f"dwelling {zone.name} for 6s") for zone in section.zones[:1]]
    return (*lines, *zones)


def measure(days: int, recordings: int) -> dict[str, int]:
    """Return the numbers of recordings, frames, and events, and the number of recordings whose events differ."""
    names, totals = list(SCENES), {"days": days, "recordings": 0, "frames": 0, "events": 0, "unequal": 0}
    with tempfile.TemporaryDirectory() as folder:
        sites: dict[str, Site] = {}
        for day in range(days):
            for number in range(recordings):
                camera = f"day{day}-{number}"
                one = site(camera, names[(day * recordings + number) % len(names)], day, start_s=day * DAY_S)
                one = replace(one, rules=rules_of(one.section))
                recorder = Recorder(Path(folder), instance=camera)
                for result in live_results(one, detections_of(one)):
                    recorder.add(result)
                    totals["frames"] += 1
                recorder.close()
                sites[camera] = one
        compact(Path(folder), START_UTC_NS // 1000 + int((days + 1) * DAY_S * 1e6), keep_days=1000, max_mb=100_000)
        archive = Archive(Path(folder))
        for camera, one in sites.items():
            config = AppConfig(
                cameras=(CameraConfig(id=camera, source="synthetic:"),),
                analytics={camera: one.section},
                rules=one.rules,
            )
            published = archive.events(camera, 0, 1 << 61)
            judgment = rejudge(archive, Judge(config, camera, class_names()), camera, 0, 1 << 61)
            totals["recordings"] += 1
            totals["events"] += len(published)
            totals["unequal"] += not compare(camera, published, judgment.events).equal
    return totals


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.soak.whatif_days")
    parser.add_argument("--days", type=int, default=20)
    parser.add_argument("--recordings", type=int, default=3)
    arguments = parser.parse_args()
    found = measure(arguments.days, arguments.recordings)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    sys.exit(1 if found["unequal"] or not found["events"] else 0)
