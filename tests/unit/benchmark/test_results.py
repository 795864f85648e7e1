"""Tests of the committed performance results, and of the tables generated from these results."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from tests.perf import results, tables

FILES = sorted(results.FOLDER.glob("*/*.json"))


def test_results_folder_has_results() -> None:
    assert len(FILES) > 20
    assert not list(results.FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_result_has_the_documented_format(path: Path) -> None:
    result = results.load(path)
    assert (result.machine, result.name) == (path.parent.name, path.stem)
    assert result.date in result.measured_on
    wrong = [key for key in results.keys(result.figures) if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", key)]
    assert not wrong


def test_format_is_documented() -> None:
    text = (results.FOLDER / "README.md").read_text()
    for field in msgspec.structs.fields(results.PerfResult):
        assert f"| `{field.encode_name}` |" in text


@pytest.mark.parametrize(
    ("label", "key"),
    [
        ("p99 less detector's p99", "p99_less_detector_p99"),
        ("steps 32 nv12, us", "steps_32_nv12_us"),
        ("frames_per_s", "frames_per_s"),
        ("one camera / onnxruntime alone", "one_camera_onnxruntime_alone"),
    ],
)
def test_labels_become_snake_case(label: str, key: str) -> None:
    assert results.snake_case(label) == key
    assert results.snake_case(key) == key


def test_names_of_packages_stay_as_they_are() -> None:
    plain = {"A b": [{"versions": {"opencv-python": "5"}}], "c": {"D e": 1}}
    assert results.snake_case_keys(plain) == {"a_b": [{"versions": {"opencv-python": "5"}}], "c": {"d_e": 1}}


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_page_is_up_to_date(page: Path) -> None:
    text = page.read_text()
    assert "<!-- perf: " in text
    assert tables.updated(text) == text, "run `python -m tests.perf.tables`"


def test_every_table_is_shown() -> None:
    shown = re.findall(r"<!-- perf: (\w+) -->", "".join(page.read_text() for page in tables.PAGES))
    assert sorted(name for name in shown if name != "end") == ["cpu", "gpu", "readme", "streams"]


def test_text_is_filled_with_values_and_their_files() -> None:
    text, files = tables.fill("{memory/resident_mib_first:.0f} MiB {memory/seconds*1e-3:.1f}", tables.XEON)
    assert text == "228 MiB 0.3"
    assert files == ["memory"]
