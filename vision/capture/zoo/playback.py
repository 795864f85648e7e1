"""Classes for the connection of a synthetic camera to one client: the frames that were sent, and simulated faults."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Protocol

from vision.capture.zoo.credentials import Gate
from vision.capture.zoo.persona import Fault, Persona

_PIECE_BYTES: Final = 500
_PIECE_S: Final = 0.005  # per piece of a slow connection
_MOST_PIECES: Final = 10  # a frame takes at most 50 ms
_ANSWER_LATE_S: Final = 0.3
_STALL_POLL_S: Final = 0.05
_LOSS_EVERY: Final = 20  # number of frames from one damaged frame to the next
_LOSS_AT: Final = 5
_KEY_LOSS_EVERY: Final = 40
_KEY_LOSS_AT: Final = 20


@dataclass(slots=True)
class Playback:
    """Record of the frames sent to one client. `sent` contains the numbers painted into them, in decoding order."""

    sent: list[int] = field(default_factory=list)
    damaged: set[int] = field(default_factory=set)  # positions in `sent` of frames that were not sent completely
    transport: str = "tcp"

    def discarded(self, frames: int) -> None:
        """Record that the client may not have received the last `frames` frames."""
        self.damaged.update(range(max(0, len(self.sent) - frames), len(self.sent)))


@dataclass(slots=True)
class Disturbance:
    """Faults of a synthetic camera that a program can switch on and off while the camera streams."""

    frozen: bool = False  # the last key frame is repeated
    stalled: bool = False  # no frame is sent, and no request is answered until the stall ends
    enlarged: bool = False  # the frames are larger
    loss: float = 0.0  # fraction of the RTP packets that is not sent
    corruption: float = 0.0  # fraction of the RTP packets in which bytes are changed
    jitter_s: float = 0.0  # longest time by which a frame is late
    jump_s: int = 0  # seconds by which the RTP time and the camera's clock are ahead


def is_lost(position: int) -> bool:
    """Return True if a camera with the fault ``loss`` damages the frame at this position in the list of sent frames."""
    return position % _LOSS_EVERY == _LOSS_AT or position % _KEY_LOSS_EVERY == _KEY_LOSS_AT


class Link:
    """The TCP connection of a synthetic camera to one client. It can simulate a slow or stalled network."""

    def __init__(self, writer: asyncio.StreamWriter, fault: Fault, disturbance: Disturbance) -> None:
        self._writer = writer
        self._fault = fault
        self._disturbance = disturbance
        self._lock = asyncio.Lock()
        self._stalled = False

    @property
    def is_stalled(self) -> bool:
        """True if all data that is written to the connection is discarded."""
        return self._stalled or self._disturbance.stalled

    def stall(self) -> None:
        """Discard all data that is written to the connection after this call."""
        self._stalled = True

    async def send(self, data: bytes) -> None:
        """Write `data` to the client. If the connection is stalled, discard `data`.

        If the camera simulates the fault ``slow``, write small pieces with pauses between them.

        Raises:
            ConnectionError: the client has closed the connection.
        """
        if self.is_stalled:
            return
        async with self._lock:
            if self._fault == "slow":
                size = max(_PIECE_BYTES, len(data) // _MOST_PIECES + 1)
                for start in range(0, len(data), size):
                    self._writer.write(data[start : start + size])
                    await self._writer.drain()
                    await asyncio.sleep(_PIECE_S)
                return
            self._writer.write(data)
            await self._writer.drain()

    async def answer(self, data: bytes, delay_s: float = 0.0) -> None:
        """Write a response after `delay_s` seconds. With the fault ``slow``, wait 0.3 s longer.

        If the camera is stalled, first wait until the stall ends.
        """
        while self._disturbance.stalled:
            await asyncio.sleep(_STALL_POLL_S)
        late_s = _ANSWER_LATE_S if self._fault == "slow" else 0.0
        if delay_s + late_s:
            await asyncio.sleep(delay_s + late_s)
        await self.send(data)

    def reset(self) -> None:
        """Close the connection without sending the data that is still buffered."""
        self._writer.transport.abort()

    async def close(self) -> None:
        with suppress(OSError):
            self._writer.close()
            await self._writer.wait_closed()


class Host(Protocol):
    """The synthetic camera to which a connection belongs: the attributes and methods that the connection uses.

    `vision.capture.zoo.camera.Camera` implements this protocol.
    """

    persona: Persona
    fault: Fault
    gate: Gate
    port: int
    disturbance: Disturbance

    @property
    def address(self) -> str:
        """The address of the stream."""

    def streaming(self) -> Playback:
        """Return a new record of the frames that the camera sends from now on to a client.

        The first call starts the timer of the camera's fault, if any.
        """
