"""Faults inside the program under test: calls to a camera's source or to the detector that hang.

`write_pipeline` writes a pipeline file for `vision run`. The file loads the configured pipeline with these faults. Each
fault has a file, and lasts as long as this file exists.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from vision.capture.open import NamedOpener, open_source
from vision.capture.source import Source
from vision.config import AppConfig, CameraConfig, DetectConfig, ModelSpec
from vision.detect.detector import Detector
from vision.detect.open import open_detector
from vision.pipelines import load_pipeline
from vision.runtime.builder import Build, RunOptions
from vision.runtime.runtime import Runtime

_POLL_S: Final = 0.02  # interval at which a call that hangs checks its file
_PR_SET_PDEATHSIG: Final = 1  # from linux/prctl.h
_P = ParamSpec("_P")
_T = TypeVar("_T")


def stuck_file(folder: Path, camera_id: str) -> Path:
    """Return the path of a file. While the file exists, calls to `grab` of the camera's source do not return."""
    return folder / f"stuck-{camera_id}"


def hang_file(folder: Path) -> Path:
    """Return the path of a file. While the file exists, calls to the detector's `wait` do not return."""
    return folder / "detector-hangs"


def write_pipeline(folder: Path, name: str) -> Path:
    """Write a pipeline file that runs the pipeline `name` with the faults that `folder` controls. Return its path."""
    path = folder / "pipeline.py"
    path.write_text(
        "from vision.benchmark.chaos.harness import disturbed\n\n"
        f"build = disturbed({name!r}, {str(folder)!r}, {os.getpid()})\n",
        encoding="utf-8",
    )
    return path


def disturbed(name: str, folder: str, parent: int) -> Build:
    """Return the `build` function of the pipeline `name`, with the faults that files in `folder` control.

    Linux kills the program when the process `parent` ends, even if the program is suspended.
    """

    def build(config: AppConfig, options: RunOptions, resources: ExitStack) -> Runtime:
        _end_with(parent)
        control = Path(folder)
        options = replace(
            options,
            open_source=source_that_hangs(control),
            open_detector=functools.partial(_open_detector, control, options.stop),
        )
        return load_pipeline(name)(config.model_copy(update={"pipeline": name}), options, resources)

    return build


def source_that_hangs(folder: Path) -> NamedOpener:
    """Return a function that opens sources. Their `grab` does not return while the camera's `stuck_file` exists."""
    return NamedOpener(f"{__name__}:_open_source", {"folder": str(folder)})


def _open_source(config: CameraConfig, *, folder: str, **options: Any) -> Source:
    source = open_source(config, **options)
    source.grab = _hanging(source.grab, stuck_file(Path(folder), config.id))  # type: ignore[method-assign]
    return source


def _open_detector(folder: Path, stop: threading.Event, model: Path, spec: ModelSpec, config: DetectConfig) -> Detector:
    """Open a detector whose `wait` does not return while the `hang_file` in `folder` exists."""
    detector = open_detector(model, spec, config, stop=stop)
    detector.wait = _hanging(detector.wait, hang_file(folder))  # type: ignore[method-assign]
    return detector


def _hanging(call: Callable[_P, _T], file: Path) -> Callable[_P, _T]:
    """Return a function that waits while `file` exists, and then makes the call."""

    @functools.wraps(call)
    def hang(*arguments: _P.args, **keywords: _P.kwargs) -> _T:
        while file.exists():
            time.sleep(_POLL_S)
        return call(*arguments, **keywords)

    return hang


def _end_with(parent: int) -> None:
    """Make Linux kill this process when its parent ends. Kill it immediately if `parent` is not its parent."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
