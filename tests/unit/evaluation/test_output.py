"""Tests of the outputs of an evaluation: the table, JSON, plots, and the annotated video."""

from __future__ import annotations

import io
import json
import math
import re
import shlex
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from tests.paths import ROOT
from tests.unit.evaluation_tables import boxes, random_boxes
from vision.config import AppConfig, CameraAnalytics
from vision.drawing.overlay import FALSE_COLOR, LINE_COLOR, WHITE, class_color
from vision.errors import ConfigError, VisionError
from vision.evaluation.annotated import write_video
from vision.evaluation.crossings import LineScore
from vision.evaluation.detection import score_detections
from vision.evaluation.mot import Truth
from vision.evaluation.passes import Scene, Subject, Video
from vision.evaluation.plots import plot_detection, plot_objects, plot_tracks, require_matplotlib
from vision.evaluation.report import Evaluation, as_json, print_evaluation, write_json
from vision.evaluation.tracks import INSTALL, TrackingScores, load_metrics, match_frames
from vision.pipelines import load_pipeline
from vision.types import Event

VIDEO = Video("walk.mp4", 40, 320, 240, 0.1)
TRACKING = TrackingScores(0.8, 0.7, 0.6, 0.65, 0.55, 0.9, 0.85, 3, 4, 5, 6, 100, 8, 9, 7, 1)
needs_matplotlib = pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib: vision[eval]")


def evaluation() -> Evaluation:
    truth, predicted = random_boxes(1)
    return Evaluation(
        config="camera.yaml",
        camera="gate",
        pipeline="count",
        model="nanodet-g-416",
        backend="onnxruntime cpu fp32",
        class_name="person",
        truth="gt.txt",
        video=VIDEO,
        detection=score_detections(truth, predicted, score=0.35, lowest_score=0.05),
        tracking=TRACKING,
        lines=(LineScore("door", "in", 10, 9), LineScore("door", "out", 0, 1)),
        notes=("3 of 40 frames have no rows [gt.txt]",),
        seconds=2.0,
    )


def printed(result: Evaluation, width: int = 100) -> str:
    out = io.StringIO()
    print_evaluation(result, Console(file=out, width=width))
    return out.getvalue()


def test_table_has_every_figure() -> None:
    text = printed(evaluation())
    for words in ("gate: walk.mp4, 40 frames of 320x240, 4.0 s", "20.0 frames/s", "AP@0.5 ", "AP@[.5:.95]", "recall"):
        assert words in text
    for name, value in (("MOTA", "0.800"), ("IDF1", "0.700"), ("HOTA", "0.600"), ("identity switches", "3")):
        assert any(line.split()[: len(name.split()) + 1] == [*name.split(), value] for line in text.splitlines())
    assert "door, in" in text and "10.0 %" in text and re.search(r"\b9\b.*\b10\b", text)
    assert "20.0 %" in text  # two errors for ten true crossings
    assert "[gt.txt]" in text


@pytest.mark.parametrize("width", [80, 200])
def test_table_fits_a_terminal(width: int) -> None:
    assert "…" not in printed(evaluation(), width).replace("0.55, …", "")


def test_table_has_a_heading_for_each_block() -> None:
    lines = [line.rstrip() for line in printed(evaluation()).splitlines()]
    assert lines[0] and [line for line in lines if line in ("detector", "tracks", "lines")] == [
        "detector",
        "tracks",
        "lines",
    ]


def test_table_leaves_out_missing_blocks() -> None:
    text = printed(replace(evaluation(), tracking=None, lines=()))
    assert "MOTA" not in text and "lines" not in text
    assert replace(evaluation(), lines=()).line_error is None


def test_json_has_every_figure(tmp_path: Path) -> None:
    write_json(evaluation(), tmp_path / "out.json")
    data = json.loads((tmp_path / "out.json").read_text())
    assert data == json.loads(json.dumps(as_json(evaluation())))
    assert data["schema"] == "vision.evaluation/1"
    assert data["tracking"]["mota"] == 0.8
    assert data["video"] == {
        "name": "walk.mp4", "frames": 40, "width_px": 320, "height_px": 240, "interval_s": 0.1, "duration_s": 4.0
    }  # fmt: skip
    assert [line["error"] for line in data["lines"]] == [0.1, None]  # JSON has no infinity
    assert data["line_error"] == pytest.approx(0.2)
    assert len(data["detection"]["ap_by_overlap"]) == 10
    recalls = [point["recall"] for point in data["detection"]["curve"]]
    assert recalls == sorted(recalls, reverse=True)
    assert data["detection"]["curve"][0]["score"] == 0.05


def test_report_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VisionError):
        write_json(evaluation(), tmp_path / "gone" / "out.json")


def image(path: Path) -> NDArray[np.uint8]:
    pixels = cv2.imread(str(path))
    assert pixels is not None
    return np.asarray(pixels, np.uint8)


