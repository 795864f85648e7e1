"""capture -> batching -> detect -> publish: what is in each frame."""

from __future__ import annotations

from contextlib import ExitStack

from vision.config import AppConfig
from vision.runtime.builder import RunOptions, build_cameras, detector_of, open_publisher
from vision.runtime.runtime import Runtime


def build(site: AppConfig, options: RunOptions, resources: ExitStack) -> Runtime:
    """Open everything, in the order in which a fault is cheapest to find; `resources` closes it again.

    Raises:
        ConfigError: the address is taken, a class is unknown, ...
        ModelError: the model does not fit its card.
        Closed: stopped while starting.
    """
    publisher = open_publisher(site, options, resources)
    detector = detector_of(site, options, resources)
    return Runtime(
        cameras=build_cameras(site, options, detector),
        detector=detector,
        sinks=[publisher],
        model=site.model,
        status_interval_s=site.status.interval_s,
        stop_timeout_s=site.stop_timeout_s,
    )
