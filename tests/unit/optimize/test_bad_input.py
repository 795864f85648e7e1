"""Tests that `vision calibrate` and `vision sparsify` leave no partial result after bad input or an interruption."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from rich.console import Console

from tests.small_disk import small_disk
from tests.unit.optimize.models import SIDE, SPEC, cell_images, cells_model, save_cells, save_images
from vision.config import PluginSpec
from vision.config.load import load_model_spec
from vision.errors import EXIT_TEMPORARY, Closed, ConfigError, ModelError, Unavailable
from vision.optimize import int8, sparse
from vision.optimize.int8 import Int8Options
from vision.optimize.model_folder import install
from vision.optimize.task import Task

Run = Callable[[Task, threading.Event], None]


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set the folders for the cache and for temporary files. Return the folder for temporary files."""
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    return temporary


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return save_images(tmp_path / "images", cell_images(16))


def calibrate(task: Task, stop: threading.Event) -> None:
    options = Int8Options(("minmax", "mse"), keep=1)
    int8.run(task, options, stop, Console(quiet=True))


def repair(task: Task, stop: threading.Event) -> None:
    sparse.run(task, stop, Console(quiet=True), repair=True)


COMMANDS = pytest.mark.parametrize("run", [calibrate, repair])


class StopAfter(threading.Event):
    """Event that counts as set after a number of calls of `is_set`."""

    def __init__(self, questions: int) -> None:
        super().__init__()
        self.left = questions

    def is_set(self) -> bool:
        self.left -= 1
        if self.left < 0:
            self.set()
        return super().is_set()


