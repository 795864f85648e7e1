"""Tests of `vision eval --simulate`: its arguments, its outputs, and the real pipeline on the painted video."""

from __future__ import annotations

import io
import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.unit.evaluation_tables import needs_trackeval
from vision.cli.main import main
from vision.drawing.test_pattern import FAKE_COLORS
from vision.errors import Closed, ConfigError
from vision.evaluation.evaluate import Request, run
from vision.evaluation.mot import read_truth
from vision.evaluation.simulation.actors import travel
from vision.evaluation.simulation.detector_errors import DETECTORS
from vision.evaluation.simulation.evaluate import SimulationRequest, run_simulation
from vision.evaluation.simulation.painting import outputs, paint, write_painted
from vision.evaluation.simulation.projection import CameraView
from vision.evaluation.simulation.report import Simulation, as_json, print_simulation
from vision.evaluation.simulation.scenes import SCENES, Obstacle, Scene
from vision.evaluation.simulation.simulate import prepare_scene, run_scene, score_scene
from vision.evaluation.simulation.truth import Solids

VIEW = CameraView(width_px=640, height_px=360, height_m=4.0, tilt_deg=20.0)
LINE = {"gate": ((-8.0, 10.0), (8.0, 10.0))}


def _scene() -> Scene:
    """Return a scene with a car and people, one of whom passes behind a pillar."""
    actors = (
        travel("person", [(-1.0, 16.0), (-1.0, 5.0)], 1.6, 0.0),
        travel("person", [(2.0, 6.0), (2.0, 15.0)], 1.6, 0.5),
        travel("person", [(-5.0, 12.5), (5.0, 12.5)], 1.6, 1.0),
        travel("car", [(4.5, 30.0), (4.5, 3.0)], 6.0, 1.0),
    )
    zone = {"place": ((-3.0, 8.0), (3.0, 8.0), (3.0, 14.0), (-3.0, 14.0))}
    return Scene("yard", VIEW, actors, LINE, zone, (Obstacle((-2.5, 9.0), (0.4, 0.4, 3.0)),))


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["eval"], "CONFIG"),
        (["eval", "demo"], "--truth"),
        (["eval", "demo", "--truth", "gt.txt", "--fps", "5"], "--fps"),
        (["eval", "demo", "--truth", "gt.txt", "--scene", "street"], "--scene"),
        (["eval", "demo", "--simulate"], "CONFIG"),
        (["eval", "--simulate", "--truth", "gt.txt"], "--truth"),
        (["eval", "--simulate", "--class", "car"], "--class"),
        (["eval", "--simulate", "--scene", "moon"], "--scene"),
        (["eval", "--simulate", "--fps", "0.5"], "--fps"),
        (["eval", "--simulate", "--fps", "5,61"], "--fps"),
        (["eval", "--simulate", "--fps", "nan"], "--fps"),
        (["eval", "--simulate", "--detector", "perfect"], "--detector"),
        (["eval", "--simulate", "--seeds", "0"], "--seeds"),
    ],
)
def test_wrong_combinations_are_invalid_arguments(
    arguments: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert option in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"video": Path("out.avi")}, "video-format"),
        ({"video": Path("out.mp4"), "scenes": ("street", "gate")}, "several-runs"),
        ({"video": Path("out.mp4"), "rates": (5.0, 10.0)}, "several-runs"),
        ({"video": Path("out.mp4"), "seeds": 2}, "several-runs"),
        ({"json": Path("missing/out.json")}, "not-writable"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_first(change: dict[str, Any], code: str) -> None:
    arguments: dict[str, Any] = {"scenes": ("street",), "rates": (5.0,), **change}
    with pytest.raises(ConfigError) as caught:
        run_simulation(SimulationRequest(**arguments), threading.Event())
    assert caught.value.code == code


@needs_trackeval
def test_command_prints_a_row_per_scene_and_rate_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.json"
    arguments = ["--scene", "gate", "--fps", "2,4", "--detector", "exact", "--timing", "gaps", "--json", str(path)]
    assert main(["eval", "--simulate", *arguments]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("gate")]
    assert [row[:2] for row in rows] == [["gate", "2"], ["gate", "4"]]
    result = json.loads(path.read_text())
    assert (result["schema"], result["detector"], result["timing"]) == ("vision.simulation/1", "exact", "gaps")
    assert [run["frames_per_s"] for run in result["runs"]] == [2, 4]
    assert [run["true_crossings"] for run in result["runs"]] == [int(row[2]) for row in rows]
    assert result["total"]["true_crossings"] == sum(run["true_crossings"] for run in result["runs"])


@needs_trackeval
def test_stop_ends_the_simulation() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Closed):
        run_simulation(SimulationRequest(("gate",), (2.0,)), stop)


