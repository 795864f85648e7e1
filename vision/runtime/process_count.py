"""`process_count`, which decides how many worker processes of each kind a deployment needs."""

from __future__ import annotations

import math
import os
from typing import Final

from vision.config import AppConfig, CameraConfig

_ASSUMED_FPS: Final = 30.0  # rate of a camera whose configuration contains no rate
_ONE_PROCESS_FPS: Final = 300.0  # frames/s that one process serves without delays
_WORKER_FPS: Final = 480.0  # frames/s that one result worker serves without delays
_FEWEST_CORES: Final = 4  # two workers of each kind need no more than this
_CORES_PER_WORKER: Final = 2  # one for a capture worker, and one for a result worker
_MOST: Final = 8


def process_count(config: AppConfig) -> int:
    """Return the number of worker processes of each kind. 1 means that one process does everything.

    With `processes: auto`, the number depends on the configured frame rates, on the number of cameras, and on the CPU
    cores that this process can use, and is at most 8. Otherwise, the number is the configured value. In both cases, the
    number does not exceed the number of cameras.
    """
    if config.processes != "auto":
        return min(config.processes, len(config.cameras))
    requested_fps = sum(map(_frames_per_s, config.cameras))
    cores = len(os.sched_getaffinity(0))
    if requested_fps <= _ONE_PROCESS_FPS or cores < _FEWEST_CORES:
        return 1
    needed = max(2, math.ceil(requested_fps / _WORKER_FPS))
    return min(needed, _MOST, cores // _CORES_PER_WORKER, len(config.cameras))


def _frames_per_s(camera: CameraConfig) -> float:
    return min(camera.fps or _ASSUMED_FPS, camera.max_fps or math.inf)
