"""Opens the stage that keeps lines and zones in place when a camera is moved."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

from vision.config import AppConfig
from vision.runtime.builder import RunOptions
from vision.stages.analytics import AnalyticsStage
from vision.stages.camera_view import CameraViewStage
from vision.version import require_cv2


def open_views(
    config: AppConfig, options: RunOptions, resources: ExitStack, analytics: AnalyticsStage
) -> list[CameraViewStage]:
    """Open the stage that moves lines and zones. Return an empty list if no camera has ``realign: true``.

    The frames of files are not compared, because the lines and zones of a file are drawn on its frames.
    """
    if options.offline or not any(section.realign for section in config.analytics.values()):
        return []
    require_cv2("analytics.<camera>.realign")
    folder = None if config.state_dir is None else Path(config.state_dir) / "views"
    return [resources.enter_context(closing(CameraViewStage(config.analytics, analytics, folder)))]
