"""Sender of a synthetic camera's RTP packets and RTCP sender reports to one client, with the camera's oddities."""

from __future__ import annotations

import asyncio
import random
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Final

from vision.capture.zoo.clips import FRAMES, GOP, Clip, CodedFrame, clip
from vision.capture.zoo.payloads import payloads
from vision.capture.zoo.persona import RtspStream
from vision.capture.zoo.playback import Disturbance, Playback, is_lost
from vision.capture.zoo.scenes import Size

Send = Callable[[int, bytes], Awaitable[None]]
"""A function that sends one packet. The first argument is 0 for RTP, and 1 for RTCP."""

PAYLOAD_TYPE: Final = 96
CLOCK_HZ: Final = 90_000
_SSRC: Final = 0x1234ABCD
_NEW_SSRC: Final = 0x0BADCAFE
_NEW_SEQUENCE: Final = 40_000
_JUMP_TICKS: Final = 3600 * CLOCK_HZ
_REPORT_EVERY_S: Final = 1.0
_NTP_EPOCH_S: Final = 2_208_988_800  # from 1900 to 1970
_PROBATION_FRAMES: Final = 2
_YEAR_S: Final = 365 * 86400
_DAMAGED_BYTES: Final = 8
_HEADERS_BYTES: Final = 14  # size of the headers of RTP and of a fragmentation unit


def clip_of(stream: RtspStream) -> Clip:
    """Return the clip that a camera sends. The first call encodes the clip."""
    return clip(stream.codec, stream.size, b_frames=stream.b_frames, slices=stream.slices, scene=stream.scene)


def enlarged_clip_of(stream: RtspStream) -> Clip:
    """Return the clip that a camera sends after a change of its frame size. The first call encodes the clip."""
    return clip(stream.codec, _enlarged(stream.size), scene=stream.scene)


def _enlarged(size: Size) -> Size:
    return size[0] * 3 // 4 * 2, size[1] * 3 // 4 * 2


