"""Pipeline `detect`: capture -> batching -> detect -> publish. It publishes the detections of each frame."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from vision.config import AppConfig
from vision.runtime.builder import RunOptions
from vision.runtime.pipeline import pipeline
from vision.stages.stage import Stage


def open_stages(_config: AppConfig, _options: RunOptions, _resources: ExitStack) -> Sequence[Stage]:
    """Return no stages, because the results of the detector are published unchanged."""
    return ()


build = pipeline(open_stages)
