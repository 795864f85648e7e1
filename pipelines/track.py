"""Pipeline `track`: capture -> batching -> detect -> track -> publish. The pipeline publishes tracks.

If configured, a second model classifies the tracked objects, and a stage summarizes objects that have left the scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from vision.config import AppConfig
from vision.runtime.builder import RunOptions, open_cascade, open_tracking
from vision.runtime.event_frames import open_inquiries
from vision.runtime.pipeline import pipeline
from vision.runtime.views import open_views
from vision.stages.object_summaries import open_objects
from vision.stages.stage import Stage


def open_stages(config: AppConfig, options: RunOptions, resources: ExitStack) -> Sequence[Stage]:
    """Open the tracker and, if configured, the stages that classify and summarize the tracked objects.

    If configured, also open the stages that find moved or covered cameras, and ask a language model about events.
    """
    cascade, track = open_cascade(config, options, resources), open_tracking(config)
    views, inquiries = open_views(config, options, resources), open_inquiries(config, options, resources)
    return [track, *cascade, *views, *open_objects(config), *inquiries]


build = pipeline(open_stages)
