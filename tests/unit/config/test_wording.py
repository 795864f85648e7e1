"""Tests that errors for wrong names suggest similar names."""

from __future__ import annotations

from pathlib import Path

import pytest

from vision.config.wording import did_you_mean_class, did_you_mean_file


def test_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "vtest.mp4").touch()
    assert "'vtest.mp4'" in did_you_mean_file(tmp_path / "vtset.mp4")
    assert did_you_mean_file(tmp_path / "vtest.mp4") == ""
    assert did_you_mean_file(tmp_path / "garden.avi") == ""
    assert did_you_mean_file(tmp_path / "nowhere" / "vtest.mp4") == ""


@pytest.mark.parametrize(
    ("word", "name"),
    [("people", "person"), ("Pedestrian", "person"), ("cars", "car"), ("bike", "bicycle"), ("aple", "apple")],
)
def test_class_name_suggests_the_nearest_class(word: str, name: str) -> None:
    assert f"'{name}'" in did_you_mean_class(word, ("apple", "person", "car", "bicycle"))


def test_synonym_suggests_no_other_class() -> None:
    assert did_you_mean_class("people", ("apple", "car")) == ""
