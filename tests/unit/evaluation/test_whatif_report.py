"""Tests of the differences that `vision whatif` finds in blocks, and of the report of many differences."""

from __future__ import annotations

import json
import pickle
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from tests.archive_simulation import Recorder, detections_of, live_results, site
from tests.rejudge import rejudge
from vision.config import AppConfig, CameraConfig
from vision.config.analytics import CameraAnalytics
from vision.evaluation.simulation.truth import class_names
from vision.evaluation.whatif import changes as blocks
from vision.evaluation.whatif import run
from vision.evaluation.whatif.changes import Change, Changes
from vision.evaluation.whatif.difference import Difference, compare
from vision.evaluation.whatif.judge import Judge
from vision.evaluation.whatif.rejudge import Judgment
from vision.evaluation.whatif.report import CameraReport, WhatIf, json_parts
from vision.outputs.archive.reader import Archive, ArchivedEvent
from vision.types import Event


def change(at_us: int, number: int) -> Change:
    event = Event("line_crossed", "Größe", "gate", number, at_us * 1000, {"direction": "in", "speed": 1e-7, "none": []})
    return Change("gate", "lost", ArchivedEvent(event, "1-a", 0, number, at_us), None)


@pytest.mark.parametrize("number", [0, 1, 7, 8, 200])
def test_differences_are_ordered_like_a_stable_sort(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCK", 7)
    rng = np.random.default_rng(number)
    expected, found, first, start = list[Change](), Changes(), Changes(most=5), 0
    while start < number:
        size = int(rng.integers(1, 20))
        some = [change(int(at), len(expected) + at) for at in rng.integers(start, start + 40, size)]
        expected += some
        found.add(some)
        first.add(some)
        start += size
    expected.sort(key=lambda each: each.shown.at_us)
    assert [*found] == expected == [*pickle.loads(pickle.dumps(found))]
    assert [*first] == expected[:5] and first.numbers() == found.numbers()
    assert len(found) == len(expected) == found.numbers()["lost"]


@pytest.mark.parametrize("numbers", [(0, 0), (1, 0), (3, 2)])
def test_json_is_that_of_the_standard_library(numbers: tuple[int, int]) -> None:
    cameras = tuple(
        CameraReport(
            camera=f"camera-{at}",
            section=CameraAnalytics(),
            before=number,
            judgment=Judgment(),
            difference=Difference(Changes(change(10 * each + at, each) for each in range(number)), 0, equal=False),
        )
        for at, number in enumerate(numbers)
    )
    text = "".join(json_parts(WhatIf("camera.yaml", 0, 10**12, cameras)))
    assert text == json.dumps(json.loads(text), indent=2) + "\n"
    assert [each["before"]["at"] for each in json.loads(text)["changes"]] == sorted(
        f"1970-01-01T00:00:00.{at_us:06d}Z" for at, number in enumerate(numbers) for at_us in range(at, 10 * number, 10)
    )


def test_places_of_objects_do_not_depend_on_the_number_of_boxes_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, recorder = site("gate", "waiting", 1), Recorder(tmp_path)
    for result in live_results(waiting, islice(detections_of(waiting), 600)):
        recorder.add(result)
    recorder.close()
    archive = Archive(tmp_path)
    config = AppConfig(cameras=(CameraConfig(id="gate", source="synthetic:"),))
    judged = rejudge(archive, Judge(config, "gate", class_names()), "gate", 0, 1 << 61)
    changes = compare("gate", judged.published, judged.events).changes
    whole = [*run._feet(archive, "gate", changes)]
    monkeypatch.setattr(run, "_CHANGES", len(changes) // 3)
    assert [*run._feet(archive, "gate", changes)] == whole
    assert len(whole) == len(changes) > 10
    assert any(before is not None and after is None for before, after in whole)
