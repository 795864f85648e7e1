"""Implementation of `vision replay`, which publishes archived tracks with the events of a configuration."""

from __future__ import annotations

import heapq
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from vision.config import AppConfig
from vision.errors import EXIT_OK, ConfigError
from vision.evaluation.whatif.judge import Judge
from vision.evaluation.whatif.rejudge import WARM_UP_US, initial_counts
from vision.evaluation.whatif.run import Selection, select
from vision.messaging import codec
from vision.messaging.curve import KeyFolder
from vision.messaging.publisher import Publisher
from vision.outputs.archive.process import require_pyarrow
from vision.outputs.archive.reader import Archive
from vision.types import Counts, Result, Timing

_JOIN_S: Final = 1.0  # time in seconds for subscribers to connect before the first message


def run_replay(selection: Selection, stop: threading.Event, *, speed: float = 1.0, bind: str | None = None) -> int:
    """Publish the archived results of a time range. Return the exit code.

    Args:
        selection: the configuration and the range.
        stop: event that ends the replay when it is set.
        speed: speed relative to real time, or 0 for the maximum speed.
        bind: address of the publisher, or None for `publish.bind` of the configuration.

    Raises:
        ConfigError: the configuration or an argument is invalid, pyarrow is missing, there is no archive, or the range
            has no frames.
        ModelError: the model is missing, or its model.yaml is invalid.
        Unavailable: the address is in use.
    """
    require_pyarrow("vision replay")
    selected = select(selection)
    config, names, archive = selected.config, selected.class_names, selected.archive
    limits = selection.since_us, selection.until_us
    streams = [replayed(archive, Judge(config, camera, names), camera, *limits) for camera in selected.cameras]
    number = 0
    with ExitStack() as resources:
        publisher = resources.enter_context(_publisher(config, names, bind))
        pacer, last = _Pacer(speed, stop), dict[str, Counts]()
        for result in heapq.merge(*streams, key=lambda each: each.meta.captured_utc_ns):
            if not number:
                stop.wait(_JOIN_S)
            if not pacer.wait(result.meta.captured_utc_ns):
                break
            _publish(publisher, result, last)
            number += 1
    if not number and not stop.is_set():
        raise ConfigError("the archive has no frames in this time", code="no-frames")
    return EXIT_OK


def replayed(archive: Archive, judge: Judge, camera: str, since_us: int, until_us: int) -> Iterator[Result]:
    """Yield the archived results of a camera, with the events and counts of the configuration of `judge`.

    The evaluation also covers frames up to `WARM_UP_US` before `since_us`, which are not in the results.
    """
    instance, stages = "", judge.stages()
    since = since_us - WARM_UP_US
    initial = initial_counts(archive, camera, since, until_us)
    for archived in archive.frames(camera, since_us - WARM_UP_US, until_us):
        if archived.instance != instance:
            instance = archived.instance
            stages = judge.stages(initial.get(instance))
        result = stages(archived.result)
        if result.meta.captured_utc_ns >= since_us * 1000:
            captured_ns = result.meta.captured_ns
            yield replace(result, timing=Timing(captured_ns, captured_ns, captured_ns))


def _publish(publisher: Publisher, result: Result, last: dict[str, Counts]) -> None:
    """Publish a result.

    If the counts of the result's camera differ from its counts in `last`, also publish the new counts, and update
    `last`.
    """
    publisher.publish(result)
    meta, counts = result.meta, result.counts
    if counts is not None and last.get(meta.camera_id) is not counts:
        last[meta.camera_id] = counts
        publisher.publish_status(codec.counts(meta.camera_id, counts, meta.captured_ns, meta.captured_utc_ns))


def _publisher(config: AppConfig, class_names: Sequence[str], bind: str | None) -> Publisher:
    publish = config.publish
    return Publisher(
        bind or publish.bind,
        node=config.node or socket.gethostname(),
        class_names=class_names,
        encoding=publish.encoding,
        queue=publish.queue,
        max_subscribers=publish.max_subscribers,
        keys=None if publish.curve is None else KeyFolder(Path(publish.curve)),
    )


class _Pacer:
    """Clock with which the replay waits until each frame is due."""

    def __init__(self, speed: float, stop: threading.Event) -> None:
        self._speed = speed
        self._stop = stop
        self._first_ns: int | None = None
        self._began_ns = 0

    def wait(self, captured_ns: int) -> bool:
        """Wait until the frame captured at `captured_ns` is due. Return False if the replay was stopped."""
        if self._first_ns is None:
            self._first_ns, self._began_ns = captured_ns, time.monotonic_ns()
        if not self._speed:
            return not self._stop.is_set()
        due_ns = self._began_ns + round((captured_ns - self._first_ns) / self._speed)
        return not self._stop.wait(max(0.0, (due_ns - time.monotonic_ns()) / 1e9))
