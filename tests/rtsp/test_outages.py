"""What happens to cameras: they go away, hang, change their picture, and are not there to begin with.

Both sources go through every outage at the same time, so that it is waited for once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise

import pytest

from tests.rtsp.stage import (
    Server,
    Watched,
    camera,
    refusing_port,
    silent_port,
)

BOTH = ("opencv", "gstreamer")


def watch_both(stack: ExitStack, url: str, **settings: object) -> dict[str, Watched]:
    return {via: stack.enter_context(Watched(camera(url, via, **settings))) for via in BOTH}


@pytest.fixture(scope="module")
def outage() -> Iterator[dict[str, Watched]]:
    """The server is killed, and comes back after 5 s."""
    with ExitStack() as stack:
        first = stack.enter_context(Server())
        cameras = watch_both(stack, first.url("/clip"))
        for watched in cameras.values():
            watched.wait_frames(3)
        first.kill()
        killed_s = time.monotonic()
        for watched in cameras.values():
            watched.wait_state("backing-off")
        while time.monotonic() - killed_s < 5.0:
            time.sleep(0.1)
        stack.enter_context(Server(port=first.port))
        for watched in cameras.values():
            watched.wait_frames(3)
        yield cameras


def test_a_server_that_comes_back_is_found_again(outage: dict[str, Watched], via: str) -> None:
    watched = outage[via]
    states = [state for state in watched.states if state in ("streaming", "backing-off")]
    assert states[0] == "streaming"
    assert states[-1] == "streaming"
    assert "backing-off" in states
    epochs = [meta.epoch for meta in watched.recorder.metas]
    assert sorted(set(epochs)) == [0, 1]
    assert epochs == sorted(epochs)
    assert watched.status.reconnects == 1


def test_frames_are_numbered_anew_in_each_epoch(outage: dict[str, Watched], via: str) -> None:
    for epoch in (0, 1):
        indices = [meta.index for meta in outage[via].recorder.metas if meta.epoch == epoch]
        assert indices[0] == 0
        assert all(after > before for before, after in pairwise(indices))


@pytest.fixture(scope="module")
def freeze() -> Iterator[dict[str, Watched]]:
    """The server is stopped until its cameras count as frozen, and goes on."""
    with ExitStack() as stack:
        server = stack.enter_context(Server())
        cameras = watch_both(stack, server.url("/clip"))
        for watched in cameras.values():
            watched.wait_frames(12)
        server.freeze()
        for watched in cameras.values():
            watched.wait_state("frozen")
        server.thaw()
        for watched in cameras.values():
            watched.wait_frames(3)
        yield cameras


def test_a_stream_that_stops_counts_as_frozen_until_it_goes_on(freeze: dict[str, Watched], via: str) -> None:
    states = freeze[via].states
    assert states.index("streaming") < states.index("frozen")
    assert states[-1] == "streaming"
    assert "ended" not in states


@pytest.fixture(scope="module")
def late_start() -> Iterator[dict[str, Watched]]:
    """Nothing listens when the cameras start."""
    with ExitStack() as stack:
        with refusing_port() as port:
            cameras = watch_both(stack, f"rtsp://127.0.0.1:{port}/clip")
            for watched in cameras.values():
                watched.wait_state("backing-off")
        stack.enter_context(Server(port=port))
        for watched in cameras.values():
            watched.wait_frames(3)
        yield cameras


def test_a_camera_that_refuses_at_start_is_found_later(late_start: dict[str, Watched], via: str) -> None:
    watched = late_start[via]
    assert watched.states[:2] == ["connecting", "backing-off"]
    assert watched.states[-1] == "streaming"
    assert watched.recorder.metas[0].epoch == 0
    assert watched.status.reconnects == 0
    assert watched.errors[0].startswith("rtsp://127.0.0.1:")
    assert "hint: " in watched.errors[0]


@pytest.fixture(scope="module")
def company(server: Server) -> Iterator[dict[str, list[Watched]]]:
    """Per library: a camera that works, behind one that refuses, one that hangs, and one that freezes meanwhile."""
    with ExitStack() as stack:
        freezing = stack.enter_context(Server())
        refusing, silent = stack.enter_context(refusing_port()), stack.enter_context(silent_port())
        dead = [f"rtsp://127.0.0.1:{refusing}/clip", f"rtsp://127.0.0.1:{silent}/clip", freezing.url("/clip")]
        cameras = {
            via: [stack.enter_context(Watched(camera(url, via))) for url in (*dead, server.url("/clip"))]
            for via in BOTH
        }
        for of_library in cameras.values():
            of_library[2].wait_frames(12)
        freezing.freeze()
        for of_library in cameras.values():
            of_library[1].wait_state("backing-off")
            of_library[2].wait_state("frozen")
        yield cameras


def test_a_dead_camera_disturbs_no_other(company: dict[str, list[Watched]], via: str) -> None:
    """Not while the others connect, nor later: a lock that they shared would stop it for their time-outs, 5 s."""
    refusing, silent, _, works = company[via]
    assert refusing.status.reconnects == silent.status.reconnects == 0
    assert works.states[-1] == "streaming"
    assert set(works.states) <= {"connecting", "streaming"}
    assert works.errors == []
    arrived_ns, metas = works.recorder.arrived_ns, works.recorder.metas
    assert max(after - before for before, after in pairwise(arrived_ns)) < 2e9
    assert [meta.index for meta in metas] == list(range(len(metas)))
