"""`change_running`, which applies a new configuration to a running program, step by step, in the main thread.

No step waits, so the main thread continues to check workers and to publish the status. The cameras that do not change
are not touched. The steps are in this order:

1. Cameras that were removed, or must reconnect, are no longer read. The results of removed cameras are finished.
2. The stages and the process that records cameras use the new configuration.
3. New cameras start, and the cameras of step 1 that were not removed reconnect, with a new epoch.
4. The other cameras use their new limits, and the page and the sinks use the new configuration.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from vision.config import AppConfig
from vision.config.changes import Plan
from vision.runtime.camera_factory import CameraFactory
from vision.runtime.capture_worker import CLOSE_S
from vision.runtime.runtime import Runtime
from vision.stages.stage import Reconfigurable

log = logging.getLogger(__name__)


def change_running(runtime: Runtime, factory: CameraFactory, config: AppConfig, plan: Plan) -> Iterator[None]:
    """Return the steps that apply `config`, which differs from the current configuration as `plan` describes.

    The caller must have checked that the plan needs no restart. Pass the steps to `Runtime.steps.submit`.
    """
    cameras, results, configs = runtime.cameras, runtime.results, {camera.id: camera for camera in config.cameras}
    batcher = cameras.batcher
    batcher.is_changing = True
    try:
        epochs = {camera_id: cameras.next_epoch(camera_id) for camera_id in (*plan.added, *plan.reopened)}
        yield from _retire(runtime, plan)
        if factory.options.packets is not None:
            factory.options.packets.reconfigure(config)
        uses_config = results.reconfigure(config, plan.added)
        while not uses_config():
            yield
        for camera_id in plan.added:
            results.metrics.add(camera_id)
            cameras.add(factory.create(configs[camera_id], first_epoch=epochs[camera_id]))
        for camera_id in plan.reopened:
            slot = cameras.cameras[camera_id].slot
            cameras.add(factory.reopen(configs[camera_id], slot, first_epoch=epochs[camera_id]))
        for camera_id in plan.adjusted:
            own = configs[camera_id]
            cameras.cameras[camera_id].slot.adjust(max_fps=own.max_fps, max_frame_age_s=own.max_frame_age_s)
    finally:
        batcher.is_changing = False
    for follow in factory.options.followers:
        follow(config)
    cameras.watch(runtime.chain())
    for sink in results.sinks:
        part: object = sink
        if isinstance(part, Reconfigurable):
            part.reconfigure(config)


def _retire(runtime: Runtime, plan: Plan) -> Iterator[None]:
    """Stop reading the cameras that are removed or reopened, and forget the cameras that are removed."""
    cameras, retired = runtime.cameras, (*plan.removed, *plan.reopened)
    for camera_id in retired:
        cameras.retire(camera_id, for_good=camera_id in plan.removed)
    deadline = time.monotonic() + CLOSE_S
    while any(map(cameras.is_read, retired)) and (cameras.capture is not None or time.monotonic() < deadline):
        yield
    for camera_id in retired:
        if cameras.is_read(camera_id):
            log.warning("camera %s: its library hangs; the thread is abandoned", camera_id)
        cameras.detach(camera_id)
    while not all(cameras.cameras[camera_id].slot.is_idle for camera_id in plan.removed):
        yield
    for camera_id in plan.removed:
        runtime.remove_camera(camera_id)
