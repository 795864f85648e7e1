"""Tests of the tracker: which objects it follows, for how long, and how times and scores affect the tracks."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pydantic import ValidationError

from vision.analytics.track_matching import Pairs
from vision.analytics.tracker import Tracker, update_together
from vision.config import TrackConfig
from vision.types import Detections, Tracks

SECOND_NS = 1_000_000_000
START_NS = 5_000 * SECOND_NS
Box = tuple[float, float, float, float]


def scaled(box: Box, scale: float) -> Box:
    x1, y1, x2, y2 = box
    return (scale * x1, scale * y1, scale * x2, scale * y2)


def detections(*rows: tuple[Box, float] | tuple[Box, float, int]) -> Detections:
    if not rows:
        return Detections.empty()
    return Detections(
        np.array([row[0] for row in rows], np.float32),
        np.array([row[1] for row in rows], np.float32),
        np.array([row[2] if len(row) > 2 else 0 for row in rows], np.int32),
    )


def person(x: float, y: float = 200.0, height: float = 100.0) -> Box:
    """Return the box of a person whose feet are at (x, y + height)."""
    return (x - 0.2 * height, y, x + 0.2 * height, y + height)


def follow(tracker: Tracker, frames: Iterable[Detections], fps: float = 10.0, start_ns: int = START_NS) -> list[Tracks]:
    step_ns = round(SECOND_NS / fps)
    return [tracker.update(frame, start_ns + at * step_ns) for at, frame in enumerate(frames)]


def ids(results: Iterable[Tracks]) -> set[int]:
    return {int(track_id) for tracks in results for track_id in tracks.track_ids}


def test_object_is_published_from_its_second_detection() -> None:
    tracker = Tracker()
    first, second = follow(tracker, [detections((person(100), 0.9))] * 2)
    assert len(first) == 0
    assert second.track_ids.dtype == np.int64 and second.age_ms.dtype == np.int64
    assert second.boxes_xyxy.dtype == np.float32 and second.boxes_xyxy.shape == (1, 4)
    assert second.age_ms.tolist() == [100]
    np.testing.assert_allclose(second.boxes_xyxy[0], person(100), atol=1e-3)


def test_first_published_box_comes_with_the_previous_one() -> None:
    tracker = Tracker()
    frames = [detections((person(100 + 20 * at), 0.9), *[(person(600), 0.9)] * (at >= 3)) for at in range(6)]
    results = follow(tracker, frames)
    previous = [result.previous_xyxy for result in results]
    assert [boxes is None for boxes in previous] == [True, False, True, True, False, True]
    assert previous[1] is not None and previous[4] is not None
    np.testing.assert_allclose(previous[1], [person(100)], atol=0.5)
    np.testing.assert_allclose(previous[4], [[np.nan] * 4, person(600)], atol=0.5)


@pytest.mark.parametrize(("fps", "published_at"), [(5.0, 2), (10.0, 4), (30.0, 12)])
def test_confirm_s_is_independent_of_the_frame_rate(fps: float, published_at: int) -> None:
    results = follow(Tracker(TrackConfig(confirm_s=0.4)), [detections((person(100), 0.9))] * 20, fps)
    assert [len(tracks) for tracks in results] == [0] * published_at + [1] * (20 - published_at)


@pytest.mark.parametrize("fps", [2.5, 5.0, 10.0, 30.0])
def test_walker_keeps_the_id_at_any_frame_rate(fps: float) -> None:
    walk = [detections((person(50 + 80 * at / fps), 0.8)) for at in range(round(8 * fps))]
    assert len(ids(follow(Tracker(), walk, fps))) == 1


def test_walker_keeps_the_id_while_the_frame_rate_varies() -> None:
    tracker = Tracker()
    seconds = np.cumsum(np.random.default_rng(1).choice([0.03, 0.1, 0.2, 0.4], 100))
    results = [tracker.update(detections((person(50 + 80 * t), 0.8)), START_NS + round(t * SECOND_NS)) for t in seconds]
    assert len(ids(results)) == 1


def test_two_walkers_that_pass_each_other_keep_their_ids() -> None:
    def frame(at: int) -> Detections:
        return detections((person(100 + 10 * at, 200, 100), 0.8), (person(500 - 10 * at, 215, 104), 0.8))

    results = follow(Tracker(), [frame(at) for at in range(40)])
    assert len(ids(results)) == 2
    first_by_x = {int(i): box[0] for i, box in zip(results[1].track_ids, results[1].boxes_xyxy, strict=True)}
    last_by_x = {int(i): box[0] for i, box in zip(results[-1].track_ids, results[-1].boxes_xyxy, strict=True)}
    assert sorted(first_by_x, key=first_by_x.__getitem__) == sorted(last_by_x, key=last_by_x.__getitem__, reverse=True)


@pytest.mark.parametrize(
    ("score", "published"),
    [(0.54, 0), (0.55, 1)],
)
def test_new_score_starts_tracks(score: float, published: int) -> None:
    assert len(follow(Tracker(), [detections((person(100), score))] * 3)[-1]) == published


@pytest.mark.parametrize(("score", "published"), [(0.14, 0), (0.15, 1), (0.3, 1)])
def test_low_score_continues_a_recent_track(score: float, published: int) -> None:
    seen = [detections((person(100), 0.9))] * 5
    assert len(follow(Tracker(), [*seen, detections((person(100), score))])[-1]) == published


def test_weak_detections_do_not_recover_a_lost_track() -> None:
    seen = [detections((person(100), 0.9))] * 5
    results = follow(Tracker(), [*seen, *[detections()] * 4, detections((person(100), 0.4))])
    assert len(results[-1]) == 0


@pytest.mark.parametrize("fps", [5.0, 10.0, 25.0])
@pytest.mark.parametrize(
    ("speed_px", "carried_s"),
    [(0.0, 6.0), (2.0, 6.0), (60.0, 1.0)],  # the longer side of the box is 100 px
)
def test_weak_detections_continue_a_track_for_a_limited_time(speed_px: float, carried_s: float, fps: float) -> None:
    config = TrackConfig(weak_s=1.0, weak_standing_s=6.0)
    frames = range(round(2 * fps) + round(8 * fps))
    found = [detections((person(100 + speed_px * at / fps), 0.9 if at < 2 * fps else 0.3)) for at in frames]
    results = follow(Tracker(config), found, fps)
    carried = sum(len(tracks) for tracks in results[round(2 * fps) :]) / fps
    assert carried_s - 1 / fps <= carried <= carried_s + 1 / fps


def test_weak_detections_beside_a_standing_object_do_not_continue_its_track() -> None:
    seen = [detections((person(100), 0.9))] * 20
    weak = [detections((person(120), 0.3))] * 30
    results = follow(Tracker(TrackConfig(weak_s=0.0)), [*seen, *weak])
    assert sum(len(tracks) for tracks in results[25:]) == 0


def test_weak_detection_continues_only_one_of_two_standing_objects() -> None:
    seen = [detections((person(100), 0.9), (person(130), 0.9))] * 20
    weak = [detections((person(115), 0.3))] * 30
    results = follow(Tracker(TrackConfig(weak_s=0.5)), [*seen, *weak])
    assert all(len(tracks) <= 1 for tracks in results[20:])


@pytest.mark.parametrize(("away_s", "same"), [(0.5, True), (1.4, True), (1.6, False), (30.0, False)])
@pytest.mark.parametrize("fps", [5.0, 30.0])
def test_track_ends_after_lost_s(fps: float, away_s: float, same: bool) -> None:
    seen = [detections((person(100), 0.9))] * 5
    results = follow(Tracker(), [*seen, *[detections()] * (round(away_s * fps) - 1), *seen], fps)
    assert (len(ids(results)) == 1) is same


@pytest.mark.parametrize("reactivation", ["filter", "observation"])
def test_walker_behind_a_pillar_keeps_the_id(reactivation: str) -> None:
    config = TrackConfig.model_validate({"reactivation": reactivation})
    walk = [detections((person(50 + 8 * at), 0.8)) if not 20 <= at < 30 else detections() for at in range(60)]
    results = follow(Tracker(config), walk)
    assert len(ids(results)) == 1
    assert all(len(tracks) == 0 for tracks in results[20:30])


@pytest.mark.parametrize(("reactivation", "exact"), [("observation", True), ("filter", False)])
def test_observation_reactivation_takes_the_motion_from_two_positions(reactivation: str, exact: bool) -> None:
    """A person walks to the right, is hidden for a second, and reappears 10 px to the left of the last position."""
    tracker = Tracker(TrackConfig.model_validate({"reactivation": reactivation}))
    seen = [detections((person(100 + 4 * at), 0.9)) for at in range(20)]
    results = follow(tracker, [*seen, *[detections()] * 9, detections((person(166), 0.9))])
    assert len(ids(results)) == 1 and len(results[-1]) == 1
    speed_px_per_s = float(tracker._state[4, 0])
    assert (speed_px_per_s == pytest.approx(-10.0, abs=0.01)) is exact


@pytest.mark.parametrize("hidden", [0.3, 0.5])
@pytest.mark.parametrize("fps", [10.0, 30.0])
def test_suddenly_shorter_box_hardly_moves_the_feet(fps: float, hidden: float) -> None:
    """An obstacle covers the legs for 0.1 s, so the detector's boxes end where the legs begin."""
    x1, y1, x2, y2 = person(100)
    half: Box = (x1, y1, x2, y2 - hidden * (y2 - y1))
    seen = [detections((person(100), 0.8))] * round(2 * fps)
    results = follow(Tracker(), [*seen, *[detections((half, 0.8))] * round(0.1 * fps), *seen], fps)
    assert len(ids(results)) == 1
    lowest = min(float(tracks.boxes_xyxy[0, 3]) for tracks in results[1:])
    assert y2 - lowest < 0.6 * hidden * (y2 - y1)


