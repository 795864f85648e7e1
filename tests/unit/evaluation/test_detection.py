"""Tests of average precision, with small tables and with a second implementation."""

from __future__ import annotations

import numpy as np
import pytest

from tests.accuracy.average_precision import average_precision
from tests.unit.evaluation_tables import Row, as_rows, boxes, random_boxes
from vision.evaluation.detection import OVERLAPS, score_detections

TRUTH = boxes((1, 1, 0, 0, 10, 10), (1, 2, 50, 0, 10, 10))


@pytest.mark.parametrize(
    ("predicted", "ap50"),
    [
        ([(1, -1, 0, 0, 10, 10, 0.9), (1, -1, 50, 0, 10, 10, 0.8)], 1.0),
        ([(1, -1, 0, 0, 10, 10, 0.9)], 0.5),
        ([(1, -1, 0, 0, 10, 10, 0.9), (1, -1, 1, 0, 10, 10, 0.8)], 0.5),  # the second finds the same object again
        ([(1, -1, 80, 0, 10, 10, 0.9), (1, -1, 0, 0, 10, 10, 0.8)], 0.25),
        ([(1, -1, 80, 0, 10, 10, 0.3), (1, -1, 0, 0, 10, 10, 0.8)], 0.5),  # false detections of low score cost nothing
        ([(1, -1, 0, 0, 10, 5, 0.9), (1, -1, 50, 0, 10, 4.9, 0.8)], 0.5),  # an overlap of exactly 0.5 is enough
        ([(2, -1, 0, 0, 10, 10, 0.9)], 0.0),
        ([], 0.0),
    ],
)
def test_average_precision_is_exact_for_small_tables(predicted: list[Row], ap50: float) -> None:
    scores = score_detections(TRUTH, boxes(*predicted), score=0.5, lowest_score=0.05)
    assert scores.ap50 == pytest.approx(ap50)
    assert scores.true_boxes == 2


def test_detection_takes_the_best_free_object() -> None:
    """The first detection matches the object with the highest IoU. The second detection must match the other object."""
    truth = boxes((1, 1, 0, 0, 10, 10), (1, 2, 4, 0, 10, 10))
    predicted = boxes((1, -1, 3, 0, 10, 10, 0.9), (1, -1, 1, 0, 10, 10, 0.8))
    assert score_detections(truth, predicted, score=0.5, lowest_score=0.05).ap50 == 1.0


def test_ap_is_the_mean_over_overlaps() -> None:
    """A box with an IoU of 0.7 is a match at the IoU thresholds 0.5, 0.55, 0.6, 0.65, and 0.7."""
    scores = score_detections(
        boxes((1, 1, 0, 0, 10, 10)), boxes((1, -1, 0, 0, 10, 7, 0.9)), score=0.5, lowest_score=0.05
    )
    assert scores.by_overlap == pytest.approx([1.0] * 5 + [0.0] * 5)
    assert scores.ap == pytest.approx(0.5)
    assert OVERLAPS.tolist() == pytest.approx(np.arange(0.5, 1.0, 0.05).tolist())


@pytest.mark.parametrize("seed", range(6))
def test_figures_agree_with_another_implementation(seed: int) -> None:
    truth, predicted = random_boxes(seed)
    expected = average_precision(np.array(as_rows(truth)), np.array(as_rows(predicted)))
    assert score_detections(truth, predicted, score=0.5, lowest_score=0.1).ap50 == pytest.approx(expected, abs=1e-12)


def test_precision_and_recall_of_published_boxes() -> None:
    predicted = boxes((1, -1, 0, 0, 10, 10, 0.9), (1, -1, 80, 0, 10, 10, np.float32(0.35)), (1, -1, 50, 0, 10, 10, 0.3))
    scores = score_detections(TRUTH, predicted, score=0.35, lowest_score=0.05)
    assert (scores.precision, scores.recall, scores.found_boxes) == (0.5, 0.5, 2)
    assert scores.f1 == pytest.approx(0.5)
    assert (scores.best_score, scores.best_f1) == pytest.approx((0.3, 0.8))
    assert scores.curve.at(0.95) == (1.0, 0.0)
    assert scores.curve.at(0.05) == pytest.approx((2 / 3, 1.0))


def test_figures_without_detections() -> None:
    scores = score_detections(TRUTH, boxes(), score=0.35, lowest_score=0.05)
    assert (scores.ap50, scores.ap, scores.precision, scores.recall, scores.best_f1, scores.f1) == (0, 0, 1, 0, 0, 0)
