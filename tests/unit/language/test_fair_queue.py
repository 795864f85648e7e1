"""Shares of the cameras in the queue, and its limits."""

from __future__ import annotations

import pytest

from vision.language.fair_queue import FairQueue

pytestmark = pytest.mark.unit


def queue(most: int = 4, most_bytes: int = 100) -> FairQueue[str]:
    return FairQueue(most=most, most_bytes=most_bytes)


def taken(waiting: FairQueue[str]) -> list[str | None]:
    return [waiting.take(0) for _ in range(len(waiting))]


def test_cameras_take_turns_and_the_newest_comes_first() -> None:
    waiting = queue(10)
    for entry in ("a1", "a2", "a3", "b1", "b2", "c1"):
        waiting.put(entry[0], entry, 1)
    assert taken(waiting) == ["a3", "b2", "c1", "a2", "b1", "a1"]
    assert waiting.take(0) is None


def test_a_busy_camera_displaces_only_itself() -> None:
    waiting = queue(4)
    waiting.put("b", "b1", 1)
    displaced = [each for number in range(50) for each in waiting.put("a", f"a{number}", 1)]
    assert displaced == [f"a{number}" for number in range(47)]
    assert taken(waiting) == ["b1", "a49", "a48", "a47"]


def test_bytes_are_limited() -> None:
    waiting = queue(10, most_bytes=100)
    assert waiting.put("a", "a1", 60) == []
    assert waiting.put("a", "a2", 60) == ["a1"]
    assert waiting.put("b", "b1", 200) == ["a2", "b1"]
    assert (len(waiting), waiting.nbytes) == (0, 0)


def test_more_cameras_than_places() -> None:
    waiting = queue(4)
    for number in range(10):
        waiting.put(f"c{number}", f"c{number}", 1)
    assert len(waiting) == 4
