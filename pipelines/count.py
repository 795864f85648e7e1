"""Pipeline `count`: the stages of `track`, followed by the stages for lines, zones, and rules, and optional stages.

The optional stages summarize objects, save snapshots of events, and ask a language model about events. The pipeline
publishes tracks, events, and counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from vision.config import AppConfig
from vision.runtime.builder import (
    RunOptions,
    open_analytics,
    open_cascade,
    open_tracking,
)
from vision.runtime.event_frames import open_inquiries, open_snapshots
from vision.runtime.pipeline import pipeline
from vision.runtime.views import open_views
from vision.stages.object_summaries import open_objects
from vision.stages.rules import RuleStage
from vision.stages.stage import Stage


def open_stages(config: AppConfig, options: RunOptions, resources: ExitStack) -> Sequence[Stage]:
    """Open and return the stages of `track`, the stages for lines, zones, and rules, and configured optional stages.

    The stages are opened in an order that reports errors early.
    """
    analytics = open_analytics(config, options)
    snapshots = open_snapshots(config, options, resources, analytics)
    views = open_views(config, options, resources, analytics)
    cascade = open_cascade(config, options, resources)
    track, objects = open_tracking(config), open_objects(config)
    inquiries = open_inquiries(config, options, resources)
    rules = RuleStage(config.rules, config.analytics)
    return [track, *cascade, *views, analytics, rules, *objects, *snapshots, *inquiries]


build = pipeline(open_stages)
