"""Tests of the shipped pipelines, and of the pipelines in docs/pipelines.md, from camera to subscriber."""

from __future__ import annotations

import io
import logging
import re
import runpy
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console

from tests.log_records import log_args
from tests.messages.processes import wait_until
from tests.paths import ROOT
from tests.unit.detect.test_classifier import save
from tests.unit.stages.test_stages import result as image
from tests.unit.stages.test_stages import walker
from tests.unit.test_imports import imports_without
from vision.cli.status_view import format_counts, render_status, status_line
from vision.client import EventMessage, Item, Subscription
from vision.config import AppConfig, DetectConfig, ModelSpec
from vision.detect.detector import Detector
from vision.detect.open import open_detector
from vision.errors import ConfigError, Unavailable
from vision.messaging import codec
from vision.messaging.publisher import Publisher
from vision.messaging.schema import CountsMessage, CountsReport, DetectionsMessage, Kind
from vision.pipelines import load_pipeline
from vision.runtime.builder import RunOptions, open_state
from vision.runtime.runtime import Runtime
from vision.stages.analytics import TrackStage
from vision.stages.stage import Report
from vision.types import Counts, Frame, Result, Tracks

DOCS = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
SOURCE = "synthetic:320x240@20?frames=100&seed=3&objects=4"
LIVE = "synthetic:320x240@60?frames=80&seed=3&objects=4"
MIDDLE = {"name": "middle", "points": ((0.5, 0), (0.5, 1)), "anchor": "center"}
LEFT = {"name": "left", "polygon": ((0, 0), (0.5, 0), (0.5, 1), (0, 1)), "anchor": "center", "crowd_threshold": 1}


@dataclass
class Kept:
    """Sink that stores all results and reports."""

    results: list[Result] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)

    def publish(self, result: Result) -> None:
        self.results.append(result)

    def report(self, report: Report) -> None:
        self.reports.append(report)


def site(pipeline: str, *, source: str = SOURCE, **top: Any) -> AppConfig:
    return AppConfig.model_validate(
        {
            "pipeline": pipeline,
            "detect": {"backend": "fake"},
            "cameras": ({"id": "gate", "source": source},),
            "publish": {"bind": "tcp://127.0.0.1:*"},
        }
        | top
    )


def counting(**top: Any) -> AppConfig:
    watched = {"units": "fraction", "lines": (MIDDLE,), "zones": (LEFT,)}
    return site("count", **({"analytics": {"gate": watched}} | top))


def run(config: AppConfig, *, offline: bool = True, **options: Any) -> tuple[Kept, Report]:
    kept = Kept()
    with ExitStack() as resources:
        given = RunOptions(threading.Event(), offline=offline, sink=kept, **options)
        runtime = load_pipeline(config.pipeline)(config, given, resources)
        return kept, runtime.run(threading.Event())


# --- track ------------------------------------------------------------------------------------------------------------


def test_track_pipeline_tracks_every_object() -> None:
    kept, _ = run(site("track"))
    assert len(kept.results) == 100
    tracks = [result.objects for result in kept.results]
    assert all(isinstance(objects, Tracks) for objects in tracks)
    last = tracks[-1]
    assert isinstance(last, Tracks)
    assert len(last) == 4
    assert len({int(i) for objects in tracks if isinstance(objects, Tracks) for i in objects.track_ids}) <= 6
    assert (last.age_ms > 3000).any()


@pytest.mark.parametrize(("score", "asked"), [(0.35, 0.15), (0.05, 0.05)])
def test_detector_reports_down_to_the_trackers_threshold(score: float, asked: float) -> None:
    scores: list[float] = []

    def opening(folder: Path, spec: ModelSpec, detect: DetectConfig) -> Detector:
        scores.append(detect.score_threshold)
        return open_detector(folder, spec, detect)

    run(site("track", detect={"backend": "fake", "score_threshold": score}), open_detector=opening)
    assert scores == [asked]


# --- count ------------------------------------------------------------------------------------------------------------


def test_count_pipeline_counts_every_crossing() -> None:
    kept, report = run(counting())
    truth: Counter[str] = Counter()
    before: dict[int, float] = {}
    for result in kept.results:
        assert isinstance(result.objects, Tracks)
        for track_id, box in zip(result.objects.track_ids.tolist(), result.objects.boxes_xyxy, strict=True):
            x = float(box[0] + box[2]) / 2
            if track_id in before and (before[track_id] < 160) != (x < 160):
                truth["in" if x < 160 else "out"] += 1  # the line runs down: its left side is on the right of the frame
            before[track_id] = x
    events = Counter(
        event.data["direction"] for r in kept.results for event in r.events if event.kind == "line_crossed"
    )
    assert sum(truth.values()) > 3
    assert abs(sum(events.values()) - sum(truth.values())) <= 1  # one object can turn back on the line
    line = report.counts["gate"].lines["middle"]
    assert (line.in_, line.out) == (events["in"], events["out"])
    zone = report.counts["gate"].zones["left"]
    assert zone.entered - zone.left == zone.occupancy