@COMMANDS
def test_stop_at_any_time_leaves_nothing(tmp_path: Path, places: Path, run: Run) -> None:
    images = save_images(tmp_path / "images", cell_images(9))
    model = save_cells(tmp_path / "cells")
    before = set(tmp_path.iterdir()) | {tmp_path / "cache"}
    whole = StopAfter(10**9)
    run(Task(model, SPEC, tmp_path / "whole", images, max_drop=1.0), whole)
    questions = 10**9 - whole.left
    assert questions > 20, "the command asks often enough to stop in time"
    for number in range(0, questions * 3 // 4, questions // 3):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # otherwise, the model would not run again
        with pytest.raises(Closed):
            run(Task(model, SPEC, tmp_path / "out", images, max_drop=1.0), StopAfter(number))
        assert set(tmp_path.iterdir()) - before == {tmp_path / "whole"}, number
        assert not list(places.glob("vision-*")), number


@pytest.mark.integration
@pytest.mark.parametrize("arguments", [["calibrate"], ["sparsify", "--repair"]])
def test_ctrl_c_ends_the_command_without_a_result(tmp_path: Path, places: Path, arguments: list[str]) -> None:
    model = save_cells(tmp_path / "cells")
    config = tmp_path / "camera.yaml"
    config.write_text("cameras: [{id: gate, source: 'synthetic:320x240@50'}]\n")
    command = [sys.executable, "-m", "vision.cli.main", *arguments, str(model), "--config", str(config), "--for", "10m"]
    with subprocess.Popen(
        [*command, "--output", str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as program:
        deadline = time.monotonic() + 60
        while not list(places.rglob("*.npy")) and program.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        program.send_signal(signal.SIGINT)
        output, _ = program.communicate(timeout=60)
    assert program.returncode == 128 + signal.SIGINT, output
    assert "Traceback" not in output
    assert not list(tmp_path.glob("out*"))
    assert not list(places.glob("vision-*"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as folder:
        yield folder


@pytest.mark.integration
def test_full_disk_of_the_result_is_reported(tmp_path: Path, disk: Path) -> None:
    old = install_small(disk / "out")
    with pytest.raises(Unavailable) as caught:
        install(disk / "out", SPEC, bytes(200_000), {})
    assert (caught.value.code, caught.value.exit_code) == ("not-writable", EXIT_TEMPORARY)
    assert [path.name for path in disk.iterdir()] == ["out"], "nothing else is left"
    assert (disk / "out" / SPEC.file).read_bytes() == old, "the earlier model is kept"


def install_small(folder: Path) -> bytes:
    install(folder, SPEC, b"old", {})
    return b"old"


@pytest.mark.integration
@COMMANDS
def test_full_disk_of_the_frames_is_reported(
    tmp_path: Path, images: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setenv("TMPDIR", str(disk))
    monkeypatch.setattr("tempfile.tempdir", None)
    (disk / "other").write_bytes(bytes(40_000))
    with pytest.raises(Unavailable) as caught:
        run(Task(save_cells(tmp_path / "cells"), SPEC, tmp_path / "out", images), threading.Event())
    assert caught.value.code == "temporary-full"
    assert str(disk) in caught.value.args[0]
    assert "TMPDIR" in caught.value.hint
    assert [path.name for path in disk.iterdir()] == ["other"]
    assert not (tmp_path / "out").exists()


@COMMANDS
def test_open_dimensions_are_those_of_the_spec(tmp_path: Path, images: Path, run: Run) -> None:
    model = save_cells(tmp_path / "cells")
    loaded = cells_model()
    for axis, name in ((2, "height"), (3, "width")):
        loaded.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    del loaded.graph.value_info[:]
    onnx.save_model(loaded, str(model / SPEC.file))
    run(Task(model, SPEC, tmp_path / "out", images, max_drop=1.0), threading.Event())
    spec = load_model_spec(tmp_path / "out")
    given = onnx.load(str(tmp_path / "out" / spec.file)).graph.input[0].type.tensor_type.shape.dim
    assert given[2].dim_param == "height"
    assert spec.input.width == SIDE


@COMMANDS
def test_model_that_needs_plugins_is_refused_before_frames_are_read(tmp_path: Path, run: Run) -> None:
    plugins: Any = ("VisionStarRelu", PluginSpec(file="libplugin.so", sha256="0" * 64))
    for plugin in plugins:
        spec = SPEC.model_copy(update={"plugins": (plugin,)})
        with pytest.raises(ModelError) as caught:
            run(Task(save_cells(tmp_path / "cells"), spec, tmp_path / "out", tmp_path / "no-images"), threading.Event())
        assert caught.value.code == "plugins-need-tensorrt"


@COMMANDS
def test_unreadable_images_among_others_are_listed_in_the_report(tmp_path: Path, images: Path, run: Run) -> None:
    (images / "broken.png").write_bytes(b"\x89PNG\r\n")
    (images / "link.png").symlink_to(images / "missing.png")
    task = Task(save_cells(tmp_path / "cells"), SPEC, tmp_path / "out", images, max_drop=1.0)
    run(task, threading.Event())
    report = json.loads((tmp_path / "out" / "optimization.json").read_text())
    assert [Path(text.split(":")[0]).name for text in report["unreadable"]] == ["broken.png", "link.png"]
    assert report["frames"] == 16


def test_unreadable_images_are_counted_and_named_in_the_output(tmp_path: Path, images: Path) -> None:
    for number in range(7):
        (images / f"broken-{number}.png").write_bytes(b"\x89PNG\r\n")
    output = io.StringIO()
    task = Task(save_cells(tmp_path / "cells"), SPEC, tmp_path / "out", images, max_drop=1.0)
    int8.run(task, Int8Options(("minmax",)), threading.Event(), Console(file=output, width=80))
    (line,) = [each for each in output.getvalue().splitlines() if "chosen of" in each]
    assert "7 skipped" in line
    assert [f"broken-{number}.png" in line for number in range(7)] == [True] * 5 + [False] * 2
    assert "and 2 more" in line


def test_unreadable_images_are_named_if_too_few_are_left(tmp_path: Path) -> None:
    images = save_images(tmp_path / "images", cell_images(3))
    (images / "broken.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ConfigError) as caught:
        calibrate(Task(save_cells(tmp_path / "cells"), SPEC, tmp_path / "out", images), threading.Event())
    assert caught.value.code == "too-few-frames"
    assert str(images / "broken.png") in caught.value.args[0]
