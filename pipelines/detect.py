"""Pipeline `detect`: capture -> batching -> detect -> publish. The pipeline publishes the detections of each frame."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from vision.config import AppConfig
from vision.runtime.builder import RunOptions
from vision.runtime.event_frames import open_inquiries
from vision.runtime.pipeline import pipeline
from vision.runtime.views import open_views
from vision.stages.score_filter import ScoreFilter
from vision.stages.stage import Stage


def open_stages(config: AppConfig, options: RunOptions, resources: ExitStack) -> Sequence[Stage]:
    """Return a `ScoreFilter` and, if configured, the stages that find moved cameras and ask a language model.

    The filter removes objects only after a reload of the configuration has raised `detect.score_threshold`. The module
    docstring of `vision.runtime.builder` describes the errors.
    """
    views = open_views(config, options, resources)
    return [ScoreFilter(config.detect.score_threshold), *views, *open_inquiries(config, options, resources)]


build = pipeline(open_stages)
