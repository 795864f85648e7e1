"""Tests of `process_count`, which determines the number of worker processes for `processes: auto`."""

from __future__ import annotations

import os

import pytest

from vision.config import AppConfig
from vision.runtime.process_count import process_count


def chosen(cameras: int, fps: float, cores: int, monkeypatch: pytest.MonkeyPatch, **keys: object) -> int:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    sources = [{"id": f"c{number}", "source": "synthetic:64x48", "fps": fps} for number in range(cameras)]
    return process_count(AppConfig.model_validate({"processes": "auto", "cameras": sources, **keys}))


@pytest.mark.parametrize(
    ("cameras", "fps", "cores", "expected"),
    [
        (10, 30, 64, 1),  # 300 frames/s
        (11, 30, 64, 2),
        (128, 30, 3, 1),
        (128, 30, 4, 2),
        (128, 30, 7, 3),
        (128, 30, 8, 4),
        (64, 30, 16, 4),  # 1,920 frames/s
        (128, 30, 16, 8),
        (256, 30, 64, 8),
        (3, 200, 16, 2),
        (1, 1000, 16, 1),  # no more workers than cameras
    ],
)
def test_number_depends_on_frame_rates_cores_and_cameras(
    cameras: int, fps: float, cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen(cameras, fps, cores, monkeypatch) == expected


def test_given_number_is_limited_to_the_number_of_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(2, 30, 2, monkeypatch, processes=5) == 2
    assert chosen(9, 30, 2, monkeypatch, processes=5) == 5
