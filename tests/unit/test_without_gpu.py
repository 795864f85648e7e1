"""Tests of machines without a GPU, and of machines whose GPU driver does not respond."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.paths import ROOT
from tests.unit.detect.test_classifier import save
from tests.unit.engine_models import needs_no_gpu
from vision.capture.liveness import Backoff
from vision.detect.gpu_presence import has_nvidia_gpu
from vision.errors import Closed, DeviceNotReady
from vision.runtime.start import open_patiently
from vision.state.database import StateDatabase

MODEL = "nanodet-g-416"

GRAPHICS_CARD = {"sys/bus/pci/devices/0/vendor": b"0x10de\n", "sys/bus/pci/devices/0/class": b"0x030200\n"}
JETSON = {"proc/device-tree/compatible": b"nvidia,p3767-0005\0nvidia,tegra234\0"}
LIBRARY = "int cuInit(unsigned flags) { return 100; }\nint cuDriverGetVersion(int *v) { *v = 13000; return 0; }\n"
"""libcuda of a driver whose kernel module is not loaded: 100 means that there is no device."""

RUN = """
import sys
from pathlib import Path
from vision.detect import gpu_presence
gpu_presence.MACHINE = Path(sys.argv.pop(1))
from vision.cli.main import entry
entry()
"""


@pytest.mark.integration
@needs_no_gpu
@pytest.mark.parametrize("verb", ["run", "build", "bench", "profile"])
def test_missing_driver_is_reported_with_a_hint_and_exit_code_75(tmp_path: Path, verb: str) -> None:
    config = tmp_path / "camera.yaml"
    config.write_text(
        json.dumps(
            {
                "detect": {"backend": "tensorrt"},
                "cameras": [{"id": "a", "source": "synthetic:64x64"}],
                "publish": {"bind": f"ipc://{tmp_path}/out"},
            }
        )
    )
    arguments = {
        "run": ["run", str(config)],
        "build": ["build", MODEL],
        "bench": ["bench", MODEL, "--backend", "tensorrt"],
        "profile": ["profile", MODEL, "--backend", "tensorrt"],
    }
    command = [sys.executable, "-m", "vision.cli.main", "--log-level", "warning", *arguments[verb]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 75, done.stderr
    message, hint = (line for line in done.stderr.splitlines() if not line.startswith("measuring"))
    assert message.startswith("vision: ")
    assert "NVIDIA" in message or "cuda-python" in message or "GPU" in message
    assert hint.startswith("  hint: ")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"dev/nvidiactl": b""}, True),
        ({"dev/nvhost-gpu": b""}, True),
        ({"dev/null": b""}, False),
        (JETSON, True),
        ({"proc/device-tree/compatible": b"raspberrypi,4-model-b\0"}, False),
        (GRAPHICS_CARD, True),
        ({"sys/bus/pci/devices/0/vendor": b"0x10de\n", "sys/bus/pci/devices/0/class": b"0x0c0330\n"}, False),  # USB
        ({"sys/bus/pci/devices/0/vendor": b"0x8086\n", "sys/bus/pci/devices/0/class": b"0x030000\n"}, False),
    ],
)
def test_gpu_is_found_also_before_its_driver_is_loaded(tmp_path: Path, files: dict[str, bytes], expected: bool) -> None:
    assert has_nvidia_gpu(machine(tmp_path, files)) == expected


def machine(folder: Path, files: dict[str, bytes]) -> Path:
    """Write the files with which a machine describes its hardware. Return the folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the library of a GPU driver that is not loaded. Return the folder of the library."""
    pytest.importorskip("cuda.bindings.runtime")
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "cuda.c").write_text(LIBRARY)
    flags = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(folder / "libcuda.so.1")]
    subprocess.run([compiler, *flags, str(folder / "cuda.c")], check=True)
    return folder


def run_on(
    folder: Path, files: dict[str, bytes], environment: dict[str, str], verb: str = "run", **sections: Any
) -> subprocess.CompletedProcess[str]:
    """Run `vision run` or `vision check` for five frames, with `backend: auto`, on a machine with these files."""
    config = folder / "camera.yaml"
    camera = {"id": "a", "source": "synthetic:64x64@20?frames=5"}
    publish = {"bind": f"ipc://{folder}/out"}
    config.write_text(json.dumps({"cameras": [camera], "publish": publish, "state_dir": str(folder / "s"), **sections}))
    command = [sys.executable, "-c", RUN, str(machine(folder / "machine", files)), verb, str(config)]
    environment = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


@pytest.mark.integration
@needs_no_gpu
@pytest.mark.parametrize("files", [GRAPHICS_CARD, JETSON])
@pytest.mark.parametrize("verb", ["run", "check"])
def test_gpu_whose_driver_does_not_answer_is_not_replaced_by_the_cpu(
    tmp_path: Path, library: Path, files: dict[str, bytes], verb: str
) -> None:
    done = run_on(tmp_path, files, {"LD_LIBRARY_PATH": str(library)}, verb)
    assert done.returncode == 75, done.stderr
    assert "`detect: {backend: onnxruntime}`" in done.stderr


@pytest.mark.integration
@needs_no_gpu
def test_second_model_is_not_moved_to_the_cpu_either(tmp_path: Path, library: Path) -> None:
    sections: dict[str, Any] = {
        "pipeline": "count",
        "detect": {"backend": "fake"},
        "cascade": {"model": str(save(tmp_path / "second"))},
    }
    done = run_on(tmp_path, GRAPHICS_CARD, {"LD_LIBRARY_PATH": str(library)}, **sections)
    assert done.returncode == 75, done.stderr
    assert "`cascade: {backend: onnxruntime}`" in done.stderr


@pytest.mark.integration
@needs_no_gpu
@pytest.mark.parametrize(
    ("files", "hidden", "has_library"),
    [
        ({}, {}, True),
        (GRAPHICS_CARD, {"CUDA_VISIBLE_DEVICES": ""}, True),  # the user hides the GPU
        (GRAPHICS_CARD, {}, False),  # the driver is not installed
    ],
    ids=["no GPU", "hidden GPU", "no driver"],
)
def test_cpu_is_used_at_once_if_waiting_does_not_help(
    tmp_path: Path, library: Path, files: dict[str, bytes], hidden: dict[str, str], has_library: bool
) -> None:
    path = {"LD_LIBRARY_PATH": str(library)} if has_library else {}
    done = run_on(tmp_path, files, hidden | path)
    assert done.returncode == 0, done.stderr
    assert ("the GPU is not used" in done.stderr) == (not has_library)
    with closing(StateDatabase(tmp_path / "s", boot="b", max_events=100)) as state:
        stored = b"".join(state.events.read(0).payloads)
    assert b"started" in stored
    assert (b"gpu_unused" in stored) == (not has_library)


def not_ready(_: ExitStack) -> None:
    raise DeviceNotReady("no driver", code="no-driver")


@pytest.mark.integration
@needs_no_gpu
def test_service_waits_for_the_driver_for_a_limited_time() -> None:
    waits = Backoff(0.01, 0.02, shortest_s=0.01)
    with ExitStack() as resources, pytest.raises(DeviceNotReady):
        open_patiently(not_ready, resources, threading.Event(), patient=True, backoff=waits, driver_s=0.05)
    assert waits.failures


@pytest.mark.integration
def test_service_ends_when_a_new_process_can_use_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.pathsep.join([str(ROOT / "tests" / "emulator" / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    waits = Backoff(0.01, 0.02, shortest_s=0.01)
    with ExitStack() as resources, pytest.raises(DeviceNotReady):
        open_patiently(not_ready, resources, threading.Event(), patient=True, backoff=waits, driver_s=1e6)
    assert waits.failures == 1


def test_stop_ends_the_wait_for_the_driver() -> None:
    stop = threading.Event()
    stop.set()
    with ExitStack() as resources, pytest.raises(Closed):
        open_patiently(not_ready, resources, stop, patient=True, driver_s=1e6)
