"""Pipeline `detect`: capture -> batching -> detect -> publish. It publishes the detections of each frame."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from vision.config import AppConfig
from vision.runtime.builder import RunOptions
from vision.runtime.pipeline import pipeline
from vision.stages.score_filter import ScoreFilter
from vision.stages.stage import Stage


def open_stages(config: AppConfig, _options: RunOptions, _resources: ExitStack) -> Sequence[Stage]:
    """Return one stage, which changes results only after `detect.score_threshold` was raised."""
    return [ScoreFilter(config.detect.score_threshold)]


build = pipeline(open_stages)
