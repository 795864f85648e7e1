"""Tests of `vision calibrate`: the calibration, the limit of the accuracy loss, and the model folder."""

from __future__ import annotations

import json
import resource
import threading
import tracemalloc
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.unit.optimize.models import SPEC, cell_images, save_cells, save_images
from vision.cli.main import main
from vision.config.load import load_model_spec
from vision.errors import Closed, ConfigError, ModelError, SourceError, Unavailable, VisionError
from vision.optimize import int8
from vision.optimize.accuracy import Accuracy, Labels, agreement
from vision.optimize.calibration import Calibration, collect
from vision.optimize.feed import Feed
from vision.optimize.frames import Frames, frames_of_images
from vision.optimize.int8 import Int8Options
from vision.optimize.onnx_graph import open_graph, open_session
from vision.optimize.quantize import quantized_inputs
from vision.optimize.sensitivity import plot_trade_off
from vision.optimize.task import Task
from vision.types import Detections


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    return tmp_path / "cache" / "calibration"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return save_images(tmp_path / "images", cell_images(16))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_cells(tmp_path / "cells")


def run(model: Path, images: Path, output: Path, **options: object) -> None:
    own = {name: options.pop(name) for name in ("algorithms", "keep", "sensitivity", "plot") if name in options}
    task = Task(model, SPEC, output, images, **options)  # type: ignore[arg-type]
    int8.run(task, Int8Options(**own), threading.Event(), Console(quiet=True))  # type: ignore[arg-type]


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"images", "cells", "cache"}


def test_model_folder_is_written_and_works(tmp_path: Path, model: Path, images: Path) -> None:
    output = tmp_path / "cells-int8"
    assert main(["calibrate", str(model), "--images", str(images), "--output", str(output)]) == 0
    spec = load_model_spec(output)
    assert (spec.name, spec.input, spec.head, spec.classes) == ("cells-int8", SPEC.input, SPEC.head, SPEC.classes)
    assert main(["models", str(tmp_path)]) == 0
    camera = tmp_path / "camera.yaml"
    site = {"model": str(output), "detect": {"backend": "onnxruntime"}, "cameras": [{"id": "a", "source": str(images)}]}
    camera.write_text(json.dumps(site))
    assert main(["check", str(camera)]) == 0
    report = json.loads((output / "optimization.json").read_text())
    assert report["frames"] == 16 and report["layers"] == 4 and report["kept"] == []
    assert report["accuracy"]["value"] > 0.99
    assert left(tmp_path) == {"cells-int8", "camera.yaml"}


def test_model_that_loses_too_much_is_written_aside(tmp_path: Path, images: Path) -> None:
    model = save_cells(tmp_path / "cells", outlier=2000.0)
    with pytest.raises(VisionError) as caught:
        run(model, images, tmp_path / "out")
    assert (caught.value.code, caught.value.exit_code) == ("accuracy-drop", 1)
    assert left(tmp_path) == {"out.rejected"}
    report = json.loads((tmp_path / "out.rejected" / "optimization.json").read_text())
    assert report["accuracy"]["parent"] - report["accuracy"]["value"] > 0.01
    assert "--keep N" in str(caught.value) and "--truth" in str(caught.value)


def test_keeping_the_worst_layer_restores_the_accuracy(tmp_path: Path, images: Path) -> None:
    model = save_cells(tmp_path / "cells", outlier=2000.0)
    run(model, images, tmp_path / "out", keep=1, sensitivity=True, plot=tmp_path / "plot.png")
    report = json.loads((tmp_path / "out" / "optimization.json").read_text())
    assert report["kept"] == ["conv1"]
    assert report["accuracy"]["value"] > 0.99
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_model_is_installed_even_if_the_disk_of_the_plot_is_full(tmp_path: Path, model: Path, images: Path) -> None:
    plot = tmp_path / "plot.png"
    plot.symlink_to("/dev/full")
    with pytest.raises(Unavailable) as caught:
        run(model, images, tmp_path / "out", sensitivity=True, plot=plot)
    assert (caught.value.code, caught.value.exit_code) == ("not-writable", 75)
    assert load_model_spec(tmp_path / "out").name == "out"


def test_rejected_model_also_has_a_plot(tmp_path: Path, images: Path) -> None:
    model = save_cells(tmp_path / "cells", outlier=2000.0)
    with pytest.raises(VisionError) as caught:
        run(model, images, tmp_path / "out", sensitivity=True, plot=tmp_path / "plot.png")
    assert caught.value.code == "accuracy-drop"
    assert left(tmp_path) == {"out.rejected", "plot.png"}