class RtpSender:
    """Sender of the clip of a camera, in a loop and in real time."""

    def __init__(
        self, stream: RtspStream, playback: Playback, send: Send, *, loses: bool, disturbance: Disturbance
    ) -> None:
        """Create the sender. `send` sends each packet, and `playback` records the sent frames.

        If `loses` is True, omit one packet of some frames. `disturbance` contains faults that can be switched on and
        off while the sender runs.
        """
        self._stream = stream
        self._playback = playback
        self._send = send
        self._loses = loses
        self._disturbance = disturbance
        self._random = random.Random(1)
        self._is_enlarged = False
        self._repeated: tuple[Clip, CodedFrame] | None = None  # the key frame that a frozen camera repeats
        self._ssrc = _SSRC
        self._sequence = stream.first_sequence
        self._packets = 0
        self._octets = 0
        self._reported_s = 0.0

    async def run(self) -> None:
        """Send each frame when it is due, until the task is canceled."""
        stream = self._stream
        began_s = time.monotonic()
        # Frames in decoding order are sent at constant intervals. `place` counts them from the start of the clip.
        place = stream.first_frame
        while True:
            position = place - stream.first_frame
            late_s = self._random.uniform(0.0, self._disturbance.jitter_s)
            await asyncio.sleep(max(0.0, began_s + position / stream.fps + late_s - time.monotonic()))
            source, frame, number = self._frame(place)
            shown = place // FRAMES * FRAMES + number - stream.first_frame
            if position == stream.new_ssrc_at > 0:
                self._ssrc, self._sequence = _NEW_SSRC, _NEW_SEQUENCE
            ticks = self._ticks(shown)
            if time.monotonic() - self._reported_s >= _REPORT_EVERY_S and stream.clock != "missing":
                self._reported_s = time.monotonic()
                await self._send(1, self._report(ticks))
            if stream.key_frames or not frame.key:
                await self._send_frame(source, frame, ticks, position)
            place += 1

    def _frame(self, place: int) -> tuple[Clip, CodedFrame, int]:
        """Return the clip and the frame to send as frame `place` of the stream, and its position in display order."""
        stream, disturbance = self._stream, self._disturbance
        turn = (place - stream.first_frame) // stream.resize_every if stream.resize_every else 0
        if place % GOP == 0:  # only a key frame can change the size
            self._is_enlarged = disturbance.enlarged
        source = enlarged_clip_of(stream) if turn % 2 or self._is_enlarged else clip_of(stream)
        frame = source.frames[place % FRAMES]
        if not disturbance.frozen:
            self._repeated = None
        elif self._repeated is None and frame.key:
            self._repeated = source, frame
        return (*(self._repeated or (source, frame)), frame.number)

    def _ticks(self, shown: int) -> int:
        """Return the RTP timestamp of the frame with the 0-based index `shown` in display order."""
        stream = self._stream
        ticks = stream.first_timestamp + round((shown + 3) * CLOCK_HZ / stream.fps * stream.pace)
        if 0 < stream.jump_at <= shown:
            ticks += _JUMP_TICKS
        ticks += self._disturbance.jump_s * CLOCK_HZ
        return ticks % (1 << 32)

    async def _send_frame(self, source: Clip, frame: CodedFrame, ticks: int, position: int) -> None:
        stream, playback = self._stream, self._playback
        parts = payloads(
            source,
            frame,
            in_band=stream.in_band or stream.resize_every > 0,
            aggregated=stream.aggregated,
            tables=stream.tables,
        )
        lost = len(parts) // 2 if self._loses and is_lost(position) else -1
        # A receiver may discard the first packets of an SSRC (RFC 3550, A.1).
        if lost >= 0 or position == stream.new_ssrc_at > 0 or (stream.duplicates and position < _PROBATION_FRAMES):
            playback.damaged.add(len(playback.sent))
        playback.sent.append(frame.number)
        for index, part in enumerate(parts):
            packet = self._packet(part, ticks, is_last=index == len(parts) - 1)
            if index == lost or self._random.random() < self._disturbance.loss:
                continue
            if self._random.random() < self._disturbance.corruption:
                packet = self._corrupted(packet)
            await self._send(0, packet)
            if stream.duplicates:
                await self._send(0, packet)

    def _packet(self, payload: bytes, ticks: int, *, is_last: bool) -> bytes:
        stream = self._stream
        first = 0x80 | (0x20 if stream.padding else 0) | (0x10 if stream.extension else 0)
        marker = 0x80 if is_last and stream.markers else 0
        header = struct.pack(">BBHII", first, marker | PAYLOAD_TYPE, self._sequence % 65536, ticks, self._ssrc)
        if stream.extension:  # ONVIF's time of recordings
            header += struct.pack(">HHQI", 0xABAC, 3, self._ntp(time.time()), 0)
        self._sequence += 1
        self._packets += 1
        self._octets += len(payload)
        return header + payload + (b"\0\0\0\4" if stream.padding else b"")

    def _corrupted(self, packet: bytes) -> bytes:
        """Return the packet with changed bytes in its second half, but not in its headers."""
        damaged = bytearray(packet)
        places = range(max(len(packet) // 2, _HEADERS_BYTES), len(packet))
        for _ in range(_DAMAGED_BYTES * bool(places)):
            damaged[self._random.choice(places)] ^= 1 + self._random.randrange(255)
        return bytes(damaged)

    def _report(self, ticks: int) -> bytes:
        """Return a sender report with a source description, for a frame with the RTP timestamp `ticks`."""
        match self._stream.clock:
            case "unset":
                now_s = time.monotonic() - _NTP_EPOCH_S
            case "future":
                now_s = time.time() + _YEAR_S
            case _:
                now_s = time.time() + self._disturbance.jump_s
        if self._stream.clock == "unrelated":
            ticks = (ticks + 1_000_000_007) % (1 << 32)
        report = struct.pack(
            ">BBHIQIII", 0x80, 200, 6, self._ssrc, self._ntp(now_s), ticks, self._packets, self._octets
        )
        description = struct.pack(">BBHIBB", 0x81, 202, 3, self._ssrc, 1, 3) + b"zoo\0\0\0"
        return report + description

    @staticmethod
    def _ntp(utc_s: float) -> int:
        return round((utc_s + _NTP_EPOCH_S) * (1 << 32)) % (1 << 64)
