"""Measure how reliably and how fast `vision.analytics.camera_view` detects that a camera was moved.

    python -m tests.perf.camera_view [--displacements 500] [--days 8] [--seed 0] [--images FOLDER] [--save]

The scenes are photos. Each frame shows only a part of a photo, so that a displaced frame shows the surroundings of this
part. The program draws light, shadows, noise, rain, and crowds on the frames. The constants of the module were chosen
without the objects and the light of this measurement.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tests.perf.__main__ import result
from tests.perf.results import save
from vision.analytics.camera_view import INTERVAL_S, WIDTH_PX, Similarity, ViewTracker, distance, view_image

TITLE = "Cameras that were moved, and days without a movement"
WIDTH, HEIGHT = 960, 540
ALLOWED = 0.005  # largest error of a corner, in widths of the frame
IMAGES_ALLOWED = 4  # within 10 s
PHOTOS = Path("/usr/share/doc/opencv-doc/examples/data")
UNSUITABLE = (
    "digits notes chessboard pic opencv-logo gradient ellipses ml mask detect_blob LinuxLogo WindowsLogo imageText "
    "sudoku templ tmpl text_ smarties ela_ left0 left1 right0 right1 aloeGT box. cards HappyFish apple orange pca_test "
    "licenseplate chicky Blender"
)
Pixels = NDArray[np.uint8]


def photos(folder: Path) -> list[Path]:
    """Return the photos of scenes. Omit drawings, and photos of a single object in front of a plain background."""
    files = [*folder.glob("*.jpg"), *folder.glob("*.png")]
    return sorted(path for path in files if not path.name.startswith(tuple(UNSUITABLE.split())))


@dataclass(frozen=True, slots=True)
class Pose:
    """Displacement of the camera: shifts in multiples of the frame width, rotation in degrees, and zoom."""

    x: float = 0.0
    y: float = 0.0
    rotation_deg: float = 0.0
    zoom: float = 1.0

    def similarity(self, width: int, height: int) -> Similarity:
        """Return the matrix (2, 3) that maps points of the original frame to the displaced frame."""
        angle = math.radians(self.rotation_deg)
        turn = self.zoom * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        center = np.array([width, height]) / 2
        return np.column_stack([turn, center - turn @ center + np.array([self.x, self.y]) * width])


class Scene:
    """Photo whose middle part is the view of the camera."""

    def __init__(self, path: Path) -> None:
        pixels = cv2.imread(str(path))
        assert pixels is not None
        scale = max(WIDTH / 0.7 / pixels.shape[1], HEIGHT / 0.7 / pixels.shape[0])
        self.name = path.name
        self._pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)

    def frame(self, pose: Pose) -> Pixels:
        height, width = self._pixels.shape[:2]
        middle = np.array([[1, 0, (WIDTH - width) / 2], [0, 1, (HEIGHT - height) / 2], [0, 0, 1.0]])
        matrix = pose.similarity(WIDTH, HEIGHT) @ middle
        moved: Any = cv2.warpAffine(self._pixels, matrix, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT_101)
        return np.asarray(moved, np.uint8)


def lit(frame: Pixels, rng: np.random.Generator, gain: float, shadow: float, noise: float) -> Pixels:
    """Change the brightness by a factor, cast a shadow of the given strength (0 to 1), and add noise."""
    level = 255 * np.clip(frame / 255 * gain, 0, 1)
    x, y = np.linspace(-1, 1, WIDTH)[None], np.linspace(-1, 1, HEIGHT)[:, None]
    edge = (x * rng.normal() + y * rng.normal() + rng.normal() / 2) * rng.uniform(3, 60)
    level *= (1 - shadow / (1 + np.exp(-edge)))[..., None]
    return np.asarray(np.clip(level + rng.normal(0, noise, frame.shape), 0, 255), np.uint8)


def rain(frame: Pixels, rng: np.random.Generator, drops: int) -> Pixels:
    streaks = frame.copy()
    for x, y, length in zip(rng.integers(0, WIDTH, drops), rng.integers(0, HEIGHT, drops), rng.integers(10, 40, drops),
                            strict=True):  # fmt: skip
        cv2.line(streaks, (int(x), int(y)), (int(x + length / 5), int(y + length)), (200, 200, 200), 1)
    return np.asarray(cv2.addWeighted(frame, 0.5, streaks, 0.5, 0))


def crowd(frame: Pixels, rng: np.random.Generator, cover: float) -> Pixels:
    """Paint people that cover approximately the fraction `cover` of the frame."""
    crowded: Pixels = frame.copy()
    area = 0.0
    while area < cover * WIDTH * HEIGHT:
        height = int(rng.uniform(0.1, 0.5) * HEIGHT)
        width = int(height * 0.4)
        x, y = int(rng.integers(-width // 2, WIDTH - width // 2)), int(rng.integers(-height // 4, HEIGHT - height // 2))
        texture = rng.normal(0, 25, (height // 6 + 1, width // 6 + 1, 3)) + rng.integers(0, 255, 3)
        person: Any = cv2.resize(np.clip(texture, 0, 255).astype(np.uint8), (width, height))
        left, top, right, bottom = max(0, x), max(0, y), min(WIDTH, x + width), min(HEIGHT, y + height)
        crowded[top:bottom, left:right] = person[top - y : bottom - y, left - x : right - x]
        area += 0.8 * (right - left) * (bottom - top)
    return crowded


class Camera:
    """`ViewTracker` that receives a frame every `INTERVAL_S` seconds, and the CPU time that it uses."""

    def __init__(self) -> None:
        self.tracker = ViewTracker()
        self.now_s = 0.0
        self.cpu_s: list[float] = []

    def see(self, frame: Pixels) -> None:
        green = np.ascontiguousarray(frame[..., 1])
        began_s = time.process_time()
        self.tracker.update(view_image(green), self.now_s)
        self.cpu_s.append(time.process_time() - began_s)
        self.now_s += INTERVAL_S


def displaced(scene: Scene, rng: np.random.Generator) -> str:
    """Move the camera once. Return the state of the view.

    The result is ``realigned`` if the view is correct, and ``silent`` if the view is wrong although the state is
    ``aligned``. Otherwise, the result is the state.
    """
    kind, camera = rng.integers(0, 3), Camera()
    pose = Pose(rng.uniform(-0.08, 0.08), rng.uniform(-0.08, 0.08), rng.uniform(-5, 5), rng.uniform(0.9, 1.1))

    def frame(at: Pose) -> Pixels:
        pixels = lit(scene.frame(at), rng, math.exp(rng.normal(0, 0.2)), rng.uniform(0, 0.3), rng.uniform(1, 5))
        if kind == 1:
            return rain(pixels, rng, 300)
        return crowd(pixels, rng, rng.uniform(0, 0.4)) if kind == 2 else pixels

    for _ in range(6):
        camera.see(frame(Pose()))
    for _ in range(IMAGES_ALLOWED):
        camera.see(frame(pose))
    true, view = pose.similarity(WIDTH_PX, WIDTH_PX * HEIGHT // WIDTH), camera.tracker.view
    shape = (WIDTH_PX * HEIGHT // WIDTH, WIDTH_PX)
    if camera.tracker.state != "aligned":
        return camera.tracker.state
    return "realigned" if distance(view, true, shape) <= ALLOWED else "silent"


def day(scene: Scene, rng: np.random.Generator, hours: float, step_s: float) -> tuple[Counter[str], list[float]]:
    """Show one day without any displacement. Return the number of frames by state, and the CPU time of each frame.

    The states include ``shifted``: a view that is wrong by more than `ALLOWED`. Each frame stands for `step_s` seconds
    of the day. The tracker treats the frames as consecutive, so the light changes faster than in a real day.
    """
    camera, states = Camera(), Counter[str]()
    for at in range(round(hours * 3600 / step_s)):
        sun = max(0.0, math.sin(math.pi * (at * step_s / 3600 - 5) / 14))  # from 5 to 19 o'clock
        gain = 0.06 + 1.1 * sun * math.exp(rng.normal(0, 0.1))
        frame = lit(scene.frame(Pose()), rng, gain, rng.uniform(0, 0.5) * sun, 2 + 6 * (1 - sun))
        hour = at * step_s / 3600
        if 9 < hour < 11:
            frame = rain(frame, rng, 600)
        if 16 < hour < 18:
            frame = crowd(frame, rng, rng.uniform(0.1, 0.6))
        camera.see(frame)
        states[camera.tracker.state] += 1
        view = camera.tracker.view
        states["shifted"] += distance(view, np.eye(2, 3), (WIDTH_PX * HEIGHT // WIDTH, WIDTH_PX)) > ALLOWED
    return states, camera.cpu_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--displacements", type=int, default=500)
    parser.add_argument("--days", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=Path, default=PHOTOS)
    parser.add_argument("--save", action="store_true", help="write the result to the folder of results")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    scenes, rng = [Scene(path) for path in photos(options.images)], np.random.default_rng(options.seed)
    outcomes, failed = Counter[str](), Counter[str]()
    for number in range(options.displacements):
        scene = scenes[number % len(scenes)]
        outcome = displaced(scene, rng)
        outcomes[outcome] += 1
        failed[f"{scene.name} {outcome}"] += outcome != "realigned"
    days, cpu_s, alarms = Counter[str](), list[float](), Counter[str]()
    for number in range(options.days):
        scene = scenes[(number * 7) % len(scenes)]
        states, times = day(scene, rng, 24, 60)
        days += states
        cpu_s += times
        alarms[scene.name] += states["moved"] + states["covered"] + states["shifted"]
    measured: dict[str, Any] = {
        "seed": options.seed,
        "scenes": len(scenes),
        "displacements": dict(outcomes),
        "not_realigned": [f"{name}: {number}" for name, number in failed.items() if number],
        "images_of_days": dict(days),
        "false_alarms": [f"{name}: {number}" for name, number in alarms.items() if number],
        "cpu_ms": {"mean": round(1e3 * float(np.mean(cpu_s or [0])), 2), "max": round(1e3 * max(cpu_s or [0]), 2)},
        "core_percent": round(100 * float(np.mean(cpu_s or [0])) / INTERVAL_S, 3),
    }
    print(json.dumps(measured, indent=2))
    if options.save:
        print(save(result("camera_view", measured, TITLE)))


if __name__ == "__main__":
    main()
