"""Tests of changes to a running program: other cameras and tracks continue, and invalid changes have no effect."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import pytest
import yaml

from tests.messages.processes import Program, wait_until
from tests.unit.detect.test_classifier import save
from vision.cli.main import main
from vision.client import Item, Subscription
from vision.messaging.control_protocol import (
    AddCameraRequest,
    AnalyticsReply,
    ChangedReply,
    GetAnalyticsRequest,
    RefusedRequest,
    ReloadRequest,
    RemoveCameraRequest,
    Reply,
    Request,
    SetAnalyticsRequest,
    StatusReply,
    StatusRequest,
    ask,
    find_socket,
)
from vision.messaging.schema import CameraStatusMessage, CountsMessage, DetectionsMessage, EventMessage
from vision.messaging.times import rfc3339

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

DEADLINE_S = 60.0
RELOAD = ReloadRequest()
DOOR = {"name": "door", "points": [[0.5, 0], [0.5, 1]], "anchor": "center"}
HALL = {"name": "hall", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]], "anchor": "center"}
SECTION = {"units": "fraction", "lines": [DOOR], "zones": [HALL]}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Yield a folder with a short path, because the length of a socket path is limited."""
    path = Path(tempfile.mkdtemp(prefix="vr-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNTIME_DIRECTORY", str(path))
        yield path
    shutil.rmtree(path)


def camera(name: str, seed: int = 1, **more: Any) -> dict[str, Any]:
    return {"id": name, "source": f"synthetic:160x120@20?objects=3&seed={seed}", **more}


class Site:
    """Running program, its configuration, and the messages that a subscriber in this process received."""

    def __init__(self, folder: Path, *, processes: int = 1, cameras: int = 4) -> None:
        self.path = folder / f"camera-{processes}-{cameras}.yaml"
        self.items: list[Item] = []
        self.content: dict[str, Any] = {
            "pipeline": "count",
            "processes": processes,
            "detect": {"backend": "fake"},
            "cameras": [camera(name, seed) for seed, name in enumerate("abcd"[:cameras])],
            "analytics": dict.fromkeys("abcd"[:cameras], SECTION),
            "publish": {"bind": f"ipc://{folder}/out-{processes}"},
            "snapshots": {"folder": f"{folder}/shots-{processes}", "kinds": ["line_crossed"], "annotate": False},
            "status": {"interval_s": 0.1},
        }
        self.write()
        self.processes = processes
        self.first = dict(self.content)
        self.program: Program | None = None

    def write(self, **changes: Any) -> None:
        self.content |= changes
        self.path.write_text(yaml.safe_dump(self.content, sort_keys=False))

    def restore(self) -> None:
        """Restore the original configuration, and discard the messages received so far."""
        self.content = {}
        self.write(**self.first)
        self.change()
        self.wait_frames("abcd")
        self.items.clear()

    def ask(self, request: Request) -> Reply:
        return ask(find_socket(self.path), request)

    def change(self, request: Request = RELOAD) -> dict[str, list[str]]:
        reply = self.ask(request)
        assert isinstance(reply, ChangedReply)
        return {kind: names for kind in reply.__struct_fields__ if (names := getattr(reply, kind))}

    def cameras(self) -> list[str]:
        """Return the cameras of the program's most recent status report."""
        status = self.ask(StatusRequest())
        assert isinstance(status, StatusReply)
        return [each.camera for each in status.cameras]

    def frames(self, name: str) -> list[DetectionsMessage]:
        return [item for item in self.items if isinstance(item, DetectionsMessage) and item.camera == name]

    def wait_frames(self, names: str, count: int = 10) -> None:
        """Wait until each camera in `names` has delivered `count` more frames."""
        before = {name: len(self.frames(name)) for name in names}
        self.wait(lambda: all(len(self.frames(name)) >= before[name] + count for name in names), f"frames of {names}")

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(condition, what, DEADLINE_S)

    def last(self, kind: type[Any], name: str) -> Any:
        return next((item for item in reversed(self.items) if isinstance(item, kind) and item.camera == name), None)


@contextmanager
def running(site: Site) -> Iterator[Site]:
    ended = threading.Event()
    with (
        Program([sys.executable, "-m", "vision", "run", site.path]) as site.program,
        Subscription(
            site.content["publish"]["bind"], kinds=("detections", "status", "counts", "events"), queue=10**6
        ) as messages,
    ):

        def receive() -> None:
            while not ended.is_set():
                if (item := messages.receive(0.1)) is not None:
                    site.items.append(item)

        receiver = threading.Thread(target=receive)
        receiver.start()
        try:
            site.wait_frames("".join(each["id"] for each in site.content["cameras"]))
            yield site
            site.program.send(signal.SIGTERM)
            assert site.program.wait(DEADLINE_S) == 0, site.program.pending()
        finally:
            ended.set()
            receiver.join()


@pytest.fixture(scope="module", params=[1, 2], ids=["one-process", "workers"])
def program(folder: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    """Run a program with four cameras, which all tests of this file share."""
    with running(Site(folder, processes=request.param)) as site:
        yield site


@pytest.fixture
def site(program: Site) -> Iterator[Site]:
    program.items.clear()
    yield program
    program.restore()


def ids(message: DetectionsMessage) -> set[int]:
    return {found.track_id for found in message.objects if found.track_id is not None}


def check_unbroken(frames: list[DetectionsMessage]) -> None:
    """Check that no frame is missing, except for frames that are reported as dropped."""
    assert {message.epoch for message in frames} == {frames[0].epoch}
    assert [message.seq for message in frames] == [*range(frames[0].seq, frames[0].seq + len(frames))]
    for before, after in pairwise(frames):
        assert after.frame - before.frame == 1 + sum(after.dropped_before.values())


def test_change_of_one_camera_leaves_the_others_alone(site: Site) -> None:
    moved = {**SECTION, "zones": [{**HALL, "name": "corner", "polygon": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]}]}
    site.write(analytics={**site.content["analytics"], "a": moved})
    site.wait_frames("abcd", 3)
    marks = {name: len(site.frames(name)) for name in "abcd"}
    assert site.change() == {"stages": ["analytics.a"]}
    site.wait_frames("abcd", 15)
    site.wait(lambda: [*site.last(CountsMessage, "a").zones] == ["corner"], "counts of the new zone")
    for name in "abcd":  # the tracks of the changed camera continue, too
        frames = site.frames(name)
        check_unbroken(frames)
        assert ids(frames[marks[name] - 1]) & ids(frames[marks[name] + 8])
    left = [item for item in site.items if isinstance(item, EventMessage) and item.data.get("how") == "changed"]
    assert {(event.camera, event.name) for event in left} == {("a", "hall")}

    epoch = site.frames("a")[-1].epoch
    site.write(cameras=[camera("a", 7), *site.content["cameras"][1:]])
    assert site.change() == {"reopened": ["a"]}
    site.wait(lambda: site.frames("a")[-1].epoch == epoch + 1, "the new epoch of a")
    site.wait_frames("abcd")
    for name in "bcd":
        check_unbroken(site.frames(name))


LEFT_HALF = {"units": "fraction", "masks": [[[0, 0], [0.5, 0], [0.5, 1], [0, 1]]]}


def brightness(site: Site, name: str) -> int:
    """Return the largest pixel value in the left half of the next snapshot of a camera."""
    since = rfc3339(time.time_ns())

    def found() -> list[Path]:
        events = [item for item in site.items if isinstance(item, EventMessage) and item.camera == name]
        paths = [Path(event.snapshot) for event in events if event.snapshot is not None and event.at > since]
        return [path for path in paths if path.exists()]

    site.wait(lambda: bool(found()), f"a snapshot of {name}")
    image = cv2.imread(str(found()[0]))
    assert image is not None
    return int(image[:, :72].max())


def test_masks_apply_to_the_next_snapshot(site: Site) -> None:
    assert brightness(site, "a") > 80
    site.write(privacy={"a": LEFT_HALF})
    assert site.change() == {"stages": ["privacy.a"]}
    assert brightness(site, "a") < 24
    assert brightness(site, "b") > 80
    site.write(privacy={})
    assert site.change() == {"stages": ["privacy.a"]}
    assert brightness(site, "a") > 80
    for name in "abcd":
        check_unbroken(site.frames(name))


def test_removed_section_has_no_counts_after_an_empty_message(site: Site) -> None:
    def counted(name: str) -> int:
        return sum(isinstance(item, CountsMessage) and item.camera == name for item in site.items)

    site.wait(lambda: counted("a") > 0 and counted("b") > 0, "counts")
    site.write(analytics=dict.fromkeys("bcd", SECTION))
    site.change()
    site.wait_frames("ab")
    before = counted("b")
    site.wait(lambda: counted("b") >= before + 2, "a report that began after the change")
    of_a, of_b = counted("a"), counted("b")
    site.wait(lambda: counted("b") >= of_b + 5, "further reports")
    assert counted("a") == of_a
    last = site.last(CountsMessage, "a")
    assert (last.lines, last.zones) == ({}, {})
    with Subscription(site.content["publish"]["bind"], kinds=("counts",)) as later:
        received = [later.receive(DEADLINE_S) for _ in range(6)]
    assert {getattr(item, "topic", "") for item in received} == {f"counts/{name}" for name in "bcd"}


def test_cameras_can_be_added_and_removed(site: Site) -> None:
    new = camera("new", 5, max_fps=10) | {"source": "synthetic:640x480@20?objects=3&seed=5"}
    assert site.change(AddCameraRequest(camera=new)) == {"added": ["new"]}
    site.wait(lambda: len(site.frames("new")) > 10, "frames of new")
    found = {name: {each for message in site.frames(name) for each in ids(message)} for name in ("a", "b", "new")}
    assert not found["a"] & found["new"] and not found["b"] & found["new"]
    assert site.change(SetAnalyticsRequest(camera="new", analytics=SECTION)) == {"stages": ["analytics.new"]}
    site.wait(lambda: site.last(CountsMessage, "new") is not None, "counts of new")

    assert site.change(RemoveCameraRequest(id="new")) == {"removed": ["new"], "stages": ["analytics.new"]}
    site.wait(lambda: site.last(CameraStatusMessage, "new").state == "removed", "the last status of new")
    site.wait(lambda: site.cameras() == [*"abcd"], "a status without new")
    with Subscription(site.content["publish"]["bind"], kinds=("status", "counts")) as later:
        topics: set[str] = set()
        while len(topics) < 9:  # two for each camera, and one of the program
            item = later.receive(DEADLINE_S)
            assert item is not None
            topics.add(getattr(item, "topic", ""))
    assert not [topic for topic in topics if topic.endswith("/new")]

    epoch = site.frames("new")[-1].epoch
    assert site.change(AddCameraRequest(camera=new)) == {"added": ["new"]}
    site.wait(lambda: site.frames("new")[-1].epoch > epoch, "a later epoch of new")
    site.wait_frames("ab")
    numbers = [message.seq for message in site.frames("new")]
    assert numbers == [*range(numbers[0], numbers[0] + len(numbers))]
    assert site.change() == {"removed": ["new"]}  # the file does not contain it
    for name in "abcd":
        check_unbroken(site.frames(name))


def test_lines_that_have_changed_since_they_were_read_are_not_replaced(site: Site) -> None:
    def read() -> AnalyticsReply:
        reply = site.ask(GetAnalyticsRequest(camera="a"))
        assert isinstance(reply, AnalyticsReply)
        return reply

    first = read()
    assert first.analytics == SECTION
    moved = {**SECTION, "lines": [{**DOOR, "points": [[0.4, 0], [0.4, 1]]}]}
    change = SetAnalyticsRequest(camera="a", analytics=moved, privacy={"blur": ["red"]}, version=first.version)
    assert site.change(change) == {"stages": ["analytics.a", "privacy.a"]}
    assert (read().analytics, read().privacy) == (moved, {"blur": ["red"]})
    assert read().version != first.version
    with pytest.raises(RefusedRequest) as caught:
        site.ask(change)
    assert caught.value.code == "changed-meanwhile"
    with pytest.raises(RefusedRequest) as caught:
        site.ask(GetAnalyticsRequest(camera="nowhere"))
    assert caught.value.code == "unknown-camera"
    assert site.change(SetAnalyticsRequest(camera="a", analytics=SECTION)) == {"stages": ["analytics.a"]}
    assert site.change(SetAnalyticsRequest(camera="a", analytics=SECTION, privacy=None)) == {"stages": ["privacy.a"]}
    assert read().version == first.version


def test_what_cannot_change_changes_nothing(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    unicorn = {"a": {"units": "fraction", "zones": [{**HALL, "classes": ["unicorn"]}]}}
    for changes, code, keys in (
        ({"model": "picodet-s-320", "hang_s": 20.0, "rules": []}, "restart-needed", ["model", "hang_s"]),
        ({"cameras": [{"id": "a"}, *map(camera, "bcd")]}, "missing", ["cameras[0].source"]),
        ({"analytics": unicorn}, "unknown-class", ["analytics.a.zones[0].classes[0]"]),
        ({"cameras": [camera("a")], "analytics": {"b": SECTION}}, "unknown-camera", ["analytics.b"]),
    ):
        site.write(**changes)
        with pytest.raises(RefusedRequest) as caught:
            site.change()
        assert (caught.value.code, caught.value.exit_code) == (code, 78)
        faults = caught.value.reply.faults
        assert [fault.key for fault in faults] == keys
        lines = site.path.read_text().splitlines()
        for fault in faults if code == "restart-needed" else ():
            assert lines[fault.line - 1].startswith(f"{fault.key}:")
        assert all(fault.line for fault in faults)
        site.content = dict(site.first)
    site.path.write_text("cameras: [")
    assert main(["reload", "--config", str(site.path)]) == 78
    for request in (AddCameraRequest(camera=camera("a")), RemoveCameraRequest(id="x"), AddCameraRequest(camera={})):
        with pytest.raises(RefusedRequest):
            site.ask(request)
    capsys.readouterr()
    assert main(["status", "--config", str(site.path), "--json"]) == 0
    assert [each["camera"] for each in json.loads(capsys.readouterr().out)["cameras"]] == [*"abcd"]
    site.wait_frames("abcd")
    for name in "abcd":
        check_unbroken(site.frames(name))
    site.write()
    assert site.change() == {}


def used(pid: int) -> tuple[int, int]:
    """Return the number of threads and the number of open files of a process."""
    return len([*Path(f"/proc/{pid}/task").iterdir()]), len([*Path(f"/proc/{pid}/fd").iterdir()])


def test_many_reloads_leave_nothing_behind(site: Site) -> None:
    assert site.program is not None
    choice, pid = random.Random(5), site.program.pid
    before = used(pid)
    for _ in range(50 if site.processes == 1 else 10):
        names = choice.sample("bcdefg", choice.randint(0, 5))
        zone = {**HALL, "crowd_threshold": choice.randint(0, 5)}
        site.write(
            cameras=[camera("a", 0), *(camera(name, choice.randint(1, 3)) for name in names)],
            analytics={name: {**SECTION, "zones": [zone]} for name in ["a", *names] if choice.random() < 0.7},
            track={"lost_s": choice.choice([1.0, 2.0])},
        )
        site.change()
    site.content = {}
    site.write(**site.first)
    site.change()
    site.wait_frames("abcd")
    site.wait(lambda: used(pid) <= before, f"the threads and files of the beginning: {before}")
    check_unbroken(site.frames("a"))


def test_signal_reloads_even_during_the_start(folder: Path) -> None:
    site = Site(folder, processes=1, cameras=1)
    with Program([sys.executable, "-m", "vision", "run", site.path]) as started:
        started.wait_line(lambda line: "publishing on" in line, DEADLINE_S)
        started.send(signal.SIGHUP)
        started.wait_line(lambda line: "configuration reloaded" in line, DEADLINE_S)
        site.write(cameras=[camera("a"), camera("b")])
        started.send(signal.SIGHUP)
        started.wait_line(lambda line: "added b" in line, DEADLINE_S)
        site.path.write_text("nonsense")
        started.send(signal.SIGHUP)
        started.wait_line(lambda line: "not reloaded" in line, DEADLINE_S)
        started.send(signal.SIGTERM)
        assert started.wait(DEADLINE_S) == 0
    assert main(["status", "--config", str(site.path)]) == 75


def test_missing_or_damaged_second_model_is_refused(folder: Path) -> None:
    save(folder / "second")
    site = Site(folder, processes=1, cameras=1)
    site.write(cascade={"model": f"{folder}/second"})
    (file,) = (folder / "second").glob("*.onnx")
    content = file.read_bytes()
    with running(site):
        file.write_bytes(content[:-100])
        with pytest.raises(RefusedRequest) as damaged:
            site.change()
        shutil.rmtree(folder / "second")
        with pytest.raises(RefusedRequest) as missing:
            site.change()
        assert {caught.value.exit_code for caught in (damaged, missing)} == {78}
        save(folder / "second")
        assert site.change() == {}
