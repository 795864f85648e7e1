"""What is known of a picture while it is still coded: is it whole, when did it arrive, what did the camera's clock say.

Decoders give pictures out later and in another order, and forget most of this; it is found again by the presentation
time, which they keep.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

BACKLOG_NS = 2_000_000_000
"""A decoder that is this far behind the camera skips to the next key frame. Half a staleness budget would skip pictures
that are decoded in no time after a short stall; and without any bound, coded pictures pile up until memory is full."""

GIVE_UP_NS = 3_000_000_000
"""Skipping that has not helped for this long does not help: the lag is then the stream's own and becomes its zero."""


@dataclass(frozen=True, slots=True)
class Coded:
    """One coded picture."""

    arrived_ns: int  # monotonic
    ntp_utc_ns: int | None  # capture time by the camera's sender reports
    corrupt: bool


class KeyFrameGate:
    """Decides for each coded picture, in decoding order, whether to decode it and whether to believe it.

    After lost packets, pictures are not believed until a key frame that came whole. The first picture after a loss may
    be the one that the loss was in, so a key frame there does not count.
    """

    def __init__(self) -> None:
        self._started = False
        self._damaged = False
        self._lost = False  # since the last picture
        self._skipping_since_ns: int | None = None
        self._own_lag_ns = 0

    def lost(self) -> None:
        """Packets are missing at this place."""
        self._lost = True
        self._damaged = True

    def spoilt(self) -> None:
        """The picture that passed last turned out to be damaged: unlike after `lost`, the next key frame counts."""
        self._damaged = True

    def passes(self, *, key: bool, now_ns: int, lag_ns: int) -> bool:
        """Whether to decode the next picture, which is `lag_ns` behind the newest that could have been here."""
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
        """The picture that passed last cannot be believed."""
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
    """Finds a coded picture again by its presentation time. The parser's thread writes, the camera's thread reads."""

    def __init__(self, capacity: int = 64) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._pictures: dict[int, Coded] = {}

    def put(self, pts_ns: int, picture: Coded) -> None:
        """Remember a picture; the oldest is forgotten where there are too many."""
        with self._lock:
            self._pictures[pts_ns] = picture
            if len(self._pictures) > self._capacity:
                del self._pictures[next(iter(self._pictures))]

    def take(self, pts_ns: int) -> Coded | None:
        """The picture with this presentation time, or None. Earlier ones come no more: they are forgotten."""
        with self._lock:
            found = self._pictures.get(pts_ns)
            if found is not None:
                self._pictures = {pts: picture for pts, picture in self._pictures.items() if pts > pts_ns}
            return found
