"""Pipeline `track`: capture -> batching -> detect -> track -> publish. It publishes tracks.

The second model runs between the tracker and the publisher if it is configured.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from vision.config import AppConfig
from vision.runtime.builder import RunOptions, open_cascade, open_tracking
from vision.runtime.pipeline import pipeline
from vision.stages.stage import Stage


def open_stages(config: AppConfig, options: RunOptions, resources: ExitStack) -> Sequence[Stage]:
    """Open and return the tracker and, if configured, the second model."""
    track = open_tracking(config)
    return [track, *open_cascade(config, options, resources)]


build = pipeline(open_stages)
