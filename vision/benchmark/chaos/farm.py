"""RTSP cameras that replace the real cameras during a run of `vision chaos`, one for each configured camera.

The camera zoo (`vision.capture.zoo`) serves them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vision.benchmark.chaos.harness import stuck_file
from vision.benchmark.chaos.schedule import Kind
from vision.capture.zoo.camera import Camera
from vision.capture.zoo.persona import Persona, RtspStream
from vision.capture.zoo.playback import Disturbance
from vision.capture.zoo.rtp import enlarged_clip_of
from vision.capture.zoo.scenes import Scene
from vision.capture.zoo.zoo import Zoo, running_zoo

_DAMAGED: Final = 0.05  # fraction of the packets that `corrupt` changes, or `loss` leaves out
_JITTER_S: Final = 0.4  # longest delay of a frame
_JUMP_S: Final = 3600  # time by which the camera's clock is ahead


@dataclass(frozen=True, slots=True)
class FarmCamera:
    """Id, frame size, frame rate, and scene of one camera that the camera zoo imitates."""

    camera_id: str
    width_px: int
    height_px: int
    fps: float
    scene: Scene


class Farm:
    """Running cameras with faults that can be switched on and off."""

    def __init__(self, zoo: Zoo, cameras: Sequence[FarmCamera], control: Path) -> None:
        """Encode the video of each camera, and start the cameras.

        While a camera's file is in the folder `control`, calls to this camera's source hang (see `stuck_file`).
        """
        self._zoo = zoo
        self._ids = [camera.camera_id for camera in cameras]
        self._control = control
        streams = [
            RtspStream(scene=camera.scene, size=(camera.width_px, camera.height_px), fps=camera.fps)
            for camera in cameras
        ]
        for stream in streams:
            enlarged_clip_of(stream)  # otherwise, the first change of the size would delay all cameras
        self._cameras = [
            Camera(Persona(camera_id, "", stream), fault_after_s=0.0, repeats=False)
            for camera_id, stream in zip(self._ids, streams, strict=True)
        ]
        zoo.start(self._cameras)

    @property
    def addresses(self) -> dict[str, str]:
        """RTSP address of each camera, by camera id."""
        return {camera_id: camera.address for camera_id, camera in zip(self._ids, self._cameras, strict=True)}

    def start(self, kind: Kind, index: int) -> None:
        """Start a fault of the camera with the index `index`."""
        self._switch(kind, index, on=True)

    def stop(self, kind: Kind, index: int) -> None:
        """End a fault of the camera with the index `index`.

        Raises:
            OSError: another program uses the port of a camera that was down.
        """
        self._switch(kind, index, on=False)

    def _switch(self, kind: Kind, index: int, *, on: bool) -> None:
        camera, stuck = self._cameras[index], stuck_file(self._control, self._ids[index])
        match kind:
            case "camera-down":
                self._zoo.call(camera.go_down() if on else camera.come_up())
            case "stuck-call":
                stuck.touch() if on else stuck.unlink(missing_ok=True)
            case _:
                _disturb(camera.disturbance, kind, on=on)


def _disturb(disturbance: Disturbance, kind: Kind, *, on: bool) -> None:
    match kind:
        case "camera-stall":
            disturbance.stalled = on
        case "freeze":
            disturbance.frozen = on
        case "corrupt":
            disturbance.corruption = _DAMAGED * on
        case "loss":
            disturbance.loss = _DAMAGED * on
        case "jitter":
            disturbance.jitter_s = _JITTER_S * on
        case "clock-jump":
            disturbance.jump_s = _JUMP_S * on
        case "resize":
            disturbance.enlarged = on
        case _:
            raise AssertionError(kind)


@contextmanager
def running_farm(cameras: Sequence[FarmCamera], control: Path) -> Iterator[Farm]:
    """Start the cameras, yield the farm that controls them, and stop the cameras at the end of the `with` block.

    `control` is the folder of the files that make calls to a camera's source hang (see `stuck_file`).
    """
    with running_zoo() as zoo:
        yield Farm(zoo, cameras, control)
