"""Tests that no command waits forever if a path is a pipe, a device, a folder, or a socket instead of a file."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT
from vision.cli.main import main
from vision.config import user_files
from vision.config.user_files import TooLarge, open_output, read_input, stop_waits_on, write_output
from vision.errors import Closed
from vision.messaging.curve import KeyFolder

KINDS = ("pipe", "folder", "socket", "device", "empty")
VIDEO = str(ROOT / "configs" / "vtest.mp4")
MODEL = "nanodet-g-416"
ONNX = str(ROOT / "models" / MODEL / f"{MODEL}.onnx")
LANGUAGE = """
publish: {bind: "ipc:///tmp/none/x"}
language: {url: "http://127.0.0.1:9/v1", model: m}
analytics: {a: {lines: [{name: door, points: [[1, 1], [9, 9]]}]}}
verify: [{name: real, kinds: [line_crossed], prompt: "Is it a person?"}]
"""
LABELS = [
    f'{{"camera": "a", "kind": "line_crossed", "name": "door", "snapshot": "empty", "true": {truth}}}'
    for truth in ("true", "false")
]


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Path]:
    """Return a folder with each kind of path in `KINDS`, a camera.yaml, and a file that contains a question."""
    folder = tmp_path / "odd"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    (folder / "device").symlink_to("/dev/zero")
    (folder / "empty").touch()
    (folder / "camera.yaml").write_text(f"cameras: [{{id: a, source: {VIDEO}}}]\n")
    (folder / "llm.yaml").write_text(f"cameras: [{{id: a, source: {VIDEO}}}]\n{LANGUAGE}")
    (folder / "labels.jsonl").write_text("\n".join(LABELS))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        yield folder


READERS = {
    "run": ["run", "@"],
    "eval --truth": ["eval", "camera.yaml", "--truth", "@"],
    "calibrate --truth": ["calibrate", MODEL, "--video", VIDEO, "--config", "camera.yaml", "--truth", "@"],
    "calibrate --video": ["calibrate", MODEL, "--video", "@", "--config", "camera.yaml", "--truth", "camera.yaml"],
    "calibrate --images": ["calibrate", MODEL, "--images", "@"],
    "sparsify --verify": ["sparsify", "@", "--verify"],
    "build": ["build", "./@"],
    "build --cache": ["build", MODEL, "--cache", "@"],
    "bench --read": ["bench", "--read", "@"],
    "bench --source": ["bench", MODEL, "--source", "@"],
    "profile": ["profile", "./@"],
    "models": ["models", "@"],
    "models add": ["models", "add", "@"],
    "watch --key": ["watch", "tcp://127.0.0.1:9", "--key", "@"],
    "llm recipes --plan": ["llm", "recipes", "--plan", "@"],
    "llm eval": ["llm", "eval", "llm.yaml", "@"],
    "llm eval --prompt": ["llm", "eval", "llm.yaml", "labels.jsonl", "--prompt", "@"],
    "models add --sample": ["models", "add", ONNX, "--sample", "@", "--into", "into"],
    "install-service": ["install-service", "@", "--name", "shop"],
    "cameras add": ["cameras", "add", "@", "--socket", "none"],
    "cameras find": ["cameras", "find", "127.0.0.1:9", "--user", "u", "--password-file", "@"],
    "status --socket": ["status", "--socket", "@"],
    "status --config": ["status", "--config", "@"],
    "replay --archive": ["replay", "camera.yaml", "--since", "1h", "--archive", "@", "--bind", "ipc:///tmp/none/x"],
    "whatif --archive": ["whatif", "camera.yaml", "--since", "1h", "--archive", "@"],
    "whatif --against": ["whatif", "camera.yaml", "--against", "@", "--video", VIDEO],
    "whatif --video": ["whatif", "camera.yaml", "--against", "camera.yaml", "--video", "@"],
}
"""Arguments of commands that read files or folders. @ stands for the path."""

ACCEPTED = [
    ("models", "folder"),
    ("build --cache", "folder"),
    ("install-service", "empty"),
    ("install-service", "pipe"),
]
CASES = [(name, kind) for name in READERS for kind in KINDS if (name, kind) not in ACCEPTED]


@pytest.mark.integration
@pytest.mark.parametrize(("name", "kind"), CASES)
@pytest.mark.timeout(120)
def test_command_that_reads_a_file_ends_with_an_error(
    odd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    monkeypatch.chdir(odd)
    code = main([argument.replace("@", kind) for argument in READERS[name]])
    said = capsys.readouterr()
    assert code in (1, 2, 75, 78), said.out
    assert said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize(("option", "name"), [("--record", "pipe"), ("--video", "pipe.mp4"), ("--record", "folder")])
@pytest.mark.timeout(60)
def test_results_are_not_written_to_what_nobody_reads(
    odd: Path, monkeypatch: pytest.MonkeyPatch, option: str, name: str
) -> None:
    monkeypatch.chdir(odd)
    os.mkfifo("pipe.mp4")
    (odd / "camera.yaml").write_text(
        "cameras: [{id: a, source: 'synthetic:64x64@20?frames=3'}]\ndetect: {backend: fake}\n"
        f"publish: {{bind: 'ipc://{odd}/out'}}\n"
    )
    assert main(["run", "camera.yaml", option, name]) == 78


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket"])
@pytest.mark.timeout(60)
def test_output_needs_a_file_or_a_reader(odd: Path, kind: str) -> None:
    with pytest.raises(OSError, match=kind) as caught:
        write_output(odd / kind, "x")
    assert caught.value.errno in (errno.EINVAL, errno.EISDIR)


def test_output_of_any_size_goes_through_a_pipe(odd: Path) -> None:
    text = "é" * (1 << 20)
    received: list[bytes] = []
    with os.fdopen(os.open(odd / "pipe", os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        os.set_blocking(reader.fileno(), True)
        thread = threading.Thread(target=lambda: received.append(reader.read()))
        writer = open_output(str(odd / "pipe"), os.O_WRONLY)  # the reader sees the end only after this is closed
        thread.start()
        write_output(odd / "pipe", text)
        os.close(writer)
        thread.join()
    assert received == [text.encode()]


def test_output_replaces_the_contents_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("longer than the new contents")
    write_output(tmp_path / "a", "é")
    write_output(tmp_path / "b", b"x")
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("é", "x")
    write_output(Path(os.devnull), "x")


def test_input_of_a_pipe_is_read_to_its_end(odd: Path) -> None:
    reader, writer = os.pipe()
    try:

        def write() -> None:
            with os.fdopen(writer, "wb") as file:
                file.write(b"a" * 300_000)

        thread = threading.Thread(target=write)
        thread.start()
        assert read_input(Path(f"/dev/fd/{reader}")) == b"a" * 300_000
        thread.join()
    finally:
        os.close(reader)


@pytest.mark.parametrize(("size", "accepted"), [(0, True), (10, True), (11, False)])
def test_size_of_an_input_is_limited(tmp_path: Path, size: int, accepted: bool) -> None:
    (tmp_path / "a").write_bytes(b"x" * size)
    if accepted:
        assert len(read_input(tmp_path / "a", max_bytes=10)) == size
        return
    with pytest.raises(TooLarge):
        read_input(tmp_path / "a", max_bytes=10)


@pytest.mark.parametrize("kind", ["folder", "socket", "device"])
def test_input_must_be_a_file_or_a_pipe(odd: Path, kind: str) -> None:
    with pytest.raises(OSError, match=kind):
        read_input(odd / kind)


def test_stop_ends_a_wait_for_a_pipe(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_files, "_stops", [])
    stop = threading.Event()
    stop.set()
    stop_waits_on(stop)
    with os.fdopen(os.open(odd / "pipe", os.O_RDWR), "wb"):  # nobody reads or writes the other end
        with pytest.raises(Closed):
            read_input(odd / "pipe")
        with pytest.raises(Closed):
            write_output(odd / "pipe", "x" * (1 << 20))


@pytest.mark.integration
@pytest.mark.timeout(120)
def test_sigterm_ends_a_command_that_waits_for_a_pipe(odd: Path) -> None:
    with os.fdopen(os.open(odd / "pipe", os.O_RDWR), "wb"):
        command = [sys.executable, "-m", "vision.cli.main", "eval", "camera.yaml", "--truth", "pipe"]
        process = subprocess.Popen(command, cwd=odd, env={**os.environ, "PYTHONPATH": str(ROOT)})
        try:
            while str(odd / "pipe") not in open_files(process.pid):
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        finally:
            process.kill()
            process.wait()


def open_files(pid: int) -> list[str]:
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(link.readlink()))
    return found


@pytest.mark.timeout(60)
def test_pipe_among_the_keys_of_clients_does_not_stop_the_others(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    public = "a" * 40
    folder.allow("gate", public)
    os.mkfifo(tmp_path / "clients" / "pipe.pub")
    assert folder.is_allowed(public)
