"""Tests of all RTSP sources with a real server."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise

import pytest

from tests.rtsp.stage import (
    PATIENCE_S,
    Server,
    Watched,
    camera,
    clip_luma,
    codes_of_wrong_path,
    frame,
    opened,
    place_in_clip,
    silent_port,
    source_of,
    wait_until,
)
from vision.capture.source import Grab
from vision.errors import SourceError

PASSWORD = "hunter2"


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_stream_plays_over_the_configured_transport(server: Server, reader: str, transport: str) -> None:
    """The frames are frames of the clip in ascending order, and the server reports the configured transport."""
    clip_luma()  # takes time, during which frames would be missed
    played = server.lines.count(f"play /clip {transport}")
    with opened(camera(server.url("/clip"), reader, transport=transport)) as (source, info):
        assert (info.width_px, info.height_px) == (768, 576)
        assert source.live
        places = []
        for _ in range(6):
            grab = source.grab(PATIENCE_S)
            assert grab is not None
            assert not grab.corrupt
            assert 0 <= time.monotonic_ns() - grab.captured_ns < 5e9
            place, error = place_in_clip(frame(source, info)[0], info.pixel_format)
            assert error < 1.5
            places.append(place)
        assert all(0 < (after - before) % 200 < 20 for before, after in pairwise(places)), places
    wait_until(lambda: server.lines.count(f"play /clip {transport}") > played, f"the server to say {transport}")


@pytest.fixture(scope="module", params=["basic", "digest"])
def guarded(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server("--auth", request.param, "--user", "ann", "--password", PASSWORD) as running:
        yield running


def test_correct_password_is_accepted(guarded: Server, reader: str) -> None:
    with opened(camera(guarded.url("/private", f"ann:{PASSWORD}@"), reader)) as (source, _):
        assert source.grab(PATIENCE_S) is not None


@pytest.mark.parametrize(
    ("path", "account", "code"),
    [
        ("/private", "ann:hunter3-SECRET@", "unauthorized"),
        ("/private", "", "unauthorized"),
        ("/nosuch", f"ann:{PASSWORD}@", "no-stream"),
    ],
    ids=["wrong password", "no password", "wrong path"],
)
def test_refused_connection_names_the_cause_without_secrets(
    guarded: Server,
    reader: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    *,
    path: str,
    account: str,
    code: str,
) -> None:
    """The error names the cause. The error, the log, and the printed output contain no secret."""
    caplog.set_level(logging.DEBUG)
    config = camera(guarded.url(path, account), reader)
    source = source_of(config)
    try:
        with pytest.raises(SourceError) as raised:
            source.open()
    finally:
        source.close()
    with Watched(config) as watched:
        watched.wait_state("backing-off")
    expected = codes_of_wrong_path() if code == "no-stream" and reader == "gstreamer" else (code,)
    assert raised.value.code in expected
    printed = capfd.readouterr()
    for text in (str(raised.value), repr(raised.value), *watched.errors, caplog.text, printed.out, printed.err):
        assert PASSWORD not in text
        assert "SECRET" not in text
        assert "ann:" not in text
    assert any(raised.value.args[0] in error for error in watched.errors)


def test_interrupt_ends_a_waiting_open(reader: str) -> None:
    with silent_port() as port:
        source = source_of(camera(f"rtsp://127.0.0.1:{port}/clip", reader, open_timeout_s=60))
        failures: list[SourceError] = []

        def connect() -> None:
            try:
                source.open()
            except SourceError as error:
                failures.append(error)

        thread = threading.Thread(target=connect)
        thread.start()
        time.sleep(0.3)  # the source now waits for an answer; an earlier interrupt must work as well
        assert_ends_soon(thread, source.interrupt)
        assert failures[0].code == "interrupted"
        with pytest.raises(SourceError) as raised:
            source.open()
        assert raised.value.code == "interrupted"
        source.close()


def test_interrupt_ends_a_waiting_grab(reader: str) -> None:
    with Server() as own, opened(camera(own.url("/clip"), reader)) as (source, _):
        assert source.grab(PATIENCE_S) is not None
        own.freeze()
        while source.grab(0.5) is not None:
            pass
        results: list[object] = []
        thread = threading.Thread(target=lambda: results.append(source.grab(60)))
        thread.start()
        time.sleep(0.3)
        assert_ends_soon(thread, source.interrupt)
        assert results == [None]


def assert_ends_soon(thread: threading.Thread, interrupt: Callable[[], None]) -> None:
    interrupt()
    thread.join(30)
    assert not thread.is_alive()


def test_frames_after_a_loss_are_marked_until_a_key_frame(server: Server, reader: str) -> None:
    """The server damages frame 25. The next key frame is frame 40. All frames without a mark must be intact."""
    marked: dict[str, set[int]] = {"tcp": set(), "udp": set()}
    clean: dict[str, set[int]] = {"tcp": set(), "udp": set()}
    with ExitStack() as stack:
        playing = {
            transport: stack.enter_context(opened(camera(server.url("/lossy"), reader, transport=transport)))
            for transport in marked
        }
        while min(max(places, default=0) for places in clean.values()) < 42:
            for transport, (source, info) in playing.items():
                grab = source.grab(PATIENCE_S)
                assert grab is not None
                place, error = place_in_clip(frame(source, info)[0], info.pixel_format)
                assert grab.corrupt or error == 0.0
                (marked if grab.corrupt else clean)[transport].add(place)
    for transport in playing:
        assert marked[transport]
        assert marked[transport] <= set(range(25, 40))
        assert clean[transport] & set(range(25))  # a busy machine receives only some of them
        assert not clean[transport] & set(range(26, 40))


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_capture_times_come_from_sender_reports(server: Server, reader: str, transport: str) -> None:
    with opened(camera(server.url("/clip"), reader, transport=transport)) as (source, _):
        stamped: list[tuple[Grab, int, int]] = []
        deadline = time.monotonic() + PATIENCE_S
        while len(stamped) < 10 and time.monotonic() < deadline:
            grab = source.grab(PATIENCE_S)
            assert grab is not None
            if grab.clock == "rtcp":
                stamped.append((grab, time.time_ns(), time.monotonic_ns()))
    assert len(stamped) == 10
    for grab, utc_ns, now_ns in stamped:
        assert 0 <= now_ns - grab.captured_ns < 1e9
        assert abs(utc_ns - grab.captured_utc_ns) < 1e9
    times = [grab.captured_ns for grab, _, _ in stamped]
    assert times == sorted(set(times))
