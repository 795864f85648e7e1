"""Tests of the command line: exit codes, output, and an orderly end at each stage of a run."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.paths import ROOT
from tests.unit.cli.in_process import call
from vision.cli.main import COMMANDS
from vision.cli.options import parse_duration

pytestmark = pytest.mark.integration

COMMAND = [sys.executable, "-m", "vision.cli.main"]
SYNTHETIC = "synthetic:160x120@20"


def write_config(folder: Path, source: str = SYNTHETIC, **top: Any) -> Path:
    config = folder / "camera.yaml"
    content = {
        "cameras": [{"id": "a", "source": source}],
        "detect": {"backend": "fake"},
        "publish": {"bind": f"ipc://{folder}/out"},
    } | top
    config.write_text(json.dumps(content))
    return config


def run(*arguments: str, timeout_s: float = 100, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=timeout_s, env=env, check=False
    )


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Return the lines of standard error up to the first line that contains `text`."""
    assert process.stderr is not None
    lines = ""
    for line in process.stderr:
        lines += line
        if text in line:
            return lines
    raise AssertionError(f"ended without {text!r}:\n{lines}")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("5m", 300), ("2h", 7200), ("1d", 86400), ("500ms", 0.5), ("1.5s", 1.5)],
)
def test_duration_is_parsed(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["run"], ["run", "demo", "--for", "soon"], ["run", "demo", "--for", "0"]]
)
def test_wrong_arguments_exit_with_2(arguments: list[str]) -> None:
    done = call(*arguments)
    assert done.returncode == 2
    assert "Usage: vision" in done.stderr


def test_misspelt_command_gets_a_suggestion() -> None:
    done = call("rum")
    assert done.returncode == 2
    assert "'run'" in done.stderr


@pytest.mark.parametrize("arguments", [("--log-level", "debug", "schema"), ("schema", "--log-level=debug")])
def test_log_level_is_accepted_before_and_after_the_command(arguments: tuple[str, ...]) -> None:
    assert call(*arguments).returncode == 0
    assert call("schema", "--log-level", "loud").returncode == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_examples(command: str) -> None:
    done = call(command, "--help")
    assert done.returncode == 0
    assert COMMANDS[command] in done.stdout  # the list of commands has the same text
    assert f"vision {command}" in done.stdout.partition("Examples:")[2]


def test_bind_replaces_the_configured_address(tmp_path: Path) -> None:
    with started("run", str(write_config(tmp_path)), "--bind", f"ipc://{tmp_path}/other") as process:
        read_until(process, f"publishing on ipc://{tmp_path}/other")
    done = call("run", str(write_config(tmp_path)), "--bind", "nowhere")
    assert done.returncode == 2
    assert "--bind" in done.stderr


@pytest.mark.parametrize(("command", "schema"), [("doctor", "vision.doctor/1"), ("models", "vision.models/1")])
def test_json_output_names_its_schema(command: str, schema: str) -> None:
    done = run(command, "--json")
    assert json.loads(done.stdout)["schema"] == schema


def test_check_json_has_cameras_or_the_fault(tmp_path: Path) -> None:
    done = call("check", str(write_config(tmp_path)), "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["cameras"][0]["width"] == 160
    wrong = call("check", str(write_config(tmp_path, pipeline="detekt")), "--json")
    assert wrong.returncode == 78
    assert "detekt" in json.loads(wrong.stdout)["fault"]["message"]


def test_check_refuses_what_run_refuses(tmp_path: Path) -> None:
    config = write_config(tmp_path, detect={"backend": "fake", "classes": ["rde"]})
    assert call("check", str(config)).returncode == 78


def test_limited_run_records_its_results(tmp_path: Path) -> None:
    record = tmp_path / "results.jsonl"
    done = call("run", str(write_config(tmp_path)), "--for", "2s", "--record", str(record))
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in record.read_text().splitlines()]
    assert len(results) > 10
    assert [result["seq"] for result in results] == list(range(1, len(results) + 1))
    assert all(result["objects"] for result in results)
    assert not (tmp_path / "out").exists()


def test_offline_run_publishes_each_frame_once(tmp_path: Path) -> None:
    record = tmp_path / "results.jsonl"
    config = write_config(tmp_path, source="synthetic:160x120@20?frames=123")
    done = call("run", str(config), "--offline", "--record", str(record))
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in record.read_text().splitlines()]
    assert [result["frame"] for result in results] == list(range(123))


def test_offline_run_reads_a_looped_file_once(tmp_path: Path) -> None:
    record = tmp_path / "results.jsonl"
    clip = ROOT / "configs" / "vtest.mp4"
    cameras = [{"id": "a", "source": str(clip), "loop": True}]
    done = call("run", str(write_config(tmp_path, cameras=cameras)), "--offline", "--record", str(record))
    assert done.returncode == 0, done.stderr
    assert len(record.read_text().splitlines()) == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stage", ["ipc://", "detector:", "frames/s"])
def test_signal_at_each_stage_ends_the_program_in_order(tmp_path: Path, number: signal.Signals, stage: str) -> None:
    config = write_config(tmp_path)
    with started("run", str(config)) as process:
        read_until(process, stage)
        process.send_signal(number)
        assert process.wait(60) == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("delay_s", [0.02, 0.1, 0.2, 0.4, 0.6])
def test_signal_during_the_start_ends_the_program(tmp_path: Path, delay_s: float) -> None:
    with started("run", str(write_config(tmp_path))) as process:
        time.sleep(delay_s)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)  # before the program has a handler, the system ends it
    assert not (tmp_path / "out").exists()