@pytest.mark.parametrize("height", [50.0, 70.0, 140.0, 190.0])
@pytest.mark.parametrize("fps", [5.0, 10.0, 30.0])
def test_lasting_change_of_size_is_adopted(fps: float, height: float) -> None:
    x1, y1, x2, _ = person(100)
    seen, after = [detections((person(100), 0.8))] * round(2 * fps), detections(((x1, y1, x2, y1 + height), 0.8))
    results = follow(Tracker(), [*seen, *[after] * round(3 * fps)], fps)
    assert len(ids(results)) == 1
    assert float(results[-1].boxes_xyxy[0, 3]) == pytest.approx(y1 + height, abs=0.1 * abs(height - 100.0))


def test_classes_are_not_mixed() -> None:
    bicycle = [detections((person(100), 0.9, 1))] * 5
    results = follow(Tracker(), [*[detections((person(100), 0.9, 0))] * 5, *bicycle])
    assert results[4].track_ids[0] != results[-1].track_ids[0]
    assert results[4].class_ids.tolist() == [0] and results[-1].class_ids.tolist() == [1]


def test_objects_of_two_classes_at_one_position_are_two_tracks() -> None:
    results = follow(Tracker(), [detections((person(100), 0.9, 0), (person(102), 0.8, 1))] * 5)
    assert sorted(results[-1].class_ids.tolist()) == [0, 1]


