"""Tests that archived frames yield the same events, bit for bit, if they are evaluated together or one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.archive_simulation import MONOTONIC_NS, START_UTC_NS, Recorder
from tests.rejudge import rejudge
from vision.analytics.geometry import FloatArray
from vision.config import AppConfig, CameraConfig, TrackConfig
from vision.config.analytics import CameraAnalytics, GroundConfig, LineConfig, ZoneConfig
from vision.config.rules import RuleConfig
from vision.evaluation.whatif.judge import Judge
from vision.outputs.archive import rows as archive_rows
from vision.outputs.archive.reader import Archive
from vision.types import Event, FrameMeta, Result, Timing, Tracks

WIDTH, HEIGHT = 640, 480
SEEDS, FRAMES = 3, 300
RESETS = (f"{datetime.fromtimestamp(START_UTC_NS // 10**9 + 60):%H:%M}",)  # in local time, soon after the start
CLASSES = ("person", "car", "dog")


def judged_one_by_one(results: Sequence[Result], judge: Judge) -> tuple[list[Event], object]:
    events: list[Event] = []
    stages, counts = judge.stages(), None
    for result in results:
        judged = stages(result)
        events += judged.events
        counts = judged.counts
    return events, counts


# --- random scenes ----------------------------------------------------------------------------------------------------


def rounded(values: Any) -> FloatArray:
    found: FloatArray = np.rint(5 * values) / 5
    return found


class Walker:
    """Object that walks, stops, jumps, disappears, and jitters."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.size = rng.uniform(8, 160) * np.array([rng.uniform(0.3, 1), 1.0])
        self.place = rng.uniform(-20, [WIDTH + 20, HEIGHT + 20])
        self.speed = rng.normal(0, rng.choice([0, 3, 30, 150]), 2)
        self.jitter = rng.choice([0.0, 0.2, 1.0, 4.0])
        self.class_id = int(rng.integers(3))
        self.hidden_frames = 0
        self.is_known = False

    def step(self, step_s: float) -> FloatArray | None:
        """Return the box as corners (x1, y1, x2, y2), or None if the object is not detected."""
        rng = self.rng
        self.place = self.place + self.speed * step_s
        if rng.random() < 0.03:
            self.speed = rng.normal(0, rng.choice([0, 3, 30, 150]), 2)
        if rng.random() < 0.005:
            self.place = rng.uniform(0, [WIDTH, HEIGHT])
        if rng.random() < 0.02:
            self.hidden_frames = int(rng.choice([1, 3, 8, 30, 120]))
        if self.hidden_frames:
            self.hidden_frames -= 1
            return None
        middle = self.place + rng.normal(0, self.jitter, 2)
        box = rounded(np.concatenate([middle - self.size / 2, middle + self.size / 2]))
        box = np.clip(box, 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
        return box if box[2] - box[0] > 1 and box[3] - box[1] > 1 else None


def scene(seed: int, frames: int) -> Iterator[Result]:
    """Yield the tracks of random objects, with irregular times, pauses, clock jumps to the past, and new epochs."""
    rng = np.random.default_rng(seed)
    walkers = {number: Walker(rng) for number in range(1, int(rng.integers(2, 9)))}
    usual_s, now_ns, utc_ns, epoch, index = float(rng.choice([0.02, 0.1, 0.4])), MONOTONIC_NS, START_UTC_NS, 0, 0
    for _ in range(frames):
        step_s = usual_s * rng.choice([0, 1, 1, 1, 1, 1, 2]) + rng.uniform(0, 0.003)
        if rng.random() < 0.01:
            step_s += rng.choice([1.0, 3.0, 70.0])
        now_ns += round(1e9 * (step_s if rng.random() > 0.003 else -5.0))
        utc_ns += round(1e9 * step_s)
        if rng.random() < 0.004:
            epoch, index = epoch + 1, 0
            for walker in walkers.values():
                walker.is_known = False
        if rng.random() < 0.02:
            walkers[max(walkers) + 1] = Walker(rng)
        meta = FrameMeta("gate", index, epoch, now_ns, utc_ns, WIDTH, HEIGHT)
        index += 1
        yield Result(meta, tracks(rng, walkers, step_s), Timing(now_ns, now_ns, now_ns))


def tracks(rng: np.random.Generator, walkers: dict[int, Walker], step_s: float) -> Tracks:
    found, previous, hidden = [], [], []
    for number, walker in walkers.items():
        box = walker.step(step_s)
        if box is not None:
            found.append((number, walker, box))
            is_new = not walker.is_known and rng.random() < 0.9
            walker.is_known = True
            previous.append(rounded(box + rng.normal(0, 10)) if is_new else np.full(4, np.nan))
            hidden.append(rounded(rng.uniform(0, 30)) if rng.random() < 0.1 else 0.0)
    order = rng.permutation(len(found))
    boxes = np.array([found[at][2] for at in order], np.float32).reshape(-1, 4)
    return Tracks(
        boxes,
        np.full(len(found), 0.5, np.float32),
        np.array([found[at][1].class_id for at in order], np.int32),
        np.array([found[at][0] for at in order], np.int64),
        np.zeros(len(found), np.int64),
        hidden_px=np.array([hidden[at] for at in order], np.float32) if any(hidden) else None,
        previous_xyxy=np.array([previous[at] for at in order], np.float32).reshape(-1, 4),
    )


# --- random configurations --------------------------------------------------------------------------------------------

places = st.tuples(st.integers(0, WIDTH), st.integers(0, HEIGHT))
anchors = st.sampled_from(["bottom-center", "center", "top-center", "center-left"])
classes = st.sampled_from([None, ("person",), ("car", "dog")])


@st.composite
def lines(draw: st.DrawFn) -> tuple[LineConfig, ...]:
    found = []
    for number in range(draw(st.integers(0, 4))):
        start, end = draw(places), draw(places)
        if abs(start[0] - end[0]) + abs(start[1] - end[1]) > 20:
            direction = draw(st.sampled_from(["in", "out", "both"]))
            values: dict[str, Any] = {"points": (start, end), "direction": direction}
            values |= {"classes": draw(classes), "anchor": draw(anchors)}
            found.append(LineConfig(name=f"line-{number}", **values))
    return tuple(found)


@st.composite
def zones(draw: st.DrawFn) -> tuple[ZoneConfig, ...]:
    found = []
    for number in range(draw(st.integers(0, 4))):
        (left, top), width, height = draw(places), draw(st.integers(10, 500)), draw(st.integers(10, 400))
        corners = [(left, top), (left + width, top), (left + width // 2, top + height), (left, top + height)]
        values: dict[str, Any] = {
            "dwell_s": draw(st.sampled_from([None, 0.001, 0.5, 4.0])),
            "crowd_threshold": draw(st.sampled_from([None, 0, 1, 2])),
            "crowded_for_s": draw(st.sampled_from([0.0, 1.0, 3.0])),
            "classes": draw(classes),
            "anchor": draw(anchors),
        }
        found.append(ZoneConfig(name=f"zone-{number}", polygon=tuple(corners), **values))
    return tuple(found)


@st.composite
def configurations(draw: st.DrawFn) -> AppConfig:
    ground = GroundConfig(
        points=((100, 200), (540, 200), (640, 480), (0, 480)), metres=((-10, 30), (10, 30), (3, 5), (-3, 5))
    )
    section = CameraAnalytics(
        lines=draw(lines()),
        zones=draw(zones()),
        ground=draw(st.sampled_from([None, ground])),
        reset_at=draw(st.sampled_from([(), RESETS])),
    )
    rules = [f"line_crossed {line.name}" for line in section.lines[:2]]
    for zone in section.zones[:2]:
        rules.append(f"dwelling {zone.name} for {draw(st.sampled_from([4, 6]))}s" if zone.dwell_s else "")
        rules.append(
            f"crowded {zone.name} for {draw(st.sampled_from([3, 5]))}s"
            if zone.crowd_threshold is not None
            else f"zone_left {zone.name}"
        )
    cooldown = draw(st.sampled_from(["0s", "1s", "20s"]))
    return AppConfig(
        cameras=(CameraConfig(id="gate", source="synthetic:"),),
        analytics={"gate": section},
        rules=tuple(
            RuleConfig(name=f"rule-{number}", when=when, cooldown=cooldown) for number, when in enumerate(rules) if when
        ),
        track=TrackConfig(lost_s=draw(st.sampled_from([0.3, 1.5, 5.0]))),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an archive of each scene."""
    folder = tmp_path_factory.mktemp("archives")
    for seed in range(SEEDS):
        (folder / str(seed)).mkdir()
        recorder = Recorder(folder / str(seed))
        for result in scene(seed, FRAMES):
            recorder.add(result)
        recorder.close()
    return folder


@cache
def archived(path: Path) -> list[Result]:
    return [each.result for each in Archive(path).frames("gate", 0, 1 << 61)]


def test_events_and_counts_of_random_scenes_are_equal(folder: Path) -> None:
    kinds: Counter[str] = Counter()

    @settings(max_examples=20, deadline=None, phases=(Phase.explicit, Phase.generate), derandomize=True)
    @given(
        config=configurations(),
        seed=st.integers(0, SEEDS - 1),
        rows=st.sampled_from([40, 300, 50_000]),
    )
    def check(config: AppConfig, seed: int, rows: int) -> None:
        results, judge = archived(folder / str(seed)), Judge(config, "gate", CLASSES)
        events, counts = judged_one_by_one(results, judge)
        with mock.patch.object(archive_rows, "_BLOCK_ROWS", rows):
            found = rejudge(Archive(folder / str(seed)), judge, "gate", 0, 1 << 61)
        kinds.update(event.kind for event in events)
        assert [each.event for each in found.events] == events
        assert found.counts == counts
        assert found.frames == len(results)

    check()
    assert {"line_crossed", "zone_entered", "zone_left", "dwelling", "crowded", "rule", "counters_reset"} <= {*kinds}
    assert kinds.total() > 200
