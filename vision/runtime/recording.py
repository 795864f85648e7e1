"""`Packets`, with which cameras pass packets and frames to other processes, and functions that open the sockets."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vision.capture.frame_tap import FrameTap, FrameTaps
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
    """The sockets through which cameras pass coded frames (packets) and decoded frames to other processes."""

    recorded: frozenset[str]  # cameras whose packets are recorded
    addresses: tuple[str, ...]  # one address for each process that reads cameras
    socket: PacketSocket | None  # None if capture workers read the cameras
    frame_taps: FrameTaps | None  # None if `socket` is None
    recorder: RecordingProcess | None = None

    def reconfigure(self, config: AppConfig) -> None:
        """Record only the cameras that the new configuration `config` selects for recording."""
        cameras = _recorded(config)
        if self.recorder is not None and frozenset(cameras) != self.recorded:
            self.recorded = frozenset(cameras)
            self.recorder.follow(cameras)

    def tap(self, camera_id: str) -> PacketTap | None:
        """Return the object that passes the camera's coded frames (packets) on to other processes.

        Return None if capture workers read the cameras.
        """
        if self.socket is None:
            return None
        return PacketTap(camera_id, self.socket, recorded=camera_id in self.recorded)

    def frame_tap(self, camera_id: str) -> FrameTap | None:
        """Return the object that passes the camera's decoded frames on to other processes.

        Return None if capture workers read the cameras.
        """
        return None if self.frame_taps is None else self.frame_taps.tap(camera_id)


def plan_packets(config: AppConfig, processes: int) -> tuple[str, ...]:
    """Return the addresses at which other processes receive the coded frames (packets) of cameras.

    There is one address for each of the `processes` that read cameras. If no other process needs packets, return no
    address.
    """
    if config.recording is None and config.page is None:
        return ()
    return tuple(packet_addresses(packet_address_prefix(), processes))


def open_packets(config: AppConfig, addresses: tuple[str, ...], workers: int, resources: ExitStack) -> Packets | None:
    """Open the sockets for packets at addresses from `plan_packets`. Return None if there are no addresses.

    `workers` is the number of capture workers. Capture workers open the sockets themselves. If `workers` is 0, this
    process reads the cameras, and opens the socket.
    """
    if not addresses:
        return None
    recorded = frozenset(_recorded(config))
    if workers:
        return Packets(recorded, addresses[:workers], None, None)
    socket = resources.enter_context(closing(PacketSocket(addresses[0])))
    return Packets(recorded, addresses[:1], socket, resources.enter_context(closing(FrameTaps(socket))))


def open_recording(config: AppConfig, publisher: Publisher, packets: Packets, resources: ExitStack) -> None:
    """Start the process that records cameras, if recording is configured.

    Raises:
        ConfigError: the folder of the recordings or `state_dir` is not writable, or a newer version of the program
            wrote the index.
        Unavailable: a folder cannot be used at present, for example because the disk is full.
    """
    if config.recording is None or config.state_dir is None:
        return
    from vision.outputs.recording.process import RecordingProcess
    from vision.outputs.recording.recorder import RecorderOptions

    options = RecorderOptions(
        config.recording,
        Path(config.state_dir),
        _recorded(config),
        list(packets.addresses),
        publisher.internal_address,
        None if config.publish.curve is None else KeyFolder(Path(config.publish.curve)).internal_client(),
    )
    process = resources.enter_context(closing(RecordingProcess(options)))
    publisher.add_counters(process.counters)
    packets.recorder = process


def _recorded(config: AppConfig) -> list[str]:
    return recorded_cameras(config.recording, [camera.id for camera in config.cameras])