@pytest.mark.parametrize(
    ("offset_px", "lasts_s", "published"),
    [(4.0, 3.0, 1), (10.0, 0.4, 1), (10.0, 0.8, 2), (16.0, 0.8, 2), (24.0, 0.3, 2)],  # overlaps 0.82, 0.6, 0.43, 0.25
)
@pytest.mark.parametrize("fps", [5.0, 10.0, 25.0])
def test_second_box_on_a_tracked_object_is_published_if_it_lasts(
    fps: float, offset_px: float, lasts_s: float, published: int
) -> None:
    seen = [detections((person(100), 0.9))] * 5
    twice = [detections((person(100), 0.9), (person(100 + offset_px), 0.7))] * (1 + round(lasts_s * fps))
    assert len(ids(follow(Tracker(), [*seen, *twice], fps))) == published


@pytest.mark.parametrize("fps", [5.0, 10.0, 25.0])
@pytest.mark.parametrize(("nearer_px", "same"), [(6.0, True), (-6.0, False)])
def test_weak_detections_continue_the_track_of_an_object_behind_another_one(
    nearer_px: float, same: bool, fps: float
) -> None:
    def frame(at: int) -> Detections:
        x = 100 + 60 * at / fps
        score = 0.3 if 1 <= at / fps < 4 else 0.9
        return detections((person(x), score), (person(x + 20, 200 + nearer_px), 0.9))

    results = follow(Tracker(), [frame(at) for at in range(round(5 * fps))], fps)
    first, last = ({int(i) for i in tracks.track_ids} for tracks in (results[2], results[-1]))
    assert len(first) == 2
    assert (first == last) is same
    assert all(len(tracks) == 2 for tracks in results[2:]) is same


