"""Pass eight hours of frames through the real program, whose memory, descriptors, and threads must stay constant.

python -m tests.soak.long_run [--hours 8] [--processes 1] [--save]

Four synthetic cameras send far more than 10 frames/s, so an hour of four cameras at 10 frames/s passes within minutes.
The program tracks, counts, evaluates a rule, stores events and the archive, and publishes to a subscriber in another
process, which also requests the metrics. Memory is the sum of the unshared memory of the program's processes. The slope
is in MiB per hour of four cameras at 10 frames/s, after the first eighth of the frames.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from tests.messages.processes import Program, python
from tests.perf.__main__ import result
from tests.perf.results import save
from vision.client import CameraStatusMessage, Gap, Problem, Restart, Subscription

_CAMERAS: Final = 4
_NOMINAL_FPS: Final = 10
_SAMPLE_S: Final = 5.0
_WARM_PART: Final = 1 / 8
_MAX_SLOPE: Final = 1.0  # MiB per hour
_HTTP: Final = "127.0.0.1:9387"

_CONFIG: Final = """
pipeline: count
processes: PROCESSES
cameras: [CAMERAS]
detect: {backend: fake}
analytics: {ANALYTICS}
rules: [{name: crossed, when: line_crossed middle, cooldown: 5s}]
state_dir: FOLDER/state
archive: {folder: FOLDER/archive}
http: {bind: "HTTP"}
publish: {bind: "ipc://FOLDER/out", replay: "ipc://FOLDER/again", max_events: 100000}
"""
_SHAPES: Final = (
    "{lines: [{name: middle, points: [[32, 0], [32, 48]]}], "
    "zones: [{name: left, polygon: [[0, 0], [32, 0], [32, 48], [0, 48]]}]}"
)


@dataclass(frozen=True, slots=True)
class Sample:
    """Published frames and resources of the program at one point in time."""

    frames: int  # published by all cameras since the start
    mib: float
    descriptors: int
    threads: int


def configuration(folder: Path, processes: str) -> str:
    """Return the text of camera.yaml for the measured program. Its state is stored in `folder`."""
    names = [f"c{number}" for number in range(_CAMERAS)]
    cameras = ", ".join(
        f'{{id: {name}, source: "synthetic:64x48@500?objects=3&seed={seed}"}}' for seed, name in enumerate(names)
    )
    analytics = ", ".join(f"{name}: {_SHAPES}" for name in names)
    text = _CONFIG.replace("PROCESSES", processes).replace("CAMERAS", cameras).replace("ANALYTICS", analytics)
    return text.replace("FOLDER", str(folder)).replace("HTTP", _HTTP)


def take_sample(program: psutil.Process, frames: int) -> Sample:
    """Return the current resource usage of the program and its child processes, after `frames` published frames."""
    bytes_, descriptors, threads = 0, 0, 0
    for process in [program, *program.children(recursive=True)]:
        with suppress(psutil.Error):
            bytes_ += process.memory_full_info().uss
            descriptors += process.num_fds()
            threads += process.num_threads()
    return Sample(frames, bytes_ / 2**20, descriptors, threads)


def samples(program: Program, folder: Path, frames: int, problems: list[str]) -> Iterator[Sample]:
    """Receive the status of the cameras until `frames` are published. Yield samples. Add each fault to `problems`."""
    published: dict[str, int] = {}
    due_s = time.monotonic()
    with closing(Subscription(f"ipc://{folder}/out", kinds=("status", "events"), silence_s=60.0)) as subscription:
        while sum(published.values()) < frames:
            item = subscription.receive(1.0)
            if isinstance(item, CameraStatusMessage):
                published[item.camera] = item.published
            elif isinstance(item, Gap | Problem | Restart):
                problems.append(str(item))
            if time.monotonic() >= due_s:
                due_s = time.monotonic() + _SAMPLE_S
                with urllib.request.urlopen(f"http://{_HTTP}/metrics") as response:
                    response.read()
                sample = take_sample(psutil.Process(program.pid), sum(published.values()))
                print(json.dumps(asdict(sample)), file=sys.stderr, flush=True)
                yield sample


def run(hours: float, processes: str) -> dict[str, Any]:
    """Process the frames that four cameras send in `hours` at 10 frames/s. Return the figures and all problems.

    `processes` is the value of the key `processes` in camera.yaml.
    """
    frames = round(hours * 3600 * _NOMINAL_FPS * _CAMERAS)
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        config = Path(name) / "camera.yaml"
        config.write_text(configuration(Path(name), processes))
        began_s = time.monotonic()
        with python("-m", "vision", "--log-level", "warning", "run", config) as program:
            program_samples = _after_start(program, Path(name), frames, problems)
            took_s = time.monotonic() - began_s
            program.send(signal.SIGTERM)
            code = program.wait()
        problems += [f"the program ended with exit code {code}"] if code else []
    warm = [sample for sample in program_samples if sample.frames >= _WARM_PART * frames]
    per_hour = 3600 * _NOMINAL_FPS * _CAMERAS
    slope = float(np.polyfit([sample.frames / per_hour for sample in warm], [sample.mib for sample in warm], 1)[0])
    problems += [f"the memory grows by {slope:.2f} MiB per hour"] if slope >= _MAX_SLOPE else []
    return {
        "hours": hours,
        "processes": processes,
        "frames": warm[-1].frames,
        "seconds": round(took_s),
        "samples": len(warm),
        "mib_first": round(warm[0].mib, 1),
        "mib_last": round(warm[-1].mib, 1),
        "mib_per_hour": round(slope, 3),
        "descriptors": sorted({sample.descriptors for sample in warm}),
        "threads": sorted({sample.threads for sample in warm}),
        "problems": problems,
    }


def _after_start(program: Program, folder: Path, frames: int, problems: list[str]) -> list[Sample]:
    """Wait until the program serves its metrics. Return all subsequent samples."""
    deadline_s = time.monotonic() + 60.0
    while time.monotonic() < deadline_s:
        with suppress(OSError), urllib.request.urlopen(f"http://{_HTTP}/livez"):
            return list(samples(program, folder, frames, problems))
        time.sleep(0.5)
    raise RuntimeError(f"the program does not start: {program.pending()[-5:]}")


def main() -> int:
    """Print the result as JSON. Return 1 if there are problems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=8.0)
    parser.add_argument("--processes", default="1")
    parser.add_argument("--save", action="store_true", help="write the result to tests/perf/results")
    arguments = parser.parse_args()
    found = run(arguments.hours, arguments.processes)
    print(json.dumps(found, indent=1))
    if arguments.save:
        save(result("long_run", found, "Memory, descriptors, and threads over eight hours' worth of frames"))
    return int(bool(found["problems"]))


if __name__ == "__main__":
    sys.exit(main())
