"""Configuration of a run of `vision chaos`: the user's pipeline, model, and analytics, with the simulated cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from vision.benchmark.chaos.farm import FarmCamera
from vision.benchmark.chaos.harness import write_pipeline
from vision.benchmark.chaos.schedule import HANG_S
from vision.benchmark.stand_ins import StandIn, repeated
from vision.config import AppConfig, load_config_text

STATUS_S: Final = 0.5
"""`status.interval_s` of the program during a run."""
_KEPT: Final = (
    "model",
    "detect",
    "track",
    "analytics",
    "rules",
    "cascade",
    "snapshots",
    "processes",
    "stop_timeout_s",
)
"""Keys to copy from the user's configuration. Other keys name sockets, folders, and services outside the run."""

_CAMERA_KEYS: Final = (
    "id",
    "reader",
    "transport",
    "max_fps",
    "open_timeout_s",
    "read_timeout_s",
    "max_frame_age_s",
    "report_after_s",
    "frozen_after_s",
)
_MOST_EVENTS: Final = 1_000_000  # `publish.max_events` of the program
_DEMO_SIZE: Final = (320, 240)  # width and height in pixels
_DEMO_FPS: Final = 10.0
_LOWEST_FPS: Final = 10.0  # a camera has a key frame every ten frames, and must be back within 2 s
_DEMO: Final = """
pipeline: count
processes: 2
detect: {backend: fake, score_threshold: 0.2}
track: {low_score: 0.1, high_score: 0.15, new_score: 0.2}
cameras: [CAMERAS]
analytics: {ANALYTICS}
"""
_DEMO_CAMERA: Final = '{id: camera-%d, source: "rtsp://127.0.0.1/"}'
_DEMO_LINES: Final = (
    "camera-%d: {units: fraction, lines: [{name: middle, points: [[0.5, 0], [0.5, 1]]}], "
    "zones: [{name: left, polygon: [[0, 0], [0.4, 0], [0.4, 1], [0, 1]]}]}"
)


@dataclass(frozen=True, slots=True)
class Subject:
    """Configuration that `vision chaos` runs, and the descriptions of the simulated cameras."""

    config: AppConfig
    cameras: tuple[FarmCamera, ...]


def demo(cameras: int) -> Subject:
    """Return the configuration and the cameras of a run for which the user gives no configuration.

    There are `cameras` cameras. Each camera has a line and a zone. The detector is `fake`, so the run needs little CPU
    time.
    """
    text = _DEMO.replace("CAMERAS", ", ".join(_DEMO_CAMERA % index for index in range(cameras)))
    text = text.replace("ANALYTICS", ", ".join(_DEMO_LINES % index for index in range(cameras)))
    config = load_config_text(text, {})
    farm = tuple(FarmCamera(camera.id, *_DEMO_SIZE, _DEMO_FPS, "rectangles") for camera in config.cameras)
    return Subject(config, farm)


def of_user(config: AppConfig, stand_ins: Sequence[StandIn], cameras: int) -> Subject:
    """Return the user's configuration with `cameras` simulated cameras, and the descriptions of these cameras.

    The cameras have the frame sizes and rates of the user's cameras, as `stand_ins` describes them, and repeat if there
    are more cameras. Each rate is at least 10 frames/s, and each width and height is an even number of at least 16
    pixels.
    """
    chosen = [stand_ins[index % len(stand_ins)] for index in range(cameras)]
    config = _named(repeated(config, stand_ins, cameras))
    farm = tuple(
        FarmCamera(
            camera.id, _even(stand_in.width_px), _even(stand_in.height_px), max(_LOWEST_FPS, stand_in.fps), "street"
        )
        for camera, stand_in in zip(config.cameras, chosen, strict=True)
    )
    return Subject(config, farm)


def _named(config: AppConfig) -> AppConfig:
    """Return the configuration with camera ids that camera.yaml allows, such as gate-copy-2 instead of gate.2."""
    cameras = tuple(camera.model_copy(update={"id": _valid(camera.id)}) for camera in config.cameras)
    analytics = {_valid(camera_id): section for camera_id, section in config.analytics.items()}
    return config.model_copy(update={"cameras": cameras, "analytics": analytics})


def _valid(camera_id: str) -> str:
    return camera_id.replace(".", "-copy-")


def _even(size_px: int) -> int:
    return max(16, size_px // 2 * 2)


def write_config(
    subject: Subject, addresses: Mapping[str, str], folder: Path, data: Path, *, bind: str, replay: str
) -> Path:
    """Write the camera.yaml of the run, and return its path.

    Args:
        subject: the configuration and its cameras.
        addresses: RTSP address of each camera, by camera id.
        folder: folder for the camera.yaml and the pipeline file.
        data: folder in which the program stores its files.
        bind: `publish.bind` of the program.
        replay: `publish.replay` of the program.
    """
    plain = subject.config.model_dump(mode="json", exclude_defaults=True, by_alias=True)
    document: dict[str, Any] = {key: plain[key] for key in _KEPT if key in plain}
    for section in document.get("analytics", {}).values():
        section.pop("reset_at", None)  # it would change the counters during the run
    if "snapshots" in document:
        document["snapshots"]["folder"] = str(data / "snapshots")
    document |= {
        "node": "chaos",
        "pipeline": str(write_pipeline(folder, subject.config.pipeline)),
        "cameras": [
            {key: camera[key] for key in _CAMERA_KEYS if key in camera} | {"source": addresses[camera["id"]]}
            for camera in plain["cameras"]
        ],
        "state_dir": str(data / "state"),
        "publish": {"bind": bind, "replay": replay, "max_events": _MOST_EVENTS},
        "status": {"interval_s": STATUS_S, "min_free_mb": 0},
        "hang_s": HANG_S,
    }
    path = folder / "camera.yaml"
    path.write_text(yaml.safe_dump(document).replace("${", "$${"), encoding="utf-8")
    return path