def test_objects_in_front_hide_only_objects_of_the_same_camera() -> None:
    hidden, front = Tracker(TrackConfig()), Tracker(TrackConfig())
    for at in range(40):
        x, now_ns = 100.0 + 6 * at, START_NS + at * SECOND_NS // 10
        found = detections((person(x), 0.9 if at < 10 else 0.3)), detections((person(x + 20, 206), 0.9))
        results = update_together([(hidden, found[0], now_ns), (front, found[1], now_ns)])
    assert [len(tracks) for tracks in results] == [0, 1]


def test_ids_are_unique_in_the_process() -> None:
    frame = [detections((person(100), 0.9), (person(400), 0.9))] * 3
    seen = [track_id for _ in range(12) for track_id in sorted(ids(follow(Tracker(), frame)))]
    assert len(seen) == len(set(seen)) == 12 * 2


def test_ids_are_unique_among_threads() -> None:
    found: list[int] = []

    def camera() -> None:
        for _ in range(50):
            found.extend(ids(follow(Tracker(), [detections((person(100), 0.9), (person(400), 0.9))] * 2)))

    threads = [threading.Thread(target=camera) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(set(found)) == 400


def test_backward_clock_jump_counts_as_one_usual_interval() -> None:
    tracker = Tracker()
    before = follow(tracker, [detections((person(100 + 8 * at), 0.9)) for at in range(10)])
    after = follow(tracker, [detections((person(180 + 8 * at), 0.9)) for at in range(10)], start_ns=17)
    assert ids(before) == ids(after)
    ages = [int(tracks.age_ms[0]) for tracks in (*before[1:], *after)]
    assert np.diff(ages) == pytest.approx(100, abs=1)


@pytest.mark.parametrize(("jump_s", "same"), [(1.0, True), (2.0, False), (86_400.0 * 365, False)])
def test_forward_clock_jump_beyond_lost_s_ends_every_track(jump_s: float, same: bool) -> None:
    tracker = Tracker()
    before = follow(tracker, [detections((person(100), 0.9))] * 10)
    start_ns = START_NS + SECOND_NS + round(jump_s * SECOND_NS)
    after = follow(tracker, [detections((person(100), 0.9))] * 10, start_ns=start_ns)
    assert (ids(before) == ids(after)) is same
    assert len(after[-1]) == 1 and len(tracker._ids) == 1


def test_frames_with_equal_times_are_accepted() -> None:
    tracker = Tracker()
    results = [tracker.update(detections((person(100), 0.9)), START_NS) for _ in range(5)]
    assert len(ids(results)) == 1 and results[-1].age_ms.tolist() == [0]


def test_camera_slower_than_lost_s_keeps_tracks_for_two_frames() -> None:
    assert len(ids(follow(Tracker(TrackConfig(lost_s=1.0)), [detections((person(100), 0.9))] * 10, fps=0.25))) == 1


def test_invalid_boxes_are_ignored() -> None:
    nan, inf = float("nan"), float("inf")
    bad: list[tuple[Box, float]] = [
        ((nan, 0, 10, 10), 0.9),
        ((0, nan, 10, nan), 0.9),
        ((0, 0, inf, 10), 0.9),
        ((-inf, 0, 10, 10), 0.9),
        ((inf, inf, inf, inf), 0.9),
        ((50, 50, 50, 90), 0.9),
        ((50, 90, 70, 50), 0.9),
        ((0, 0, 10, 10), nan),
    ]
    tracker = Tracker()
    results = follow(tracker, [detections(*bad, (person(300), 0.9))] * 4)
    assert len(tracker._ids) == 1
    np.testing.assert_allclose(results[-1].boxes_xyxy[0], person(300), atol=1e-3)


def test_detections_are_not_modified() -> None:
    frame = detections((person(100), 0.9), (person(300), 0.1))
    for values in (frame.boxes_xyxy, frame.scores, frame.class_ids):
        values.setflags(write=False)
    results = follow(Tracker(), [frame] * 3)
    kept = results[-1].boxes_xyxy.copy()
    follow(Tracker(), [frame] * 3)
    np.testing.assert_array_equal(results[-1].boxes_xyxy, kept)


def test_only_max_objects_with_the_best_scores_are_tracked() -> None:
    tracker = Tracker(TrackConfig(max_objects=5))
    crowd = detections(*((person(60 * at + 50), 0.6 + 0.03 * at) for at in range(10)))
    results = follow(tracker, [crowd] * 3)
    assert len(tracker._ids) == 5
    assert results[-1].scores.min() >= 0.6 + 0.03 * 5 - 1e-6


def test_unpublished_tracks_are_deleted() -> None:
    tracker = Tracker()
    rng = np.random.default_rng(2)
    sizes = []
    for at in range(400):
        x, y = rng.uniform(0, 5000, 2)
        tracker.update(detections((person(x, y), 0.9)), START_NS + at * SECOND_NS // 10)
        sizes.append(len(tracker._ids))
    assert max(sizes) <= 4  # tentative_s is 0.25 s: three frames and the new one


@pytest.mark.parametrize("fps", [2.0, 5.0, 10.0])
@pytest.mark.parametrize("missed", [1, 2, 3])
def test_new_object_can_be_missed_in_two_frames_at_any_rate(missed: int, fps: float) -> None:
    seen = detections((person(100), 0.9))
    results = follow(Tracker(), [seen, *[Detections.empty()] * missed, seen], fps)
    assert len(results[-1]) == (missed <= 2)


@pytest.mark.parametrize("fps", [5.0, 10.0])
@pytest.mark.parametrize(("dx", "dy"), [(-30.0, 15.0), (30.0, 15.0), (-25.0, -25.0), (0.0, 45.0)])
def test_person_who_appears_beside_a_weak_detection_does_not_get_its_track(dx: float, dy: float, fps: float) -> None:
    """A person has weak detections for three frames. During these frames, a previously hidden person appears nearby."""
    frames, weak = [], range(10, 13)
    for at in range(20):
        x = 100.0 + at * 60.0 / fps
        other = ((person(x + dx, 200.0 + dy), 0.9),) if at >= weak.start else ()
        frames.append(detections((person(x), 0.4 if at in weak else 0.9), *other))
    results = follow(Tracker(), frames, fps)
    (first,) = results[5].track_ids.tolist()
    for at, tracks in enumerate(results[5:], start=5):
        place = tracks.track_ids.tolist().index(first)
        np.testing.assert_allclose(tracks.boxes_xyxy[place], person(100.0 + at * 60.0 / fps), atol=8.0)
    assert len(results[-1]) == 2


@pytest.mark.parametrize(("dx", "dy"), [(-45.0, 0.0), (45.0, 0.0), (40.0, 25.0), (55.0, 0.0)])
def test_person_who_is_partly_hidden_keeps_its_track_when_another_person_appears(dx: float, dy: float) -> None:
    """For three frames, the box of a person shows only the upper part, with a low score. Another person appears."""
    frames, weak, fps = [], range(10, 13), 5.0
    for at in range(20):
        x1, y1, x2, y2 = person(100.0 + at * 60.0 / fps)
        shown = ((x1, y1, x2, y2 - 30.0), 0.4) if at in weak else ((x1, y1, x2, y2), 0.9)
        other = ((person(100.0 + at * 60.0 / fps + dx, 200.0 + dy), 0.9),) if at >= weak.start else ()
        frames.append(detections(shown, *other))
    results = follow(Tracker(), frames, fps)
    (first,) = results[5].track_ids.tolist()
    for at, tracks in enumerate(results[5:], start=5):
        place = tracks.track_ids.tolist().index(first)
        assert abs(tracks.boxes_xyxy[place, [0, 2]].mean() - (100.0 + at * 60.0 / fps)) < 8.0
    assert len(results[-1]) == 2


def test_frames_without_detections_are_accepted() -> None:
    tracker = Tracker()
    assert [len(tracks) for tracks in follow(tracker, [Detections.empty()] * 3)] == [0, 0, 0]


@pytest.mark.parametrize("scale", [0.25, 4.0])
def test_tracking_does_not_depend_on_the_frame_size(scale: float) -> None:
    """All distances are relative to the size of the object, so 4K and VGA cameras need no different settings."""
    rng = np.random.default_rng(3)
    frames = []
    for at in range(60):
        rows = [
            (person(100 + 12 * at + 70 * k + rng.normal(0, 3), 150 + 20 * k, 90), float(rng.uniform(0.3, 0.9)))
            for k in range(5)
        ]
        frames.append([row for row in rows if rng.random() < 0.9])
    plain = follow(Tracker(), [detections(*rows) for rows in frames])
    other = follow(Tracker(), [detections(*((scaled(box, scale), score) for box, score in rows)) for rows in frames])
    renamed = dict(zip(sorted(ids(other)), sorted(ids(plain)), strict=True))
    for a, b in zip(plain, other, strict=True):
        assert a.track_ids.tolist() == [renamed[int(i)] for i in b.track_ids]


def _best_pairing(similarity: NDArray[np.float64], least: float) -> float:
    rows, columns = similarity.shape
    if rows > columns:
        return _best_pairing(similarity.T, least)
    gain = np.maximum(similarity - least, 0)
    return max(
        float(sum(gain[row, column] for row, column in enumerate(order)))
        for order in itertools.permutations(range(columns), rows)
    )


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 5)).flatmap(
        lambda shape: arrays(np.float64, shape, elements=st.floats(-0.25, 1.125, width=32))
    ),
    st.floats(0.0, 0.6),
)
def test_matching_is_optimal(similarity: NDArray[np.float64], least: float) -> None:
    rows, columns = similarity.shape
    matches = np.full(rows, -1, np.intp)
    pairs = [places.ravel() for places in np.indices(similarity.shape)]
    matching = Pairs(pairs[0], pairs[1], similarity.ravel(), least=least, shape=similarity.shape)
    matching.match(np.ones(rows, np.bool_), np.ones(columns, np.bool_), least, matches)
    chosen = [(row, column) for row, column in enumerate(matches) if column >= 0]
    assert len({column for _, column in chosen}) == len(chosen)
    assert all(similarity[pair] > least for pair in chosen)
    total = sum(similarity[pair] - least for pair in chosen)
    assert total == pytest.approx(_best_pairing(similarity, least), abs=1e-9)


