"""`ScoreFilter`, which removes objects with low scores after `detect.score_threshold` was raised."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from vision.config import AppConfig
from vision.types import Detections, Result


class ScoreFilter:
    """Removes detections below a threshold that is higher than that of the detector."""

    def __init__(self, score: float) -> None:
        """Create the stage. `score` is the threshold of the detector, so the stage removes nothing yet."""
        self._opened_with = score
        self._score: np.float32 | None = None

    def reconfigure(self, config: AppConfig) -> None:
        score = config.detect.score_threshold
        self._score = np.float32(score) if score > self._opened_with else None

    def __call__(self, result: Result) -> Result:
        objects = result.objects
        if self._score is None or not isinstance(objects, Detections):
            return result
        return replace(result, objects=objects.take((objects.scores >= self._score).nonzero()[0]))
