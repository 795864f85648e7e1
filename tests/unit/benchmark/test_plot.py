"""Tests of the plots of benchmarks: their series, colors, and axes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import pytest

from tests.unit.benchmark.test_files import STAGE, bench, row
from vision.benchmark.document import Case, Row
from vision.benchmark.plot import check_plot_path, draw, series
from vision.errors import ConfigError

ROWS = [
    row(Case("engine", "graph", 2, "fp16", batch), 100.0 * batch) for batch in (4, 1, 2)
] + [row(Case("stage", "slots", 3, "fp16", batch), 80.0 * batch) for batch in (1, 2)]  # fmt: skip


def test_series_are_rows_that_differ_in_their_batch() -> None:
    alone = row(Case("stage", "alone", 3, "fp16", 1))
    program = [row(Case("pipeline", "full", 3 * batch, "fp16", batch)) for batch in (1, 2)]
    lines = series([*ROWS, alone, *program])
    assert list(lines) == [("engine: 2 streams, graph", "fp16"), ("stage: 3 in flight", "fp16"), ("full load", "fp16")]
    assert [row.case.batch for row in lines["engine: 2 streams, graph", "fp16"]] == [1, 2, 4]


def drawn(*rows: Row, **other: object) -> list[Any]:
    """Return the axes of the figure that `draw` saves: two for the network and the stage, and two for the program."""
    figures: list[Any] = []
    figure = pytest.importorskip("matplotlib.figure").Figure

    class Kept(figure):  # type: ignore[misc, valid-type]
        def savefig(self, *_: Any, **__: Any) -> None:
            figures.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure", Kept)
        draw(bench(*rows, **other), Path(os.devnull))
    return list(figures[0].axes)


@pytest.mark.integration
def test_case_has_a_color_and_precision_a_style() -> None:
    rows = [*ROWS, *(replace(one, case=replace(one.case, precision="fp32")) for one in ROWS)]
    rate, tail = drawn(*rows)
    for axes in (rate, tail):
        looks = [(line.get_color(), line.get_linestyle()) for line in axes.get_lines()]
        assert len(set(looks)) == 4
        assert len({color for color, _ in looks}) == len({style for _, style in looks}) == 2
    assert [text.get_text() for text in tail.get_legend().get_texts()] == [
        "engine: 2 streams, graph", "stage: 3 in flight", "fp16", "fp32",
    ]  # fmt: skip


def test_twelve_cases_have_twelve_colors() -> None:
    rows = [row(Case("stage", "slots", lanes, "fp16", batch)) for lanes in range(1, 13) for batch in (1, 2)]
    assert len({line.get_color() for line in drawn(*rows)[0].get_lines()}) == 12


def test_program_has_its_own_axes_and_half_load_no_rate() -> None:
    load = [row(Case("pipeline", mode, 4, "fp16", batch)) for mode in ("full", "half") for batch in (1, 2)]
    stage_rate, _, rate, tail = drawn(*ROWS, *load)
    assert (len(stage_rate.get_lines()), len(rate.get_lines()), len(tail.get_lines())) == (2, 1, 2)
    assert [text.get_text() for text in tail.get_legend().get_texts()] == ["full load", "half load", "fp16"]


@pytest.mark.integration
def test_part_with_one_batch_size_is_drawn_as_bars() -> None:
    load = [row(Case("pipeline", mode, 4, "fp16", 1)) for mode in ("full", "half")]
    few = [replace(one, durations=replace(one.durations, count=50)) for one in load]
    _, _, rate, tail = drawn(*ROWS, *few)
    assert [label.get_text() for label in rate.get_yticklabels()] == ["full load, fp16"]
    assert [label.get_text() for label in tail.get_yticklabels()] == ["full load, fp16", "half load, fp16"]
    assert [text.get_text() for text in tail.texts] == ["10 (50 samples)"] * 2


@pytest.mark.parametrize(("slowest_ms", "scale"), [(30.0, "linear"), (300.0, "log")])
def test_times_that_differ_much_have_a_logarithmic_axis(slowest_ms: float, scale: str) -> None:
    rows = [row(replace(STAGE, batch=batch), p99_ms=p99_ms) for batch, p99_ms in ((1, 2.0), (8, slowest_ms))]
    _, tail = drawn(*rows)
    assert tail.get_yscale() == scale


def test_p99_of_few_samples_is_drawn_hollow() -> None:
    few = [replace(one, durations=replace(one.durations, count=50)) for one in ROWS]
    _, tail = drawn(*few)
    assert [line.get_markerfacecolor() for line in tail.get_lines()].count("white") == 2
    assert "200" in tail.get_legend().get_texts()[-1].get_text()


def test_title_leaves_out_the_precision() -> None:
    title = drawn(*ROWS, backend="TensorRT-RTX 1.6.1, NVIDIA H100 (sm_90), fp32")[0].figure.get_suptitle()
    assert title == "nanodet-g-416, TensorRT-RTX 1.6.1, NVIDIA H100 (sm_90), NVIDIA H100"


def test_file_without_rows_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ConfigError) as caught:
        draw(replace(bench(), rows=()), tmp_path / "a.png")
    assert caught.value.code == "nothing-to-draw"


@pytest.mark.integration
def test_plot_is_written_as_svg_and_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(bench(*ROWS), tmp_path / "a.svg")
    draw(bench(*ROWS), tmp_path / "a.png")
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    frame = cv2.imread(str(tmp_path / "a.png"))
    assert frame is not None
    assert frame.std() > 5


@pytest.mark.integration
def test_file_of_another_machine_is_printed_and_plotted(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "a.json").write_text(bench(*ROWS).text())
    command = [
        sys.executable,
        "-m",
        "vision.cli.main",
        "bench",
        "--read",
        tmp_path / "a.json",
        "--plot",
        tmp_path / "a.svg",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 streams, graph" in done.stdout
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize(("name", "code"), [("a.txt", "plot-format"), ("no/a.svg", "not-writable")])
def test_unusable_plot_name_is_refused(tmp_path: Path, name: str, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_plot_path(tmp_path / name)
    assert caught.value.code == code
