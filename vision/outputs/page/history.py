"""Counts over hours and days, for the plots of the page: from the archive, or from messages that this process received.

The time is divided into equal buckets. Each bucket has the increase of each count during the bucket, and the maximum
occupancy. If a count decreases, it was reset, and continues from 0.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from vision.messaging.schema import CountsMessage
from vision.messaging.times import utc_ns

LIVE_STEP_S: Final = 300
"""Length in seconds of a bucket in the memory of this process."""

KEPT_S: Final = 24 * 3600
"""Length in seconds of the time that this process keeps in memory."""

SHORTEST_S: Final = 3600
"""Length in seconds of the shortest plot. The axis of a plot with a single bucket would show years."""


class Sample(NamedTuple):
    """The total counts of a line or a zone at one time, such as the objects that have entered and left so far."""

    at_s: float  # seconds since 1970 (UTC)
    name: str
    first: int  # `in` of a line, or `entered` of a zone
    second: int  # `out` of a line, or `left` of a zone
    occupancy: int | None  # None for a line


class Series(msgspec.Struct):
    """The history of one line or zone. The lists have one value per bucket."""

    name: str
    kind: str  # "line" or "zone"
    first: list[int]
    second: list[int]
    occupancy: list[int]  # empty for a line


class History(msgspec.Struct):
    """The counts of all lines and zones of one camera, in buckets of `step_s` seconds."""

    source: str  # "archive" or "memory"
    since_s: float  # start of the data, seconds since 1970
    step_s: int
    times: list[int]  # starts of the buckets, seconds since 1970
    series: list[Series]


@dataclass(slots=True)
class _Bucket:
    first: int = 0
    second: int = 0
    occupancy: int = 0


@dataclass(slots=True)
class _Counts:
    """The counts of one line or zone, divided into buckets of time."""

    is_zone: bool
    last: Sample
    buckets: dict[int, _Bucket] = field(default_factory=dict)  # by number: the start in seconds, divided by the step

    def add(self, sample: Sample, number: int) -> None:
        bucket = self.buckets.setdefault(number, _Bucket())
        bucket.first += _increase(self.last.first, sample.first)
        bucket.second += _increase(self.last.second, sample.second)
        bucket.occupancy = max(bucket.occupancy, sample.occupancy or 0)
        self.last = sample


def _increase(before: int, after: int) -> int:
    return after - before if after >= before else after


class CountBuckets:
    """The samples of one camera, divided into buckets of `step_s` seconds.

    Buckets start `offset_s` seconds before the multiples of `step_s`, for example at midnight in local time.
    """

    def __init__(self, step_s: int, offset_s: int = 0) -> None:
        self._step_s = step_s
        self._offset_s = offset_s
        self._counts: dict[str, _Counts] = {}

    def add(self, sample: Sample) -> None:
        """Add a sample. The samples of a line or a zone must be in time order. The first sample adds no increase."""
        number = self._number(sample.at_s)
        counts = self._counts.get(sample.name)
        is_zone = sample.occupancy is not None
        if counts is None or counts.is_zone != is_zone:
            counts = self._counts[sample.name] = _Counts(is_zone, sample)
        counts.add(sample, number)

    def forget_before(self, at_s: float) -> None:
        """Remove the buckets that end at or before `at_s`."""
        oldest = self._number(at_s)
        for counts in self._counts.values():
            for number in [each for each in counts.buckets if each < oldest]:
                del counts.buckets[number]

    def history(self, source: str, since_s: float, until_s: float) -> History:
        """Return the counts from the bucket that contains `since_s` to the bucket that contains `until_s`.

        `source` is the origin of the samples, "archive" or "memory", for the field `History.source`.
        """
        numbers = range(self._number(since_s), self._number(until_s) + 1)
        empty = _Bucket()
        series = []
        for name, counts in sorted(self._counts.items()):
            buckets = [counts.buckets.get(number, empty) for number in numbers]
            series.append(
                Series(
                    name=name,
                    kind="zone" if counts.is_zone else "line",
                    first=[bucket.first for bucket in buckets],
                    second=[bucket.second for bucket in buckets],
                    occupancy=[bucket.occupancy for bucket in buckets] if counts.is_zone else [],
                )
            )
        times = [number * self._step_s - self._offset_s for number in numbers]
        return History(source, since_s, self._step_s, times, series)

    def _number(self, at_s: float) -> int:
        return math.floor((at_s + self._offset_s) / self._step_s)


class LiveHistory:
    """The counts that this process received in the last 24 hours. Call `add` from one thread.

    Any thread can call `history`.
    """

    def __init__(self) -> None:
        self.since_s = time.time()
        self._cameras: dict[str, CountBuckets] = {}
        self._forgot_s = 0.0

    def add(self, message: CountsMessage) -> None:
        """Add the counts of a camera."""
        buckets = self._cameras.setdefault(message.camera, CountBuckets(LIVE_STEP_S))
        at_s = utc_ns(message.at) / 1e9
        for name, line in message.lines.items():
            buckets.add(Sample(at_s, name, line.in_, line.out, None))
        for name, zone in message.zones.items():
            buckets.add(Sample(at_s, name, zone.entered, zone.left, zone.occupancy))
        if at_s - self._forgot_s > LIVE_STEP_S:
            self._forgot_s = at_s
            for each in self._cameras.values():
                each.forget_before(at_s - KEPT_S)

    def history(self, camera: str, since_s: float, until_s: float) -> History:
        """Return the history of a camera until `until_s`. All times are in seconds since 1970 (UTC).

        The history starts at the latest of three times: `since_s`, the start of the process, and `KEPT_S` seconds
        before `until_s`. It has buckets for at least `SHORTEST_S` seconds.
        """
        since_s = max(since_s, self.since_s, until_s - KEPT_S)
        buckets = self._cameras.get(camera) or CountBuckets(LIVE_STEP_S)
        history = buckets.history("memory", min(since_s, until_s - SHORTEST_S), until_s)
        history.since_s = since_s
        return history


def history_of(samples: Iterable[Sample], *, step_s: int, offset_s: int, since_s: float, until_s: float) -> History:
    """Return the history of archived samples. Samples before `since_s` only serve to compute increases."""
    buckets = CountBuckets(step_s, offset_s)
    for sample in samples:
        buckets.add(sample)
    return buckets.history("archive", since_s, until_s)


def archived_samples(folder: Path, camera: str, since_s: float, until_s: float) -> Iterable[Sample]:
    """Yield the samples of a camera from an archive, oldest first. This function needs pyarrow.

    Raises:
        ConfigError: there is no archive, or it cannot be read.
    """
    from vision.outputs.archive.reader import Archive

    archive = Archive(folder)
    for row in archive.rows("counts", camera, int(since_s * 1e6), int(until_s * 1e6)):
        if row["total_in"] is not None:
            yield Sample(row["at_utc"] / 1e6, row["name"], row["total_in"], row["total_out"], None)
        else:
            yield Sample(
                row["at_utc"] / 1e6, row["name"], row["total_entered"], row["total_left"], row["occupancy"] or 0
            )
