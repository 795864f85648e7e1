"""`TrackStage`: detections become tracks.

`Tracker` knows one camera. The stage keeps one for each camera and resets it with each epoch: after a reconnection the
frame may show something else.
"""

from __future__ import annotations

from dataclasses import replace

from vision.analytics.tracker import Tracker
from vision.config import TrackConfig
from vision.types import Detections, FrameMeta, Result


class TrackStage:
    """Detections become tracks, with a tracker for each camera and epoch.

    An object is published once it was detected with `score` (`detect.score_threshold` in camera.yaml) and
    `TrackConfig.new_score`. From then on it is published while it is tracked, even with lower scores. So the detector
    before this stage reports detections down to `detector_score`.
    """

    def __init__(self, config: TrackConfig | None = None, *, score: float = 0.0) -> None:
        config = config or TrackConfig()
        self.detector_score = min(score, config.low_score)
        self._config = config.model_copy(update={"new_score": max(score, config.new_score)})
        self._trackers: dict[str, tuple[int, Tracker]] = {}

    def __call__(self, result: Result) -> Result:
        if not isinstance(result.objects, Detections):
            raise TypeError(f"expected detections, got {type(result.objects).__name__}: is this a second TrackStage?")
        return replace(result, objects=self._tracker(result.meta).update(result.objects, result.meta.captured_ns))

    def _tracker(self, meta: FrameMeta) -> Tracker:
        epoch, tracker = self._trackers.get(meta.camera_id, (None, None))
        if tracker is None:
            tracker = Tracker(self._config)
        elif epoch != meta.epoch:
            tracker.reset()
        self._trackers[meta.camera_id] = meta.epoch, tracker
        return tracker
