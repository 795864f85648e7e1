"""RTP packets of metadata documents, and RTCP sender reports, which relate the timestamps of the packets to UTC."""

from __future__ import annotations

import secrets
import struct
import time
from collections.abc import Iterator
from typing import Final

PAYLOAD_TYPE: Final = 98
CLOCK_HZ: Final = 90_000

_PAYLOAD_BYTES: Final = 1400  # fits into one datagram of Ethernet
_NTP_EPOCH_S: Final = 2_208_988_800  # from 1900 to 1970
_CNAME: Final = b"vision"


class RtpStream:
    """The stream of RTP packets and sender reports for one client.

    The timestamp of a document is the time of its frame or event in UTC, at 90 kHz, plus a random offset.
    """

    def __init__(self) -> None:
        self._ssrc = secrets.randbits(32)
        self._offset = secrets.randbits(32)
        self._packets = 0
        self._octets = 0
        self.sequence = secrets.randbits(16)
        """Sequence number of the next packet."""

    def packets(self, document: bytes, utc_ns: int) -> Iterator[bytes]:
        """Yield the packets of a document. The last packet has the marker bit. `utc_ns` is the time of the document."""
        stamp = self.timestamp(utc_ns)
        for start in range(0, len(document), _PAYLOAD_BYTES):
            payload = document[start : start + _PAYLOAD_BYTES]
            marker = 0x80 if start + _PAYLOAD_BYTES >= len(document) else 0
            header = struct.pack("!BBHII", 0x80, marker | PAYLOAD_TYPE, self.sequence, stamp, self._ssrc)
            self.sequence = (self.sequence + 1) & 0xFFFF
            self._packets = (self._packets + 1) & 0xFFFFFFFF
            self._octets = (self._octets + len(payload)) & 0xFFFFFFFF
            yield header + payload

    def skip(self, document: bytes) -> None:
        """Skip the sequence numbers of a document that is not sent, so that the client can detect the gap."""
        self.sequence = (self.sequence + -(-len(document) // _PAYLOAD_BYTES)) & 0xFFFF

    def timestamp(self, utc_ns: int) -> int:
        """Return the 32-bit RTP timestamp of a time in ns since 1970 (UTC)."""
        return (self._offset + utc_ns * CLOCK_HZ // 1_000_000_000) & 0xFFFFFFFF

    def report(self) -> bytes:
        """Return a sender report for the current time, followed by a source description."""
        now_ns = time.time_ns()
        seconds, ns = divmod(now_ns, 1_000_000_000)
        ntp_s, ntp_fraction = (seconds + _NTP_EPOCH_S) & 0xFFFFFFFF, (ns << 32) // 1_000_000_000
        counts = (self.timestamp(now_ns), self._packets, self._octets)
        report = struct.pack("!BBHIIIIII", 0x80, 200, 6, self._ssrc, ntp_s, ntp_fraction, *counts)
        item = struct.pack("!IBB", self._ssrc, 1, len(_CNAME)) + _CNAME
        item += bytes(4 - len(item) % 4)  # at least one zero ends the list of items
        return report + struct.pack("!BBH", 0x81, 202, len(item) // 4) + item
