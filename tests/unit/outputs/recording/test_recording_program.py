"""Tests of `vision run` with the section `recording`, of `vision clips`, and of `vision verify`, with RTSP cameras."""

from __future__ import annotations

import json
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import psutil
import pytest

from tests.messages.processes import Program, wait_until
from tests.rtsp_camera import RtspCamera, rtsp_camera
from tests.unit.outputs.recording.streams import decoded
from vision.capture.zoo.camera import Camera
from vision.capture.zoo.zoo import running_zoo, selected
from vision.cli.check import check_cameras
from vision.cli.main import main
from vision.config import CameraConfig
from vision.drawing.test_pattern import FAKE_COLORS
from vision.errors import EXIT_CONFIG, EXIT_OK, EXIT_RUNTIME, EXIT_TEMPORARY
from vision.messaging.control_protocol import (
    AddCameraRequest,
    ChangedReply,
    ReloadRequest,
    RemoveCameraRequest,
    Request,
    ask,
    find_socket,
)
from vision.outputs.recording.index import RecordedFile, RecordingIndex

pytestmark = pytest.mark.integration

WAIT_S = 60.0
LINE = {"name": "middle", "points": [[0.5, 0.0], [0.5, 1.0]], "anchor": "center"}
VISION = [sys.executable, "-m", "vision.cli.main"]


@cache
def crossing_frames() -> tuple[bytes, ...]:
    """Return 100 coded frames. A rectangle moves right in the first 40 frames. Every 10th frame is a key frame."""
    encoder = av.CodecContext.create("libx264", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 160, 120, "yuv420p", Fraction(1, 10)
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "g": "10", "x264-params": "sliced-threads=0"}
    packets: list[bytes] = []
    for number in range(100):
        pixels = np.full((120, 160, 3), 90, np.uint8)
        if number < 40:
            pixels[40:80, 4 + number * 3 : 34 + number * 3] = FAKE_COLORS[0]
        frame = av.VideoFrame.from_ndarray(pixels, format="bgr24").reformat(format="yuv420p")
        frame.pts, frame.time_base = number, Fraction(1, 10)
        packets += [bytes(packet) for packet in encoder.encode(frame)]
    return tuple(packets)


def write_config(folder: Path, addresses: list[str], **top: Any) -> Path:
    ids = [f"c{number}" for number in range(len(addresses))]
    content = {
        "detect": {"backend": "fake"},
        "state_dir": "state",
        "cameras": [
            {"id": name, "source": address, "frozen_after_s": None}
            for name, address in zip(ids, addresses, strict=True)
        ],
        "analytics": {name: {"units": "fraction", "lines": [LINE]} for name in ids},
        "recording": {"folder": "recordings", "pre_s": 0.2, "post_s": 0.2},
        "publish": {"bind": f"ipc://{folder}/out"},
        "status": {"interval_s": 0.2},
    }
    path = folder / "camera.yaml"
    path.write_text(json.dumps(content | top), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Done:
    """Exit code and standard output of a command."""

    code: int
    output: str

    @property
    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.output)
        return parsed


Vision = Callable[..., Done]


@pytest.fixture
def vision(capsys: pytest.CaptureFixture[str]) -> Vision:
    """Return a function that runs a command in this process."""

    def run(*arguments: str | Path) -> Done:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Done(code, capsys.readouterr().out)

    return run


@contextmanager
def crossing_camera() -> Iterator[str]:
    """Serve the stream `crossing_frames` at 25 frames/s. Yield its address."""
    with rtsp_camera(RtspCamera(crossing_frames(), lambda index: index / 25, lambda index: index / 25)) as address:
        yield address


@contextmanager
def running(config: Path) -> Iterator[Program]:
    with Program([*VISION, "run", config]) as program:
        yield program
        program.send(signal.SIGINT)
        assert program.wait(WAIT_S) == EXIT_OK


def complete_files(folder: Path) -> list[RecordedFile]:
    with suppress(FileNotFoundError), closing(RecordingIndex(folder / "state", read_only=True)) as index:
        return [file for file in index.files() if file.state == "complete"]
    return []


def recorder_of(program: Program) -> psutil.Process:
    children = psutil.Process(program.pid).children()
    return next(child for child in children if "recording.recorder" in " ".join(child.cmdline()))


def test_clips_of_events_are_recorded(tmp_path: Path, vision: Vision) -> None:
    with crossing_camera() as one, crossing_camera() as two:
        config = write_config(tmp_path, [one, two], processes=2)
        with running(config):
            wait_until(lambda: {file.name[:2] for file in complete_files(tmp_path)} == {"c0", "c1"}, "clips", WAIT_S)
            assert vision("verify", config).code == EXIT_OK
            assert vision("verify", config, "--repair").code == EXIT_TEMPORARY
    assert vision("verify", config, "--json").code == EXIT_OK
    found = vision("clips", config, "--camera", "c0", "--json").json["recordings"]
    assert found
    with closing(sqlite3.connect(tmp_path / "state" / "state.db")) as state:
        numbers = {number for (number,) in state.execute("SELECT number FROM events")}
    for recording in found:
        assert (recording["camera"], recording["kind"]) == ("c0", "clip")
        assert {event["name"] for event in recording["events"]} == {"middle"}
        assert {event["number"] for event in recording["events"]} <= numbers
        for file in recording["files"]:
            assert len(decoded(Path(file["path"])).times_s) == file["frames"]


