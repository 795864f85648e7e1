"""Tests with cameras that are absent at the start, that are lost, that hang, or that change their frame size.

All sources pass through the outages at the same time, so that the tests wait only once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise

import pytest

from tests.rtsp.stage import Server, Watched, camera, refusing_port, silent_port

LIBRARIES = ("gstreamer", "ffmpeg")


def watch_all(stack: ExitStack, url: str) -> dict[str, Watched]:
    return {reader: stack.enter_context(Watched(camera(url, reader))) for reader in LIBRARIES}


@pytest.fixture(scope="module")
def outage() -> Iterator[dict[str, Watched]]:
    """Start cameras without a server. Then start the server, kill it, and restart it after 5 s."""
    with ExitStack() as stack:
        with refusing_port() as port:
            cameras = watch_all(stack, f"rtsp://127.0.0.1:{port}/clip")
            for watched in cameras.values():
                watched.wait_state("backing-off")
        first = stack.enter_context(Server(port=port))
        for watched in cameras.values():
            watched.wait_frames(3)
        first.kill()
        killed_s = time.monotonic()
        for watched in cameras.values():
            watched.wait_loss()
        time.sleep(max(0.0, killed_s + 5.0 - time.monotonic()))
        stack.enter_context(Server(port=port))
        for watched in cameras.values():
            watched.wait_frames(3)
        yield cameras


def test_camera_that_is_absent_at_the_start_is_connected_later(outage: dict[str, Watched], reader: str) -> None:
    watched = outage[reader]
    assert watched.states.index("backing-off") < watched.states.index("streaming")
    assert watched.errors[0].startswith("rtsp://127.0.0.1:")
    assert not watched.errors[0].endswith("; "), "a hint"
    assert watched.recorder.metas[0].epoch == 0


def test_restarted_server_is_connected_again(outage: dict[str, Watched], reader: str) -> None:
    watched = outage[reader]
    states = watched.states[watched.states.index("streaming") :]
    assert "backing-off" in states
    assert states[-1] == "streaming"
    assert watched.status.reconnects == 1


def test_each_connection_starts_an_epoch(outage: dict[str, Watched], reader: str) -> None:
    metas = outage[reader].recorder.metas
    epochs = [meta.epoch for meta in metas]
    assert sorted(set(epochs)) == [0, 1]
    assert epochs == sorted(epochs)
    for epoch in (0, 1):
        indices = [meta.index for meta in metas if meta.epoch == epoch]
        assert indices == list(range(len(indices)))


@pytest.fixture(scope="module")
def company(server: Server) -> Iterator[dict[str, list[Watched]]]:
    """Start four cameras per library: one refuses, one hangs, one freezes after 12 frames, and one works."""
    with ExitStack() as stack:
        freezing = stack.enter_context(Server())
        refusing, silent = stack.enter_context(refusing_port()), stack.enter_context(silent_port())
        dead = [f"rtsp://127.0.0.1:{refusing}/clip", f"rtsp://127.0.0.1:{silent}/clip", freezing.url("/clip")]
        cameras = {
            reader: [stack.enter_context(Watched(camera(url, reader))) for url in (*dead, server.url("/clip"))]
            for reader in LIBRARIES
        }
        for of_library in cameras.values():
            of_library[2].wait_frames(12)
        freezing.freeze()
        for of_library in cameras.values():
            of_library[2].wait_state("frozen")
            of_library[1].wait_state("backing-off")
        freezing.thaw()
        for of_library in cameras.values():
            of_library[2].wait_frames(3)
        yield cameras


def test_dead_camera_does_not_delay_another(company: dict[str, list[Watched]], reader: str) -> None:
    """With a shared lock, the timeouts of the dead cameras (5 s) would delay the working camera."""
    refusing, silent, _, works = company[reader]
    assert refusing.recorder.metas == silent.recorder.metas == []
    assert set(works.states) - {"connecting"} == {"streaming"}
    assert works.errors == []
    assert max(after - before for before, after in pairwise(works.recorder.arrived_ns)) < 2e9
    assert [meta.index for meta in works.recorder.metas] == list(range(len(works.recorder.metas)))


def test_stopped_stream_is_frozen_until_it_continues(company: dict[str, list[Watched]], reader: str) -> None:
    states = company[reader][2].states
    assert states[states.index("frozen") - 1] == "streaming"
    assert states[-1] == "streaming"
    assert "ended" not in states


@pytest.fixture(scope="module")
def switching(server: Server) -> Iterator[dict[str, Watched]]:
    """Watch a camera whose frame size changes every 2 s."""
    with ExitStack() as stack:
        cameras = watch_all(stack, server.url("/switch"))
        for watched in cameras.values():
            watched.wait_grabbed(45)  # across two changes
        yield cameras


def test_size_change_starts_an_epoch(switching: dict[str, Watched], reader: str) -> None:
    """Each change of the frame size starts a new epoch within the same connection."""
    watched = switching[reader]
    metas = watched.recorder.metas
    sizes = {m.epoch: {(n.width_px, n.height_px) for n in metas if n.epoch == m.epoch} for m in metas}
    assert all(len(of_epoch) == 1 for of_epoch in sizes.values())
    assert watched.status.reconnects == 0
    assert watched.errors == []
    seen = [next(iter(sizes[epoch])) for epoch in sorted(sizes)]
    assert set(seen) <= {(768, 576), (384, 288)}
    assert all(before != after for before, after in pairwise(seen))
    assert len(seen) >= 3