@needs_trackeval
def test_exact_detections_of_a_simple_scene_have_no_errors() -> None:
    prepared = prepare_scene(_scene(), 0, 10.0)
    scores = score_scene(prepared, run_scene(prepared, DETECTORS["exact"]))
    assert (scores.true_crossings, scores.wrong_crossings) == (3, 0)
    assert sum(zone.wrong_stays for zone in scores.zones) == 0
    errors = np.abs(scores.speeds_kmh[:, 0] - scores.speeds_kmh[:, 1])
    assert len(errors) >= 3 and np.median(errors) < 0.3
    report = as_json(Simulation("exact", "steady", (scores,)))
    assert report["total"]["speed"]["events"] == len(errors)


@needs_trackeval
def test_table_fits_a_terminal() -> None:
    prepared = prepare_scene(_scene(), 0, 5.0)
    scores = score_scene(prepared, run_scene(prepared, DETECTORS["good"]))
    out = io.StringIO()
    print_simulation(Simulation("good", "steady", (scores, scores)), Console(file=out, width=80))
    assert "…" not in out.getvalue()


def test_nearest_object_is_painted_on_top() -> None:
    near, far = (travel("person", [(-0.1, y), (0.1, y)], 0.1, 0.0) for y in (8.0, 12.0))
    scene = Scene("two", VIEW, (far, travel("car", [(0.0, 14.0), (0.2, 14.0)], 0.1, 0.0), near))
    solids = Solids(scene, np.array([1.0]))
    image = paint(scene, solids, 0)
    x1, y1, x2, y2 = solids.clipped[2, 0].round().astype(int)
    assert (image[y1 + 4 : y2 - 4, x1 + 4 : x2 - 4] == FAKE_COLORS[0]).all()
    assert (image == FAKE_COLORS[2]).all(axis=2).any()


@pytest.mark.integration
@needs_trackeval
def test_painted_video_is_counted_as_the_oracle_counts(tmp_path: Path) -> None:
    prepared = prepare_scene(_scene(), 0, 10.0)
    video = tmp_path / "yard.mp4"
    write_painted(video, prepared, lambda _done: None)
    paths = outputs(video, prepared.scene)
    assert [path.name for path in paths] == ["yard.mp4", "yard.yaml", "yard.txt", "yard-red.txt", "yard-blue.txt"]
    assert all(path.exists() for path in paths)
    counted: Counter[tuple[str, str]] = Counter()
    for name, truth in (("red", paths[3]), ("blue", paths[4])):
        out = tmp_path / f"{name}.json"
        assert run(Request(str(paths[1]), truth, class_name=name, json=out), threading.Event()) == 0
        result = json.loads(out.read_text())
        assert result["video"]["frames"] == len(prepared.frames)
        assert result["detection"]["recall"] > 0.9
        assert all(line["counted"] == line["true"] for line in result["lines"])
        counted.update({(line["line"], line["direction"]): line["counted"] for line in result["lines"]})
    assert counted == prepared.crossings
    boxes = [len(read_truth(path).boxes) for path in paths[2:]]
    assert boxes[0] == boxes[1] + boxes[2]


def test_every_scene_has_a_line_and_a_zone() -> None:
    assert all(build(np.random.default_rng(0)).lines_m for build in SCENES.values())
    assert all(build(np.random.default_rng(0)).zones_m for build in SCENES.values())