def test_signal_ends_the_program_with_a_hanging_camera(tmp_path: Path) -> None:
    with socket.socket() as silent:  # accepts, and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        source = f"rtsp://127.0.0.1:{silent.getsockname()[1]}/x"
        hanging = {"id": "a", "source": source, "open_timeout_s": 60}
        with started(
            "run", str(write_config(tmp_path, cameras=[hanging, {"id": "b", "source": SYNTHETIC}]))
        ) as process:
            read_until(process, "b: streaming")
            process.send_signal(signal.SIGTERM)
            assert process.wait(40) == 0
    assert not (tmp_path / "out").exists()


def test_second_signal_ends_the_program_at_once(tmp_path: Path) -> None:
    # The stop can take a minute, because a camera delays it.
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        source = f"rtsp://127.0.0.1:{silent.getsockname()[1]}/x"
        cameras = [
            {"id": "a", "source": source, "reader": "ffmpeg", "open_timeout_s": 60},
            {"id": "b", "source": SYNTHETIC},
        ]
        with started("run", str(write_config(tmp_path, cameras=cameras, stop_timeout_s=60))) as process:
            read_until(process, "b: streaming")
            process.send_signal(signal.SIGINT)
            read_until(process, "stopping")
            process.send_signal(signal.SIGINT)
            assert process.wait(40) == 128 + signal.SIGINT


def test_program_starts_without_reachable_cameras(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        source = f"rtsp://viewer:${{GATE_PASSWORD}}@127.0.0.1:{closed.getsockname()[1]}/x"
        config = write_config(tmp_path, source=source)
        done = run("run", str(config), "--for", "3s", env=os.environ | {"GATE_PASSWORD": "p4ssw0rd"})
    assert done.returncode == 0, done.stderr
    assert "a: backing-off" in done.stderr or "a: connecting" in done.stderr
    assert "p4ssw0rd" not in done.stderr


def test_port_in_use_exits_with_75(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = call("run", str(write_config(tmp_path, publish={"bind": f"tcp://127.0.0.1:{port}"})))
    assert done.returncode == 75
    assert "publish.bind" in done.stderr
    assert str(port) in done.stderr


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        ({"color": 1}, "color"),
        ({"detect": {"score_threshold": "high"}}, "detect.score_threshold"),
        ({"detect": {"backend": "fake", "classes": ["rde"]}}, "'rde'"),
        ({"cameras": [{"id": "a", "source": "x.mp4"}, {"id": "a", "source": "y.mp4"}]}, "cameras"),
        ({"cameras": [{"id": "a", "source": "rtsp://u:${NO_SUCH_VARIABLE}@h/x"}]}, "NO_SUCH_VARIABLE"),
        ({"model": "nanodet-g-461"}, "nanodet-g-416"),
        ({"pipeline": "detekt"}, "detect"),
    ],
)
def test_wrong_configuration_exits_with_78(tmp_path: Path, top: dict[str, Any], expected: str) -> None:
    done = call("run", str(write_config(tmp_path, **top)), "--for", "1s")
    assert done.returncode == 78, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_error_about_a_missing_configuration_lists_the_shipped_ones() -> None:
    done = call("run", "dmeo")
    assert done.returncode == 78
    assert "demo" in done.stderr


def test_existing_recording_is_renamed(tmp_path: Path) -> None:
    record = tmp_path / "results.jsonl"
    record.write_text("precious\n")
    done = call("run", str(write_config(tmp_path)), "--for", "1s", "--record", str(record))
    assert done.returncode == 0, done.stderr
    assert [path.read_text() for path in tmp_path.glob("results-*Z.jsonl")] == ["precious\n"]
    assert len(record.read_text().splitlines()) > 0


def test_incomplete_recording_exits_with_1(tmp_path: Path) -> None:
    config = write_config(tmp_path, source="synthetic:160x120@20?frames=10")
    done = run("run", str(config), "--offline", "--record", "/dev/full")
    assert done.returncode == 1
    assert len(re.findall(r"\b10\b", done.stderr)) >= 2, "all of the 10 messages are lost"
    assert "/dev/full" in done.stderr


def test_check_prints_a_row_per_camera(tmp_path: Path) -> None:
    good = call("check", str(write_config(tmp_path)))
    assert good.returncode == 0, good.stdout + good.stderr
    assert "160x120" in good.stdout
    bad = call("check", str(write_config(tmp_path, source=str(tmp_path / "missing.mp4"))))
    assert bad.returncode == 1
    assert "missing.mp4" in bad.stdout.replace("\n", "")


def test_schema_is_printed_as_json() -> None:
    done = call("schema")
    assert done.returncode == 0
    assert json.loads(done.stdout)["type"] == "object"
    assert json.loads(call("schema", "model.yaml").stdout)["title"] == "model.yaml"


def test_models_lists_the_shipped_model() -> None:
    done = call("models")
    assert done.returncode == 0
    assert "nanodet-g-416" in done.stdout


def test_doctor_lists_libraries() -> None:
    done = run("doctor")
    assert done.returncode == 0, done.stdout
    for subject in ("OpenCV", "ZeroMQ", "ONNX Runtime", "TensorRT", "GStreamer"):
        assert subject in done.stdout


def test_watch_without_messages_exits_with_1(tmp_path: Path) -> None:
    done = call("watch", f"ipc://{tmp_path}/nobody", "--for", "1s")
    assert done.returncode == 1


def test_watch_shows_a_running_program(tmp_path: Path) -> None:
    with started("run", str(write_config(tmp_path))) as process:
        read_until(process, "a: streaming")
        done = run("watch", f"ipc://{tmp_path}/out", "--for", "3s")
        process.terminate()
        process.wait(60)
    assert done.returncode == 0
    assert "a" in done.stdout


def test_closed_pipe_ends_without_a_traceback() -> None:
    command = f"{' '.join(COMMAND)} schema | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=os.environ.copy())
    assert "Traceback" not in done.stderr
