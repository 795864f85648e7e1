from __future__ import annotations

import pytest

from vision.capture.packet_info import BACKLOG_NS, GIVE_UP_NS, KeyFrameGate, PacketInfo, Timeline

MS = 1_000_000


def run(stream: str) -> str:
    """Pass a stream of frames through a new gate, and return the result.

    In `stream`, K is a key frame, p is another frame, and ! is a loss of packets. In the result, a dot is a rejected
    frame, c is a corrupt frame, and other frames are unchanged.
    """
    gate = KeyFrameGate()
    out = ""
    for symbol in stream:
        if symbol == "!":
            gate.lost()
            continue
        passed = gate.passes(key=symbol == "K", now_ns=0, lag_ns=0)
        out += "." if not passed else "c" if gate.damaged else symbol
    return out


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        ("KppKpp", "KppKpp"),
        ("pppKpp", "...Kpp"),  # the first packets belong to a group whose key frame is missing
        ("ppp", "..."),
        ("Kp!ppKp", "KpccKp"),
        ("Kp!KpKp", "KpccKp"),  # the lost packet can belong to that key frame
        ("Kp!p!pKp", "KpccKp"),
        ("Kp!pK!pKp", "KpcKcKp"),
        ("!KpKp", "ccKp"),
        ("p!pKpKp", "..KpKp"),
        ("pp!KpKp", "..ccKp"),
        ("K!KKK", "KcKK"),  # motion JPEG: only the frame after the loss is doubtful
    ],
)
def test_gate_passes_and_marks_frames(stream: str, expected: str) -> None:
    assert run(stream) == expected


def backlog(lag_ms: list[int], gop: int = 4, step_ms: int = 100) -> str:
    """Return K or p for each decoded frame, and a dot for each skipped frame.

    Every `gop`-th frame is a key frame, and `lag_ms` contains the delay of each frame.
    """
    gate = KeyFrameGate()
    out = ""
    for index, lag in enumerate(lag_ms):
        key = index % gop == 0
        passed = gate.passes(key=key, now_ns=index * step_ms * MS, lag_ns=lag * MS)
        out += "." if not passed else "K" if key else "p"
    return out


def test_short_stall_skips_nothing() -> None:
    limit_ms = BACKLOG_NS // MS
    assert backlog([0, 0, limit_ms, limit_ms, 500, 0, 0, 0]) == "KpppKppp"


def test_late_decoder_skips_to_a_key_frame_on_time() -> None:
    late = BACKLOG_NS // MS + 1
    assert backlog([0, 0, late, late, late, 0, 0, 0, 0, 0]) == "Kp......Kp"


def test_lag_that_skipping_does_not_reduce_is_accepted() -> None:
    late = BACKLOG_NS // MS + 1
    given_up = GIVE_UP_NS // (100 * MS)
    out = backlog([late] * (given_up + 20))
    first = out.index("K")
    assert given_up <= first <= given_up + 4
    assert "." not in out[first:]
    assert backlog([late] * (given_up + 20) + [2 * late + 1] * 4)[-4:] == "...."  # a larger backlog is skipped again


def test_timeline_finds_frames_and_discards_earlier_ones() -> None:
    timeline = Timeline()
    frames = {pts: PacketInfo(pts, None, corrupt=False) for pts in (10, 30, 20, 40)}  # in decoding order
    for pts, frame in frames.items():
        timeline.put(pts, frame)
    assert timeline.take(20) is frames[20]
    assert timeline.take(10) is None
    assert timeline.take(25) is None
    assert timeline.take(30) is frames[30]
    assert timeline.take(40) is frames[40]
    assert timeline.take(40) is None


def test_stray_time_discards_no_later_frame() -> None:
    timeline = Timeline()
    times = (10, 20, 9_000_000, 40, 50, -7, 70)  # in decoding order, which is also the order of display
    for pts in times:
        timeline.put(pts, PacketInfo(pts, None, corrupt=False))
    assert [timeline.take(pts) for pts in times] == [PacketInfo(pts, None, corrupt=False) for pts in times]


def test_timeline_is_bounded() -> None:
    timeline = Timeline(capacity=3)
    for pts in range(5):
        timeline.put(pts, PacketInfo(pts, None, corrupt=False))
    assert [timeline.take(pts) is None for pts in range(5)] == [True, True, False, False, False]


def test_frame_that_passes_over_damaged_frames_counts_as_damaged() -> None:
    """A decoder can flush a damaged frame at a key frame. The damaged frame then has the time of the key frame."""
    timeline = Timeline()
    for pts in range(5):
        timeline.put(pts, PacketInfo(pts, None, corrupt=pts in {2, 3}))
    first, passed_over = timeline.take_through(1)
    assert first is not None
    assert (first.corrupt, list(passed_over)) == (False, [0])
    after, passed_over = timeline.take_through(4)
    assert after is not None
    assert (after.corrupt, list(passed_over)) == (True, [2, 3])
