"""Tests that the page serves only snapshots and videos that the program has written, and serves videos in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.outputs.page.client import client_of
from tests.unit.outputs.page.test_events import START_NS, add, message
from vision.outputs.recording.index import RecordedFile, RecordingIndex
from vision.state.database import StateDatabase

VIDEO = bytes(range(256)) * 1000
NAME = "gate/gate-20260101T000000.000Z-clip-1.mp4"


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Return the settings of a program with one clip of camera `gate` and one snapshot."""
    folders = {"state_dir": "state", "recordings": "recordings", "snapshots": "snapshots"}
    found = {key: str(tmp_path / name) for key, name in folders.items()}
    index = RecordingIndex(Path(found["state_dir"]))
    start_ns = START_NS + 55_000_000_000
    file = RecordedFile(index.add_recording("gate", "clip"), NAME, start_ns, start_ns + 15_000_000_000, 256_000, 100, 0)
    index.put_file(file)
    index.close()
    (tmp_path / "recordings" / "gate").mkdir(parents=True)
    (tmp_path / "recordings" / NAME).write_bytes(VIDEO)
    (tmp_path / "recordings" / "secret.mp4").write_bytes(b"not in the index")
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "gate-1.jpg").write_bytes(b"jpeg")
    (tmp_path / "snapshots" / "notes.txt").write_bytes(b"private")
    return found


def test_video_is_served_in_parts(settings: dict[str, Any]) -> None:
    client = client_of(**settings)
    whole = client.get(f"/api/recordings/{NAME}")
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, VIDEO, "video/mp4")
    part = client.get(f"/api/recordings/{NAME}", headers={"range": "bytes=1000-1999"})
    assert (part.status_code, part.content) == (206, VIDEO[1000:2000])
    assert part.headers["content-range"] == f"bytes 1000-1999/{len(VIDEO)}"
    assert client.get(f"/api/recordings/{NAME}", headers={"range": "bytes=-10"}).content == VIDEO[-10:]
    assert client.get(f"/api/recordings/{NAME}", headers={"range": "bytes=9999999-"}).status_code == 416


@pytest.mark.parametrize(
    "path",
    ["secret.mp4", "gate/../secret.mp4", "../state/recordings.db", "%2e%2e/state/recordings.db", "/etc/passwd", "gate",
     "", "gate%00.mp4", "x" * 5000],
)  # fmt: skip
def test_file_outside_the_index_is_not_served(settings: dict[str, Any], path: str) -> None:
    assert client_of(**settings).get(f"/api/recordings/{path}").status_code in (307, 404)


def test_entry_of_the_index_that_leads_out_of_the_folder_is_not_served(settings: dict[str, Any]) -> None:
    folder = Path(settings["recordings"])
    index = RecordingIndex(Path(settings["state_dir"]))
    recording = index.add_recording("gate", "clip")
    (folder.parent / "outside.mp4").write_bytes(b"secret")
    (folder / "gate" / "link.mp4").symlink_to(folder.parent / "outside.mp4")
    (folder / "gate" / "inner.mp4").symlink_to(folder / NAME)
    names = ["../outside.mp4", "gate/link.mp4", "gate/inner.mp4", str(folder.parent / "outside.mp4")]
    for name in names:
        index.put_file(RecordedFile(recording, name, 0, 1, 6, 1, 0))
    index.close()
    client = client_of(**settings)
    for name in names:
        assert client.get(f"/api/recordings/{name.replace('..', '%2e%2e')}").status_code == 404


def test_missing_video_and_damaged_index_do_not_hide_events(settings: dict[str, Any]) -> None:
    database = StateDatabase(Path(settings["state_dir"]))
    add(database, *(message(n, snapshot=str(Path(settings["snapshots"]) / f"gate-{n}.jpg")) for n in (1, 2)))
    client = client_of(**settings)
    events = {event["track_id"]: event for event in client.get("/api/events").json()["events"]}
    assert events[1]["clip"] == {"url": f"/api/recordings/{NAME}", "offset_s": 5.0, "bytes": 256_000}
    assert events[2]["clip"] is None
    assert (events[1]["snapshot"], events[2]["snapshot"]) == ("/api/snapshots/gate-1.jpg", None)
    (Path(settings["recordings"]) / NAME).unlink()
    content = client.get("/api/events").json()
    assert [event["clip"] for event in content["events"]] == [None, None]
    assert client.get(f"/api/recordings/{NAME}").status_code == 404
    assert not content["problem"]
    (Path(settings["state_dir"]) / "recordings.db").write_bytes(b"damaged" * 1000)
    content = client.get("/api/events").json()
    assert len(content["events"]) == 2
    assert content["problem"]
    assert client.get(f"/api/recordings/{NAME}").status_code == 404
    database.close()


@pytest.mark.parametrize(
    "name", ["notes.txt", "gate-2.jpg", "..%2Fstate%2Frecordings.db", ".jpg", "%2e%2e", "a%2fb.jpg"]
)
def test_only_snapshots_are_served(settings: dict[str, Any], name: str) -> None:
    client = client_of(**settings)
    assert client.get("/api/snapshots/gate-1.jpg").content == b"jpeg"
    assert client.get(f"/api/snapshots/{name}").status_code == 404
