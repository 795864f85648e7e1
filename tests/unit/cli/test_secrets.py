"""Tests that no output of `vision check` or `vision run` shows secrets from camera.yaml."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

import psutil
import pytest
import zmq

from tests.unit.cli.test_main import COMMAND, run, started, write_config
from tests.unit.config.test_secret_values import FORMS

pytestmark = pytest.mark.integration

SECRET = "Zq7%2FS3cret"
ENVIRONMENT = os.environ | {"P": SECRET}

PIPELINE = """
import threading
from msgspec.structs import replace
from vision.pipelines import pipeline_with
from vision.config import load_config
from vision.types import Event
import os, pathlib
site = load_config(pathlib.Path(__file__).parent / "camera.yaml", os.environ)
url = site.cameras[1].source
seen = 0

def fail():
    raise RuntimeError(f"thread: {url}")

def stage(result):
    global seen
    seen += 1
    if seen == 1:
        threading.Thread(target=fail).start()
    if seen == 60:
        raise RuntimeError(f"stage: {url}")
    return replace(result, events=(Event("seen", "x", result.meta.camera_id, None, 0, {"url": [url]}),))

build = pipeline_with([stage])
"""


def sources() -> list[str]:
    return [
        source.replace("//h:554", "//h").replace("@h", "@127.0.0.1:1").replace("//h", "//127.0.0.1:1")
        for source in FORMS
    ]


def cameras() -> list[dict[str, str]]:
    network = [{"id": f"c{number}", "source": source} for number, source in enumerate(sources())]
    return [{"id": "still", "source": "synthetic:160x120@20"}, *network]


def assert_hidden(text: str) -> None:
    assert SECRET not in text
    assert unquote(SECRET) not in text
    assert "S3cret" not in text


def test_check_shows_no_secret(tmp_path: Path) -> None:
    done = run("check", str(write_config(tmp_path, cameras=cameras())), env=ENVIRONMENT)
    assert done.returncode == 1
    assert "c8" in done.stdout
    assert_hidden(done.stdout + done.stderr)
    done = run("check", "--json", str(write_config(tmp_path, cameras=cameras())), env=ENVIRONMENT)
    assert_hidden(done.stdout + done.stderr)


def test_run_shows_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No secret may appear in the log, tracebacks of two threads, messages, the recording, or process titles."""
    (tmp_path / "mine.py").write_text(PIPELINE)
    config = write_config(tmp_path, cameras=cameras(), pipeline="mine.py", state_dir="state")
    monkeypatch.setenv("P", SECRET)
    received: list[bytes] = []
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.subscribe("")
        socket.connect(f"ipc://{tmp_path}/out")
        with started("run", str(config), "--log-level", "debug", "--record", str(tmp_path / "r.jsonl")) as process:
            titles, variables = "", ""
            while process.poll() is None:
                with suppress(psutil.Error):  # the process can end at any time
                    program = psutil.Process(process.pid)
                    for each in (program, *program.children(recursive=True)):
                        title = " ".join(each.cmdline())
                        titles += title
                        variables += " ".join(each.environ().values()) if "relay.py" in title else ""
                while socket.poll(100):
                    received += socket.recv_multipart()
                time.sleep(0.05)
            assert process.stderr is not None
            log = process.stderr.read()
    assert process.returncode == 1
    # Whole lines are not compared, because Python writes a traceback in pieces, and other threads log between them.
    assert "thread: rtsp://" in log
    assert "stage: rtsp://" in log
    assert any(b"last_error" in part for part in received)
    assert any(b"/seen" in part or b'"seen"' in part for part in received)
    assert COMMAND[-1].rpartition(".")[2] in titles
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    for part in (*received, *files):
        assert_hidden(part.decode(errors="replace").replace(PIPELINE, ""))
    assert_hidden(log)
    assert_hidden(titles)
    assert os.environ["PATH"] in variables
    assert_hidden(variables)


@pytest.mark.parametrize("where", ["raise error", "import threading; threading.Thread(target=fail).start()"])
def test_address_in_a_traceback_is_shown_without_its_password(where: str) -> None:
    """The password is not registered, because it does not come from the configuration, but it must still be hidden."""
    program = (
        "from vision.cli.main import _conceal_output; _conceal_output()\n"
        "error = RuntimeError('no rtsp://u:hunter2@cam/')\n"
        f"def fail(): raise error\n{where}"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False).stderr
    assert "RuntimeError: no rtsp://***@cam/" in shown
