"""Tests of the command `vision eval` on synthetic video with exact ground truth."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.cli.test_main import read_until, run, started, write_config
from tests.unit.evaluation_tables import boxes, needs_trackeval, synthetic_rows
from vision.cli.main import main
from vision.drawing.test_pattern import FAKE_CLASSES
from vision.errors import ConfigError
from vision.evaluation.crossings import true_crossings
from vision.evaluation.evaluate import Request, open_subject
from vision.evaluation.evaluate import run as evaluate
from vision.evaluation.mot import read_truth

SOURCE = "synthetic:320x240@5?frames=100&objects=6&seed=0"
FRAMES = 100
CLASS = "green"
LINE = {"name": "middle", "points": [[160, 0], [160, 240]], "anchor": "center"}

COUNT = """
from vision.runtime.builder import open_configured_detector, open_publisher
from vision.runtime.camera_factory import build_cameras
from vision.runtime.runtime import Runtime
from vision.stages.analytics import AnalyticsStage
from vision.stages.analytics import TrackStage

def build(config, options, resources):
    publisher = open_publisher(config, options, resources)
    track = TrackStage(config.track, score=config.detect.score_threshold)
    detector = open_configured_detector(config, options, resources, score=track.detector_score)
    count = AnalyticsStage(config.analytics, detector.spec.class_names)
    cameras = build_cameras(config, options, detector)
    return Runtime(cameras=cameras, detector=detector, stages=[track, count], sinks=[publisher])
