"""Tests of the limits of the queue, and of the share of each camera in the queue."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from vision.language.fair_queue import FairQueue
from vision.language.messages import Question

pytestmark = pytest.mark.unit


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    name: str
    question: Question


class Clock:
    """Clock whose time, in seconds, the test sets."""

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


def queue(most: int = 4, clock: Clock | None = None) -> FairQueue[Entry]:
    return FairQueue(most=most, clock_ns=(clock or Clock()).ns)


def put(waiting: FairQueue[Entry], added: Entry) -> list[str]:
    return [displaced.name for displaced in waiting.put(added.question.camera, added)]


def taken(waiting: FairQueue[Entry]) -> list[str]:
    return [each.name for _ in range(len(waiting)) if (each := waiting.take(0)) is not None]


def test_cameras_take_turns_and_the_newest_comes_first() -> None:
    waiting = queue(10)
    for name in ("a1", "a2", "a3", "b1", "b2", "c1"):
        put(waiting, entry(name))
    assert taken(waiting) == ["c1", "b2", "a3", "b1", "a2", "a1"]
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


def served(quiet: list[float], *, cameras: int, answer_s: float, max_age_s: float, most: int) -> Counter[str]:
    """Simulate a server that answers one request at a time.

    The busy cameras ask every second, and the quiet camera asks at the times `quiet`, in seconds. Return, for each
    camera, the number of questions that reached the server before they expired.
    """
    clock, asked, left = Clock(), Counter[str](), list(quiet)
    waiting = queue(most, clock)
    free_s, end_s = 0.0, quiet[-1] + max_age_s
    while clock.now_s < end_s:
        for number in range(cameras - 1):
            put(waiting, entry("busy", f"busy-{number}", expires_s=clock.now_s + max_age_s))
        if left and clock.now_s >= left[0]:
            put(waiting, entry("quiet", "quiet", expires_s=clock.now_s + max_age_s))
            left.pop(0)
        while free_s <= clock.now_s and (each := waiting.take(0)) is not None:
            if each.question.expires_ns > clock.ns():
                asked[each.question.camera] += 1
                free_s = clock.now_s + answer_s
        clock.now_s += 1.0
    return asked


@pytest.mark.parametrize("most", [16, 64])
@pytest.mark.parametrize("first_s", [1.0, 66.0])
def test_a_camera_that_needs_less_than_its_share_is_served_completely(most: int, first_s: float) -> None:
    quiet = [first_s + 66.0 * number for number in range(32)]
    asked = served(quiet, cameras=32, answer_s=2.0, max_age_s=30.0, most=most)
    assert asked["quiet"] == 32
    busy = [count for camera, count in asked.items() if camera != "quiet"]
    assert len(busy) == 31
    assert max(busy) - min(busy) <= 1


@pytest.mark.parametrize("seed", range(300))
def test_shares_hold_from_the_first_turn_on(seed: int) -> None:
    """Add random entries to a queue before the first turn and between turns. Check each turn and each dropped entry."""
    chance = random.Random(seed)
    rates = {f"c{number}": chance.choice([0.05, 0.5, 3.0]) for number in range(chance.randint(2, 12))}
    waiting, held = queue(chance.randint(2, 24)), dict.fromkeys(rates, 0)
    turns, arrived = Counter[str](), Counter[str]()
    for turn in range(60):
        for _ in range(chance.choice([1, 40]) if turn == 0 else chance.randint(0, 3)):
            (camera,) = chance.choices(list(rates), list(rates.values()))
            held[camera] += 1
            arrived[camera] += 1
            for lost in waiting.put(camera, entry("x", camera)):
                loser = lost.question.camera
                assert held[loser] == max(held.values())
                equal = [each for each in held if held[each] == held[loser]]
                assert turns[loser] or not any(turns[each] for each in equal)
                assert turns[loser] or arrived[loser] == max(arrived[each] for each in equal)
                held[loser] -= 1
        before = dict(held)
        if (taken := waiting.take(0)) is None:
            continue
        camera = taken.question.camera
        never = [each for each in rates if before[each] and not turns[each]]
        assert not never or arrived[camera] == min(arrived[each] for each in never)
        assert not never or camera in never
        turns[camera] += 1
        held[camera] -= 1


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


def test_entries_can_be_removed() -> None:
    clock = Clock()
    waiting = queue(clock=clock)
    first, second, old = entry("a1"), entry("a2"), entry("b1", expires_s=1.0)
    for each in (first, second, old):
        put(waiting, each)
    assert waiting.remove("a", first)
    assert not waiting.remove("a", first)
    assert waiting.take_expired() is None
    clock.now_s = 2.0
    assert waiting.take_expired() is old
    assert taken(waiting) == ["a2"]