@pytest.mark.parametrize("before", [None, b"the plot of a previous run"])
def test_plot_that_cannot_be_written_completely_leaves_what_was_there(tmp_path: Path, before: bytes | None) -> None:
    plot = tmp_path / "plot.png"
    if before is not None:
        plot.write_bytes(before)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # the system refuses larger files
    try:
        with pytest.raises(VisionError):
            plot_trade_off([(0, Accuracy("AP@0.5", 0.9, 0.8))], 4, plot)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == (
        {} if before is None else {plot.name: before}
    )


def test_best_algorithm_is_installed(tmp_path: Path, model: Path, images: Path) -> None:
    run(model, images, tmp_path / "out", algorithms=("entropy", "minmax", "percentile", "mse"))
    assert (tmp_path / "out" / "model.yaml").exists()


def test_labels_decide_if_they_are_given(tmp_path: Path, model: Path, images: Path) -> None:
    truth = tmp_path / "gt.txt"
    truth.write_text("".join(f"{frame},{frame},0,0,8,8,1\n" for frame in range(1, 17)))
    run(model, images, tmp_path / "out", labels=Labels(str(images), truth, "red"), max_drop=1.0)
    report = json.loads((tmp_path / "out" / "optimization.json").read_text())
    assert report["accuracy"]["metric"] == "AP@0.5 of red"
    assert 0 < report["accuracy"]["parent"] < 0.9  # the labels are not those of the images


@pytest.mark.parametrize("fault", ["video", "truth", "class"])
def test_labels_are_checked_before_frames_are_read(tmp_path: Path, model: Path, images: Path, fault: str) -> None:
    truth = tmp_path / "gt.txt"
    truth.write_text("no numbers\n" if fault == "truth" else "1,1,0,0,8,8,1\n")
    labels = Labels(
        str(tmp_path / "none.mp4" if fault == "video" else images), truth, "none" if fault == "class" else "red"
    )
    with pytest.raises(SourceError if fault == "video" else ConfigError) as caught:
        run(model, tmp_path / "no images", tmp_path / "out", labels=labels)
    assert {"video": "none.mp4", "truth": "gt.txt", "class": "--class"}[fault] in str(caught.value)


def test_frames_without_objects_do_not_decide(tmp_path: Path, model: Path) -> None:
    dark = [np.full((32, 32, 3), 3 * index, np.uint8) for index in range(16)]
    images = save_images(tmp_path / "images", dark)
    with pytest.raises(ConfigError) as caught:
        run(model, images, tmp_path / "out")
    assert caught.value.code == "nothing-to-compare"
    assert left(tmp_path) == set()


@pytest.mark.parametrize(
    ("content", "force", "code"), [("model.yaml", False, "model-exists"), ("x", True, "not-a-model")]
)
def test_existing_folder_is_kept(tmp_path: Path, images: Path, content: str, force: bool, code: str) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / content).write_text("mine")
    with pytest.raises(ConfigError) as caught:
        run(save_cells(tmp_path / "cells"), images, output, force=force)
    assert caught.value.code == code
    assert (output / content).read_text() == "mine"


def test_force_replaces_a_model(tmp_path: Path, model: Path, images: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "model.yaml").write_text("old")
    run(model, images, output, force=True)
    assert load_model_spec(output).name == "out"
    assert left(tmp_path) == {"out"}


def test_nothing_is_written_after_a_stop(tmp_path: Path, model: Path, images: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Closed):
        int8.run(Task(model, SPEC, tmp_path / "out", images), Int8Options(), stop, Console(quiet=True))
    assert left(tmp_path) == set()


