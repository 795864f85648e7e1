"""Opens the stages that save frames of events, or send them to the process that asks the language model."""

from __future__ import annotations

from contextlib import ExitStack, closing
from functools import partial

from vision.config import AppConfig
from vision.config.app import SnapshotConfig
from vision.detect.open import published_class_names
from vision.runtime.builder import RunOptions, find_model
from vision.stages.analytics import AnalyticsStage
from vision.stages.inquiries import Box, InquiryStage
from vision.stages.snapshots import SnapshotStage
from vision.types import Frame, Result
from vision.version import require_cv2


def open_snapshots(
    config: AppConfig, options: RunOptions, resources: ExitStack, analytics: AnalyticsStage | None = None
) -> list[SnapshotStage]:
    """Open the stage that saves frames of events. `analytics` is the stage whose present lines and zones are drawn.

    Return an empty list if `snapshots` is not configured, or if `options.sink` is set.
    """
    snapshots = config.snapshots
    if snapshots is None or options.sink is not None:
        return []
    require_cv2("snapshots")
    from vision.detect.reference.crops import JpegEncoder, Pixels
    from vision.drawing.privacy import PrivacyFilter
    from vision.stages.annotation import draw_events

    privacy = None
    if config.privacy:
        names = published_class_names(find_model(config.model)[1], config.detect)
        privacy = PrivacyFilter(config.privacy, names)
    hide = None if privacy is None else privacy.fill
    encoder = JpegEncoder(max_side_px=snapshots.max_side_px, quality=snapshots.quality, hide=hide)

    def draw(image: Pixels, result: Result) -> None:
        sections, meta, objects = config.analytics, result.meta, result.objects
        if privacy is not None:
            privacy.blur(image, meta.camera_id, objects.boxes_xyxy, objects.class_ids)
        if not snapshots.annotate:
            return
        section = None if analytics is None else analytics.section(meta.camera_id, meta.width_px, meta.height_px)
        if section is not None:
            sections = {meta.camera_id: section}
        draw_events(image, result, sections)

    draws = snapshots.annotate or privacy is not None

    def encode(frame: Frame, result: Result) -> bytes:
        return encoder.encode(frame, partial(draw, result=result) if draws else None)

    part = _part_of_limits(snapshots, len(options.group) or len(config.cameras), len(config.cameras))
    stage = SnapshotStage(part, encode, lossless=options.offline, camera_ids=options.group or None)
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

    encoder = JpegEncoder(max_side_px=config.language.max_image_px, hide=hide_without_objects(config.privacy))

    def encode(frame: Frame, box_xyxy: Box | None) -> bytes:
        return encoder.encode(frame) if box_xyxy is None else encoder.encode_part(frame, box_xyxy)

    return [resources.enter_context(closing(InquiryStage(config, options.inquiries, encode)))]


def _part_of_limits(snapshots: SnapshotConfig, cameras: int, of: int) -> SnapshotConfig:
    """Return the configuration with a share of the limits, for a process that has `cameras` of all `of` cameras."""
    files, mb = snapshots.max_files * cameras // of, snapshots.max_mb * cameras // of
    return snapshots.model_copy(update={"max_files": max(1, files), "max_mb": max(1, mb)})
