"""CPU time per frame of each kind of thread in an offline run.

    python -m tests.perf.cpu_by_thread CAMERAS

The command prints one line of JSON, with times in ms. It counts threads that Python did not create as decoders of
FFmpeg.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from tests.perf import deployment
from vision.config import load_config
from vision.pipelines.detect import build
from vision.runtime.builder import RunOptions
from vision.stages.stage import Report


def cpu_s_by_thread() -> dict[str, float]:
    """Return the CPU time, in seconds, that each kind of thread of this process has used since its start."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    seconds: defaultdict[str, float] = defaultdict(float)
    for task in Path("/proc/self/task").iterdir():
        try:
            fields = (task / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # the thread has just ended
            continue
        name = re.sub(r"-?\d+$|-camera.*", "", names.get(int(task.name), "decoders"))
        seconds[name] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return dict(seconds)


def measure(cameras: int) -> Mapping[str, float]:
    """Measure the CPU time per frame, in ms, of each kind of thread while all cameras deliver frames."""
    seen: list[tuple[int, dict[str, float]]] = []

    def note(report: Report) -> None:
        if all(camera.state == "streaming" for camera in report.cameras):
            seen.append((sum(camera.published for camera in report.cameras), cpu_s_by_thread()))

    with tempfile.TemporaryDirectory() as folder, ExitStack() as resources:
        config = deployment.write_config(Path(folder) / "camera.yaml", [str(deployment.CLIP)] * cameras)
        stop = threading.Event()
        runtime = build(load_config(config, {}), RunOptions(stop=stop, offline=True), resources)
        runtime.run(stop, on_report=note)
    (first, before), (last, after) = seen[0], seen[-1]
    frames = last - first
    spent = {name: 1000 * (after[name] - before.get(name, 0.0)) / frames for name in after}
    return {"frames": frames, **{name: ms for name, ms in sorted(spent.items(), key=lambda one: -one[1]) if ms > 0.005}}


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
