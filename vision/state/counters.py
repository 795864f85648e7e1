"""`CameraCounters` stores the counters of one camera's lines and zones, which continue after a restart."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol, TypeAlias

CounterRow: TypeAlias = tuple[str, str, str, int]
"""Camera, name of a line or zone, key, and value of one counter."""

_PERIOD: Final = ("", "period_s")  # name and key of the start of the period, which is stored as a counter


def counter_checksum(camera: str, name: str, key: str, value: int) -> int:
    """Return the checksum (CRC-32) of a counter's camera, name, key, and value."""
    return zlib.crc32("\0".join((camera, name, key, str(value))).encode())


class CounterStore(Protocol):
    """Storage for the counters of all cameras: a `StateDatabase`, or an object that passes them to the main process."""

    def load_counters(self, camera_id: str) -> Sequence[CounterRow]:
        """Return the stored counters of the camera, in any order."""

    def store_counters(self, rows: Sequence[CounterRow]) -> bool:
        """Store new values. Return False if they cannot be stored at present, so that the caller must retry."""


class HasCameraCounters(Protocol):
    """Interface of an object that provides the counters of each camera's lines and zones, such as `StateDatabase`."""

    def counters(self, camera_id: str) -> CameraCounters:
        """Return the counters of a camera, with their stored values."""


class CameraCounters:
    """Counters of one camera, each with the name of a line or zone and a key, such as ``("door", "in")``.

    The value of a counter that does not exist is 0. The class is not thread-safe.
    """

    def __init__(self, store: CounterStore, camera_id: str) -> None:
        self._store = store
        self._camera_id = camera_id
        rows = store.load_counters(camera_id)
        self._counts: dict[tuple[str, str], int] = {(name, key): value for _, name, key, value in rows}
        self._dirty: dict[tuple[str, str], None] = {}

    def __getitem__(self, key: tuple[str, str]) -> int:
        return self._counts.get(key, 0)

    def counts(self) -> Mapping[tuple[str, str], int]:
        """Return a copy of all values, by name and key.

        The result also includes counters of lines and zones that the configuration no longer contains, and the start
        of the current counting period (`period_s`).
        """
        return dict(self._counts)

    @property
    def period_s(self) -> int | None:
        """Start of the current counting period, in seconds since 1970 (UTC), or None if no period has started yet."""
        return self._counts.get(_PERIOD)

    def start_period(self, period_s: int, *, keep: bool) -> None:
        """Start a new period at `period_s`, in seconds since 1970 (UTC). The next `flush` writes the changes.

        If `keep` is True, keep the values of the counters. Otherwise, set all values to 0.
        """
        if not keep:
            self._counts = dict.fromkeys(self._counts, 0)
        self._counts[_PERIOD] = period_s
        self._dirty = dict.fromkeys(self._counts)

    def add(self, name: str, keys: Iterable[str]) -> None:
        """Increment the counters `keys` of the line or zone `name` by 1. The next `flush` writes these counters."""
        for key in keys:
            self._counts[name, key] = self._counts.get((name, key), 0) + 1
            self._dirty[name, key] = None

    def set(self, name: str, key: str, value: int) -> None:
        """Set the counter `key` of the line or zone `name` to `value`. The next `flush` writes the counter."""
        self._counts[name, key] = value
        self._dirty[name, key] = None

    def flush(self) -> None:
        """Write the changed counters to the store. If the store fails, a subsequent call writes these counters."""
        if self._dirty and self._store.store_counters(self.changed()):
            self._dirty.clear()

    def changed(self) -> list[CounterRow]:
        """Return the counters, as rows to store, that have changed since they were last written."""
        return [(self._camera_id, name, key, self._counts[name, key]) for name, key in self._dirty]

    def written(self) -> None:
        """Mark all counters as written. Call this method after storing the rows from `changed` without `flush`."""
        self._dirty.clear()
