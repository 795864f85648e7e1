"""Tests with 100,000 hostile tracks, and with faulty counters, whose faults the oracle must find."""

from __future__ import annotations

import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from tests.soak import hostile_tracks
from tests.soak.hostile_tracks import Faults, run
from vision.analytics import lines, tracked_objects


@pytest.mark.integration
def test_no_crossing_of_hostile_tracks_is_invented_or_missed() -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        parts = list(pool.map(run, (50_000, 50_000), (11, 12)))
    assert sum(part.tracks for part in parts) >= 100_000
    assert [(part.invented, part.missed, part.zones) for part in parts] == [(0, 0, 0)] * 2
    assert min(part.required for part in parts) > 10_000


@pytest.mark.parametrize(
    ("module", "name", "value", "fault"),
    [
        (tracked_objects, "STEADY_MARGIN", 0.02, "invented"),
        (lines, "_STAYS_S", 3.0, "missed"),
        (lines, "_CLEARLY", 4.0, "missed"),
        (lines, "_REMEMBERED_S", 5.0, "missed"),
        (lines, "_REMEMBERED_S", math.inf, "invented"),
    ],
)
def test_oracle_finds_a_wrong_counter(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, value: float, fault: str
) -> None:
    monkeypatch.setattr(module, name, value)
    faults = _until_fault()
    assert {example["fault"] for example in faults.examples} == {fault}


def _until_fault() -> Faults:
    """Run batches until the oracle finds a fault, but run no more than 20,000 tracks."""
    rng, faults = np.random.default_rng(5), Faults()
    while not faults.any and faults.tracks < 20_000:
        hostile_tracks.run_batch(hostile_tracks.make_batch(rng), faults)
    return faults
