"""Tests of `vision whatif --against` and `vision replay`, with recordings of an RTSP camera by `vision run`."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from pathlib import Path

import pytest

from tests.messages.processes import wait_until
from tests.unit.outputs.recording.test_recording_program import crossing_camera, running, write_config
from vision.cli.main import main
from vision.client import DetectionsMessage, EventMessage, Item, Subscription
from vision.errors import EXIT_CONFIG, EXIT_OK
from vision.evaluation.whatif.video import selected_files
from vision.outputs.archive.reader import Archive
from vision.outputs.recording.index import RecordedFile, Recording, RecordingIndex

WAIT_S = 60.0
END_US = 1 << 61


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the archive and the recordings of a camera."""
    folder = tmp_path_factory.mktemp("site")
    archive = folder / "archive"
    with crossing_camera() as address:
        recording = {"folder": "recordings", "mode": "both", "pre_s": 0.2, "post_s": 0.2}
        config = write_config(folder, [address], recording=recording, archive={"folder": str(archive)})
        with running(config):
            wait_until((archive / "live.sqlite").exists, "an archive", WAIT_S)
            wait_until(lambda: len(Archive(archive).events("c0", 0, END_US)) >= 3, "events", WAIT_S)
    return folder


def received(folder: Path, address: str) -> list[Item]:
    """Replay the archive. Return all received messages."""
    items: list[Item] = []
    ended = threading.Event()
    with Subscription(address, kinds=("detections", "events"), queue=100_000) as subscription:

        def collect() -> None:
            while (item := subscription.receive(0.5)) is not None or not ended.is_set():
                if item is not None:
                    items.append(item)

        thread = threading.Thread(target=collect)
        thread.start()
        options = ["--since", "1h", "--speed", "0", "--bind", address]
        code = main(["replay", str(folder / "camera.yaml"), *options])
        ended.set()
        thread.join()
    assert code == EXIT_OK
    return items


@pytest.mark.integration
def test_replay_of_a_recorded_incident_publishes_the_same(folder: Path) -> None:
    items = received(folder, f"ipc://{folder}/replayed")
    archive = Archive(folder / "archive")
    frames = [frame.result.meta for frame in archive.frames("c0", 0, END_US)]
    found = [item for item in items if isinstance(item, DetectionsMessage)]
    assert [(each.epoch, each.frame, each.captured_monotonic_ns) for each in found] == [
        (meta.epoch, meta.index, meta.captured_ns) for meta in frames
    ]
    events = [item for item in items if isinstance(item, EventMessage)]
    assert [(each.kind, each.name, each.track_id, each.at_monotonic_ns, each.data) for each in events] == [
        (each.event.kind, each.event.name, each.event.track_id, each.event.at_ns, each.event.data)
        for each in archive.events("c0", 0, END_US)
    ]


@pytest.mark.integration
def test_recordings_are_judged_with_two_configurations(folder: Path) -> None:
    config = json.loads((folder / "camera.yaml").read_text())
    config["analytics"]["c0"]["lines"][0]["name"] = "renamed"
    (folder / "new.yaml").write_text(json.dumps(config))
    out = folder / "out.json"
    command = ["whatif", str(folder / "new.yaml"), "--against", str(folder / "camera.yaml"), "--json", str(out)]
    assert main([*command, "--since", "1h"]) == EXIT_OK
    with closing(RecordingIndex(folder / "state", read_only=True)) as index:
        continuous = [each for each in index.recordings("c0") if each.kind == "continuous"]
    files = {file.name: file for recording in continuous for file in recording.files}
    found = json.loads(out.read_text())
    assert found["cameras"]["c0"]["frames"] == sum(file.frames for file in files.values())
    assert {each["change"] for each in found["changes"]} == {"gained", "lost"}
    for change in found["changes"]:
        event = change["before"] or change["after"]
        assert event["name"] == ("middle" if change["before"] else "renamed")
        assert 0 <= event["frame"] < files[event["instance"]].frames
    assert main([*command, "--since", "2020-01-01", "--until", "2020-01-02"]) == EXIT_CONFIG


def test_time_that_two_files_show_is_judged_once() -> None:
    def file(recording: int, name: str, start: int, end: int) -> RecordedFile:
        return RecordedFile(recording, name, start * 1000, end * 1000, 1, 1, 0)

    recordings = [
        Recording(1, "gate", "clip", (file(1, "covered", 12, 18), file(1, "alone", 40, 50)), ()),
        Recording(2, "gate", "continuous", (file(2, "second", 20, 30), file(2, "first", 10, 20)), ()),
    ]
    assert [each.name for each in selected_files(recordings, 0, 100)] == ["first", "second", "alone"]
    assert [each.name for each in selected_files(recordings, 25, 40)] == ["second"]
