"""What handing over between the program's threads takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vision.benchmark.demand import Demand, demands
from vision.benchmark.frames import shipped_clip
from vision.benchmark.handover import AT_ONCE, Delays, Stamps, handover_of, measure_handover, stand_ins
from vision.benchmark.pipeline import ThreadCosts
from vision.capture.synthetic.spec import SyntheticSpec
from vision.config import AppConfig
from vision.test_pattern import FAKE_CLASSES

TURNS = ThreadCosts(results_ms=0.1, loop_ms=0.05, camera_ms=0.1)
MS = 1_000_000


def site(*sources: str) -> AppConfig:
    cameras = [{"id": f"c{n}", "source": source} for n, source in enumerate(sources)]
    return AppConfig.model_validate({"cameras": cameras, "detect": {"backend": "fake"}})


def stamps(camera_id: str, *at_ms: float) -> Stamps:
    return Stamps(camera_id, *(round(ms * MS) for ms in at_ms))


def test_delays_keep_their_distribution() -> None:
    drawn = np.random.default_rng(1).exponential(1.0, 10_000)
    delays = Delays.of(drawn)
    again = np.array(delays.quantiles_ms(1000))
    assert delays.count == 10_000
    for part in (0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99):
        assert np.quantile(again, part) == pytest.approx(np.quantile(drawn, part), rel=0.03)
    assert again.max() <= drawn.max()
    assert (np.diff(again) >= 0).all()


def test_no_delays_are_none() -> None:
    assert Delays.of(np.empty(0)).quantiles_ms(3) == [0.0, 0.0, 0.0]
    assert handover_of([], {}, 1.0) == AT_ONCE


def test_a_turn_of_ones_own_is_no_hand_over() -> None:
    """Due at 0; a turn of 2 ms of its camera's ends at 5, one of the loop at 6, one of 3 ms with its result at 11."""
    found = handover_of([stamps("a", 0, 5, 6, 6, 11)], {"a": 2.0}, 3.0)
    assert found.frame.ms[0] == found.frame.ms[-1] == pytest.approx(3.0)
    assert found.batch.ms[-1] == pytest.approx(2.0)


def test_turns_of_others_are_no_hand_over_either() -> None:
    """The second frame is due at 7, in the turn of the results thread from 6 to 9 ms, and its own begins at 9."""
    first, second = stamps("a", 0, 5, 6, 6, 9), stamps("b", 7, 11, 12, 12, 15)
    found = handover_of([first, second], {"a": 5.0, "b": 2.0}, 3.0)
    assert found.frame.ms[-1] == pytest.approx(0.0)


def test_turns_that_seem_to_overlap_are_counted_once() -> None:
    """Turns are known by their usual length: two that ended together took no longer than that."""
    pair = [stamps("a", 0, 10, 11, 11, 12), stamps("b", 0, 10, 11, 11, 13)]
    found = handover_of(pair, {"a": 4.0, "b": 4.0}, 1.0)
    assert found.frame.ms == (pytest.approx(6.0),) * len(found.frame.ms)


def test_only_a_results_thread_that_slept_is_handed_over_to() -> None:
    """The second batch was done at 7, when the first was still being published, until 9."""
    first, second = stamps("a", 0, 5, 6, 6, 9), stamps("a", 5, 6.5, 7, 7, 14)
    assert handover_of([first, second], {"a": 0.5}, 1.0).batch.count == 1


@pytest.mark.parametrize("fps", [2.0, 30.0])
def test_every_camera_has_a_stand_in(fps: float) -> None:
    live = Demand("c0", fps, None, 320, 240, "nv12", 0.0, 0.0, 0.0)
    wanted = [replace(live, camera_id=f"c{n}") for n in range(4)]
    found = [SyntheticSpec.parse(one.source) for one in stand_ins(site(*["rtsp://x/y"] * 4).cameras, wanted, TURNS)]
    assert {(one.width_px, one.height_px, one.pixel_format) for one in found} == {(320, 240, "nv12")}
    assert sum(one.fps for one in found) == pytest.approx(max(200.0, 4 * fps))
    begins_s = [one.stall[1] for one in found if one.stall is not None]
    assert np.diff(begins_s) == pytest.approx([1 / 200] * 3, abs=1e-4)  # spread over the time between two frames


def test_stand_ins_leave_python_time_to_sleep() -> None:
    many = [Demand(f"c{n}", 30.0, None, 64, 48, "bgr", 0.0, 0.0, 0.0) for n in range(100)]
    found = stand_ins(site(*["rtsp://x/y"] * 100).cameras, many, TURNS)
    assert sum(SyntheticSpec.parse(one.source).fps for one in found) == pytest.approx(0.3 / 0.25e-3, rel=0.01)


def test_recordings_and_generators_stand_in_for_themselves() -> None:
    cameras = [one.model_copy(update={"max_fps": 1.0}) for one in site(shipped_clip(), "synthetic:64x48@10").cameras]
    clip, generator = stand_ins(cameras, demands(cameras, ("bgr",)), TURNS)
    assert (clip.source, clip.loop, clip.max_fps) == (shipped_clip(), True, None)
    assert SyntheticSpec.parse(generator.source).stall == (1, 0.0)


def test_hand_overs_are_measured_on_the_program_itself() -> None:
    config = site("synthetic:64x48@30", "rtsp://127.0.0.1:1/x")
    live = Demand("c1", 30.0, None, 64, 48, "bgr", 0.0, 0.0, 0.0)
    wanted = [*demands(config.cameras[:1], ("bgr",)), live]
    found = measure_handover(config, FAKE_CLASSES, 3, wanted, TURNS, seconds=0.5)
    for delays in (found.frame, found.batch):
        assert delays.count >= 10
        assert 0 <= delays.ms[0] <= delays.ms[5] <= delays.ms[-1]
    assert found.frame.ms[-1] > 0
