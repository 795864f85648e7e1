"""Tests that the examples of docs/archive.md run, and that the document lists every column."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.archive_simulation import START_UTC_NS, Recorder, detections_of, live_results, site
from tests.paths import ROOT
from vision.outputs.archive.compaction import compact
from vision.outputs.archive.tables import COLUMNS

PAGE = (ROOT / "docs" / "archive.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python (\w+)\n(.*?)```", PAGE, re.DOTALL)
START_US = START_UTC_NS // 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an archive that contains files and live rows."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "archive").mkdir()
    for number, start_s in enumerate((0.0, 3_600.0, 3 * 86_400.0)):
        recorder = Recorder(folder / "archive", instance=f"start-{number}")
        one = site("gate", "waiting", 1, start_s=start_s)
        for result in live_results(one, islice(detections_of(one), 300)):
            recorder.add(result)
        recorder.close()
        if number == 1:
            compact(folder / "archive", START_US + 2 * 86_400_000_000, keep_days=30, max_mb=100)
    return folder


def test_every_reader_has_an_example() -> None:
    assert {name for name, _ in EXAMPLES} == {"duckdb", "pandas", "polars", "sqlite"}


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_print_rows_of_the_camera(
    number: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    exec(EXAMPLES[number][1], {})
    assert "gate" in capsys.readouterr().out


def test_paths_of_two_starts_of_the_program_are_separate(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(dict(EXAMPLES)["pandas"], names)
    table = names["positions"][["center_x", "bottom_y"]].agg(["first", "last"])
    first, second = (table.xs(f"start-{number}", level="instance") for number in range(2))
    assert len(first) > 5 and first.equals(second)  # both starts show the same scene, with the same track ids


def test_page_names_every_column() -> None:
    missing = {f"{table}.{name}" for table, columns in COLUMNS.items() for name in columns if f"`{name}`" not in PAGE}
    assert not missing
