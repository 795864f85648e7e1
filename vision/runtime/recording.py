"""`open_recording`, which starts the process that records cameras, and prepares how packets are passed to it."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vision.capture.packet_tap import PacketTap
from vision.config import AppConfig
from vision.config.recording import recorded_cameras
from vision.messaging.curve import KeyFolder
from vision.messaging.packets import PacketSocket, packet_address_prefix, packet_addresses
from vision.messaging.publisher import Publisher

if TYPE_CHECKING:
    from vision.outputs.recording.process import RecordingProcess


@dataclass(slots=True)
class Packets:
    """The cameras whose packets are passed on, the sockets for this, and the process that records the packets."""

    cameras: frozenset[str]
    addresses: tuple[str, ...]  # one for each process that reads cameras
    socket: PacketSocket | None  # None if capture workers read the cameras
    process: RecordingProcess

    def reconfigure(self, config: AppConfig) -> None:
        """Record the cameras of a new configuration, and no others."""
        cameras = _recorded(config)
        if frozenset(cameras) != self.cameras:
            self.cameras = frozenset(cameras)
            self.process.follow(cameras)

    def tap(self, camera_id: str) -> PacketTap | None:
        """Return the tap of a camera that this process reads; None if its packets are not passed on."""
        if self.socket is None or camera_id not in self.cameras:
            return None
        return PacketTap(camera_id, self.socket)


def open_recording(config: AppConfig, publisher: Publisher, workers: int, resources: ExitStack) -> Packets | None:
    """Start the process that records cameras. Return how cameras pass packets to it; None if nothing is recorded.

    `workers` is the number of capture workers; 0 means that this process reads the cameras.

    Raises:
        ConfigError: the folder of the recordings or `state_dir` is not writable.
        Unavailable: a folder cannot be used at present, for example because the disk is full.
    """
    if config.recording is None or config.state_dir is None:
        return None
    from vision.outputs.recording.process import RecordingProcess
    from vision.outputs.recording.recorder import RecorderOptions

    cameras = _recorded(config)
    addresses = packet_addresses(packet_address_prefix(), workers or 1)
    socket = None if workers else resources.enter_context(closing(PacketSocket(addresses[0])))
    options = RecorderOptions(
        config.recording,
        Path(config.state_dir),
        cameras,
        addresses,
        publisher.internal_address,
        None if config.publish.curve is None else KeyFolder(Path(config.publish.curve)).internal_client(),
    )
    process = resources.enter_context(closing(RecordingProcess(options)))
    publisher.add_counters(process.counters)
    return Packets(frozenset(cameras), tuple(addresses), socket, process)


def _recorded(config: AppConfig) -> list[str]:
    return recorded_cameras(config.recording, [camera.id for camera in config.cameras])
