"""`HiddenObjects` warns if a score threshold probably hides all objects of a camera."""

from __future__ import annotations

import logging
from typing import Final

from vision.analytics.frame_detections import SCORE_GRAIN
from vision.types import Detections, FrameMeta

log = logging.getLogger(__name__)

_AFTER_S: Final = 30.0
_SHARE: Final = 0.5  # minimum fraction of the frames in `_AFTER_S` that contain a detection


class HiddenObjects:
    """Check that warns once if a score threshold probably hides the objects of a camera.

    The check warns if at least half of the camera's frames in 30 s have detections, but no detection can start a track.
    Only detections with a score of at least `least` count. The first detection whose score can start a track ends the
    check, so that a scene that becomes empty causes no warning.

    Args:
        least: minimum score of a detection that is probably an object.
        new_score: minimum score of a detection that starts a track.
        key: configuration key that determines `new_score`.
    """

    def __init__(self, least: float, new_score: float, key: str) -> None:
        self._least, self._new_score, self._key = least, new_score, key
        self._since_ns: int | None = None
        self._frames = self._frames_with_detections = 0
        self._best = 0.0
        self.done = least >= new_score  # True if the check has ended, or can never warn

    def update(self, detections: Detections, meta: FrameMeta) -> None:
        """Process the detections of one frame. Log the warning if it is due. Call this only while `done` is False."""
        best = float(detections.scores.max(initial=0.0))
        if best >= self._new_score - SCORE_GRAIN:
            self.done = True
            return
        if self._since_ns is None or meta.captured_ns < self._since_ns:
            self._since_ns, self._frames, self._frames_with_detections, self._best = meta.captured_ns, 0, 0, 0.0
        self._frames += 1
        self._frames_with_detections += best >= self._least
        self._best = max(self._best, best)
        if meta.captured_ns - self._since_ns < _AFTER_S * 1e9:
            return
        if self._frames_with_detections >= _SHARE * self._frames:
            text = (
                "camera %s: %d of %d frames have detections, but no score is above %.2f, and a track starts at %s (%g)"
            )
            log.warning(
                f"{text}, so nothing is tracked; lower it if these are objects",
                meta.camera_id,
                self._frames_with_detections,
                self._frames,
                self._best,
                self._key,
                self._new_score,
            )
            self.done = True
        self._since_ns = None
