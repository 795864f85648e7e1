"""`PacketRing` keeps the latest packets of one camera in memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from vision.messaging.packets import CodedPacket, PacketHeader
from vision.outputs.recording.stream_format import StreamFormat

_START_NS = 10_000_000_000


@dataclass(frozen=True, slots=True)
class KeptPacket:
    """A coded video packet in a `PacketRing`, with its position, its header, and the parameter sets to decode it."""

    position: int  # 0, 1, 2, ... over all connections
    header: PacketHeader
    data: bytes  # Annex B
    key: bool  # True if a file can start with this packet
    parameters: bytes  # parameter sets of the latest key frame (Annex B)
    lost_before: int  # packets that were lost since the previous packet in the ring


class PacketRing:
    """The latest packets of one camera, at most `max_bytes` and about `max_s` seconds. The first packet is a key frame.

    Some H.264 streams contain key frames with which some players cannot start. Such a key frame counts only if no key
    frame with which all players can start arrived in the last 10 s.

    Old packets are removed together with all packets up to the next key frame, because they cannot be decoded without
    their key frame. After a lost packet, the ring ignores packets until the next key frame. Call `add` from one thread.
    Any thread can call the other methods.
    """

    def __init__(self, max_bytes: int, max_s: float) -> None:
        self._max_bytes = max_bytes
        self._max_ns = round(max_s * 1e9)
        self._lock = threading.Lock()
        self._packets: deque[KeptPacket] = deque()
        self._nbytes = 0
        self._next = 0  # position of the next packet
        self._waits_for_key = True
        self._starts = True  # no key frame of this connection has arrived, so no packet before it counts as lost
        self._lost = 0
        self._last: PacketHeader | None = None  # header of the last packet, even if that was left out
        self._format: StreamFormat | None = None
        self._start_ns: int | None = None  # arrival of the last key frame with which all players can start
        self._parameters = b""

    def add(self, packet: CodedPacket) -> None:
        """Add a packet, and remove the oldest packets beyond the limits.

        After the start of a connection or a loss, packets before the next key frame are not added.
        """
        header, data = packet.header, packet.data
        with self._lock:
            self._note_losses(header)
            if header.key:
                self._format = StreamFormat(header)
            if self._format is not None:
                data = self._format.to_annexb(data)
            key = header.key and self._is_start(header, data)
            if self._waits_for_key and not key:
                self._lost += not self._starts
                return
            self._waits_for_key = self._starts = False
            if key and self._format is not None:
                self._parameters = self._format.parameters(data)
            self._packets.append(KeptPacket(self._next, header, data, key, self._parameters, self._lost))
            self._next += 1
            self._lost = 0
            self._nbytes += len(data)
            self._remove_old()

    def _is_start(self, header: PacketHeader, data: bytes) -> bool:
        """Return True if a file can start with this key frame."""
        assert self._format is not None
        if self._format.is_start(data):
            self._start_ns = header.arrived_ns
            return True
        return self._start_ns is None or header.arrived_ns - self._start_ns > _START_NS

    def _note_losses(self, header: PacketHeader) -> None:
        last, self._last = self._last, header
        if last is None or last.connection != header.connection:
            self._waits_for_key, self._starts, self._lost = True, True, 0
            self._format = self._start_ns = None
        elif header.seq != last.seq + 1:
            self._waits_for_key = True
            self._lost += max(0, header.seq - last.seq - 1)

    def _remove_old(self) -> None:
        packets = self._packets
        while self._nbytes > self._max_bytes or packets[-1].header.arrived_ns - packets[0].header.arrived_ns > (
            self._max_ns
        ):
            second = next((n for n, packet in enumerate(islice(packets, 1, None), 1) if packet.key), None)
            if second is None and self._nbytes <= self._max_bytes:
                return
            for _ in range(len(packets) if second is None else second):
                self._nbytes -= len(packets.popleft().data)
            if not packets:  # the packets since one key frame are larger than the ring
                self._waits_for_key = True
                return

    def start(self, at_ns: int) -> int:
        """Return the position of the newest key frame that arrived at or before `at_ns` (monotonic).

        If there is no such key frame, return the position of the first packet. If the ring is empty, return the
        position of the next packet.
        """
        with self._lock:
            keys = [packet for packet in self._packets if packet.key]
            before = [packet.position for packet in keys if packet.header.arrived_ns <= at_ns]
            if before:
                return before[-1]
            return keys[0].position if keys else self._next

    def read(self, position: int) -> tuple[Sequence[KeptPacket], int]:
        """Return the packets in the ring from `position` on, and how many packets from `position` on were removed."""
        with self._lock:
            first = self._packets[0].position if self._packets else self._next
            skip = max(0, position - first)
            return tuple(islice(self._packets, skip, None)), max(0, first - position)