def test_counts_are_published_with_the_status() -> None:
    _, report = run(counting())
    (message,) = [part for part in report if isinstance(part, CountsReport)]
    assert message.camera == "gate"
    assert message.lines["middle"].in_ + message.lines["middle"].out > 0
    assert sum(message.lines["middle"].in_by_class.values()) == message.lines["middle"].in_
    assert set(message.zones) == {"left"}


def shown(report: Report) -> str:
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(render_status(report, 120))
    return console.export_text()


@pytest.mark.integration
def test_counts_are_shown_in_the_terminal() -> None:
    counted = Counts({"door": {"in": 7, "out": 2, "in:person": 7}}, {"queue": {"entered": 3}}, {"queue": 3})
    assert "door 7" in format_counts(codec.counts("gate", counted, 0, 0))
    assert format_counts(None) == ""
    _, report = run(counting())
    (camera,) = report.cameras
    counts = report.counts["gate"]
    assert status_line(camera, counts).endswith(f"dropped 0; {format_counts(counts)}")
    assert "lines" in shown(report)
    _, plain = run(site("track"))
    assert ";" not in status_line(plain.cameras[0])
    assert "lines" not in shown(plain)


def test_counters_of_stages_are_in_the_node_status(tmp_path: Path) -> None:
    save(tmp_path / "paint")
    _, report = run(counting(cascade={"model": f"{tmp_path}/paint", "min_size_px": 8}))
    node = report.node
    assert node.counters["cascade.looked"] > 0
    assert set(node.counters) == {
        "detector.truncated_candidates",
        "cameras.abandoned_threads",
        "cascade.looked",
        "cascade.skipped",
        "cascade.waiting",
    }


def test_rules_publish_events() -> None:
    kept, _ = run(counting(rules=({"name": "too-many", "when": "crowded left for 500ms"},)))
    reports = [
        (event.name, event.data["phase"]) for result in kept.results for event in result.events if event.kind == "rule"
    ]
    assert ("too-many", "begin") in reports
    assert {name for name, _ in reports} == {"too-many"}


@pytest.mark.integration
def test_reader_that_the_detector_cannot_use_is_refused() -> None:
    """If the configuration names a reader, the program must not silently use another reader."""

    def on_cpu(folder: Path, spec: ModelSpec, detect: DetectConfig) -> Detector:
        return open_detector(folder, spec, detect.model_copy(update={"backend": "onnxruntime"}))

    camera = {"id": "gate", "source": str(ROOT / "configs" / "vtest.mp4"), "reader": "nvdec"}
    config = site("detect", cameras=(camera,), detect={"backend": "auto"})
    options = RunOptions(stop=threading.Event(), open_detector=on_cpu)
    with ExitStack() as resources, pytest.raises(ConfigError) as caught:
        load_pipeline("detect")(config, options, resources)
    assert caught.value.code == "nvdec-detector"


def test_evaluation_writes_no_files(tmp_path: Path) -> None:
    run(counting(snapshots={"folder": f"{tmp_path}/shots"}, state_dir=f"{tmp_path}/state"))
    assert list(tmp_path.iterdir()) == []


@contextmanager
def published(config: AppConfig, kinds: tuple[Kind, ...], *, offline: bool = False) -> Iterator[list[Item]]:
    """Run the program until it ends. Yield the messages that a subscriber received."""
    items: list[Item] = []
    stop = threading.Event()
    with ExitStack() as resources:
        options = RunOptions(stop, offline=offline, state=None if offline else open_state(config, resources))
        runtime: Runtime = load_pipeline(config.pipeline)(config, options, resources)
        (publisher,) = runtime.results.sinks
        assert isinstance(publisher, Publisher)
        with Subscription(publisher.address, kinds=kinds, silence_s=60) as subscription:
            wait_until(lambda: publisher.socket.joins >= len(kinds), "the subscription has arrived")
            thread = threading.Thread(target=runtime.run, args=(stop,))
            thread.start()
            while thread.is_alive():
                item = subscription.receive(0.05)
                items += [item] if item is not None else []
            thread.join()
            while (item := subscription.receive(0.2)) is not None:
                items.append(item)
        yield items


