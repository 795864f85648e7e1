"""Run every program of examples/ against a real publisher."""

from __future__ import annotations

import csv
import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.paths import ROOT
from vision.client import EventMessage, subscribe

EXAMPLES = ROOT / "examples"
COUNTING = ROOT / "configs" / "counting.yaml"


@contextmanager
def running(config: Path, *arguments: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run `vision run` until the end of the `with` block."""
    command = [sys.executable, "-m", "vision", "run", str(config), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=60)


def configuration(tmp_path: Path, pipeline: str = "count", more: str = "") -> tuple[Path, str]:
    """Write counting.yaml with a separate socket, and with the keys `more` in `publish`.

    Return the path of the file, and the address of the socket.
    """
    address = f"ipc://{tmp_path}/socket"
    text = COUNTING.read_text(encoding="utf-8").replace("source: vtest.mp4", f"source: {ROOT}/configs/vtest.mp4")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("pipeline:"))
    path = tmp_path / "camera.yaml"
    path.write_text(f'{text}\npipeline: {pipeline}\npublish: {{bind: "{address}"{more}}}\n', encoding="utf-8")
    return path, address


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until the condition holds. Fail after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("program", "expected"), [("print_objects.py", "square person 0."), ("counts_per_line.py", "crossroads: ")]
)
def test_subscriber_prints_lines(tmp_path: Path, program: str, expected: str) -> None:
    config, address = configuration(tmp_path)
    command = [sys.executable, str(EXAMPLES / program), address]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as subscriber,
        running(config),
    ):
        assert subscriber.stdout is not None
        line = subscriber.stdout.readline()
        subscriber.kill()
    assert expected in line


def test_stored_events_are_appended_to_csv_once(tmp_path: Path) -> None:
    config, address = configuration(tmp_path, more=f', replay: "ipc://{tmp_path}/replay"')
    config.write_text(f"{config.read_text(encoding='utf-8')}state_dir: {tmp_path}/state\n", encoding="utf-8")
    path = tmp_path / "events.csv"
    command = [sys.executable, str(EXAMPLES / "events_to_csv.py"), str(path), address]
    with running(config):
        for message in subscribe(address, kinds=["events"], timeout_s=60):
            if isinstance(message, EventMessage) and (message.number or 0) >= 2:
                break
        path.touch()
        for _ in range(2):  # the second program continues the file of the first
            before = path.read_text()
            with subprocess.Popen(command) as subscriber:
                wait_for(lambda before=before: path.read_text().count("\n") >= before.count("\n") + 2)  # type: ignore[misc]
                subscriber.kill()
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert [int(row[0]) for row in rows] == list(range(1, len(rows) + 1))
    assert {row[2] for row in rows} <= {"square", "node"}
    events = [json.loads(row[-1]) for row in rows if row[2] == "square" and row[3] != "camera_lost"]
    assert all(event["phase"] in {"instant", "begin", "end"} for event in events[:2])


def test_blur_is_an_event(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    capture, frames = cv2.VideoCapture(str(ROOT / "configs" / "vtest.mp4")), tmp_path / "frames"
    frames.mkdir()
    for index in range(60):
        image = capture.read()[1]
        cv2.imwrite(str(frames / f"{index:03}.png"), cv2.GaussianBlur(image, (0, 0), 8) if 20 <= index < 40 else image)
    config = tmp_path / "camera.yaml"
    config.write_text(
        f"pipeline: {EXAMPLES}/blur_detection.py\ncameras: [{{id: gate, source: {frames}, fps: 10}}]\n"
        f'publish: {{bind: "ipc://{tmp_path}/socket"}}\n'
    )
    phases: list[object] = []
    with running(config):
        for message in subscribe(f"ipc://{tmp_path}/socket", kinds=["events"]):
            if isinstance(message, EventMessage) and message.kind == "blurred":
                phases.append(message.data["phase"])
            if phases[-1:] == ["end"]:
                break
    assert phases == ["begin", "end"]


def test_events_are_posted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[dict[str, object]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Print nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("EVENTS_URL", f"http://127.0.0.1:{server.server_port}/events")
        config, _ = configuration(tmp_path, pipeline=f"{EXAMPLES}/http_sink.py")
        with running(config):
            wait_for(lambda: len(received) >= 2)
        server.shutdown()
    assert {event["camera"] for event in received} == {"square"}
