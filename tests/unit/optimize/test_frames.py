"""Tests of the choice of frames for calibration."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.unit.optimize.models import SPEC, cell_images, save_images
from vision.config import CameraConfig
from vision.errors import Closed, ConfigError, VisionError
from vision.optimize.frames import Collector, Frames, frames_of_cameras, frames_of_images
from vision.optimize.sampling import Candidate, choose, gray_cells, is_near_duplicate, spread


def ignore(_done: int) -> None:
    """Ignore the progress."""


def read(folder: Path, temporary: Path, count: int = 20) -> Frames:
    temporary.mkdir()
    return frames_of_images(folder, temporary, SPEC.input, count, ignore)


def test_images_are_scaled_to_the_input_and_stored(tmp_path: Path) -> None:
    images = cell_images(12)
    frames = read(save_images(tmp_path / "images", images), tmp_path / "t")
    assert len(frames.paths) == frames.sources.read == 12
    for expected, found in zip(images, frames.images(), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert len(list(frames.images(5))) == 5


def test_unreadable_images_are_skipped_and_counted(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "images", cell_images(10))
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("not an image")
    (folder / "notes.txt").write_text("not read")
    (folder / "half.png").write_bytes((folder / "001.png").read_bytes()[:60])
    sources = read(folder, tmp_path / "t").sources
    assert {Path(text.split(":")[0]).name for text in sources.unreadable} == {"empty.png", "text.jpg", "half.png"}
    assert sources.read == 10


def test_near_duplicates_do_not_count(tmp_path: Path) -> None:
    images = cell_images(8)
    noisy = [np.clip(image.astype(int) + 1, 0, 255).astype(np.uint8) for image in images]
    frames = read(save_images(tmp_path / "images", [*images, *noisy]), tmp_path / "t")
    assert len(frames.paths) == 8
    assert frames.sources.duplicates == 8


@pytest.mark.parametrize("images", [cell_images(1) * 40, cell_images(7)], ids=["identical", "few"])
def test_too_few_different_images_are_refused(tmp_path: Path, images: list[np.ndarray]) -> None:
    with pytest.raises(ConfigError) as caught:
        read(save_images(tmp_path / "images", images), tmp_path / "t")
    assert caught.value.code == "too-few-frames"


@pytest.mark.parametrize("exists", [True, False])
def test_folder_without_images_is_refused(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "images").mkdir()
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / "images", tmp_path / "t")
    assert caught.value.code == "no-images"


def test_number_of_stored_frames_is_bounded_and_spread_over_time(tmp_path: Path) -> None:
    collector = Collector("gate", tmp_path, SPEC.input, 10)
    for index in range(1000):
        frame = np.zeros((32, 32, 3), np.uint8)
        frame[index % 32, :, :] = 50 + index % 200
        frame[(index // 32) % 32] = 255 - index % 200
        collector.add(frame)
        assert len(list(tmp_path.iterdir())) <= 20
    assert collector.read == 1000
    assert 10 <= len(collector.candidates) <= 20


def test_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(VisionError) as caught:
        read(save_images(tmp_path / "images", cell_images(10)), tmp_path / "t")
    assert caught.value.code == "not-writable"


def test_cameras_are_read_to_their_end_and_a_missing_one_is_skipped(tmp_path: Path) -> None:
    cameras = [
        CameraConfig(id="a", source="synthetic:640x480@100?frames=60"),
        CameraConfig(id="b", source="synthetic:320x240@100?frames=60&seed=2"),
        CameraConfig(id="c", source=str(tmp_path / "missing.mp4")),
    ]
    frames = frames_of_cameras(cameras, tmp_path, SPEC.input, 24, seconds=1, step=ignore)
    assert Counter(path.name.split("-")[0] for path in frames.paths) == {"a": 12, "b": 12}
    assert frames.sources.read == 120
    assert len(frames.sources.unreadable) == 1
    assert set(tmp_path.iterdir()) == set(frames.paths)


def test_reading_stops_when_asked(tmp_path: Path) -> None:
    def stop(_done: int) -> None:
        raise Closed("stopped")

    cameras = [CameraConfig(id="a", source="synthetic:640x480@10")]
    with pytest.raises(Closed):
        frames_of_cameras(cameras, tmp_path, SPEC.input, 24, seconds=600, step=stop)


def candidates(camera: str, levels: Sequence[float]) -> list[Candidate]:
    return [Candidate(camera, number, np.full((24, 24), level, np.float32)) for number, level in enumerate(levels)]


def test_rare_brightness_and_each_camera_get_their_part() -> None:
    day_and_night = candidates("a", [100] * 90 + [10] * 10) + candidates("b", [100] * 50)
    chosen = choose(day_and_night, 30)
    assert Counter((each.camera, each.brightness) for each in chosen) == {("a", 100): 10, ("a", 10): 10, ("b", 100): 10}
    times = [each.number for each in chosen if each.camera == "b"]
    assert max(np.diff([-1, *times, 50])) <= 10


def test_all_are_chosen_if_there_are_too_few() -> None:
    few = candidates("a", [1, 100, 200])
    assert choose(few, 30) == few


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64, 65])
def test_spread_is_a_permutation(count: int) -> None:
    group = candidates("a", [0] * count)
    assert sorted(each.number for each in spread(group)) == list(range(count))


@pytest.mark.parametrize("shape", [(24, 24, 3), (480, 640, 3), (25, 1001, 3), (10, 10, 3)])
def test_gray_cells_are_means(shape: tuple[int, ...]) -> None:
    image = np.full(shape, 77, np.uint8)
    np.testing.assert_allclose(gray_cells(image), 77, rtol=1e-5)


def test_small_object_that_moves_is_no_duplicate() -> None:
    first = np.full((240, 240, 3), 100, np.uint8)
    second = first.copy()
    second[100:112, 50:56] = 200
    assert not is_near_duplicate(gray_cells(second), [gray_cells(first)])
    assert is_near_duplicate(gray_cells(first), [gray_cells(second), gray_cells(first)])
    assert not is_near_duplicate(gray_cells(first), [])
