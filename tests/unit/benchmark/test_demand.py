"""What cameras ask for, where that is not as for any other camera: recordings and generators of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from vision.benchmark.demand import demand, demands
from vision.benchmark.frames import shipped_clip
from vision.config import CameraConfig
from vision.errors import SourceError


def camera(source: str, camera_id: str = "a", **other: object) -> CameraConfig:
    return CameraConfig.model_validate({"id": camera_id, "source": source, **other})


def test_recordings_and_generators_begin_with_the_program() -> None:
    clip, generator = demand(camera(shipped_clip()), ("bgr",)), demand(camera("synthetic:64x48@10"), ("bgr",))
    assert clip.in_step
    assert generator.in_step
    assert not clip.drawn
    assert generator.drawn
    assert clip.open_ms > generator.open_ms > 0  # a file is opened and its first frame decoded


def test_a_live_camera_begins_at_any_time() -> None:
    found = demand(camera("rtsp://127.0.0.1:1/x", open_timeout_s=1, reader="opencv"), ("bgr",))
    assert not found.in_step
    assert not found.drawn


@pytest.mark.parametrize("source", ["/no/such/file.mp4", __file__, "synthetic:64x48@10?objects=many"])
def test_what_is_of_this_machine_and_gives_no_frame_is_an_error(source: str) -> None:
    with pytest.raises(SourceError):
        demand(camera(source), ("bgr",))


def test_all_of_them_are_named(tmp_path: Path) -> None:
    (tmp_path / "no.mp4").write_bytes(b"no video")
    cameras = [camera(str(tmp_path / "no.mp4"), "x"), camera("synthetic:64x48", "y"), camera("/no/such.mp4", "z")]
    with pytest.raises(SourceError, match=r"(?s)x: .*no\.mp4.*\nz: /no/such\.mp4"):
        demands(cameras, ("bgr",))
