"""Tests that `vision replay` publishes the same objects, events, and counts as the archived run."""

from __future__ import annotations

import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.archive_simulation import START_UTC_NS, Recorder, detections_of, live_results, site
from vision.cli.main import main
from vision.client import CountsMessage, DetectionsMessage, EventMessage, Item, Subscription
from vision.errors import EXIT_CONFIG
from vision.evaluation.simulation.truth import class_names
from vision.messaging import codec
from vision.types import Result

pytestmark = pytest.mark.integration

FRAMES = 400


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Result]]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "archive").mkdir()
    one = site("gate", "waiting", 1)
    recorder, results = Recorder(folder / "archive"), list(live_results(one, islice(detections_of(one), FRAMES)))
    for result in results:
        recorder.add(result)
    recorder.close()
    config = {
        "cameras": [{"id": "gate", "source": "synthetic:"}],
        "analytics": {"gate": one.section.model_dump(mode="json", exclude_unset=True)},
        "archive": {"folder": "archive"},
        "publish": {"bind": f"ipc://{folder}/out"},
    }
    (folder / "camera.yaml").write_text(yaml.safe_dump(config))
    return folder, results


def received(folder: Path, *arguments: str) -> list[Item]:
    """Replay the archive. Return all received messages."""
    items: list[Item] = []
    ended = threading.Event()
    options = ["--since", "2023-11-14T00:00Z", "--until", "2023-11-16T00:00Z", "--speed", "0", *arguments]
    with Subscription(f"ipc://{folder}/out", kinds=("detections", "events", "counts"), queue=100_000) as subscription:

        def collect() -> None:
            while (item := subscription.receive(0.5)) is not None or not ended.is_set():
                if item is not None:
                    items.append(item)

        thread = threading.Thread(target=collect)
        thread.start()
        code = main(["replay", str(folder / "camera.yaml"), *options])
        ended.set()
        thread.join()
    assert code == 0
    return items


def test_replay_publishes_the_same(recorded: tuple[Path, list[Result]]) -> None:
    folder, results = recorded
    items = received(folder)
    detections = [item for item in items if isinstance(item, DetectionsMessage)]
    assert [item.seq for item in detections] == list(range(1, FRAMES + 1))
    for message, result in zip(detections, results, strict=True):
        live = codec.detections(codec.UNNUMBERED, result, class_names(), result.meta.captured_ns)
        assert (message.frame, message.epoch, message.captured_at) == (live.frame, live.epoch, live.captured_at)
        assert message.captured_monotonic_ns == live.captured_monotonic_ns
        for found, expected in zip(message.objects, live.objects, strict=True):
            assert (found.track_id, found.class_name) == (expected.track_id, expected.class_name)
            assert found.box == tuple(expected.box)
            assert found.hidden_px == expected.hidden_px
            previous = expected.previous_box
            assert found.previous_box == (None if previous is None else tuple(previous))
            assert abs((found.age_ms or 0) - (expected.age_ms or 0)) <= 1
    events = [item for item in items if isinstance(item, EventMessage)]
    expected_events = [event for result in results for event in result.events]
    assert [(each.kind, each.name, each.track_id, each.at_monotonic_ns, each.data) for each in events] == [
        (each.kind, each.name, each.track_id, each.at_ns, each.data) for each in expected_events
    ]
    last = [item for item in items if isinstance(item, CountsMessage)][-1]
    assert results[-1].counts is not None
    assert {name: {"in": each.in_, "out": each.out} for name, each in last.lines.items()} == {
        name: {key: each[key] for key in ("in", "out")} for name, each in results[-1].counts.lines.items()
    }


def test_range_limits_the_messages(recorded: tuple[Path, list[Result]]) -> None:
    folder, results = recorded
    start_us = START_UTC_NS // 1000 + 20_000_000
    since = str(np.datetime64(start_us, "us")) + "Z"
    items = received(folder, "--since", since)
    wanted = [result for result in results if result.meta.captured_utc_ns // 1000 >= start_us]
    found = [item for item in items if isinstance(item, DetectionsMessage)]
    assert [item.frame for item in found] == [result.meta.index for result in wanted]
    events = [item for item in items if isinstance(item, EventMessage)]
    assert [each.data for each in events] == [event.data for result in wanted for event in result.events]


def test_range_without_frames_is_refused(recorded: tuple[Path, list[Result]]) -> None:
    command = ["replay", str(recorded[0] / "camera.yaml"), "--since", "2020-01-01", "--until", "2020-01-02"]
    assert main(command) == EXIT_CONFIG
