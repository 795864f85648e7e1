"""Tests that a moved camera is realigned or reported as moved, and that changes of light and objects have no effect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.paths import ROOT
from vision.analytics.camera_view import (
    INTERVAL_S,
    WIDTH_PX,
    Similarity,
    ViewTracker,
    distance,
    moved,
    view_image,
)
from vision.config.analytics import CameraAnalytics

Pixels = NDArray[np.uint8]
Level = NDArray[np.floating[Any]]
WIDTH, HEIGHT = 560, 420
ALLOWED = 0.005
IDENTITY = np.eye(2, 3)
LEARNING = 5


@pytest.fixture(scope="module")
def square() -> Pixels:
    """Return the first frame of the demo video, which is larger than the frames that the tests use."""
    capture = cv2.VideoCapture(str(ROOT / "configs" / "vtest.mp4"))
    frame = capture.read()[1]
    assert frame is not None
    return cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY).astype(np.uint8)


@pytest.fixture(scope="module")
def video() -> list[Pixels]:
    """Return frames of the demo video at intervals of `INTERVAL_S`."""
    capture = cv2.VideoCapture(str(ROOT / "configs" / "vtest.mp4"))
    step = round(capture.get(cv2.CAP_PROP_FPS) * INTERVAL_S)
    frames: list[Pixels] = []
    while capture.grab():
        if len(frames) * step < capture.get(cv2.CAP_PROP_POS_FRAMES):
            frame = capture.retrieve()[1]
            frames.append(np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), np.uint8))
    return frames


def pose(x: float = 0.0, y: float = 0.0, rotation_deg: float = 0.0, zoom: float = 1.0) -> Similarity:
    """Return the similarity (2, 3) of a shifted, rotated, and zoomed camera. Shifts are in frame widths."""
    angle = np.radians(rotation_deg)
    turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    center = np.array([WIDTH, HEIGHT]) / 2
    return np.column_stack([turn, center - turn @ center + np.array([x, y]) * WIDTH])


def seen(scene: Pixels, view: Similarity) -> Pixels:
    middle = np.array([[1, 0, (WIDTH - scene.shape[1]) / 2], [0, 1, (HEIGHT - scene.shape[0]) / 2], [0, 0, 1]])
    return np.asarray(cv2.warpAffine(scene, view @ middle, (WIDTH, HEIGHT)), np.uint8)


class Camera:
    def __init__(self, tracker: ViewTracker | None = None) -> None:
        self.tracker = tracker or ViewTracker()
        self.now_s = 0.0

    def see(self, *frames: Pixels, boxes: Sequence[tuple[float, ...]] = ()) -> str:
        for frame in frames:
            boxes_xyxy = np.array(boxes, np.float32).reshape(-1, 4)
            self.tracker.update(view_image(frame, boxes_xyxy), self.now_s)
            self.now_s += INTERVAL_S
        return self.tracker.state


def expected(view: Similarity) -> Similarity:
    """Convert a similarity between frames to a similarity between the smaller images that the tracker compares."""
    return np.column_stack([view[:, :2], view[:, 2] * WIDTH_PX / WIDTH])


def error(tracker: ViewTracker, view: Similarity) -> float:
    return distance(tracker.view, expected(view), (WIDTH_PX * HEIGHT // WIDTH, WIDTH_PX))


@pytest.mark.parametrize("seed", range(10))
def test_moved_camera_is_realigned_within_ten_seconds(square: Pixels, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shift_x, shift_y = rng.uniform(-0.08, 0.08, 2).tolist()
    view, camera = pose(shift_x, shift_y, rng.uniform(-5, 5), rng.uniform(0.9, 1.1)), Camera()
    assert camera.see(*[seen(square, pose())] * LEARNING) == "aligned"
    assert camera.see(*[seen(square, view)] * 4) == "aligned"
    assert error(camera.tracker, view) < ALLOWED
    assert camera.see(*[seen(square, pose())] * 3) == "aligned"
    assert error(camera.tracker, pose()) < ALLOWED


def test_one_displaced_image_changes_nothing(square: Pixels) -> None:
    """For example, a truck that shakes the mast moves the camera only briefly."""
    camera, frame = Camera(), seen(square, pose())
    camera.see(*[frame] * LEARNING)
    assert camera.see(seen(square, pose(0.05))) == "unsure"
    assert camera.see(frame) == "aligned"
    assert error(camera.tracker, pose()) == 0


@pytest.mark.parametrize("change", ["dark", "bright", "shadow", "noise", "half hidden"])
def test_light_and_objects_move_nothing(square: Pixels, change: str) -> None:
    rng, camera, frame = np.random.default_rng(1), Camera(), seen(square, pose())
    camera.see(*[frame] * LEARNING)
    level = frame.astype(float)
    if change == "dark":
        level *= 0.25
    elif change == "bright":
        level = level * 1.6 + 30
    elif change == "shadow":
        level[:, : WIDTH // 2] *= 0.4
    elif change == "noise":
        level += rng.normal(0, 15, level.shape)
    else:
        level[HEIGHT // 4 : 3 * HEIGHT // 4, WIDTH // 8 : 7 * WIDTH // 8] = cv2.resize(
            rng.uniform(0, 255, (14, 28)), (3 * WIDTH // 4, HEIGHT // 2)
        )
    assert camera.see(*[np.clip(level, 0, 255).astype(np.uint8)] * 5) == "aligned"
    assert error(camera.tracker, pose()) < ALLOWED


def exposure(frame: Level, rng: np.random.Generator) -> Level:
    return np.asarray(frame * np.exp(rng.normal(0, 0.7)))


def gamma(frame: Level, rng: np.random.Generator) -> Level:
    return np.asarray(255 * (frame / 255) ** np.exp(rng.normal(0, 0.6)))


def shadows(frame: Level, rng: np.random.Generator) -> Level:
    coarse = (rng.uniform(0, 1, (24, 32)) > 0.5).astype(np.float32)
    return frame * (0.3 + 0.7 * np.asarray(cv2.resize(coarse, frame.shape[::-1]), np.float32))


def people(frame: Level, rng: np.random.Generator) -> Level:
    crowded = np.array(frame)
    for x, y in rng.uniform((0, 0), (frame.shape[1] - 40, frame.shape[0] - 100), (150, 2)).astype(int).tolist():
        crowded[y : y + 100, x : x + 40] = cv2.resize(rng.uniform(0, 255, (8, 4)), (40, 100))
    return crowded


@pytest.mark.parametrize("change", [exposure, gamma, shadows, people], ids=lambda change: change.__name__)
def test_changes_in_a_real_video_move_nothing(video: list[Pixels], change: Callable[..., Level]) -> None:
    rng, camera = np.random.default_rng(3), Camera()
    assert camera.see(*video[:LEARNING]) == "aligned"
    for frame in video * 2:
        state = camera.see(np.clip(change(frame.astype(np.float64), rng), 0, 255).astype(np.uint8))
        assert state in ("aligned", "unsure")
        assert distance(camera.tracker.view, IDENTITY, (3, 4)) == 0


def test_light_that_is_switched_off_is_no_cover(video: list[Pixels]) -> None:
    rng, camera = np.random.default_rng(4), Camera()
    camera.see(*video[:LEARNING])
    noise = rng.normal(0, 0.7, video[0].shape)
    assert camera.see(*[np.clip(frame * 0.02 + noise, 0, 255).astype(np.uint8) for frame in video]) == "dark"
    assert camera.see(*video) == "aligned"


def test_background_is_not_learned_in_the_dark(video: list[Pixels]) -> None:
    """A program that starts at night must recognize the scene when the light is switched on."""
    rng, camera = np.random.default_rng(4), Camera()
    for frame in video:
        noisy = np.clip(frame * 0.03 + rng.normal(0, 8, frame.shape), 0, 255).astype(np.uint8)
        assert camera.see(noisy) == "learning"
    assert {camera.see(frame) for frame in video} == {"learning", "aligned"}
    assert camera.tracker.state == "aligned"


def occluded(frame: Pixels, part: float) -> Pixels:
    """Return a frame in which a parked vehicle hides the left part."""
    width = int(frame.shape[1] * part)
    vehicle = np.random.default_rng(5).uniform(30, 220, (20, 30)).astype(np.float32)
    hidden: Pixels = np.array(frame)
    hidden[:, :width] = cv2.resize(vehicle, (width, frame.shape[0])).astype(np.uint8)
    return hidden


def test_objects_that_hide_the_scene_are_no_movement(video: list[Pixels]) -> None:
    height, width = video[0].shape
    hidden = [occluded(frame, 1.0) for frame in video]
    camera, unknown = Camera(), Camera()
    for each, boxes in ((camera, [(0, 0, width * 0.6, height), (width * 0.4, 0, width, height)]), (unknown, [])):
        each.see(*video[:LEARNING])
        state = each.see(*hidden, boxes=boxes)
        assert state == ("dark" if boxes else "moved")  # nobody can tell an unknown object from a different view
        assert each.see(*video[:2]) == "aligned"
    other = [cv2.rotate(frame, cv2.ROTATE_180).astype(np.uint8) for frame in video]
    assert camera.see(*other, boxes=[(50, 50, 150, 250), (300, 200, 400, 400)]) == "moved"


def test_object_that_stands_still_at_the_start_is_no_background(video: list[Pixels]) -> None:
    camera, width = Camera(), video[0].shape[1]
    for part in (0.85, 0.7):
        boxes = [(0, 0, width * part, video[0].shape[0])]
        state = camera.see(*[occluded(frame, part) for frame in video], boxes=boxes)
    assert state in ("learning", "aligned")
    assert {camera.see(frame) for frame in video} <= {"learning", "aligned"}
    assert camera.see(*video) == "aligned"


def test_mast_that_shakes_in_the_wind_moves_nothing(square: Pixels) -> None:
    rng, camera = np.random.default_rng(6), Camera()
    camera.see(*[seen(square, pose())] * LEARNING)
    for x, y in rng.normal(0, 3 / WIDTH, (40, 2)).tolist():
        assert camera.see(seen(square, pose(x, y))) in ("aligned", "unsure")
    assert error(camera.tracker, pose()) == 0
    assert camera.see(*[seen(square, pose(0.05))] * 8) == "aligned"  # the camera was really moved
    assert error(camera.tracker, pose(0.05)) < ALLOWED


def test_time_without_images_does_not_count(square: Pixels) -> None:
    camera, other = Camera(), seen(cv2.rotate(square, cv2.ROTATE_180).astype(np.uint8), pose())
    camera.see(*[seen(square, pose())] * LEARNING)
    camera.now_s += 3600
    assert camera.see(*[other] * 2) == "unsure"
    assert camera.see(*[other] * 3) == "moved"


def test_different_scene_is_declared_and_the_return_is_noticed(square: Pixels) -> None:
    camera, other = Camera(), seen(cv2.rotate(square, cv2.ROTATE_180).astype(np.uint8), pose())
    camera.see(*[seen(square, pose())] * LEARNING)
    assert camera.see(*[other] * 2) == "unsure"
    assert camera.see(*[other] * 3) == "moved"
    assert camera.see(np.zeros_like(other)) == "moved"  # the light was switched off
    assert camera.see(seen(square, pose())) == "aligned"


def test_covered_lens_differs_from_dusk(square: Pixels) -> None:
    covered, dusk, frame = Camera(), Camera(), seen(square, pose())
    covered.see(*[frame] * LEARNING)
    assert covered.see(*[np.full_like(frame, 90)] * 5) == "covered"
    assert covered.see(frame) == "aligned"
    dusk.see(*[frame] * LEARNING)
    for part in 0.7 ** np.arange(1, 16):
        dusk.see((frame * part).astype(np.uint8))
    assert dusk.tracker.state == "dark"
    assert dusk.see(*[frame] * 2) == "aligned"


def test_new_appearance_does_not_move_the_reference(square: Pixels) -> None:
    """The tracker stores the appearances of day and night, but still measures movements relative to the first image."""
    lights = np.random.default_rng(2).uniform(0, 255, (40, 60))
    bright = cv2.resize(lights, square.shape[::-1]).astype(np.uint8)
    night = cv2.addWeighted(square, 0.3, bright, 0.3, 0).astype(np.uint8)
    camera = Camera()
    camera.see(*[seen(square, pose())] * LEARNING)
    for part in np.linspace(0, 1, 12):
        mixed = cv2.addWeighted(square, 1 - part, night, part, 0).astype(np.uint8)
        camera.see(*[seen(mixed, pose())] * 2)
    assert len(camera.tracker.appearances) > 1
    assert camera.see(*[seen(night, pose(0.03, -0.02))] * 4) == "aligned"
    assert error(camera.tracker, pose(0.03, -0.02)) < ALLOWED
    assert camera.see(*[seen(square, pose(0.03, -0.02))] * 4) == "aligned"
    assert error(camera.tracker, pose(0.03, -0.02)) < ALLOWED


def test_scene_without_texture_stays_in_learning() -> None:
    assert Camera().see(*[np.full((HEIGHT, WIDTH), 120, np.uint8)] * 8) == "learning"


def test_points_of_lines_and_zones_move_with_the_view() -> None:
    hole = [[0.6, 0.2], [0.8, 0.2], [0.8, 0.3]]
    zone = {"name": "hall", "polygon": [[0, 0], [1, 0], [1, 1]], "holes": [hole]}
    line = {"name": "door", "points": [[0.25, 0.5], [0.75, 0.5]]}
    section = CameraAnalytics.model_validate({"units": "fraction", "lines": [line], "zones": [zone]})
    view = pose(0.1, 0.05, 3.0, 1.05)
    placed = moved(section, expected(view), WIDTH, HEIGHT)
    assert placed.units == "pixels"
    before = [section.lines[0].points, *section.zones[0].rings]
    after = [placed.lines[0].points, *placed.zones[0].rings]
    for old, new in zip(before, after, strict=True):
        wanted = np.array(old) * (WIDTH, HEIGHT) @ view[:, :2].T + view[:, 2]
        np.testing.assert_allclose(np.array(new), wanted, atol=0.01)