def test_number_of_kept_layers_is_checked(tmp_path: Path, model: Path, images: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run(model, images, tmp_path / "out", keep=4)
    assert caught.value.code == "invalid-value"


def test_folder_that_cannot_be_written_is_reported(tmp_path: Path, model: Path, images: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError) as caught:
        run(model, images, tmp_path / "file" / "out")
    assert caught.value.code == "not-writable"


def test_arguments_that_contradict_are_refused(images: Path) -> None:
    assert main(["calibrate", "nanodet-g-416"]) == 2
    assert main(["calibrate", "nanodet-g-416", "--images", str(images), "--config", "demo"]) == 2
    assert main(["calibrate", "nanodet-g-416", "--images", str(images), "--truth", "gt.txt"]) == 2
    assert main(["calibrate", "nanodet-g-416", "--images", str(images), "--plot", "x.png"]) == 2
    assert main(["calibrate", "nanodet-g-416", "--images", str(images), "--algorithm", "magic"]) == 2


# ------------------------------------------------------------------------------------------------ calibration


@pytest.fixture
def frames(tmp_path: Path, images: Path) -> Frames:
    (tmp_path / "frames").mkdir()
    return frames_of_images(images, tmp_path / "frames", SPEC.input, 16, lambda _: None)


class Counter:
    """Counter of the frames that a calibration processes."""

    def __init__(self) -> None:
        self.frames = 0

    def __call__(self, done: int) -> None:
        self.frames = done


def test_thresholds_cover_all_tensors_and_are_cached(model: Path, frames: Frames, cache: Path) -> None:
    graph = open_graph(model / SPEC.file)
    first, second = Counter(), Counter()
    found = Calibration(graph, SPEC, frames).thresholds("minmax", first)
    assert found.keys() == set(quantized_inputs(graph))
    assert found["images"] == pytest.approx(1.0, abs=0.05)
    again = Calibration(graph, SPEC, frames)
    assert again.thresholds("minmax", second) == found
    assert (first.frames, second.frames) == (16, 0)
    assert len(list(cache.iterdir())) == 1


def test_memory_does_not_grow_with_the_number_of_frames(model: Path) -> None:
    graph = open_graph(model / SPEC.file)
    names = quantized_inputs(graph)
    session = open_session(graph.with_outputs(list(names)))
    (image,) = cell_images(1)

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            collect(session, names, Feed(session, SPEC).batches(repeat(image, count)), SPEC.name, Counter())
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(320) < 1.2 * peak(20)


@pytest.mark.parametrize("damage", ["other", "cut"])
def test_table_of_another_model_or_damaged_is_not_used(
    tmp_path: Path, model: Path, frames: Frames, cache: Path, damage: str
) -> None:
    graph = open_graph(model / SPEC.file)
    expected = Calibration(graph, SPEC, frames).thresholds("minmax", Counter())
    (mine,) = cache.iterdir()
    if damage == "other":
        other = open_graph(save_cells(tmp_path / "cells", outlier=1.0) / SPEC.file)
        Calibration(other, SPEC, frames).thresholds("minmax", Counter())
        (theirs,) = set(cache.iterdir()) - {mine}
        theirs.replace(mine)
    else:
        mine.write_bytes(mine.read_bytes()[:-3])
    counter = Counter()
    assert Calibration(graph, SPEC, frames).thresholds("minmax", counter) == expected
    assert counter.frames == 16


def test_cache_that_cannot_be_written_does_not_matter(model: Path, frames: Frames, tmp_path: Path) -> None:
    (tmp_path / "no-folder").touch()
    calibration = Calibration(open_graph(model / SPEC.file), SPEC, frames, cache=tmp_path / "no-folder")
    assert calibration.thresholds("mse", Counter())


def test_values_that_are_not_finite_are_reported(model: Path, frames: Frames) -> None:
    graph = open_graph(model / SPEC.file)
    graph.replace("w0", graph.array("w0") * np.float32(3e38))
    with pytest.raises(ModelError) as caught:
        Calibration(graph, SPEC, frames).thresholds("minmax", Counter())
    assert caught.value.code == "not-finite"


# ------------------------------------------------------------------------------------------------ agreement


def detections(*rows: tuple[float, float, int]) -> Detections:
    """Return a box of 10 x 10 pixels for each row (left, score, class)."""
    boxes = np.array([(left, 0, left + 10, 10) for left, _, _ in rows], np.float32).reshape(-1, 4)
    scores = np.array([score for _, score, _ in rows], np.float32)
    return Detections(boxes, scores, np.array([class_id for *_, class_id in rows], np.int32))


STRONG = detections((0, 0.9, 0), (100, 0.8, 0), (200, 0.3, 0), (300, 0.1, 0))


def cases() -> Iterator[tuple[str, Detections, float]]:
    yield "the same", STRONG, 1.0
    yield "scores across the threshold", detections((0, 0.9, 0), (100, 0.3, 0), (200, 0.4, 0)), 1.0
    yield "lower scores", detections((0, 0.2, 0), (100, 0.2, 0)), 0.0
    yield "a missing box", detections((0, 0.9, 0)), 2 / 3
    yield "a new box", detections((300, 0.95, 0), (0, 0.9, 0), (100, 0.8, 0)), 4 / 5
    yield "a box twice", detections((0, 0.9, 0), (1, 0.9, 0), (100, 0.8, 0)), 4 / 5
    yield "a different class", detections((0, 0.9, 1), (100, 0.8, 0)), 1 / 2
    yield "nothing", detections(), 0.0


@pytest.mark.parametrize(("found", "expected"), [case[1:] for case in cases()], ids=[case[0] for case in cases()])
def test_agreement(found: Detections, expected: float) -> None:
    assert agreement([STRONG], [found], classes=2) == pytest.approx(expected)


def test_agreement_without_objects_is_unknown() -> None:
    assert agreement([detections((0, 0.1, 0))], [STRONG], classes=2) is None
