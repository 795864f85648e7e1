"""capture -> batching -> detect -> track -> analytics -> rules -> publish: what happens, and how often."""

from __future__ import annotations

from contextlib import ExitStack

from vision.config import AppConfig
from vision.runtime.builder import (
    RunOptions,
    build_cameras,
    detector_of,
    open_analytics,
    open_cascade,
    open_publisher,
    open_snapshots,
)
from vision.runtime.runtime import Runtime
from vision.stages.rules import RuleStage
from vision.stages.stage import Stage
from vision.stages.track import TrackStage


def build(site: AppConfig, options: RunOptions, resources: ExitStack) -> Runtime:
    """Open everything, in the order in which a fault is cheapest to find; `resources` closes it again.

    Raises:
        ConfigError: the address is taken, a class is unknown, a folder cannot be written to, ...
        ModelError: a model does not fit its card.
        Closed: stopped while starting.
    """
    analytics = open_analytics(site, options, resources)
    snapshots = open_snapshots(site, options, resources)
    publisher = open_publisher(site, options, resources)
    cascade = open_cascade(site, options, resources)
    track = TrackStage(site.track, score=site.detect.score_threshold)
    # An unsure detection may carry on what was sure before, so the tracker is given more than would be published.
    detector = detector_of(site, options, resources, score=track.detector_score)
    stages: list[Stage] = [track, *cascade, analytics, RuleStage(site.rules, site.analytics), *snapshots]
    return Runtime(
        cameras=build_cameras(site, options, detector, stages),
        detector=detector,
        stages=stages,
        sinks=[publisher],
        model=site.model,
        status_interval_s=site.status.interval_s,
        stop_timeout_s=site.stop_timeout_s,
    )
