"""Shares of the cameras in the queue, and its limits."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest

from vision.language.fair_queue import FairQueue
from vision.language.messages import Question

pytestmark = pytest.mark.unit


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    question: Question


class Clock:
    """A clock that the test sets, in seconds."""

    now_s = 0.0

    def ns(self) -> int:
        return int(self.now_s * 1e9)


def entry(name: str, camera: str = "", *, expires_s: float = 1e9) -> Entry:
    asked = Question(
        id=name, purpose="verify", check="real", camera=camera or name[0], epoch=0, frame=0,
        at="2026-01-31T12:00:00.000000Z", at_monotonic_ns=0, facts={}, expires_ns=int(expires_s * 1e9), offsets_ms=[0],
        cropped=False,
    )  # fmt: skip
    return Entry(name, asked)


def queue(most: int = 4, most_bytes: int = 100, clock: Clock | None = None) -> FairQueue[Entry]:
    return FairQueue(most=most, most_bytes=most_bytes, clock_ns=(clock or Clock()).ns)


def put(waiting: FairQueue[Entry], added: Entry, nbytes: int = 1) -> list[str]:
    return [displaced.name for displaced in waiting.put(added.question.camera, added, nbytes)]


def taken(waiting: FairQueue[Entry]) -> list[str]:
    return [each.name for _ in range(len(waiting)) if (each := waiting.take(0)) is not None]


def test_cameras_take_turns_and_the_newest_comes_first() -> None:
    waiting = queue(10)
    for name in ("a1", "a2", "a3", "b1", "b2", "c1"):
        put(waiting, entry(name))
    assert taken(waiting) == ["a3", "b2", "c1", "a2", "b1", "a1"]
    assert waiting.take(0) is None


def test_a_camera_keeps_its_turn_while_it_has_no_entries() -> None:
    waiting = queue(10)
    put(waiting, entry("b1"))
    assert taken(waiting) == ["b1"]
    put(waiting, entry("a1"))
    assert taken(waiting) == ["a1"]
    for name in ("a2", "b2"):
        put(waiting, entry(name))
    assert taken(waiting) == ["b2", "a2"]


def served(quiet_every_s: float, *, cameras: int, answer_s: float, max_age_s: float, most: int) -> Counter[str]:
    """Simulate a server with one request at a time for 64 questions of a quiet camera. The others ask each second.

    The first of the 64 questions comes when the server has been asked about each busy camera once. Return the
    number of questions of each camera that were asked before they expired.
    """
    clock, asked, next_quiet_s = Clock(), Counter[str](), quiet_every_s
    waiting = queue(most, 10**9, clock)
    free_s, end_s = 0.0, 65 * quiet_every_s
    while clock.now_s < end_s:
        for number in range(cameras - 1):
            put(waiting, entry("busy", f"busy-{number}", expires_s=clock.now_s + max_age_s))
        if clock.now_s >= next_quiet_s:
            put(waiting, entry("quiet", "quiet", expires_s=clock.now_s + max_age_s))
            next_quiet_s += quiet_every_s
        while free_s <= clock.now_s and (each := waiting.take(0)) is not None:
            if each.question.expires_ns > clock.ns():
                asked[each.question.camera] += 1
                free_s = clock.now_s + answer_s
        clock.now_s += 1.0
    return asked


@pytest.mark.parametrize("most", [16, 64])
def test_a_camera_that_needs_less_than_its_share_is_served_completely(most: int) -> None:
    asked = served(66.0, cameras=32, answer_s=2.0, max_age_s=30.0, most=most)
    assert asked["quiet"] == 64
    busy = [count for camera, count in asked.items() if camera != "quiet"]
    assert len(busy) == 31
    assert max(busy) - min(busy) <= 1


def test_expired_entries_come_first_and_are_no_turn() -> None:
    clock = Clock()
    waiting = queue(10, clock=clock)
    for name, expires_s in (("a1", 9.0), ("b1", 1.0), ("b2", 9.0), ("b3", 2.0)):
        put(waiting, entry(name, expires_s=expires_s))
    clock.now_s = 3.0
    assert taken(waiting) == ["b1", "b3", "a1", "b2"]
    put(waiting, entry("b4", expires_s=1.0))
    put(waiting, entry("a2"))
    put(waiting, entry("b5"))
    assert taken(waiting) == ["b4", "a2", "b5"]


def test_a_busy_camera_displaces_only_itself() -> None:
    waiting = queue(4)
    put(waiting, entry("b1"))
    displaced = [each for number in range(50) for each in put(waiting, entry(f"a{number}"))]
    assert displaced == [f"a{number}" for number in range(47)]
    assert taken(waiting) == ["b1", "a49", "a48", "a47"]


def test_bytes_are_limited() -> None:
    waiting = queue(10, most_bytes=100)
    assert put(waiting, entry("a1"), 60) == []
    assert put(waiting, entry("a2"), 60) == ["a1"]
    assert put(waiting, entry("b1"), 200) == ["a2", "b1"]
    assert (len(waiting), waiting.nbytes) == (0, 0)


def test_more_cameras_than_places() -> None:
    waiting = queue(4)
    for number in range(10):
        put(waiting, entry("x", f"c{number}"))
    assert len(waiting) == 4


def test_cameras_that_are_gone_are_forgotten() -> None:
    waiting = queue(4)
    for number in range(5000):
        put(waiting, entry("x", f"c{number}"))
        assert waiting.take(0) is not None
    assert len(waiting._turns) == 4096
