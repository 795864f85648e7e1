"""NVDEC on the shipped clip, against FFmpeg on the CPU; and straight into the detector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.gpu.opening import EMULATED
from vision.capture.nvdec import NvdecVideo, available, encoding_of
from vision.cuda import Stream
from vision.detect.letterbox import to_bgr
from vision.device_image import DeviceImage
from vision.errors import EndOfStream, SizeChanged, SourceError

CLIP = Path(__file__).parents[2] / "configs" / "vtest.mp4"


@pytest.fixture
def video(device: object) -> Iterator[NvdecVideo]:
    if EMULATED or available() is not None:
        pytest.skip(f"no NVDEC: {available()}")
    with closing(NvdecVideo(CLIP, offline=True)) as opened:
        yield opened


def reference() -> Iterator[Any]:
    capture = cv2.VideoCapture(str(CLIP))
    try:
        while (read := capture.read())[0]:
            yield read[1]
    finally:
        capture.release()


def test_every_picture_as_ffmpeg_decodes_it(video: NvdecVideo) -> None:
    info = video.open()
    print(info, vars(video))
    assert (info.width_px, info.height_px, info.pixel_format) == (768, 576, "nv12")
    on_gpu = DeviceImage.make(576, 768, "nv12")
    on_host = np.zeros((864, 768), np.uint8)
    count, last_ns = 0, -1
    with Stream() as stream:
        for wanted in reference():
            grab = video.grab(1.0)
            assert grab is not None
            assert grab.pts_ns is not None
            assert grab.pts_ns > last_ns
            last_ns = grab.pts_ns
            video.retrieve(on_gpu)
            video.retrieve(on_host)
            if count % 20 == 0:
                np.testing.assert_array_equal(on_gpu.to_host(stream), on_host)
                assert np.abs(to_bgr(on_host, "nv12", info.yuv).astype(int) - wanted).mean() < 3
            count += 1
    assert count == 200
    with pytest.raises(EndOfStream, match="200 pictures"):
        video.grab(1.0)


def test_a_buffer_of_another_size(video: NvdecVideo) -> None:
    video.open()
    assert video.grab(1.0) is not None
    with pytest.raises(SizeChanged, match="768x576"):
        video.retrieve(np.zeros((3, 2), np.uint8))


def test_looped(device: object) -> None:
    if EMULATED or available() is not None:
        pytest.skip("no NVDEC")
    with closing(NvdecVideo(CLIP, offline=True, loop=True)) as video:
        video.open()
        times = [grab.pts_ns for _ in range(450) if (grab := video.grab(1.0)) is not None and grab.pts_ns is not None]
        assert len(times) == 450
        assert times == sorted(set(times))


def test_what_is_no_video(tmp_path: Path, device: object) -> None:
    if EMULATED or available() is not None:
        pytest.skip("no NVDEC")
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with closing(NvdecVideo(tmp_path / "a.mp4")) as video, pytest.raises(SourceError):
        video.open()
    with closing(NvdecVideo(tmp_path / "b.mp4")) as video, pytest.raises(SourceError, match="no such file"):
        video.open()


@pytest.mark.parametrize(
    ("name", "encoding"), [("BT_709", "bt709"), ("ColorSpace.BT_601", "bt601"), ("UNSPEC", "bt601")]
)
def test_colour_spaces(name: str, encoding: str) -> None:
    assert encoding_of(name) == encoding
