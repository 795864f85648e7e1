"""`ScoreFilter` removes objects with low scores after a reload has raised `detect.score_threshold`.

The stage is necessary because an open detector cannot change its threshold.
"""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from vision.config import AppConfig
from vision.types import Detections, Result


class ScoreFilter:
    """Stage that removes detections below a threshold that is higher than the threshold of the detector."""

    def __init__(self, score: float) -> None:
        """Create the stage, which removes nothing before `reconfigure`. `score` is the threshold of the detector."""
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