@pytest.mark.integration
@needs_matplotlib
@pytest.mark.parametrize("seed", [0, 1])
def test_plots_show_the_data(seed: int, tmp_path: Path) -> None:
    require_matplotlib()
    truth, predicted = random_boxes(seed)
    partners = match_frames(truth, predicted, 40)
    detection = score_detections(truth, predicted, score=0.35, lowest_score=0.05)
    for number, (a_truth, a_found, a_partners) in enumerate(
        ((truth, predicted, partners), (truth, boxes(), np.full(len(truth), -1)))
    ):
        plot_detection(detection, "person", tmp_path / f"curve{number}.png")
        plot_objects(a_truth, a_found, a_partners, VIDEO, tmp_path / f"objects{number}.png")
        plot_tracks(a_truth, a_found, a_partners, VIDEO, tmp_path / f"tracks{number}.png")
    for name in ("objects", "tracks"):
        assert not np.array_equal(image(tmp_path / f"{name}0.png"), image(tmp_path / f"{name}1.png"))
    assert len(np.unique(image(tmp_path / "curve0.png"))) > 50


@pytest.mark.integration
@needs_matplotlib
def test_plot_without_data_is_written(tmp_path: Path) -> None:
    nothing = score_detections(boxes((1, 1, 0, 0, 1, 1)), boxes(), score=0.35, lowest_score=0.05)
    plot_detection(nothing, "person", tmp_path / "out.png")
    assert (tmp_path / "out.png").exists()
    with pytest.raises(VisionError):
        plot_detection(nothing, "person", tmp_path / "gone" / "out.png")


# --- the video --------------------------------------------------------------------------------------------------------


def frames_of(path: Path) -> list[NDArray[np.uint8]]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        success, pixels = capture.read()
        if not success:
            break
        frames.append(np.asarray(pixels, np.uint8))
    capture.release()
    return frames


def near(pixels: NDArray[np.uint8], color: tuple[int, int, int]) -> int:
    """Return the number of pixels that are close to `color`, because encoding slightly changes colors."""
    return int((np.abs(pixels.astype(int) - np.array(color)).max(axis=2) < 30).sum())


@pytest.mark.integration
def test_video_shows_found_missed_and_false_objects(tmp_path: Path) -> None:
    source = "synthetic:320x240@10?frames=6&objects=0"
    predicted = boxes(
        *[(frame, 7, 30, 60, 60, 100) for frame in (1, 2, 5)], (4, 9, 30, 60, 60, 100), (5, 8, 220, 60, 60, 100)
    )
    truth = boxes(*[(frame, 1, 30, 60, 60, 100) for frame in range(1, 6)])
    section = CameraAnalytics.model_validate(
        {"lines": ({"name": "door", "points": ((150.0, 60.0), (150.0, 220.0))},), "zones": (
            {"name": "queue", "polygon": ((5.0, 100.0), (130.0, 100.0), (130.0, 200.0), (5.0, 200.0))},)}
    )  # fmt: skip
    crossing = Event("line_crossed", "door", "gate", 7, 0, {"direction": "in"})
    video, partners = Video(source, 6, 320, 240, 0.1), match_frames(truth, predicted, 6)
    config = AppConfig.model_validate({"cameras": ({"id": "gate", "source": source},), "analytics": {"gate": section}})
    labels = Truth(Path("gt.txt"), truth, np.arange(len(truth)), 0)
    subject = Subject(config, load_pipeline("count"), 0, "person", labels, video)
    scene = Scene(subject, predicted, partners, True, ((3, crossing),))
    drawn: list[int] = []
    write_video(tmp_path / "out.mp4", scene, drawn.append)
    frames = frames_of(tmp_path / "out.mp4")
    assert len(frames) == 6
    assert drawn == [1, 2, 3, 4, 5, 6]
    left, right = [frame[40:, :140] for frame in frames], [frame[40:, 200:] for frame in frames]
    assert [near(one, class_color(0)) > 200 for one in left] == [True, True, False, True, True, False]
    assert near(left[2], WHITE) > near(left[1], WHITE) + 50  # the dashes of the missed box
    assert [near(one, FALSE_COLOR) > 200 for one in right] == [False] * 4 + [True, False]
    assert all(near(frame, LINE_COLOR) > 200 for frame in frames)
    assert not np.allclose(frames[1][:, 150:200], frames[3][:, 150:200], atol=30)  # the counter went from 0 to 1


def test_missing_package_is_reported_with_one_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError) as plots:
        require_matplotlib()
    monkeypatch.setitem(sys.modules, "trackeval.metrics", None)
    with pytest.raises(ConfigError) as tracking:
        load_metrics()
    assert plots.value.code == tracking.value.code == "package-missing"
    assert plots.value.hint == tracking.value.hint == INSTALL
    text = (ROOT / "docs" / "evaluation.md").read_text()
    assert INSTALL.replace(shlex.quote(sys.executable), ".venv/bin/python").replace(str(ROOT), ".") in text
    assert math.isinf(LineScore("a", "in", 0, 1).error)
