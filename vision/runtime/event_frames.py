"""Functions that open the stages for frames of events: snapshots, and inquiries to the language model."""

from __future__ import annotations

from contextlib import ExitStack, closing
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vision.config import AppConfig
from vision.config.app import SnapshotConfig
from vision.detect.open import published_class_names
from vision.language.messages import IMAGE_BUDGET_BYTES
from vision.runtime.builder import RunOptions, find_model
from vision.stages.analytics import AnalyticsStage
from vision.stages.inquiries import Box, InquiryStage
from vision.stages.snapshots import SnapshotStage
from vision.types import Frame, Result
from vision.version import require_cv2


class _SnapshotImages:
    """The encoder of snapshots. It hides the private parts of a frame and, if configured, draws the events."""

    def __init__(self, config: AppConfig, snapshots: SnapshotConfig, analytics: AnalyticsStage | None) -> None:
        from vision.detect.reference.crops import JpegEncoder

        self._annotate = snapshots.annotate
        self._sections = config.analytics
        self._analytics = analytics
        self._class_names = published_class_names(find_model(config.model)[1], config.detect)
        self._encoder = JpegEncoder(max_side_px=snapshots.max_side_px, quality=snapshots.quality)
        self.reconfigure(config)

    def reconfigure(self, config: AppConfig) -> None:
        """Hide the parts of further snapshots that the section `privacy` of a new configuration lists.

        Without this section, hide nothing.
        """
        from vision.drawing.privacy import PrivacyFilter

        self._privacy = PrivacyFilter(config.privacy, self._class_names) if config.privacy else None
        self._encoder.hide = None if self._privacy is None else self._privacy.fill

    def encode(self, frame: Frame, result: Result) -> bytes:
        """Return the snapshot of a frame as a JPEG file. Call this method from one thread at a time."""
        draws = self._annotate or self._privacy is not None
        return self._encoder.encode(frame, partial(self._draw, result=result) if draws else None)

    def _draw(self, image: NDArray[np.uint8], result: Result) -> None:
        from vision.stages.annotation import draw_events

        sections, meta, objects = self._sections, result.meta, result.objects
        if self._privacy is not None:
            self._privacy.blur(image, meta.camera_id, objects.boxes_xyxy, objects.class_ids)
        if not self._annotate:
            return
        section = None
        if self._analytics is not None:
            section = self._analytics.section(meta.camera_id, meta.width_px, meta.height_px)
        draw_events(image, result, sections if section is None else {meta.camera_id: section})


def open_snapshots(
    config: AppConfig, options: RunOptions, resources: ExitStack, analytics: AnalyticsStage | None = None
) -> list[SnapshotStage]:
    """Open the stage that saves frames of events. `analytics` is the stage whose current lines and zones are drawn.

    Return an empty list if `snapshots` is not configured, or if `options.sink` is set.
    """
    snapshots = config.snapshots
    if snapshots is None or options.sink is not None:
        return []
    require_cv2("snapshots")
    images = _SnapshotImages(config, snapshots, analytics)
    part = _part_of_limits(snapshots, len(options.group) or len(config.cameras), len(config.cameras))
    stage = SnapshotStage(
        part, images.encode, lossless=options.offline, camera_ids=options.group or None, use=images.reconfigure
    )
    return [resources.enter_context(closing(stage))]


def open_inquiries(config: AppConfig, options: RunOptions, resources: ExitStack) -> list[InquiryStage]:
    """Open the stage that sends events and frames to the process that asks the language model.

    Return an empty list if there is no such process.
    """
    if not options.inquiries or config.language is None:
        return []
    require_cv2("language")
    from vision.detect.reference.crops import JpegEncoder
    from vision.drawing.privacy import hide_without_objects

    encoder = JpegEncoder(max_side_px=config.language.max_image_px)

    def use(new: AppConfig) -> None:
        encoder.hide = hide_without_objects(new.privacy)

    use(config)

    def encode(frame: Frame, box_xyxy: Box | None) -> bytes:
        return encoder.encode(frame) if box_xyxy is None else encoder.encode_part(frame, box_xyxy)

    cameras = len(config.cameras)
    most_bytes = IMAGE_BUDGET_BYTES * (len(options.group) or cameras) // max(1, cameras)
    stage = InquiryStage(config, options.inquiries, encode, use, most_bytes=most_bytes)
    return [resources.enter_context(closing(stage))]


def _part_of_limits(snapshots: SnapshotConfig, cameras: int, of: int) -> SnapshotConfig:
    """Return the configuration of snapshots with smaller limits, for one of several processes that save snapshots.

    The process handles `cameras` of all `of` cameras, so it may use this part of the files and of the disk space.
    """
    files, mb = snapshots.max_files * cameras // of, snapshots.max_mb * cameras // of
    return snapshots.model_copy(update={"max_files": max(1, files), "max_mb": max(1, mb)})
