"""The rehearsal of a site, what limits it, and what to change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision.benchmark.advice import Site, advice, fair_fps, limit, loads
from vision.benchmark.demand import Demand
from vision.benchmark.handover import Delays, Handover
from vision.benchmark.model import BatchCost, DetectorCost, HostCost, forecast, stretch, unhindered
from vision.benchmark.samples import Durations
from vision.runtime.results import RESULT_QUEUE_SIZE

CAMERA = Demand("a", 30.0, None, 768, 576, "bgr", grab_ms=0.0, retrieve_ms=0.0, cpu_ms=0.0)
HOST = HostCost(cores=16.0, results_ms=0.0, loop_ms=0.0, camera_ms=0.0)
SITE = Site(gpu=True, precision="fp16", encoding="json", objects_per_frame=5.0, model_input=(416, 416))


def detector(
    ms: float = 10.0, *, parallel: int = 1, max_batch: int = 1, cores: float = 0.1, **other: object
) -> DetectorCost:
    """Batches of any size take `ms`."""
    batches = {size: BatchCost(ms, ms / parallel) for size in (1, max_batch)}
    return replace(DetectorCost("test", max_batch, parallel, parallel, batches, cores), **other)  # type: ignore[arg-type]


def cameras(count: int, **other: object) -> list[Demand]:
    return [replace(CAMERA, camera_id=f"camera-{n}", **other) for n in range(count)]  # type: ignore[arg-type]


def test_a_camera_with_room_loses_nothing_and_waits_for_nothing() -> None:
    found = forecast(cameras(1), detector(10.0), HOST)
    assert found.cameras[0].published_per_s == pytest.approx(30, rel=0.02)
    assert found.cameras[0].dropped_per_s == 0
    assert found.cameras[0].latency.p50_ms == pytest.approx(10.0)
    assert found.cameras[0].latency.p99_ms == pytest.approx(10.0)
    assert found.detector_busy == pytest.approx(0.3, rel=0.05)


def test_a_detector_that_is_too_slow_serves_all_cameras_alike() -> None:
    found = forecast(cameras(4), detector(20.0), HOST)  # 120 asked for, 50 done
    assert found.published_per_s == pytest.approx(50, rel=0.02)
    assert found.dropped_per_s == pytest.approx(70, rel=0.05)
    for camera in found.cameras:
        assert camera.published_per_s == pytest.approx(12.5, rel=0.05)
        assert camera.latency.p99_ms <= 20 + 1000 / 30 + 0.1  # the newest frame is no older than one interval
    assert found.detector_busy == pytest.approx(1.0, rel=0.01)


def test_a_slow_camera_keeps_its_frames_where_fast_ones_lose_theirs() -> None:
    site = [replace(CAMERA, camera_id="slow", fps=5.0), *cameras(3)]
    found = forecast(site, detector(20.0), HOST)
    assert found.cameras[0].published_per_s == pytest.approx(5.0, rel=0.06)
    assert found.cameras[0].dropped_per_s == 0


def test_max_fps_is_kept() -> None:
    found = forecast(cameras(2, max_fps=10.0), detector(1.0), HOST)
    for camera in found.cameras:
        assert camera.published_per_s == pytest.approx(10.0, rel=0.03)
        assert camera.dropped_per_s == pytest.approx(20.0, rel=0.05)


def test_batches_hold_what_waits() -> None:
    found = forecast(cameras(32), detector(10.0, max_batch=8), HOST)  # 960 asked for, 800 done in full batches
    assert found.published_per_s == pytest.approx(800, rel=0.02)
    assert found.mean_batch == pytest.approx(8, rel=0.01)


def test_two_batches_at_once_do_twice_as_much() -> None:
    one, two = (forecast(cameras(8), detector(10.0, parallel=count), HOST) for count in (1, 2))
    assert two.published_per_s == pytest.approx(2 * one.published_per_s, rel=0.03)


def test_an_old_frame_is_dropped_and_not_inferred() -> None:
    found = forecast(cameras(4, max_frame_age_s=0.005), detector(20.0), HOST)
    assert found.published_per_s < 50
    assert all(camera.latency.max_ms <= 25 + 0.1 for camera in found.cameras)


def test_retrieving_is_waited_for() -> None:
    found = forecast(cameras(1, retrieve_ms=4.0), detector(10.0), HOST)
    assert found.cameras[0].latency.p50_ms == pytest.approx(14.0)


def test_the_results_thread_limits_what_the_detector_could_do() -> None:
    found = forecast(cameras(32), detector(1.0, max_batch=32), replace(HOST, results_ms=2.0))
    assert found.published_per_s == pytest.approx(500, rel=0.03)
    assert found.dropped_per_s == pytest.approx(460, rel=0.05)
    assert found.python_busy == pytest.approx(1.0, rel=0.03)


def test_all_threads_of_python_share_one_turn() -> None:
    host = replace(HOST, results_ms=0.5, loop_ms=0.25, camera_ms=0.25)
    found = forecast(cameras(40), detector(0.1, max_batch=8), host)  # 1200 ms of Python a second
    assert found.published_per_s == pytest.approx((1000 - 1200 * 0.25) / 0.75, rel=0.05)


def test_frames_that_cannot_all_be_decoded() -> None:
    found = forecast(cameras(10, cpu_ms=20.0), detector(1.0), replace(HOST, cores=4.0))  # six cores asked for
    assert found.slowed_cameras == pytest.approx(4 * 0.95 / 6, rel=0.01)
    assert found.published_per_s == pytest.approx(300 * found.slowed_cameras, rel=0.03)
    assert found.dropped_per_s == pytest.approx(300 * (1 - found.slowed_cameras), rel=0.05)


def test_decoding_takes_the_cpu_from_a_detector_that_uses_it() -> None:
    on_cpu = detector(20.0, cores=2.0)
    free = forecast(cameras(4), on_cpu, replace(HOST, cores=2.0))
    shared = forecast(cameras(4, cpu_ms=1000 / 120), on_cpu, replace(HOST, cores=2.0))  # one core of the two
    assert free.stretch == pytest.approx(1.0)
    assert shared.stretch == pytest.approx(2.0, rel=0.01)
    assert shared.published_per_s == pytest.approx(free.published_per_s / 2, rel=0.03)


def test_a_copy_that_is_larger_than_what_was_measured() -> None:
    host = replace(HOST, copy_gb_per_s=1.0)
    measured = CAMERA.nbytes
    same = forecast(cameras(1), detector(10.0, frame_bytes=measured), host)
    larger = forecast(cameras(1, width_px=1536, height_px=1152), detector(10.0, frame_bytes=measured), host)
    assert same.cameras[0].latency.p50_ms == pytest.approx(10.0)
    assert larger.cameras[0].latency.p50_ms == pytest.approx(10.0 + 3 * measured / 1e6, rel=0.01)


def test_single_batches_scatter_as_measured() -> None:
    spread = Durations(100, 10.0, 3.0, 8.0, 9.0, 15.0, 30.0, 40.0)
    cost = DetectorCost("test", 1, 1, 1, {1: BatchCost(10.0, 10.0, spread)}, 0.1)
    found = forecast(cameras(1, fps=10.0), cost, HOST).cameras[0].latency
    assert found.p50_ms == pytest.approx(9.0, rel=0.1)
    assert 25 <= found.p99_ms <= 40


def test_a_batch_is_filled_up_to_a_size_that_was_measured() -> None:
    cost = DetectorCost("test", 8, 1, 1, {1: BatchCost(1, 1), 4: BatchCost(3, 2), 8: BatchCost(5, 4)}, 0.1)
    assert [cost.cost(size).interval_ms for size in (1, 2, 4, 5, 8, 16)] == [1, 2, 2, 4, 4, 8]
    assert cost.best_rate_per_s(1) == 1000
    assert cost.best_rate_per_s(100) == 2000


def test_the_same_seed_says_the_same() -> None:
    site, host = cameras(5, cpu_ms=1.0, retrieve_ms=0.3), replace(HOST, handover=Handover(ROUGH, ROUGH))
    assert forecast(site, detector(7.0), host, seed=3) == forecast(site, detector(7.0), host, seed=3)


def test_latency_of_all_cameras_is_that_of_all_their_frames() -> None:
    site = [replace(CAMERA, camera_id="near", fps=99.0), replace(CAMERA, camera_id="far", fps=1.0, retrieve_ms=50.0)]
    found = forecast(site, detector(1.0, parallel=2), HOST)
    assert found.cameras[1].latency.p50_ms == pytest.approx(51.0)
    assert found.latency.p50_ms == pytest.approx(1.0)
    assert found.latency.count == sum(camera.latency.count for camera in found.cameras)


# ------------------------------------------------------------------------------------------------ hand-overs

ROUGH = Delays.of(np.concatenate([np.full(97, 1.0), np.full(3, 30.0)]))  # one in 33 takes long


def always(ms: float) -> Delays:
    return Delays.of(np.array([ms]))


def test_a_frame_is_late_by_its_hand_overs() -> None:
    host = replace(HOST, handover=Handover(always(2.0), always(3.0)))
    found = forecast(cameras(1), detector(10.0), host).latency
    assert found.p50_ms == pytest.approx(15.0)
    assert found.p99_ms == pytest.approx(15.0)


def test_a_hand_over_that_is_rarely_slow_is_the_tail() -> None:
    host = replace(HOST, handover=Handover(ROUGH, always(0.0)))
    found = forecast(cameras(1, fps=10.0), detector(10.0), host).latency
    assert found.p50_ms == pytest.approx(11.0)
    assert found.p99_ms == pytest.approx(40.0)


def test_turns_of_python_are_waited_for_once() -> None:
    """A hand-over is measured without the turns of others, so it comes after those that go on."""
    host = replace(HOST, camera_ms=4.0, handover=Handover(always(3.0), always(0.0)))
    together = cameras(2, in_step=True, drawn=True, open_ms=2.0)  # the second frame comes 2 + 3 ms after the first
    first, second = forecast(together, detector(10.0, parallel=2), host).cameras
    assert first.latency.p50_ms == pytest.approx(3 + 4 + 10)
    assert second.latency.p50_ms == pytest.approx(2 + 3 + 4 + 10)  # the first one's turn ends 2 ms after it came


def test_a_results_thread_that_is_busy_is_not_handed_over_to() -> None:
    host = replace(HOST, results_ms=1.9, handover=Handover(always(0.0), always(5.0)))
    found = forecast(cameras(16), detector(1.0, max_batch=16), host)  # 480 asked for, 526 done
    assert found.published_per_s == pytest.approx(480, rel=0.02)
    assert found.dropped_per_s == 0


def test_a_frame_that_comes_while_a_batch_runs_is_seen_a_little_later() -> None:
    """The inference thread waits for the batch then, and looks for frames once in a millisecond."""
    site = cameras(2, in_step=True, drawn=True, open_ms=2.3)  # the second one comes 2.3 ms after the first
    first, second = forecast(site, detector(10.0, parallel=2), HOST).cameras
    assert first.latency.p50_ms == pytest.approx(10.0)
    assert second.latency.p50_ms == pytest.approx(10.7)


def test_frames_wait_for_each_other_only_where_they_come_together() -> None:
    """One by one, generators begin soon after each other, and recordings once their files are open."""
    near = [replace(CAMERA, in_step=True, drawn=True, open_ms=1.0)] * 2
    far = [replace(CAMERA, in_step=True, open_ms=12.0)] * 2
    host = replace(HOST, cores=1.0)
    assert forecast(near, detector(10.0), host).cameras[1].latency.p50_ms == pytest.approx(19.0)
    assert forecast(far, detector(10.0), host).latency.max_ms == pytest.approx(10.0)


def test_a_camera_with_max_fps_gives_a_fresh_frame_in_each_turn() -> None:
    """Its turns follow from its first frame, which comes later than the others after they were due."""
    first_is_late = Delays.of(np.concatenate([np.full(999, 0.5), [4.0]]))
    host = replace(HOST, handover=Handover(first_is_late, always(0.0)))
    site = cameras(1, fps=20.0, max_fps=5.0, in_step=True, drawn=True, open_ms=7.0)
    found = forecast(site, detector(10.0), host).latency
    assert found.p50_ms == pytest.approx(14.0, abs=1.0)  # and not 64: the frame before it


def test_what_a_forecast_says_is_no_matter_of_one_start() -> None:
    """Frames of two cameras that come together in one run may come one after the other in the next."""
    tails = [forecast(cameras(2), detector(10.0), HOST, seed=seed, seconds=5).latency.max_ms for seed in range(9)]
    assert min(tails) > 11


def test_a_site_without_cameras() -> None:
    with pytest.raises(ValueError, match="at least one camera"):
        forecast([], detector(), HOST)


@given(
    count=st.integers(1, 12),
    fps=st.floats(1, 60),
    ms=st.floats(0.2, 80),
    parallel=st.integers(1, 3),
    max_batch=st.integers(1, 8),
    max_fps=st.none() | st.floats(1, 40),
    results_ms=st.floats(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_every_frame_is_published_or_dropped(
    *,
    count: int,
    fps: float,
    ms: float,
    parallel: int,
    max_batch: int,
    max_fps: float | None,
    results_ms: float,
) -> None:
    site = cameras(count, fps=fps, max_fps=max_fps)
    cost = detector(ms, parallel=parallel, max_batch=max_batch)
    found = forecast(site, cost, replace(HOST, results_ms=results_ms), seconds=10.0)
    # May wait at the end, or have waited at the beginning.
    queued = RESULT_QUEUE_SIZE + (1 + parallel) * max_batch + 2 * count
    assert found.published_per_s + found.dropped_per_s == pytest.approx(count * fps, abs=(queued + 1) / 9)
    assert 0 <= found.detector_busy <= 1
    assert 0 <= found.python_busy <= 1
    if max_fps is not None:
        assert found.published_per_s <= count * max_fps * 1.12 + count


@pytest.mark.parametrize(
    ("wanted", "cores", "others", "expected"),
    [(2.0, 2.0, 0.0, 1.0), (2.0, 2.0, 1.0, 2.0), (0.5, 2.0, 1.0, 1.0), (2.0, 2.0, 5.0, 40.0), (2.0, 1.0, 0.0, 2.0)],
)
def test_stretch(wanted: float, cores: float, others: float, expected: float) -> None:
    assert stretch(wanted, cores, others) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("wanted", "cores", "others", "expected"),
    [(2.0, 2.0, 0.0, 1.0), (2.0, 2.0, 1.0, 0.5), (0.5, 2.0, 1.0, 1.0), (0.0, 2.0, 1.0, 1.0), (2.0, 2.0, 9.0, 0.025)],
)
def test_unhindered(wanted: float, cores: float, others: float, expected: float) -> None:
    assert unhindered(wanted, cores, others) == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------ what limits


@pytest.mark.parametrize(
    ("site", "cost", "host", "expected"),
    [
        (cameras(8), detector(10.0), HOST, "detector"),
        (cameras(2, grab_ms=40.0, cpu_ms=40.0), detector(1.0), HOST, "decode"),  # one thread a camera
        (cameras(20, cpu_ms=15.0), detector(1.0, max_batch=20), replace(HOST, cores=8.0), "decode"),
        (cameras(32), detector(1.0, max_batch=32), replace(HOST, copy_gb_per_s=1.0), "copy"),
        (cameras(32), detector(1.0, max_batch=32), replace(HOST, results_ms=2.0), "results thread"),
    ],
)
def test_the_limit_is_named(site: list[Demand], cost: DetectorCost, host: HostCost, expected: str) -> None:
    found = loads(site, cost, host)
    assert found[0].resource == expected
    assert found[0].share > 1
    assert limit(found).startswith(f"The {expected} limits")
    assert forecast(site, cost, host).dropped_per_s > 0 or expected == "decode"
    assert advice(found, site, cost, host, SITE)


def test_nothing_limits_and_there_is_room() -> None:
    found = loads(cameras(4), detector(4.0), HOST)
    assert limit(found) == "Nothing limits. The detector comes nearest, at 48% (120.0 of 250.0 frames/s)."
    assert advice(found, cameras(4), detector(4.0), HOST, SITE) == (
        "There is room for about 3 more cameras like these.",
    )


def test_just_reached() -> None:
    found = loads(cameras(1), detector(1000 / 30.5), HOST)
    assert "just reached" in limit(found)


def test_room_for_none_is_no_advice() -> None:
    found = loads(cameras(1), detector(1000 / 40), HOST)
    assert advice(found, cameras(1), detector(1000 / 40), HOST, SITE) == ()


def test_the_advised_rate_drops_nothing_by_chance() -> None:
    site, cost = cameras(4), detector(20.0)
    fps = fair_fps(site, 0.95 * 50)
    assert fps == pytest.approx(0.95 * 50 / 4)
    limited = forecast([replace(each, max_fps=fps) for each in site], cost, HOST)
    free = forecast(site, cost, HOST)
    assert limited.published_per_s == pytest.approx(0.95 * 50, rel=0.03)
    assert max(c.latency.p99_ms for c in limited.cameras) <= max(c.latency.p99_ms for c in free.cameras) + 20


@pytest.mark.parametrize(
    ("fps", "rate", "expected"),
    [([10, 10], 100, 10), ([10, 10], 10, 5), ([2, 10, 10], 12, 5), ([1, 2, 30], 10, 7), ([5], 5, 5)],
)
def test_fair_shares(fps: list[float], rate: float, expected: float) -> None:
    assert fair_fps([replace(CAMERA, fps=each) for each in fps], rate) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("site", "cost", "host", "about", "expected"),
    [
        (cameras(8), detector(10.0), HOST, replace(SITE, precision="fp32"), "precision: fp16"),
        (cameras(8), detector(10.0), HOST, SITE, "max_batch: 8"),
        (cameras(8, cpu_ms=30.0), detector(10.0, cores=16.0), HOST, replace(SITE, gpu=False), "Decoding takes 45%"),
        (cameras(8), detector(10.0, cores=16.0), HOST, replace(SITE, gpu=False), "A GPU"),
        (cameras(2, grab_ms=40.0), detector(1.0), HOST, SITE, "in the cameras themselves"),
        (
            cameras(2, grab_ms=40.0, width_px=1920, height_px=1080),
            detector(1.0),
            HOST,
            SITE,
            "smaller stream of camera-0",
        ),
        (cameras(32), detector(1.0, max_batch=32), replace(HOST, copy_gb_per_s=1.0), SITE, "NV12"),
        (cameras(32), detector(1.0, max_batch=32), replace(HOST, results_ms=2.0), SITE, "msgpack"),
        (
            cameras(32),
            detector(1.0, max_batch=32),
            replace(HOST, results_ms=2.0),
            replace(SITE, encoding="msgpack", objects_per_frame=80.0),
            "80 objects",
        ),
    ],
)
def test_advice(site: list[Demand], cost: DetectorCost, host: HostCost, about: Site, expected: str) -> None:
    assert any(expected in sentence for sentence in advice(loads(site, cost, host), site, cost, host, about))


def test_no_advice_that_was_followed() -> None:
    nv12 = cameras(64, pixel_format="nv12")
    host = replace(HOST, copy_gb_per_s=1.0)
    cost = detector(1.0, max_batch=64)
    assert not any("NV12" in each for each in advice(loads(nv12, cost, host), nv12, cost, host, SITE))
