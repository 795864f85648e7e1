"""What is known of a frame while it is still coded: is it whole, when did it arrive, what did the camera's clock say.

Decoders give frames out later and in another order, and forget most of this; it is found again by the presentation
time, which they keep.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

BACKLOG_NS = 2_000_000_000
"""A decoder that is this far behind the camera skips to the next key frame. Half a staleness budget would skip frames
that are decoded in no time after a short stall; and without any bound, coded frames pile up until memory is full."""

GIVE_UP_NS = 3_000_000_000
"""Skipping that has not helped for this long does not help: the lag is then the stream's own and becomes its zero."""


@dataclass(frozen=True, slots=True)
class PacketInfo:
    """One coded frame."""

    arrived_ns: int  # monotonic
    ntp_utc_ns: int | None  # capture time by the camera's sender reports
    corrupt: bool


class KeyFrameGate:
    """Decides for each coded frame, in decoding order, whether to decode it and whether to believe it.

    After lost packets, frames are not believed until a key frame that came whole. The first frame after a loss may
    be the one that the loss was in, so a key frame there does not count.
    """

    def __init__(self) -> None:
        self._started = False
        self._damaged = False
        self._lost = False  # since the last frame
        self._skipping_since_ns: int | None = None
        self._own_lag_ns = 0

    def lost(self) -> None:
        """Packets are missing at this place."""
        self._lost = True
        self._damaged = True

    def spoilt(self) -> None:
        """The frame that passed last turned out to be damaged: unlike after `lost`, the next key frame counts."""
        self._damaged = True

    def passes(self, *, key: bool, now_ns: int, lag_ns: int) -> bool:
        """Whether to decode the next frame, which is `lag_ns` behind the newest that could have been here."""
        whole = not self._lost
        self._lost = False
        if self._skips(key, now_ns, lag_ns) or not (self._started or key):
            return False
        self._started = True
        if key and whole:
            self._damaged = False
        return True

    @property
    def damaged(self) -> bool:
        """The frame that passed last cannot be believed."""
        return self._damaged

    def _skips(self, key: bool, now_ns: int, lag_ns: int) -> bool:
        behind = lag_ns - self._own_lag_ns > BACKLOG_NS
        if self._skipping_since_ns is None:
            if not behind:
                return False
            self._skipping_since_ns = now_ns
        if not key:
            return True
        if behind and now_ns - self._skipping_since_ns < GIVE_UP_NS:
            return True
        if behind:
            self._own_lag_ns = lag_ns
        self._skipping_since_ns = None
        return False


class Timeline:
    """Finds a coded frame again by its presentation time. The parser's thread writes, the camera's thread reads."""

    def __init__(self, capacity: int = 64) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._frames: dict[int, PacketInfo] = {}

    def put(self, pts_ns: int, frame: PacketInfo) -> None:
        """Remember a frame; the oldest is forgotten where there are too many."""
        with self._lock:
            self._frames[pts_ns] = frame
            if len(self._frames) > self._capacity:
                del self._frames[next(iter(self._frames))]

    def take(self, pts_ns: int) -> PacketInfo | None:
        """The frame with this presentation time, or None. Earlier ones come no more: they are forgotten."""
        with self._lock:
            found = self._frames.get(pts_ns)
            if found is not None:
                self._frames = {pts: frame for pts, frame in self._frames.items() if pts > pts_ns}
            return found
