"""Tests of the summaries of objects that left the frame: their content, time of creation, and limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import pytest

from vision.config import AppConfig
from vision.config.privacy import CameraPrivacy
from vision.detect.reference.crops import JpegEncoder
from vision.messaging import codec
from vision.stages.object_summaries import ObjectSnapshotStage, ObjectStage, open_objects
from vision.types import Attribute, Detections, Event, Frame, FrameMeta, ObjectSummary, Result, Timing, Tracks

STEP_NS = 100_000_000
UTC_NS = 1_700_000_000_000_000_000
SIZE = 320, 240
Box = tuple[float, float, float, float]


def result(
    index: int,
    boxes: Mapping[int, Box],
    *,
    epoch: int = 0,
    camera: str = "gate",
    events: Sequence[Event] = (),
    attributes: Mapping[int, tuple[Attribute, ...]] | None = None,
) -> Result:
    at_ns = (1 + index) * STEP_NS
    count = len(boxes)
    tracks = Tracks(
        np.array(list(boxes.values()), np.float32).reshape(-1, 4),
        np.full(count, 0.5 + index / 1000, np.float32),
        np.full(count, 1, np.int32),
        np.array(list(boxes), np.int64),
        np.zeros(count, np.int64),
    )
    meta = FrameMeta(camera, index, epoch, at_ns, UTC_NS + at_ns, *SIZE)
    return Result(meta, tracks, Timing(0, 0, 0), events=tuple(events), attributes=attributes or {})


def box(x: float, y: float, size: float = 40.0) -> Box:
    return x, y, x + size, y + size


def run(stage: ObjectStage, results: Sequence[Result]) -> list[ObjectSummary]:
    return [summary for each in results for summary in stage(each).left]


def test_summary_describes_the_whole_stay() -> None:
    attribute = Attribute("colors", "red", 0.9, STEP_NS)
    events = {
        2: [Event("zone_entered", "queue", "gate", 7, 3 * STEP_NS)],
        3: [Event("line_crossed", "door", "gate", 7, 4 * STEP_NS, {"direction": "in"})],
        4: [Event("zone_left", "queue", "gate", 7, 5 * STEP_NS, {"how": "crossed"})],
        5: [Event("zone_entered", "queue", "gate", 7, 6 * STEP_NS), Event("line_crossed", "door", "gate", 8, 0)],
    }
    moving = [
        result(index, {7: box(10.0 * index, 50)}, events=events.get(index, ()), attributes={7: (attribute,)})
        for index in range(6)
    ]
    stage = ObjectStage(forget_s=1.0)
    assert run(stage, moving) == []
    (left,) = run(stage, [result(index, {}) for index in range(6, 20)])
    assert (left.track_id, left.class_id, left.first_ns, left.last_ns) == (7, 1, STEP_NS, 6 * STEP_NS)
    assert left.box_xyxy == box(50, 50)
    assert left.path[0] == (0, 20.0, 90.0)
    assert left.path[-1] == (500, 70.0, 90.0)
    assert left.crossings == (("door", "in", 4 * STEP_NS),)
    assert left.visits == (("queue", 3 * STEP_NS, 5 * STEP_NS), ("queue", 6 * STEP_NS, None))
    assert left.attributes == (attribute,)
    assert left.score == pytest.approx(0.505)


def test_object_that_returns_in_time_has_one_summary() -> None:
    stage = ObjectStage(forget_s=1.0)
    seen = [0, 1, 2, 9, 10, 19, 20]
    found = run(stage, [result(index, {3: box(5, 5)} if index in seen else {}) for index in range(60)])
    assert [(each.first_ns, each.last_ns) for each in found] == [(STEP_NS, 21 * STEP_NS)]


def test_end_of_an_epoch_ends_all_objects_of_the_camera() -> None:
    stage = ObjectStage(forget_s=1.0)
    run(stage, [result(0, {1: box(5, 5), 2: box(60, 5)}), result(1, {1: box(5, 5)})])
    run(stage, [result(0, {11: box(5, 5)}, camera="yard")])
    found = run(stage, [result(0, {}, epoch=1)])
    assert {each.track_id: each.last_ns for each in found} == {1: 2 * STEP_NS, 2: STEP_NS}
    assert {each.epoch for each in found} == {0}


def test_path_and_visits_stay_limited_over_a_long_stay() -> None:
    stage = ObjectStage(forget_s=0.5)
    long = [
        result(i, {1: box(i % 200, 20)}, events=[Event("line_crossed", str(i), "gate", 1, i, {"direction": "in"})])
        for i in range(5000)
    ]
    (left,) = run(stage, [*long, *(result(i, {}) for i in range(5000, 5010))])
    times = [at_ms for at_ms, _, _ in left.path]
    assert 32 <= len(left.path) <= 65
    assert times == sorted(set(times))
    assert (times[0], times[-1]) == (0, 499_900)
    assert len(left.crossings) == 64
    assert left.crossings[-1][0] == "4999"


def test_many_objects_that_leave_together_are_spread_over_frames() -> None:
    stage = ObjectStage(forget_s=0.5)
    stage(result(0, {number: box(number % 50, 5) for number in range(1, 91)}))
    found = [len(stage(result(index, {})).left) for index in range(1, 20)]
    assert max(found) == 20
    assert sum(found) == 90


def test_detections_without_tracks_are_refused() -> None:
    meta = FrameMeta("gate", 0, 0, 0, 0, *SIZE)
    with pytest.raises(TypeError):
        ObjectStage(1.0)(Result(meta, Detections.empty(), Timing(0, 0, 0)))


# --- snapshots --------------------------------------------------------------------------------------------------------


def paint(made: Result) -> Frame:
    """Return a gray frame. The brightness of each object is the frame number."""
    pixels = np.full((SIZE[1], SIZE[0], 3), 200, np.uint8)
    for x1, y1, x2, y2 in made.objects.boxes_xyxy.astype(int).tolist():
        pixels[max(0, y1) : y2, max(0, x1) : x2] = made.meta.index
    return Frame.wrap(made.meta, pixels, "bgr")


def snapshots(results: Sequence[Result], *, max_side_px: int = 256) -> dict[int, ObjectSummary]:
    stage = ObjectSnapshotStage(0.5, JpegEncoder(max_side_px=max_side_px).encode_part)
    last = results[-1].meta.index
    gone = [result(index, {}) for index in range(last + 1, last + 10)]
    done = [stage.with_frame(each, paint(each)) for each in [*results, *gone]]
    return {summary.track_id: summary for each in done for summary in each.left}


def image(summary: ObjectSummary) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    assert summary.snapshot is not None
    decoded = cv2.imdecode(np.frombuffer(summary.snapshot.jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded  # type: ignore[return-value]


def test_snapshot_shows_the_largest_box() -> None:
    sizes = [20, 30, 40, 60, 90, 60, 40, 20, 20]
    found = snapshots([result(2 * index, {1: box(50, 50, size)}) for index, size in enumerate(sizes)])
    snapshot = found[1].snapshot
    assert snapshot is not None
    assert snapshot.at_ns == 9 * STEP_NS
    assert snapshot.box_xyxy == box(50, 50, 90)
    assert image(found[1]).shape == (90, 90, 3)
    assert np.abs(image(found[1]).astype(int) - 8).max() <= 2


def test_snapshots_from_before_a_new_mask_are_discarded() -> None:
    config = AppConfig.model_validate(
        {"objects": {}, "cameras": [{"id": "gate", "source": "synthetic:"}], "detect": {"backend": "fake"}}
    )
    mask = CameraPrivacy.model_validate({"units": "fraction", "masks": [[[0, 0], [1, 0], [1, 1], [0, 1]]]})
    (stage,) = open_objects(config)
    assert isinstance(stage, ObjectSnapshotStage)
    sizes = [90, 90, 60, 50]
    for index, size in enumerate(sizes):
        if index == 1:
            stage.reconfigure(config)  # nothing has changed, so the snapshot is kept
        if index == 2:
            stage.reconfigure(config.model_copy(update={"privacy": {"gate": mask}}))
        made = result(2 * index, {1: box(50, 50, size)})
        stage.with_frame(made, paint(made))
    left = [stage.with_frame(made, paint(made)).left for made in (result(index, {}) for index in range(8, 90))]
    ((summary,),) = [each for each in left if each]
    assert image(summary).shape == (60, 60, 3)
    assert image(summary).max() < 8


def test_box_at_the_edge_or_behind_another_is_worth_less() -> None:
    edge = [result(0, {1: box(50, 50, 40)}), result(2, {1: box(280, 50, 60)})]
    assert snapshots(edge)[1].snapshot == snapshots(edge[:1])[1].snapshot
    behind = [result(2 * i, {1: box(50, 50, 40 + 10 * (i > 3)), 2: box(150 - 30 * i, 60, 60)}) for i in range(5)]
    snapshot = snapshots(behind)[1].snapshot
    assert snapshot is not None
    assert snapshot.box_xyxy == box(50, 50, 40)


def test_snapshot_is_scaled_and_parts_outside_the_frame_are_cut_off() -> None:
    found = snapshots([result(0, {1: (-20.0, 100.0, 300.0, 260.0)})], max_side_px=64)
    assert image(found[1]).shape == (30, 64, 3)


def test_each_object_of_a_group_gets_a_snapshot_within_seconds() -> None:
    boxes = {number: box(45 * (number % 6) + 3, 45 * (number // 6) + 3, 38) for number in range(20)}
    found = snapshots([result(index, boxes) for index in range(60)])
    assert len(found) == 20
    assert all(summary.snapshot is not None for summary in found.values())


# --- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_message_of_a_summary_can_be_encoded_and_decoded(encoding: str) -> None:
    made = snapshots([result(0, {1: box(50, 50, 40)})])[1]
    now = result(9, {})
    header = codec.Numbering("station").header("objects/gate")
    message = codec.object_summary(header, made, now, ("person", "car"))
    payload = codec.encode(message, "json" if encoding == "json" else "msgpack")
    again = codec.decode("objects/gate", payload)
    codec.check_values("objects/gate", again)
    assert again == message
    assert message.class_name == "car"
    assert message.at == "2023-11-14T22:13:20.100000Z"
    assert made.snapshot is not None
    assert message.snapshot == made.snapshot.jpeg