"""

pytestmark = needs_trackeval


def write_truth(folder: Path, rows: list[str] | None = None, class_name: str = CLASS) -> Path:
    path = folder / "gt.txt"
    rows = synthetic_rows(SOURCE, FAKE_CLASSES.index(class_name)) if rows is None else rows
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


def evaluated(folder: Path, config: Path, **options: Any) -> dict[str, Any]:
    """Evaluate a configuration in this process. Return the report as JSON-compatible data."""
    truth = options.pop("truth", None) or write_truth(folder)
    request = Request(str(config), truth, class_name=CLASS, json=folder / "out.json", **options)
    assert evaluate(request, threading.Event()) == 0
    result: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return result


@pytest.mark.integration
def test_perfect_detector_has_perfect_figures(tmp_path: Path) -> None:
    result = evaluated(tmp_path, write_config(tmp_path, source=SOURCE))
    detection = result["detection"]
    assert (detection["ap50"], detection["ap"], detection["precision"], detection["recall"]) == (1, 1, 1, 1)
    assert detection["true_boxes"] == detection["found_boxes"] == len(synthetic_rows(SOURCE, 1))
    assert result["tracking"] is None
    assert result["lines"] == []
    (note,) = result["notes"]
    assert "detect" in note
    assert (result["camera"], result["class"], result["backend"], result["pipeline"]) == ("a", CLASS, "fake", "detect")
    assert result["video"]["frames"] == FRAMES


def test_perfect_tracker_misses_the_first_frame_of_each_object(tmp_path: Path) -> None:
    """The tracker publishes an object from its second detection on. Then no box is missed, false, or switched."""
    config = write_config(tmp_path, source=SOURCE, pipeline="track")
    tracking = evaluated(tmp_path, config)["tracking"]
    objects, rows = tracking["true_objects"], tracking["true_boxes"]
    assert objects >= 2
    assert (tracking["tracks"], tracking["switches"], tracking["false_boxes"]) == (objects, 0, 0)
    assert tracking["misses"] == objects
    assert tracking["mota"] == pytest.approx(1 - objects / rows)
    assert tracking["idf1"] == pytest.approx(2 * (rows - objects) / (2 * rows - objects))
    assert tracking["hota"] > 0.97


def test_counted_crossings_equal_true_ones(tmp_path: Path) -> None:
    (tmp_path / "count.py").write_text(COUNT)
    config = write_config(tmp_path, source=SOURCE, pipeline="count.py", analytics={"a": {"lines": [LINE]}})
    result = evaluated(tmp_path, config)
    by_direction = {line["direction"]: line for line in result["lines"]}
    assert list(by_direction) == ["in", "out"]
    assert by_direction["in"]["true"] + by_direction["out"]["true"] >= 3
    assert all(line["counted"] == line["true"] for line in result["lines"])
    assert result["line_error"] == 0


def test_wrong_count_is_an_error(tmp_path: Path) -> None:
    """If an object is missing from the ground truth, each counted crossing of the object is an error."""
    (tmp_path / "count.py").write_text(COUNT)
    config = write_config(tmp_path, source=SOURCE, pipeline="count.py", analytics={"a": {"lines": [LINE]}})
    truth = read_truth(write_truth(tmp_path))
    ids = np.unique(truth.boxes.ids).tolist()
    rows = [row for row in synthetic_rows(SOURCE, 1) if row.split(",")[1] != str(ids[0])]
    without = evaluated(tmp_path, config, truth=write_truth(tmp_path, rows))
    wrong = sum(line["counted"] - line["true"] for line in without["lines"])
    of_one = truth.boxes.rows(truth.boxes.ids == ids[0])
    subject = open_subject(Request(str(config), tmp_path / "gt.txt", class_name=CLASS), threading.Event())
    assert wrong == len(list(true_crossings(subject.section.lines[0], "pixels", of_one, subject.video)))
    assert without["tracking"]["mota"] < 0.9


def test_truth_with_gaps_is_accepted_with_notes(tmp_path: Path) -> None:
    rows = [row for row in synthetic_rows(SOURCE, 1) if 11 <= int(row.split(",")[0]) <= 90]
    rows += ["5,99,1,1,5,5,0,-1,-1,-1"]
    result = evaluated(tmp_path, write_config(tmp_path, source=SOURCE), truth=write_truth(tmp_path, rows))
    for note, part in zip(result["notes"], ("20 of 100", "frame 90", "column 7"), strict=False):
        assert part in note
        assert f"{tmp_path}/gt.txt" in note
    assert result["detection"]["precision"] == pytest.approx(0.8)
    assert result["detection"]["recall"] == 1


def test_damaged_frames_and_other_lines_have_notes(tmp_path: Path) -> None:
    (tmp_path / "count.py").write_text(COUNT)
    line = {**LINE, "classes": ["red"]}
    config = write_config(
        tmp_path, source=f"{SOURCE}&corrupt=10:20", pipeline="count.py", analytics={"a": {"lines": [line]}}
    )
    result = evaluated(tmp_path, config)
    damaged, other_lines = result["notes"]
    assert "10 of 100" in damaged
    assert CLASS in other_lines
    assert result["lines"] == []


@pytest.mark.integration
def test_every_output_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    config = write_config(tmp_path, source=SOURCE, pipeline="track")
    outputs = {"plots": tmp_path / "plots", "video": tmp_path / "out.mp4", "result": tmp_path / "result.txt"}
    result = evaluated(tmp_path, config, **outputs)
    assert sorted(path.name for path in outputs["plots"].iterdir()) == [
        "objects.png",
        "precision-recall.png",
        "tracks.png",
    ]
    assert outputs["video"].stat().st_size > 1000
    found = np.loadtxt(outputs["result"], delimiter=",")
    tracking = result["tracking"]
    assert len(found) == tracking["true_boxes"] - tracking["misses"]
    assert len(np.unique(found[:, 1])) == tracking["tracks"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"camera": "b"}, "unknown-camera"),
        ({"class_name": "gren"}, "unknown-class"),
        ({"class_name": "person"}, "unknown-class"),
        ({"video": "out.avi"}, "video-format"),
        ({"video": "gone/out.mp4"}, "not-writable"),
        ({"json": "gone/out.json"}, "not-writable"),
        ({"json": "."}, "not-writable"),
        ({"json": "dangling.json"}, "not-writable"),
        ({"result": "gone/out.txt"}, "not-writable"),
        ({"plots": "gt.txt/plots"}, "not-writable"),
        ({"truth": "gone.txt"}, "unreadable"),
    ],
)
def test_wrong_arguments_are_refused_before_the_run(change: dict[str, str], code: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"truth": write_truth(tmp_path), "class_name": CLASS}
    (tmp_path / "dangling.json").symlink_to("gone/out.json")
    names = ("camera", "class_name")
    arguments |= {key: value if key in names else tmp_path / value for key, value in change.items()}
    with pytest.raises(ConfigError) as caught:
        evaluate(Request(str(write_config(tmp_path, source=SOURCE)), **arguments), threading.Event())
    assert caught.value.code == code


def test_class_that_the_configuration_leaves_out_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, source=SOURCE, detect={"backend": "fake", "classes": ["red"]})
    with pytest.raises(ConfigError) as caught:
        open_subject(Request(str(config), write_truth(tmp_path), class_name=CLASS), threading.Event())
    assert caught.value.code == "class-left-out"


def test_truth_beyond_the_video_is_refused_before_the_run(tmp_path: Path) -> None:
    truth = write_truth(tmp_path, [*synthetic_rows(SOURCE, 1), "101,1,1,1,5,5,1,-1,-1,-1"])
    with pytest.raises(ConfigError) as caught:
        open_subject(Request(str(write_config(tmp_path, source=SOURCE)), truth, class_name=CLASS), threading.Event())
    assert caught.value.code == "truth-too-long"


@pytest.mark.integration
def test_command_prints_the_table(tmp_path: Path) -> None:
    config = write_config(tmp_path, source=SOURCE, pipeline="track")
    done = run("eval", str(config), "--truth", str(write_truth(tmp_path)), "--class", CLASS)
    assert done.returncode == 0, done.stderr
    assert "MOTA" in done.stdout and "AP@0.5" in done.stdout
    broken = run("eval", str(config), "--truth", str(write_truth(tmp_path, ["1,2,3"])), "--class", CLASS)
    assert broken.returncode == 78
    assert "gt.txt:1: " in broken.stderr


@pytest.mark.integration
def test_stopped_evaluation_writes_no_files(tmp_path: Path) -> None:
    config = write_config(tmp_path, source="synthetic:1280x720@20?frames=2000&seed=0&objects=4")
    truth = write_truth(tmp_path, ["1,1,1,1,5,5,1"])
    outputs = ("--json", str(tmp_path / "out.json"), "--video", str(tmp_path / "out.mp4"))
    with started("eval", str(config), "--truth", str(truth), "--class", CLASS, *outputs) as process:
        read_until(process, "camera a: connected, 1280x720")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert not (tmp_path / "out.json").exists()
    assert not (tmp_path / "out.mp4").exists()


def test_truth_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "demo"]) == 2
    assert "--truth" in capsys.readouterr().err


def test_synthetic_rows_are_the_truth() -> None:
    rows = synthetic_rows("synthetic:160x120@20?frames=3&objects=1&seed=3", 0)
    rows += synthetic_rows("synthetic:160x120@20?frames=3&objects=1&seed=3", 1)
    rows += synthetic_rows("synthetic:160x120@20?frames=3&objects=1&seed=3", 2)
    assert [int(row.split(",")[0]) for row in rows] == [1, 2, 3]
    assert len(boxes((1, 1, 0, 0, 4, 4))) == 1
