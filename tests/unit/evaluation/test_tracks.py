"""Tests of the tracking metrics, with small tables and with the CLEAR metrics of motmetrics and TrackEval."""

from __future__ import annotations

import importlib
from importlib.util import find_spec

import numpy as np
import pytest

from tests.unit.evaluation_tables import Row, boxes, needs_trackeval, random_boxes
from vision.evaluation.mot import Boxes, overlaps
from vision.evaluation.tracks import TrackingScores, _sequence, match_frames, score_tracks


def follow(*track_ids: int, x: float = 0.0, object_id: int = -1) -> list[Row]:
    """Return the rows of a static object. `track_ids` contains its track in each frame from 1 on, or 0 for no track."""
    ids = [(frame, track_id) for frame, track_id in enumerate(track_ids, start=1) if track_id]
    return [(frame, track_id if object_id < 0 else object_id, x, 0.0, 10.0, 20.0) for frame, track_id in ids]


def score(truth: Boxes, predicted: Boxes, frames: int) -> TrackingScores:
    return score_tracks(truth, predicted, frames, match_frames(truth, predicted, frames))


@needs_trackeval
@pytest.mark.parametrize(
    ("tracks", "switches", "fragments", "misses", "false_boxes"),
    [
        ((1, 1, 1, 1, 1, 1), 0, 0, 0, 0),
        ((1, 1, 1, 2, 2, 2), 1, 0, 0, 0),
        ((1, 2, 1, 2, 1, 2), 5, 0, 0, 0),
        ((1, 1, 0, 0, 1, 1), 0, 1, 2, 0),
        ((1, 1, 0, 0, 2, 2), 1, 1, 2, 0),  # found again with another id
        ((0, 0, 1, 0, 1, 0), 0, 1, 4, 0),
        ((0, 0, 0, 0, 0, 0), 0, 0, 6, 0),
    ],
)
def test_switches_fragments_and_misses_of_one_object_are_counted(
    tracks: tuple[int, ...], switches: int, fragments: int, misses: int, false_boxes: int
) -> None:
    scores = score(boxes(*follow(*[1] * 6)), boxes(*follow(*tracks)), 6)
    got = (scores.switches, scores.fragments, scores.misses, scores.false_boxes)
    assert got == (switches, fragments, misses, false_boxes)
    assert scores.mota == pytest.approx(1 - (switches + misses + false_boxes) / 6)
    assert scores.true_objects == 1
    assert scores.tracks == len({track for track in tracks if track})


@needs_trackeval
def test_perfect_tracks_have_perfect_figures() -> None:
    truth = boxes(*follow(*[1] * 5), *follow(*[1] * 5, x=100, object_id=2))
    predicted = boxes(*follow(*[7] * 5), *follow(*[1] * 5, x=100, object_id=9))
    scores = score(truth, predicted, 5)
    perfect = (scores.mota, scores.idf1, scores.hota, scores.precision, scores.recall, scores.association_accuracy)
    assert perfect == pytest.approx((1, 1, 1, 1, 1, 1))
    assert (scores.mostly_tracked, scores.mostly_lost, scores.tracks, scores.true_objects) == (2, 0, 2, 2)


@needs_trackeval
def test_half_tracked_object_and_false_track_lower_the_figures() -> None:
    """The table contains an object that is tracked for half of the time, and a false track."""
    truth, predicted = boxes(*follow(*[1] * 10)), boxes(*follow(*[3] * 5), *follow(*[4] * 5, x=500))
    scores = score(truth, predicted, 10)
    assert scores.mota == pytest.approx(1 - (5 + 5) / 10)
    assert scores.idf1 == pytest.approx(2 * 5 / (10 + 10))
    assert (scores.precision, scores.recall) == (0.5, 0.5)
    # DetA = 5 / (5 + 5 + 5), AssA = 5 / 10, for every overlap up to 0.95
    assert scores.detection_accuracy == pytest.approx(1 / 3)
    assert scores.association_accuracy == pytest.approx(0.5)
    assert scores.hota == pytest.approx((1 / 3 * 0.5) ** 0.5)