@pytest.mark.integration
def test_count_publishes_tracks_events_counts_attributes_and_snapshots(tmp_path: Path) -> None:
    save(tmp_path / "paint")
    config = counting(
        source=SOURCE.replace("@20", "@40"),
        cascade={"model": f"{tmp_path}/paint", "min_size_px": 8},
        snapshots={"folder": f"{tmp_path}/shots", "kinds": ("line_crossed", "rule"), "max_files": 50},
        rules=({"name": "passing", "when": "line_crossed middle"},),
        state_dir=f"{tmp_path}/state",
        status={"interval_s": 0.2},
    )
    with published(config, ("detections", "events", "counts")) as items:
        pass
    detections = [item for item in items if isinstance(item, DetectionsMessage)]
    events = [item for item in items if isinstance(item, EventMessage)]
    counts = [item for item in items if isinstance(item, CountsMessage)]
    last = detections[-1].objects
    assert all(item.track_id is not None and item.age_ms is not None for item in last)
    assert [item.attributes[0].class_name for item in last if item.attributes] == [
        {"red": "reddish", "green": "greenish", "blue": "bluish"}[item.class_name] for item in last
    ]
    assert {event.kind for event in events} >= {"line_crossed", "zone_entered", "rule"}
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    crossed = [event for event in events if event.kind == "line_crossed"]
    assert all(event.box is not None for event in crossed)
    for event in events:
        assert (event.snapshot is not None) == (event.kind in ("line_crossed", "rule"))
    paths = {event.snapshot for event in events if event.snapshot is not None}
    assert paths == {str(path) for path in (tmp_path / "shots").iterdir()}
    assert all(np.asarray(cv2.imread(path)).shape == (240, 320, 3) for path in paths)
    final = counts[-1].lines["middle"]
    assert final.in_ + final.out == len(crossed)


@pytest.mark.integration
def test_counters_and_event_numbers_continue_after_a_restart(tmp_path: Path) -> None:
    config = counting(
        source=LIVE, state_dir=f"{tmp_path}/state", publish={"bind": "tcp://127.0.0.1:*", "replay": "tcp://127.0.0.1:*"}
    )
    crossings, numbers = [], []
    for _ in range(2):
        with published(config, ("events", "counts")) as items:
            pass
        line = [item for item in items if isinstance(item, CountsMessage)][-1].lines["middle"]
        crossings.append(line.in_ + line.out)
        numbers += [item.number or 0 for item in items if isinstance(item, EventMessage)]
    assert crossings[1] > crossings[0] > 0
    with closing(sqlite3.connect(tmp_path / "state" / "state.db")) as database:
        stored = [number for (number,) in database.execute("SELECT number FROM events ORDER BY number")]
    assert stored == list(range(1, len(stored) + 1))
    assert numbers == sorted(set(numbers))
    assert set(stored) >= set(numbers)  # after the subscriber has left, the last events report the ends of states


@pytest.mark.integration
def test_offline_run_starts_counters_at_zero(tmp_path: Path) -> None:
    config = counting(state_dir=f"{tmp_path}/state")
    for _ in range(2):
        with published(config, ("events",), offline=True) as items:
            pass
        assert {item.number for item in items if isinstance(item, EventMessage)} == {None}
    assert not (tmp_path / "state").exists()


@pytest.mark.integration
def test_run_without_state_dir_logs_that_counters_start_at_zero(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with published(counting(source="synthetic:320x240@40?frames=5"), ("events",)):
        pass
    assert () in log_args(caplog, "vision.runtime.builder", logging.INFO)


def test_second_program_with_the_same_state_dir_is_refused(tmp_path: Path) -> None:
    config = counting(state_dir=f"{tmp_path}/state")
    with ExitStack() as first, ExitStack() as second:
        open_state(config, first)
        with pytest.raises(Unavailable) as refused:
            open_state(config, second)
    assert refused.value.code == "state-in-use"


# --- pipelines of users -----------------------------------------------------------------------------------------------


def programs() -> dict[str, str]:
    """Return the complete programs in docs/pipelines.md, by module docstring."""
    found = re.findall(r"^```python\n(.*?)^```$", DOCS, re.DOTALL | re.MULTILINE)
    return {program.split('"""')[1]: program for program in found}


def written(folder: Path, about: str) -> Path:
    path = folder / "mine.py"
    path.write_text(programs()[about])
    return path


def module(path: Path) -> dict[str, Any]:
    return runpy.run_path(str(path))


LEFT_HALF = "Publish only the objects in the left half of the frame."
STANDING = "Publish an event when an object has not moved for three seconds."
LIGHT = "Publish an event with the brightness of the frame when the light is switched on or off."
PRINTER = "Print the number of objects in each frame."


def test_documentation_has_the_expected_programs() -> None:
    assert set(programs()) == {LEFT_HALF, STANDING, LIGHT, PRINTER}


@pytest.mark.parametrize("about", [LEFT_HALF, STANDING, LIGHT, PRINTER])
def test_pipelines_of_the_documentation_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], about: str) -> None:
    kept, report = run(site(str(written(tmp_path, about))))
    assert report.cameras[0].published == len(kept.results) == 100
    if about == LEFT_HALF:
        assert any(len(result.objects) for result in kept.results)
        assert all((result.objects.boxes_xyxy[:, 2] < 160).all() for result in kept.results)
    if about == PRINTER:
        assert len(re.findall(r"^gate \d+ \d+$", capsys.readouterr().out, re.MULTILINE)) == 100
    if about == STANDING:
        assert all(isinstance(result.objects, Tracks) for result in kept.results)
        assert not any(result.events for result in kept.results)  # these rectangles never stand


