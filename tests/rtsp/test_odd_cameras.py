"""Tests of all reader libraries with RTSP cameras that send wrong times or use certificates."""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext

from tests.rtsp.stage import Watched, camera, frame, opened, source_of
from tests.rtsp_camera import RtspCamera, regular, rtsp_camera, small_frames
from vision.errors import SourceError

CERTIFICATES = Path(__file__).parents[1] / "certificates"
WATCHED_S = 5.0  # FFmpeg lost frames from 2 s on

TIMES: dict[str, Callable[[int], float]] = {
    "regular": regular,
    "half pace": lambda index: index / 20,
    "a tenth": lambda index: index / 100,
    "double pace": lambda index: index / 5,
    "stray ahead": lambda index: index / 10 + (1000 if index % 20 == 13 else 0),
    "stray behind": lambda index: 100 + index / 10 - (50 if index % 20 == 13 else 0),
    "always the same": lambda index: 0.0 * index,
    "in pairs": lambda index: index // 2 / 5,
    "one jump": lambda index: index / 10 + (3600 if index > 20 else 0),
    "around the end of 32 bits": lambda index: 2**32 / 90_000 - 2 + index / 10,
}


@pytest.fixture(scope="module")
def watched() -> dict[tuple[str, str], tuple[int, int, Counter[str], list[str]]]:
    """Watch all cameras with all libraries at the same time.

    Return, for each camera and library, the number of sent frames, the number of committed frames, the drops, and the
    states.
    """
    results: dict[tuple[str, str], tuple[int, int, Counter[str], list[str]]] = {}

    def watch(name: str, reader: str) -> None:
        served = RtspCamera(small_frames(), time_s=TIMES[name])
        with rtsp_camera(served) as url, Watched(camera(url, reader)) as watching:
            watching.wait_frames(1)
            time.sleep(WATCHED_S)
            sent = len(served.sent)
            recorder = watching.recorder
            dropped = Counter(reason.value for reason in list(recorder.dropped))
            results[name, reader] = sent, len(recorder.metas), dropped, list(watching.states)

    threads = [
        threading.Thread(target=watch, args=(name, reader)) for name in TIMES for reader in ("ffmpeg", "gstreamer")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("times", TIMES)
def test_every_frame_is_delivered_whatever_its_time(
    watched: dict[tuple[str, str], tuple[int, int, Counter[str], list[str]]], reader: str, times: str
) -> None:
    sent, committed, dropped, states = watched[times, reader]
    assert sent > 0.8 * WATCHED_S * 10
    assert states[-1] == "streaming"
    assert not dropped["corrupt"]
    assert 0.7 * sent <= committed + sum(dropped.values()) <= sent  # on a busy machine, some are still on their way


@pytest.mark.parametrize(
    ("certificate", "tls", "code"),
    [
        ("self_signed", "verify", "certificate"),
        ("self_signed", "issuer", "certificate"),
        ("self_signed", "self_signed", None),
        ("issued", "verify", "certificate"),
        ("issued", "issuer", None),
        ("expired", "issuer", "certificate"),
        ("other_host", "other_host", "certificate"),
        ("other_host", "accept-any", None),
        ("self_signed", "missing", "tls-file"),
    ],
)
def test_certificate_is_checked_as_configured(reader: str, certificate: str, tls: str, code: str | None) -> None:
    policy = tls if tls in ("verify", "accept-any") else str(CERTIFICATES / f"{tls}.pem")
    with rtsp_camera(RtspCamera(), certificate=CERTIFICATES / f"{certificate}.pem") as url:
        source = source_of(camera(url, reader, tls=policy))
        try:
            if code is None:
                source.open()
                assert source.grab(10) is not None
                return
            with pytest.raises(SourceError) as raised:
                source.open()
            assert raised.value.code == code
            assert raised.value.hint
        finally:
            source.close()


@pytest.mark.parametrize("status", ["401 Unauthorized", "404 Not Found"])
def test_refusal_has_the_same_code_in_all_libraries(reader: str, status: str) -> None:
    with rtsp_camera(RtspCamera(status=status)) as url:
        source = source_of(camera(url, reader))
        with pytest.raises(SourceError) as raised:
            source.open()
        source.close()
    assert raised.value.code == {"401": "unauthorized", "404": "no-stream"}[status[:3]]


ORIENTATIONS = [f"rotate={angle}{flip}" for angle in (0, 90, 180, 270) for flip in ("", ":flip=horizontal")]


def oriented(orientation: str) -> tuple[bytes, ...]:
    """Return coded frames that are preceded by a message with their orientation."""
    scene = np.zeros((96, 128, 3), np.uint8)
    scene[:24, :64], scene[72:, :32] = 255, 128
    encoder = av.CodecContext.create("libx264", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 128, 96, "yuv420p", Fraction(1, 10)
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "g": "5", "x264-params": "sliced-threads=0"}
    coded: list[bytes] = []
    for number in range(10):
        image = av.VideoFrame.from_ndarray(scene, format="rgb24").reformat(format="yuv420p")
        image.pts = number
        coded += [bytes(packet) for packet in encoder.encode(image)]
    path = f"h264_metadata=display_orientation=insert:{orientation}"
    with av.open(io.BytesIO(b"".join(coded)), format="h264") as container:
        stream = container.streams.video[0]
        change = BitStreamFilterContext(path, stream)
        return tuple(bytes(out) for one in container.demux(stream) if one.size for out in change.filter(one))


def test_frames_are_shown_as_the_stream_specifies() -> None:
    """For each of the eight orientations, all libraries deliver the same correctly oriented frames."""
    shown: dict[str, dict[str, bytes]] = {"ffmpeg": {}, "gstreamer": {}}
    for orientation in ORIENTATIONS:
        with rtsp_camera(RtspCamera(oriented(orientation))) as url:
            for reader, frames in shown.items():
                with opened(camera(url, reader)) as (source, info):
                    assert source.grab(10) is not None
                    pixels, height_px, _ = frame(source, info)
                    turned = "90" in orientation or "270" in orientation
                    assert (info.width_px, info.height_px) == ((96, 128) if turned else (128, 96))
                    frames[orientation] = bytes(pixels[:height_px] // 64)
    assert shown["ffmpeg"] == shown["gstreamer"]
    assert len(set(shown["ffmpeg"].values())) == 8
