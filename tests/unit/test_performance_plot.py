"""A benchmark as a picture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import cv2
import pytest

from tests.unit.test_performance_files import bench, row
from vision.errors import ConfigError
from vision.performance.document import Case
from vision.performance.plot import check_plot_path, draw, series

ROWS = [
    row(Case("engine", "graph", 2, "fp16", batch), 100.0 * batch) for batch in (4, 1, 2)
] + [row(Case("stage", "slots", 3, "fp16", batch), 80.0 * batch) for batch in (1, 2)]  # fmt: skip


def test_lines_are_rows_that_differ_in_their_batch() -> None:
    alone = row(Case("stage", "alone", 3, "fp16", 1))
    program = [row(Case("pipeline", "full", 3 * batch, "fp16", batch)) for batch in (1, 2)]
    found = series([*ROWS, alone, *program])
    assert list(found) == ["engine graph, 2 streams, fp16", "stage 3 slots, fp16", "pipeline full load, fp16"]
    assert [each.case.batch for each in found["engine graph, 2 streams, fp16"]] == [1, 2, 4]


def test_a_drawing_of_both_kinds(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(bench(*ROWS), tmp_path / "a.svg")
    draw(bench(*ROWS), tmp_path / "a.png")
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert picture is not None
    assert picture.std() > 5


def test_a_file_of_another_machine_is_shown_and_drawn(tmp_path: Path) -> None:
    """So that the machine that is measured needs nothing to draw with."""
    pytest.importorskip("matplotlib")
    bench(*ROWS).save(tmp_path / "a.json")
    command = [sys.executable, "-m", "vision.cli", "bench", "--read", tmp_path / "a.json", "--plot", tmp_path / "a.svg"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "graph, 2 streams" in done.stdout
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize(("name", "expected"), [("a.txt", "ends in .svg"), ("no/a.svg", "no folder")])
def test_names_that_are_refused_before_anything_is_measured(tmp_path: Path, name: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        check_plot_path(tmp_path / name)
