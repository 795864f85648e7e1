"""`open_views`, which opens the stage that finds moved and covered cameras."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

from vision.config import AppConfig
from vision.runtime.builder import RunOptions
from vision.stages.analytics import AnalyticsStage
from vision.stages.camera_view import CameraViewStage
from vision.version import require_cv2


def open_views(
    config: AppConfig, options: RunOptions, resources: ExitStack, analytics: AnalyticsStage | None = None
) -> list[CameraViewStage]:
    """Open the stage that reports moved and covered cameras, and moves their lines and zones in `analytics`.

    Return an empty list if no camera requires the stage, or if the run is offline. The lines and zones of a file are
    drawn on the frames of this file, so an offline run does not need the stage.
    """
    if options.offline or not config.watched_views:
        return []
    require_cv2("report_after_s.moved, report_after_s.covered, and analytics.<camera>.realign")
    folder = None if config.state_dir is None else Path(config.state_dir) / "views"
    return [resources.enter_context(closing(CameraViewStage(config, analytics, folder)))]
