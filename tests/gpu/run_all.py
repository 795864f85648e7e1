"""Run all GPU tests, each part in a separate process with a time limit.

After each part, the program stores the output of the part, and updates the summary.

    python -m tests.gpu.run_all OUT [--only kernels,contract,detector,stage] [--seconds 480]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=8", "-W", "default")
SANITIZED = (
    "tests/gpu/test_letterbox_kernel.py::test_letterbox_kernel_matches_the_reference_for_mixed_sizes_and_formats[33-17-uint8-3]",
    "tests/gpu/test_letterbox_kernel.py::test_letterbox_kernel_matches_the_reference_for_mixed_sizes_and_formats[50-34-float32-0]",
    "tests/gpu/test_letterbox_kernel.py::test_letterbox_kernel_matches_the_reference_for_mixed_sizes_and_formats[96-64-float16-4]",
    "tests/gpu/test_postprocess_kernels.py",
)


@dataclass(frozen=True)
class Part:
    """Part of the tests, which a single command runs."""

    command: tuple[str, ...]
    seconds: float  # at most


def parts(out: Path) -> Mapping[str, Part]:
    """Return the parts in descending order of importance."""
    python = (sys.executable,)
    sanitizer = shutil.which("compute-sanitizer") or "compute-sanitizer"
    few = "mixed_sizes or plain or yolov8 or nanodet and ties or efficient"
    kernels = (
        "tests/gpu/test_letterbox_kernel.py",
        "tests/gpu/test_postprocess_kernels.py",
        "tests/gpu/test_crop_kernel.py",
    )
    detector = (
        "tests/gpu/test_tensorrt_detector.py",
        "tests/gpu/test_exports.py",
        "tests/gpu/test_shape_inputs.py",
        "tests/gpu/test_gpu_classifier.py",
    )
    found = {
        "machine": Part(("nvidia-smi",), 20),
        "kernels": Part((*python, *PYTEST, *kernels), 150),
        "plugins": Part((*python, *PYTEST, "tests/gpu/test_plugins.py"), 120),
        "detector": Part((*python, *PYTEST, "-s", *detector), 300),
        "stage": Part((*python, "-m", "tests.perf.stage", "--out", str(out / "stage.json"), "--seconds", "0.6"), 300),
        "nvdec": Part((*python, *PYTEST, "-s", "tests/gpu/test_nvdec.py"), 240),
        "nvdec-detector": Part((*python, *PYTEST, "-s", "tests/gpu/test_nvdec_detector.py"), 240),
        "contract": Part((*python, *PYTEST, "tests/contract/test_detector.py", "-k", "tensorrt"), 240),
        "engine": Part((*python, *PYTEST, "tests/gpu/test_engine.py"), 240),
    }
    for tool in ("memcheck", "racecheck", "initcheck"):
        command: tuple[str, ...] = (sanitizer, "--tool", tool, "--error-exitcode", "9", "--launch-timeout", "60")
        if tool == "memcheck":  # cuda-python asks an older driver for symbols that it does not have
            command = (*command, "--report-api-errors", "no")
        found[tool] = Part((*command, *python, *PYTEST, *SANITIZED, "-k", few), 200)
    return found


def run(name: str, part: Part, out: Path, left: float) -> dict[str, object]:
    """Run one part. Write its output to ``OUT/<name>.log``."""
    log = out / f"{name}.log"
    began = time.monotonic()
    with log.open("wb") as file:
        try:
            done = subprocess.run(
                part.command,
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=max(1.0, min(part.seconds, left)),
                check=False,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"},
            )
            result: object = done.returncode
        except subprocess.TimeoutExpired:
            result = "out of time"
        except OSError as error:
            result = str(error)
    lines = log.read_text(errors="replace").splitlines()
    return {"result": result, "seconds": round(time.monotonic() - began, 1), "last": lines[-1:] or [""]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the requested parts, and write the summary to the folder `OUT`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="parts, separated by commas; all where absent")
    parser.add_argument("--seconds", type=float, default=480.0, help="for everything")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    wanted = [name for name in given.only.split(",") if name]
    deadline = time.monotonic() + given.seconds
    summary: dict[str, object] = {}
    for name, part in parts(given.out).items():
        if wanted and name not in wanted:
            continue
        left = deadline - time.monotonic()
        summary[name] = run(name, part, given.out, left) if left > 5 else {"result": "no time left"}
        (given.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        print(name, json.dumps(summary[name]), flush=True)
    for name in summary:
        log = given.out / f"{name}.log"
        if log.exists():
            print(f"\n===== {name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-45:]))


if __name__ == "__main__":
    main()