@needs_trackeval
def test_figures_without_tracks_are_zero() -> None:
    scores = score(boxes(*follow(1, 1)), boxes(), 2)
    assert (scores.mota, scores.idf1, scores.hota, scores.recall, scores.precision) == (0, 0, 0, 0, 1)


def test_object_keeps_its_track_while_it_overlaps() -> None:
    """Track 2 has a higher IoU with the object, but the IoU of track 1 is still above the threshold."""
    truth = boxes((1, 1, 0, 0, 10, 20), (2, 1, 0, 0, 10, 20), (3, 1, 0, 0, 10, 20))
    predicted = boxes((1, 1, 0, 0, 10, 20), (3, 1, 3, 0, 10, 20), (3, 2, 0, 0, 10, 20))
    assert predicted.ids[match_frames(truth, predicted, 3)[[0, 2]]].tolist() == [1, 1]
    assert match_frames(truth, predicted, 3)[1] == -1


def test_matching_pairs_as_many_objects_as_possible() -> None:
    """The matching rejects the pair with the highest IoU if this pair would prevent a second pair."""
    truth = boxes((1, 1, 0, 0, 10, 10), (1, 2, 3, 0, 10, 10))
    predicted = boxes((1, 1, 2, 0, 10, 10), (1, 2, 5.5, 0, 10, 10))
    assert match_frames(truth, predicted, 1).tolist() == [0, 1]


@pytest.mark.parametrize(("width", "matched"), [(10.0, True), (19.9, True), (20.0, True), (20.1, False)])
def test_overlap_of_one_half_matches(width: float, matched: bool) -> None:
    partners = match_frames(boxes((1, 1, 0, 0, 10, 10)), boxes((1, 1, 0, 0, width, 10)), 1)
    assert bool(partners[0] >= 0) is matched


def test_boxes_without_track_are_matched() -> None:
    predicted = boxes((1, -1, 0, 0, 10, 20), (2, -1, 50, 0, 10, 20))
    assert match_frames(boxes(*follow(1, 1)), predicted, 2).tolist() == [0, -1]


@needs_trackeval
@pytest.mark.parametrize("seed", range(5))
def test_figures_agree_with_trackeval(seed: int) -> None:
    """If tracks have no gaps, both libraries define matched pairs in the same way."""
    truth, predicted = random_boxes(seed, gaps=False)
    metrics = importlib.import_module("trackeval.metrics")
    expected = metrics.CLEAR({"PRINT_CONFIG": False}).eval_sequence(_sequence(truth, predicted, 40))
    scores = score(truth, predicted, 40)
    assert scores.mota == pytest.approx(expected["MOTA"], abs=0.01)
    assert scores.recall == pytest.approx(expected["CLR_Re"], abs=0.01)


@needs_trackeval
@pytest.mark.skipif(find_spec("motmetrics") is None, reason="needs motmetrics")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(5))
def test_figures_agree_with_motmetrics(seed: int) -> None:
    motmetrics = importlib.import_module("motmetrics")
    truth, predicted = random_boxes(seed)
    accumulator = motmetrics.MOTAccumulator(auto_id=True)
    for true_rows, found_rows in zip(truth.slices(40), predicted.slices(40), strict=True):
        distance = 1 - overlaps(truth.boxes_xyxy[true_rows], predicted.boxes_xyxy[found_rows])
        distance[distance > 0.5] = np.nan
        accumulator.update(truth.ids[true_rows], predicted.ids[found_rows], distance)
    names = [
        "mota",
        "idf1",
        "num_switches",
        "num_fragmentations",
        "recall",
        "precision",
        "mostly_tracked",
        "mostly_lost",
    ]
    expected = motmetrics.metrics.create().compute(accumulator, metrics=names, name="x").iloc[0]
    scores = score(truth, predicted, 40)
    assert scores.mota == pytest.approx(expected["mota"], abs=1e-9)
    assert scores.idf1 == pytest.approx(expected["idf1"], abs=1e-9)
    assert scores.recall == pytest.approx(expected["recall"], abs=1e-9)
    assert scores.precision == pytest.approx(expected["precision"], abs=1e-9)
    got = (scores.switches, scores.fragments, scores.mostly_tracked, scores.mostly_lost)
    assert got == tuple(expected[["num_switches", "num_fragmentations", "mostly_tracked", "mostly_lost"]])
