"""Average precision at an IoU threshold of 0.5, as in PASCAL VOC since 2010: the area under the envelope."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def overlaps(boxes: Floats, others: Floats) -> Floats:
    """Return the IoU (N, M) of each box of `boxes` (N, 4) with each box of `others` (M, 4).

    A box consists of left, top, width, and height.
    """
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum((boxes[:, :2] + boxes[:, 2:])[:, None], (others[:, :2] + others[:, 2:])[None])
    common = np.clip(high - low, 0, None).prod(axis=2)
    total = boxes[:, 2:].prod(axis=1)[:, None] + others[:, 2:].prod(axis=1)[None] - common
    return np.asarray(common / np.maximum(total, 1e-9))


def average_precision(truth: Floats, found: Floats) -> float:
    """Return the average precision of the detections `found`.

    `truth` and `found` have MOTChallenge rows: frame, id, left, top, width, height, and score (detected) or validity
    (labeled).
    """
    truth = truth[truth[:, 6] > 0]
    hits: list[tuple[float, bool]] = []
    for frame in np.unique(found[:, 0]):
        of_frame = found[found[:, 0] == frame]
        of_frame = of_frame[np.argsort(-of_frame[:, 6], kind="stable")]
        table = overlaps(of_frame[:, 2:6], truth[truth[:, 0] == frame, 2:6])
        for row, score in zip(table, of_frame[:, 6], strict=True):
            best = int(row.argmax()) if row.size else -1
            hit = best >= 0 and row[best] >= 0.5
            if hit:
                table[:, best] = -1.0  # each true object is found once
            hits.append((float(score), bool(hit)))
    hits.sort(key=lambda one: -one[0])
    positives = np.cumsum([hit for _, hit in hits])
    precision = positives / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    recall = np.concatenate([[0.0], positives / len(truth)])
    return float(np.sum(np.diff(recall) * envelope))
