"""capture -> batching -> detect -> track -> publish: what is in each frame, and what of it was there before."""

from __future__ import annotations

from contextlib import ExitStack

from vision.config import AppConfig
from vision.runtime.builder import RunOptions, build_cameras, detector_of, open_cascade, open_publisher
from vision.runtime.runtime import Runtime
from vision.stages.stage import Stage
from vision.stages.track import TrackStage


def build(site: AppConfig, options: RunOptions, resources: ExitStack) -> Runtime:
    """Open everything, in the order in which a fault is cheapest to find; `resources` closes it again.

    Raises:
        ConfigError: the address is taken, a class is unknown, ...
        ModelError: the model does not fit its card.
        Closed: stopped while starting.
    """
    publisher = open_publisher(site, options, resources)
    cascade = open_cascade(site, options, resources)
    track = TrackStage(site.track, score=site.detect.score_threshold)
    detector = detector_of(site, options, resources, score=track.detector_score)
    stages: list[Stage] = [track, *cascade]
    return Runtime(
        cameras=build_cameras(site, options, detector, stages),
        detector=detector,
        stages=stages,
        sinks=[publisher],
        model=site.model,
        status_interval_s=site.status.interval_s,
        stop_timeout_s=site.stop_timeout_s,
    )
