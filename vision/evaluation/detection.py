"""Precision, recall, and average precision of boxes.

Boxes are matched as in COCO: in order of descending scores, each detection of a frame is matched to the unmatched true
box with the highest IoU, if this IoU is at least the IoU threshold. All other detections are false positives.

Average precision (AP) is defined as in PASCAL VOC since 2010: the whole area under the envelope of precision over
recall (Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective", IJCV 2015). COCO samples the
same curve at 101 recall values. The results of the two definitions differ by less than 0.005.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.evaluation.mot import Boxes, overlaps

OVERLAPS: Final = np.arange(50, 100, 5) / 100
"""IoU thresholds of AP@[.5:.95]. The first threshold is also the IoU threshold of AP@0.5."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Precision and recall for each score threshold, at an IoU threshold of 0.5. All arrays have shape (M,)."""

    scores: NDArray[np.float64]  # thresholds, descending
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]

    @property
    def f1(self) -> NDArray[np.float64]:
        return 2 * self.precision * self.recall / np.maximum(self.precision + self.recall, 1e-12)

    def at(self, score: float) -> tuple[float, float]:
        """Return the precision and recall of detections with a score of at least `score`.

        Return (1, 0) if there are no such detections.
        """
        count = int(np.searchsorted(-self.scores, -(score - 1e-6), side="right"))
        return (float(self.precision[count - 1]), float(self.recall[count - 1])) if count else (1.0, 0.0)

    def best(self) -> tuple[float, float]:
        """Return the score threshold with the highest F1, and this F1. Return (0, 0) if there are no detections."""
        if not len(self.scores):
            return 0.0, 0.0
        best = int(self.f1.argmax())
        return float(self.scores[best]), float(self.f1[best])


@dataclass(frozen=True, slots=True)
class DetectionScores:
    """Accuracy metrics of the detector on the labeled video."""

    ap50: float
    ap: float  # AP@[.5:.95]
    precision: float  # at `score` and an overlap of 0.5
    recall: float  # at `score` and an overlap of 0.5
    score: float  # threshold for published objects
    lowest_score: float  # threshold for detections that count for `ap50` and `ap`
    best_score: float  # threshold with the highest F1
    best_f1: float  # F1 at `best_score`
    true_boxes: int
    found_boxes: int  # with a score of at least `score`
    by_overlap: tuple[float, ...]  # AP at each of `OVERLAPS`
    curve: Curve

    @property
    def f1(self) -> float:
        return 2 * self.precision * self.recall / max(self.precision + self.recall, 1e-12)


def score_detections(truth: Boxes, found: Boxes, *, score: float, lowest_score: float) -> DetectionScores:
    """Compare all detections with the ground truth. Return the metrics.

    Args:
        truth: the labeled boxes.
        found: detections with a score of at least `lowest_score`.
        score: score threshold for published objects.
        lowest_score: score threshold for average precision (AP). This threshold should be low, because AP ignores
            detections with lower scores.
    """
    order = np.argsort(-found.scores, kind="stable")
    hits = match_detections(truth, found)[order]
    positives = hits.cumsum(axis=0)  # true detections so far, for each overlap threshold
    precision, recall = positives / np.arange(1, len(hits) + 1)[:, None], positives / max(len(truth), 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    by_overlap = tuple((np.diff(recall, axis=0, prepend=0.0) * envelope).sum(axis=0).tolist())
    curve = Curve(found.scores[order], precision[:, 0], recall[:, 0])
    best_score, best_f1 = curve.best()
    return DetectionScores(
        by_overlap[0],
        float(np.mean(by_overlap)),
        *curve.at(score),
        score,
        lowest_score,
        best_score,
        best_f1,
        len(truth),
        int((found.scores >= score - 1e-6).sum()),
        by_overlap,
        curve,
    )


def match_detections(truth: Boxes, found: Boxes) -> NDArray[np.bool_]:
    """Match detections to true boxes of the same frame, separately for each IoU threshold in `OVERLAPS`.

    Process the detections in order of descending scores. Match each detection to the unmatched true box with the
    highest IoU.

    Returns:
        Mask (N, len(OVERLAPS)) of the N detections in `found` that match a true box.
    """
    hits = np.zeros((len(found), len(OVERLAPS)), bool)
    last = int(max(truth.frames.max(initial=0), found.frames.max(initial=0)))
    for true_rows, found_rows in zip(truth.slices(last), found.slices(last), strict=True):
        if true_rows.start < true_rows.stop and found_rows.start < found_rows.stop:
            table = overlaps(found.boxes_xyxy[found_rows], truth.boxes_xyxy[true_rows])
            hits[found_rows] = _match_frame(table, found.scores[found_rows])
    return hits


def _match_frame(table: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Match the D detections of one frame with its T true boxes, as `match_detections` does.

    Args:
        table: IoU (D, T) of each detection with each true box.
        scores: scores (D,) of the detections.

    Returns:
        Mask (D, len(OVERLAPS)) of the detections that match a true box.
    """
    hits = np.zeros((len(scores), len(OVERLAPS)), bool)
    free = np.ones((len(OVERLAPS), table.shape[1]), bool)
    at_overlap = np.arange(len(OVERLAPS))
    for row in np.argsort(-scores, kind="stable"):
        if table[row].max() < OVERLAPS[0]:
            continue
        candidates = np.where(free, table[row], -1.0)
        best = candidates.argmax(axis=1)
        hit = candidates[at_overlap, best] >= OVERLAPS
        free[at_overlap[hit], best[hit]] = False
        hits[row] = hit
    return hits
