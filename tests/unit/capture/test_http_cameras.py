"""Tests of HTTP cameras as they really occur: odd multipart streams, bare JPEGs, snapshots, playlists, and faults."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from tests.http_cameras import (
    CLIP,
    Answer,
    LiveHls,
    MotionJpeg,
    Request,
    bare_jpegs,
    head,
    http_camera,
    jpeg,
    live_container,
    refused,
    snapshot,
    stored,
)
from tests.paths import ROOT
from tests.unit.scripted_camera import RecordingSink
from vision.capture.ffmpeg.source import FFmpegSource
from vision.capture.open import supervisor_policy
from vision.capture.source import Grab, StreamInfo
from vision.capture.supervisor import CameraSupervisor
from vision.config import CameraConfig
from vision.errors import SourceError
from vision.types import DropReason, FrameBuffer

CERTIFICATES = ROOT / "tests" / "certificates"


def source_of(url: str, **settings: object) -> FFmpegSource:
    camera = CameraConfig.model_validate({"id": "gate", "source": url, "reader": "ffmpeg", **settings})
    return FFmpegSource(camera, ("bgr",))


@contextmanager
def opened(answer: Answer, path: str = "/live", **settings: object) -> Iterator[tuple[FFmpegSource, StreamInfo]]:
    with http_camera(answer) as url, closing(source_of(url + path, **settings)) as source:
        yield source, source.open()


def grab(source: FFmpegSource) -> Grab:
    grabbed = source.grab(20)
    assert grabbed is not None
    return grabbed


def numbers(source: FFmpegSource, info: StreamInfo, count: int) -> list[int]:
    """Return the numbers of the next frames, modulo 24."""
    buffer = FrameBuffer.allocate(info.height_px, info.width_px, info.pixel_format)
    found = []
    for _ in range(count):
        grab(source)
        source.retrieve(buffer)
        found.append(round(float(np.median(buffer.require_host())) / 10))
    return found


def consecutive(found: list[int]) -> bool:
    return all(after == (before + 1) % 24 for before, after in pairwise(found))


# --- streams of JPEGs -------------------------------------------------------------------------------------------------

ODD: dict[str, Answer] = {
    "regular": MotionJpeg(50),
    "image/jpg": MotionJpeg(50, part_type="image/jpg"),
    "image/pjpeg": MotionJpeg(50, part_type="image/pjpeg"),
    "upper case": MotionJpeg(50, part_type="IMAGE/JPEG"),
    "untyped parts": MotionJpeg(50, part_type=None),
    "no length": MotionJpeg(50, length_error=None),
    "neither type nor length": MotionJpeg(50, part_type=None, length_error=None),
    "length of the line end too": MotionJpeg(50, length_error=2),
    "too short": MotionJpeg(50, length_error=-3),
    "boundary with dashes": MotionJpeg(50, boundary="--frame", announced="--frame", dashes=""),
    "dashes twice": MotionJpeg(50, announced="--frame"),
    "boundary in quotes": MotionJpeg(50, announced='"frame"'),
    "wrong boundary": MotionJpeg(50, announced="other"),
    "no boundary": MotionJpeg(50, content_type="multipart/x-mixed-replace"),
    "boundary of spaces": MotionJpeg(50, boundary="my frame", announced="my frame"),
    "line feeds only": MotionJpeg(50, newline="\n"),
    "multipart/mixed": MotionJpeg(50, content_type="multipart/mixed; boundary=frame"),
    "text/plain": MotionJpeg(50, content_type="text/plain"),
    "octets": MotionJpeg(50, content_type="application/octet-stream"),
    "bare": bare_jpegs(50),
    "bare, no type": bare_jpegs(50, None),
    "bare, video": bare_jpegs(50, "video/x-motion-jpeg"),
}


@pytest.mark.parametrize("kind", ODD)
def test_every_jpeg_of_a_stream_is_delivered(kind: str) -> None:
    with opened(ODD[kind]) as (source, info):
        found = numbers(source, info, 12)
        assert consecutive(found), found
        assert found[0] == 0
        assert info.fps is None  # FFmpeg would report 25
        assert info.decoder == "pyav-mjpeg"
        assert not source.skipped.take()


@pytest.mark.integration
def test_every_frame_is_delivered_at_any_rate() -> None:
    """FFmpeg invents timestamps at 25 frames/s, which do not show the lateness of a frame."""
    counts: dict[float, tuple[int, int, int]] = {}

    def watch(fps: float) -> None:
        camera = MotionJpeg(fps)
        with opened(camera) as (source, _):
            ends, grabbed = time.monotonic() + 4.5, 0
            while time.monotonic() < ends:
                grabbed += source.grab(0.1) is not None
            skipped = sum(source.skipped.take().values())
        counts[fps] = len(camera.sent), grabbed, skipped

    threads = [threading.Thread(target=watch, args=(fps,)) for fps in (1, 2, 5, 10, 15, 20, 60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counts) == len(threads)
    for fps, (sent, grabbed, skipped) in counts.items():
        assert sent - max(3, fps / 3) <= grabbed <= sent, (fps, sent, grabbed)
        assert skipped == 0, fps


def test_truncated_jpegs_are_counted_as_corrupt() -> None:
    camera = MotionJpeg(50, frames=lambda number: jpeg(number)[: 300 if number % 4 == 2 else None])
    with opened(camera) as (source, info):
        found = numbers(source, info, 12)
        assert all(number % 4 != 2 for number in found)
        assert source.skipped.take() == {DropReason.CORRUPT: 4}


def test_jpeg_that_the_decoder_refuses_is_counted_as_corrupt() -> None:
    def frames(number: int) -> bytes:
        return b"\xff\xd8\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00\x11\x22\xff\xd9" if number == 3 else jpeg(number)

    with opened(MotionJpeg(50, frames=frames)) as (source, info):
        numbers(source, info, 8)
        assert sum(source.skipped.take().values()) == 1


def test_end_of_a_stream_is_an_error() -> None:
    with opened(stored(jpeg(1) + jpeg(2), "image/jpeg")) as (source, info):
        assert numbers(source, info, 2) == [1, 2]
        with pytest.raises(SourceError) as raised:
            source.grab(20)
        assert raised.value.code == "stream-ended"


# --- snapshots --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_length", [True, False])
@pytest.mark.parametrize("content_type", ["image/jpeg", "image/jpg", None])
def test_snapshot_is_requested_at_the_configured_rate(content_type: str | None, *, with_length: bool) -> None:
    """All snapshots belong to one connection, so messages show a single epoch."""
    with opened(snapshot(content_type, with_length=with_length), "/snap.jpg", fps=50) as (source, info):
        found = numbers(source, info, 8)
        assert found == list(range(8))
        assert info.fps == (50 if with_length else None)


def test_snapshot_is_requested_once_a_second_by_default() -> None:
    with opened(snapshot()) as (source, info):
        grabs = [grab(source) for _ in range(3)]
        assert info.fps == 1
    assert all(0.8e9 < after.captured_ns - before.captured_ns < 2e9 for before, after in pairwise(grabs))


def test_snapshot_that_is_refused_later_ends_the_connection() -> None:
    def answer(request: Request) -> None:
        (snapshot() if request.count < 3 else refused("503 Busy"))(request)

    with opened(answer, fps=50) as (source, info):
        assert numbers(source, info, 3) == [0, 1, 2]
        with pytest.raises(SourceError) as raised:
            source.grab(20)
        assert raised.value.code == "busy"


# --- bursts and files -------------------------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize("gops", [1, 3])
def test_live_playlist_is_delivered_at_its_own_pace(gops: int) -> None:
    """Segments of 2 s and 6 s arrive in bursts, but their frames are captured at 10 frames/s."""
    with opened(LiveHls(gops), "/live.m3u8", max_frame_age_s=20) as (source, _):
        times = [grab(source).captured_ns for _ in range(45)]
        assert not source.skipped.take()
    steps = [after - before for before, after in pairwise(times)]
    assert 0.08e9 < np.mean(steps) < 0.12e9
    assert max(steps) < 1.5e9


@pytest.mark.integration
@pytest.mark.parametrize("with_length", [True, False])
def test_video_file_is_delivered_at_its_own_pace(*, with_length: bool) -> None:
    with opened(stored(CLIP, "video/mp4", with_length=with_length), "/walk.mp4", max_frame_age_s=20) as (source, info):
        assert info.fps == 10
        times = [grab(source).captured_ns for _ in range(15)]
    assert 0.08e9 < np.mean(np.diff(times)) < 0.13e9


def short_clip(folder: Path, frames: int) -> Path:
    """Write a motion JPEG AVI file with 50 frames/s. Return its path."""
    clip = folder / "short.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 50, (64, 48))
    for number in range(frames):
        writer.write(np.full((48, 64, 3), 20 * (number % 10), np.uint8))
    writer.release()
    return clip


@contextmanager
def supervised(answer: Answer, path: str) -> Iterator[tuple[CameraSupervisor, RecordingSink]]:
    """Run the supervisor of a camera until the end of the `with` block, as the program does."""
    sink = RecordingSink()
    with http_camera(answer) as url:
        camera = CameraConfig.model_validate({"id": "gate", "source": url + path, "reader": "ffmpeg"})
        supervisor = CameraSupervisor("gate", lambda: FFmpegSource(camera, ("bgr",)), sink, supervisor_policy(camera))
        thread = threading.Thread(target=supervisor.run)
        thread.start()
        try:
            yield supervisor, sink
        finally:
            supervisor.stop()
            thread.join()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_video_file_ends_like_a_file(tmp_path: Path) -> None:
    """The end of the file is not a connection loss. After a loss, the camera would restart."""
    with supervised(stored(short_clip(tmp_path, 10)), "/short.avi") as (supervisor, sink):
        wait_for(lambda: supervisor.status().state == "ended" or supervisor.status().reconnects > 0)
        status = supervisor.status()
    assert (status.state, status.reconnects, status.epoch, len(sink.metas)) == ("ended", 0, 0, 10)


def test_video_file_that_arrives_only_in_part_is_a_lost_connection(tmp_path: Path) -> None:
    data = short_clip(tmp_path, 150).read_bytes()

    def cut(request: Request) -> None:
        request.write(head("video/x-msvideo", len(data)) + data[: len(data) // 2])

    with supervised(cut, "/short.avi") as (supervisor, _):
        wait_for(lambda: supervisor.status().state in ("backing-off", "ended"))
        assert supervisor.status().state == "backing-off"


def test_playlist_that_ends_is_a_lost_connection() -> None:
    """When an encoder restarts, it ends its playlist, and continues the playlist after the restart."""
    live = LiveHls(gops=1)

    def ended(request: Request) -> None:
        written: list[bytes] = []
        live(replace(request, write=written.append))
        answer = b"".join(written)
        if not request.path.endswith(".ts"):
            text = answer.partition(b"\r\n\r\n")[2] + b"#EXT-X-ENDLIST\n"
            answer = head("application/vnd.apple.mpegurl", len(text)) + text
        request.write(answer)

    with supervised(ended, "/live.m3u8") as (supervisor, _):
        wait_for(lambda: supervisor.status().state in ("backing-off", "ended"))
        assert supervisor.status().state == "backing-off"


@pytest.mark.integration
@pytest.mark.parametrize("name", ["mpegts", "flv"])
def test_announced_sound_that_never_comes_does_not_delay_the_video(name: str) -> None:
    """FFmpeg would wait for 5 s, which is longer than `open_timeout_s` of this test."""
    with opened(live_container(name, announces_sound=True), open_timeout_s=3) as (source, info):
        assert (info.width_px, info.height_px) == (768, 576)
        for _ in range(5):
            grab(source)
        assert not source.skipped.take()


# --- faults -----------------------------------------------------------------------------------------------------------


def ssh(request: Request) -> None:
    request.write(b"SSH-2.0-OpenSSH\r\n\r\n")


def no_jpeg(_number: int) -> bytes:
    return b"x" * 100


PNG = bytes(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (stored(b"<html>Log in</html>", "text/html"), "no-video"),
        (stored(b'{"a": 1}', "application/json"), "no-video"),
        (stored(PNG, "image/png"), "no-video"),
        (stored(b"", "video/mp4"), "no-video"),
        (stored(b"not a video at all", "video/mp4"), "codec"),
        (refused("401 Unauthorized", 'WWW-Authenticate: Basic realm="cam"\r\n'), "unauthorized"),
        (refused("403 Forbidden"), "forbidden"),
        (refused("404 Not Found"), "no-stream"),
        (refused("500 Internal Server Error"), "camera-error"),
        (refused("503 Service Unavailable"), "busy"),
        (ssh, "not-a-camera"),
        (MotionJpeg(50, frames=no_jpeg), "no-frame"),
    ],
)
def test_useless_answer_is_an_error_that_names_the_cause(answer: Answer, code: str) -> None:
    with http_camera(answer) as url, closing(source_of(f"{url}/live", open_timeout_s=0.7)) as source:
        with pytest.raises(SourceError) as raised:
            source.open()
        assert raised.value.code == code
        assert raised.value.hint


def test_unknown_host_is_the_error_at_once() -> None:
    with closing(source_of("http://nowhere.invalid/live")) as source:
        with pytest.raises(SourceError) as raised:
            source.open()
        assert raised.value.code == "unknown-host"


def basic(request: Request) -> bool:
    return request.user == "Basic YW5uOnNlY3JldA=="  # ann:secret


def digest(request: Request) -> bool:
    given = dict(re.findall(r'(\w+)="([^"]*)"', request.user))

    def md5(text: str) -> str:
        return hashlib.md5(text.encode()).hexdigest()

    answer = md5(f"{md5('ann:cam:secret')}:n0nce:{md5('GET:' + request.path)}")
    return given.get("username") == "ann" and given.get("response") == answer


@pytest.mark.parametrize(
    ("check", "challenge"), [(basic, 'Basic realm="cam"'), (digest, 'Digest realm="cam", nonce="n0nce"')]
)
@pytest.mark.parametrize("password", ["secret", "wrong"])
def test_user_and_password_are_checked_by_the_camera(check: object, challenge: str, password: str) -> None:
    def answer(request: Request) -> None:
        assert callable(check)
        (MotionJpeg(50) if check(request) else refused("401 No", f"WWW-Authenticate: {challenge}\r\n"))(request)

    with http_camera(answer) as url, closing(source_of(f"{url}/live", user="ann", password=password)) as source:
        if password == "secret":
            source.open()
            return
        with pytest.raises(SourceError) as raised:
            source.open()
        assert raised.value.code == "unauthorized"
        assert "wrong" not in str(raised.value)
        assert "ann" not in str(raised.value)


# --- certificates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("certificate", "tls", "code"),
    [
        ("self_signed", "verify", "certificate"),
        ("self_signed", "accept-any", None),
        ("self_signed", "self_signed", None),
        ("self_signed", "issuer", "certificate"),
        ("issued", "verify", "certificate"),
        ("issued", "issuer", None),
        ("expired", "issuer", "certificate"),
        ("expired", "accept-any", None),
        ("other_host", "other_host", "certificate"),
        ("other_host", "accept-any", None),
        ("self_signed", "missing", "tls-file"),
    ],
)
@pytest.mark.parametrize("kind", ["jpegs", "ffmpeg"])
def test_certificate_is_checked_as_configured(kind: str, certificate: str, tls: str, code: str | None) -> None:
    answer: Answer = MotionJpeg(50) if kind == "jpegs" else stored(CLIP, "video/mp4")
    policy = tls if tls in ("verify", "accept-any") else str(CERTIFICATES / f"{tls}.pem")
    with (
        http_camera(answer, certificate=CERTIFICATES / f"{certificate}.pem") as url,
        closing(source_of(f"{url}/live", tls=policy)) as source,
    ):
        if code is None:
            source.open()
            grab(source)
            return
        with pytest.raises(SourceError) as raised:
            source.open()
        assert raised.value.code == code


def test_http_on_a_tls_port_is_named() -> None:
    with http_camera(MotionJpeg(50)) as url, closing(source_of(url.replace("http", "https"))) as source:
        with pytest.raises(SourceError) as raised:
            source.open()
        assert raised.value.code == "tls"


def test_client_that_leaves_ends_no_server() -> None:
    """`http_camera` must still serve the next client after a client has closed its connection."""
    with http_camera(MotionJpeg(50)) as url:
        for _ in range(3):
            with closing(source_of(url)) as source, suppress(SourceError):
                source.open()
    assert head("text/plain", 1).startswith(b"HTTP/1.0 200 OK\r\n")


# --- orientation ------------------------------------------------------------------------------------------------------


def with_exif_orientation(data: bytes, orientation: int) -> bytes:
    """Return a JPEG whose EXIF data specifies an orientation from 1 to 8."""
    tiff = b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00" + bytes([orientation, 0, 0, 0]) + bytes(4)
    segment = b"Exif\x00\x00" + tiff
    return data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_jpeg_is_that_of_opencv(orientation: int) -> None:
    """OpenCV and FFmpeg 8 rotate images according to their EXIF data. Earlier versions of FFmpeg ignore these data."""
    y, x = np.mgrid[0:48, 0:64]
    scene = np.stack([4 * x, 5 * y, np.full_like(x, 60)], axis=2).astype(np.uint8)
    data = with_exif_orientation(bytes(cv2.imencode(".jpg", scene)[1].tobytes()), orientation)
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert shown is not None
    with opened(MotionJpeg(50, frames=lambda number: data[: len(data) - 0 * number])) as (source, info):
        grab(source)
        buffer = FrameBuffer.allocate(info.height_px, info.width_px, "bgr")
        source.retrieve(buffer)
    if av.library_versions["libavcodec"][0] < 62:
        pytest.skip("this FFmpeg ignores EXIF data")
    assert buffer.require_host().shape == shown.shape
    assert np.abs(buffer.require_host().astype(int) - shown).mean() < 4