OWN_BUILD = """
from vision.runtime.builder import open_configured_detector, open_publisher
from vision.runtime.camera_factory import build_cameras
from vision.runtime.runtime import Runtime


def build(config, options, resources):
    sinks = [open_publisher(config, options, resources)]
    detector = open_configured_detector(config, options, resources)
    return Runtime(cameras=build_cameras(config, options, detector), detector=detector, sinks=sinks)
"""


def test_own_build_function_writes_the_video_of_the_run(tmp_path: Path) -> None:
    path, video = tmp_path / "own.py", tmp_path / "out.mp4"
    path.write_text(OWN_BUILD)
    kept, _ = run(site(str(path)), video=video)
    assert len(kept.results) == 100
    assert cv2.VideoCapture(str(video)).get(cv2.CAP_PROP_FRAME_COUNT) == 100


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("def build(config, options, resources): pass", "pipeline-result"),
        ("def build(config, options, resources): return [1]", "pipeline-result"),
        ("def build(config): return None", "pipeline-arguments"),
        ("def build(config, options, resources, more): return None", "pipeline-arguments"),
        ("def build(*, config, options, resources): return None", "pipeline-arguments"),
    ],
)
def test_wrong_build_function_is_a_configuration_error(tmp_path: Path, text: str, code: str) -> None:
    path = tmp_path / "own.py"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        run(site(str(path)))
    assert caught.value.code == code


@pytest.mark.parametrize("part", ["video", "snapshots", "usb camera", "images"])
def test_missing_opencv_is_reported_before_the_detector_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    config = counting(snapshots={"folder": f"{tmp_path}/shots"} if part == "snapshots" else None)
    if source := {"usb camera": "/dev/video0", "images": "frame.png"}.get(part):
        config = site("detect", source=source)
    options = RunOptions(threading.Event(), video=tmp_path / "out.mp4" if part == "video" else None)
    with ExitStack() as resources, pytest.raises(ConfigError) as caught:
        load_pipeline(config.pipeline)(config, options, resources)
    assert caught.value.code == "opencv-missing"
    assert "[opencv]" in caught.value.hint


def test_unknown_class_of_a_line_is_refused() -> None:
    door = {"name": "door", "points": ((0, 0), (9, 9)), "classes": ("persn",)}
    with pytest.raises(ConfigError) as caught:
        run(counting(analytics={"gate": {"lines": (door,)}}))
    assert caught.value.code == "unknown-class"


def test_standing_object_is_reported_once(tmp_path: Path) -> None:
    stage, track = module(written(tmp_path, STANDING))["StandingStill"](), TrackStage()
    reports = []
    for at in range(100):  # stands for 4 s, walks for 1 s, stands again
        y = 100 + 10 * min(max(at - 40, 0), 10)
        done = stage(track(image(walker(at, y=y, step=0), index=at)))
        reports += [(at, event.kind, event.track_id) for event in done.events]
    (first, *_), (second, *_) = reports
    assert first == 31  # followed from the second frame on
    assert 77 <= second <= 82
    assert {kind for _, kind, _ in reports} == {"standing"}
    assert len({track_id for *_, track_id in reports}) == 1


def test_light_is_reported_when_it_changes(tmp_path: Path) -> None:
    stage = module(written(tmp_path, LIGHT))["Light"]()
    reports = []
    for at, level in enumerate([100, 100, 10, 10, 200]):
        one = image(index=at, size=(64, 48))
        frame = Frame.wrap(one.meta, np.full((48, 64, 3), level, np.uint8), "bgr")
        reports += [(at, event.data) for event in stage.with_frame(one, frame).events]
    assert reports == [(2, {"phase": "end", "level": 10.0}), (4, {"phase": "begin", "level": 200.0})]


@pytest.mark.integration
def test_unconfigured_parts_import_no_library() -> None:
    done = imports_without("vision.pipelines.count", {"cv2", "onnxruntime", "av", "gi", "cuda", "tensorrt"})
    assert done.returncode == 0, done.stderr
