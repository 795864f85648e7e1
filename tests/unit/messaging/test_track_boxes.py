"""Tests that detections messages contain exactly those values of each track that the analytics reads."""

from __future__ import annotations

import numpy as np
import pytest

from vision.analytics.tracker import Tracker
from vision.messaging import codec
from vision.messaging.schema import DetectionsMessage, Encoding
from vision.types import Detections, FrameMeta, Result, Timing, Tracks

SIZE = (640, 480)


def message(tracks: Tracks, encoding: Encoding) -> DetectionsMessage:
    result = Result(FrameMeta("gate", 0, 1, 5, 7, *SIZE), tracks, Timing(5, 6, 7))
    sent = codec.detections({"node": "n", "instance": "i", "boot": "", "seq": 1}, result, ["person"], 9)
    received = codec.decode("detections/gate", codec.encode(sent, encoding))
    assert isinstance(received, DetectionsMessage)
    return received


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_boxes_survive_a_message_bit_for_bit(encoding: Encoding) -> None:
    rng, tracker, hidden, first = np.random.default_rng(3), Tracker(None, SIZE), 0, 0
    for number in range(60):
        x = 40.0 + 7.3 * number
        feet = 330.0 if 25 < number < 45 else 400.0  # an obstacle hides the legs for almost a second
        boxes = np.array([[x, 200, x + 61, feet]]) + rng.normal(0, 0.7, (1, 4))
        found = Detections(boxes.astype(np.float32), np.array([0.9], np.float32), np.zeros(1, np.int32))
        tracks = tracker.update(found, number * 50_000_000)
        objects = message(tracks, encoding).objects
        assert np.array_equal(np.array([each.box for each in objects], np.float32).reshape(-1, 4), tracks.boxes_xyxy)
        if tracks.hidden_px is not None:
            hidden += 1
            assert [np.float32(each.hidden_px or 0.0) for each in objects] == tracks.hidden_px.tolist()
        else:
            assert all(each.hidden_px is None for each in objects)
        if tracks.previous_xyxy is not None:
            first += 1
            previous = np.array([each.previous_box for each in objects], np.float32)
            assert np.array_equal(previous, tracks.previous_xyxy)
        else:
            assert all(each.previous_box is None for each in objects)
    assert hidden and first == 1