def test_killed_recorder_is_replaced_and_its_files_are_completed(tmp_path: Path, vision: Vision) -> None:
    with crossing_camera() as address:
        config = write_config(
            tmp_path, [address], recording={"folder": "recordings", "mode": "continuous", "file_s": 10}
        )
        with running(config) as program:
            wait_until(lambda: len(list(tmp_path.glob("recordings/c0/*.mp4"))) == 1, "a file", WAIT_S)
            killed = recorder_of(program)
            killed.kill()
            wait_until(lambda: len(list(tmp_path.glob("recordings/c0/*.mp4"))) == 2, "a second file", WAIT_S)
            assert recorder_of(program).pid != killed.pid
    assert len(complete_files(tmp_path)) == 2
    assert vision("verify", config).code == EXIT_OK


@contextmanager
def control_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use a folder with a short path for control sockets, because the length of a socket path is limited."""
    with TemporaryDirectory(prefix="vr-", dir="/tmp") as path:
        monkeypatch.setenv("RUNTIME_DIRECTORY", path)
        yield


def test_recorder_follows_the_cameras(tmp_path: Path, vision: Vision, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload selects a camera for recording, and changes the camera. Requests add and remove cameras."""

    def change(request: Request) -> dict[str, list[str]]:
        reply = ask(find_socket(config), request)
        assert isinstance(reply, ChangedReply)
        return {kind: names for kind in reply.__struct_fields__ if (names := getattr(reply, kind))}

    def files(name: str) -> list[Path]:
        return list(tmp_path.glob(f"recordings/{name}/*.mp4"))

    with control_folder(monkeypatch), crossing_camera() as one, crossing_camera() as two:
        recording: dict[str, Any] = {"folder": "recordings", "mode": "continuous", "cameras": ["c0"]}
        config = write_config(tmp_path, [one, one], processes=2, recording=recording, analytics={})
        content = json.loads(config.read_text())
        with running(config):
            wait_until(lambda: bool(files("c0")), "a file", WAIT_S)
            assert not files("c1")
            del content["recording"]["cameras"]
            content["cameras"][1]["source"] = two
            config.write_text(json.dumps(content))
            assert change(ReloadRequest()) == {"reopened": ["c1"]}
            assert change(AddCameraRequest(camera=content["cameras"][0] | {"id": "c2"})) == {"added": ["c2"]}
            wait_until(lambda: bool(files("c1") and files("c2")), "files of new cameras", WAIT_S)
            assert change(RemoveCameraRequest(id="c0")) == {"removed": ["c0"]}
            wait_until(lambda: any(file.name.startswith("c0/") for file in complete_files(tmp_path)), "end", WAIT_S)
            assert len(files("c0")) == 1
    assert vision("verify", config).code == EXIT_OK


def test_differences_are_reported_and_repaired(tmp_path: Path, vision: Vision) -> None:
    config = write_config(tmp_path, ["rtsp://127.0.0.1:1/live"])
    assert vision("clips", config).code == EXIT_CONFIG  # there is no index
    with closing(RecordingIndex(tmp_path / "state")) as index:
        number = index.add_recording("c0", "clip")
        index.put_file(RecordedFile(number, "c0/c0-20270101T000000.000Z-clip-1.mp4", 0, 1, 1, 1, 0))
    reported = vision("verify", config, "--json")
    assert reported.code == EXIT_RUNTIME
    assert [each["fault"] for each in reported.json["differences"]] == ["missing"]
    assert vision("verify", config, "--repair").code == EXIT_OK
    assert vision("verify", config).code == EXIT_OK
    assert vision("clips", config, "--json").json["recordings"] == []


@pytest.mark.parametrize(("name", "code"), [("plain", None), ("h265", None), ("mjpeg", "not-recordable")])
def test_codec_of_a_recorded_camera_is_checked(name: str, code: str | None) -> None:
    with running_zoo() as zoo:
        camera = Camera(selected([name])[0], fault_after_s=1e6, repeats=True)
        zoo.start([camera])
        config = CameraConfig(id="gate", source=camera.address)
        (check,) = check_cameras([config], threading.Event(), ["gate"])
    assert check.code == code


def test_folder_that_is_not_writable_is_reported_before_the_start(tmp_path: Path, vision: Vision) -> None:
    (tmp_path / "recordings").write_text("a file")
    assert vision("run", write_config(tmp_path, ["rtsp://127.0.0.1:1/live"])).code == EXIT_CONFIG
