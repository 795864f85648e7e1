"""Tests of the command `vision camera-zoo`: the served cameras, the list of cameras, and ports that are in use."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading

from vision.capture.zoo.zoo import PERSONAS
from vision.cli.check import check_cameras
from vision.config import CameraConfig
from vision.errors import EXIT_RUNTIME

COMMAND = [sys.executable, "-m", "vision.cli.main", "camera-zoo"]


def test_listed_cameras_are_served_until_ctrl_c() -> None:
    wanted = ["--only", "http-plain", "--only", "snapshot", "--port", "0"]
    with subprocess.Popen([*COMMAND, *wanted], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        addresses = dict(process.stdout.readline().split()[:2] for _ in range(2))
        configs = [CameraConfig(id=name, source=address, reader="ffmpeg") for name, address in addresses.items()]
        checks = check_cameras(configs, threading.Event())
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert [(check.camera, check.error) for check in checks] == [("http-plain", None), ("snapshot", None)]


def test_list_has_one_line_per_camera() -> None:
    done = subprocess.run([*COMMAND, "--list"], capture_output=True, text=True, timeout=60, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [persona.name for persona in PERSONAS]


def test_port_in_use_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        port = str(occupied.getsockname()[1])
        line = [*COMMAND, "--only", "http-plain", "--port", port]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == EXIT_RUNTIME
    assert port in done.stderr
    assert "Traceback" not in done.stderr