@pytest.mark.integration
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_input_gives_consistent_tracks(data: st.DataObject) -> None:
    tracker = Tracker(TrackConfig(max_objects=8))
    now_ns = START_NS
    oldest: dict[int, int] = {}
    for _ in range(data.draw(st.integers(1, 12))):
        now_ns += data.draw(st.integers(-3 * SECOND_NS, 3 * SECOND_NS))
        number = data.draw(st.integers(0, 6))
        boxes = data.draw(arrays(np.float32, (number, 4), elements=st.floats(-1e4, 1e4, width=32)))
        scores = data.draw(arrays(np.float32, number, elements=st.floats(0, 1, width=32)))
        classes = data.draw(arrays(np.int32, number, elements=st.integers(0, 2)))
        tracks = tracker.update(Detections(boxes, scores, classes), now_ns)
        assert len(tracks) <= min(number, 8) and len(tracker._ids) <= 8
        assert len(np.unique(tracks.track_ids)) == len(tracks) and (tracks.track_ids > 0).all()
        assert np.isfinite(tracks.boxes_xyxy).all()
        for track_id, age_ms in zip(tracks.track_ids.tolist(), tracks.age_ms.tolist(), strict=True):
            assert age_ms >= oldest.get(track_id, 0)
            oldest[track_id] = age_ms


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"low_score": 0.7}, ("low_score", "0.7", "high_score", "0.5")),
        ({"high_score": 0.65}, ("high_score", "0.65", "new_score", "0.55")),
        ({"new_score": 0.4}, ("high_score", "0.5", "new_score", "0.4")),
        ({"lost_s": 0}, ("lost_s",)),
        ({"reactivation": "none"}, ("reactivation",)),
        ({"frames": 3}, ("frames",)),
    ],
)
def test_inconsistent_settings_are_refused(values: dict[str, object], named: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as error:
        TrackConfig.model_validate(values)
    assert re.search(r"\b.*\b".join(map(re.escape, named)), str(error.value)), "keys and values, in this order"


def prediction_of(steps_s: Sequence[float]) -> NDArray[np.float64]:
    tracker = Tracker(TrackConfig(lost_s=10))
    follow(tracker, [detections((person(100 + 8 * at), 0.9)) for at in range(10)])
    now_ns = START_NS + 9 * SECOND_NS // 10
    for step_s in steps_s:
        now_ns += round(step_s * SECOND_NS)
        tracker.update(Detections.empty(), now_ns)
    state: NDArray[np.float64] = tracker._state[:20].copy()
    return state


@pytest.mark.parametrize("steps_s", [(0.5, 0.5), (0.1,) * 10, (0.7, 0.05, 0.25)])
def test_motion_does_not_depend_on_the_number_of_steps(steps_s: tuple[float, ...]) -> None:
    """The test needs a tolerance, because the acceleration depends on the object's size, which changes slightly."""
    np.testing.assert_allclose(prediction_of(steps_s), prediction_of((1.0,)), rtol=2e-3, atol=1e-6)
