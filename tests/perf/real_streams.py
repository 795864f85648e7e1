"""Throughput and latency of `vision run` with real video streams, from the file to a subscriber in another process.

    python -m tests.perf.real_streams CLIP --cameras 8 32 --seconds 60 --reader nvdec
    python -m tests.perf.real_streams CLIP --cameras 8 --reopen-s 6.7              # streams end and are reopened
    python -m tests.perf.real_streams CLIP --cameras 8 --processes 4 --kill-s 5    # kill a worker every five seconds
    python -m tests.perf.real_streams CLIP --cameras 2 --reader ffmpeg --overload 3    # with a stand-in detector

Each camera plays the clip at the clip's frame rate, and has a line and a zone. The streams repeat the packets of the
clip without a new encoding, so that no stream ends during the run unless `--reopen-s` is given. The measurement
excludes the first 6 s after the first message and the last second of the program.

The command prints one line of JSON per number of cameras. Latencies are in ms, from the capture of a frame to the
receipt of its message. `begin_s` is the start of the measurement on the monotonic clock. If `--top` contains `verify`,
the line also contains the number of verdicts and their latencies.

A stream counts as settled 1 s after the first frame of an epoch or of a repetition of the clip. With `--kill-s`, the
line contains, for each killed worker, the longest time without a frame of its cameras, and the latencies of the other
cameras.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any, Final

import av
import numpy as np

from tests.perf.deployment import running, write_config
from tests.perf.process_watch import ProcessWatch, watching
from vision.client import Gap, Item, Restart, Subscription
from vision.messaging.schema import CameraStatusMessage, DetectionsMessage, EventMessage, Kind, NodeStatusMessage

_SETTLE_S: Final = 6.0  # warm-up: connections, first batches, and the batcher's measurements of batch times
_LAST_S: Final = 1.0  # not measured, before the program is stopped
_START_S: Final = 600.0  # timeout of the first message: the program can need time to build an engine
_QUEUE: Final = 100_000  # maximum number of messages that wait for this process
_OPENING_S: Final = 1.0  # after the first frame of an epoch or of a repetition, the stream counts as settled
SPARE_S: Final = 60.0  # by which a stream is longer than the run
_PHASES: Final = 8  # number of different lengths of the clips with `--reopen-s`
_GOLDEN: Final = (math.sqrt(5) - 1) / 2  # multiples of it, modulo 1, are evenly spread

_ANALYTICS: Final = {
    "units": "fraction",
    "lines": [{"name": "middle", "points": [[0.5, 0.1], [0.5, 0.9]]}],
    "zones": [{"name": "center", "polygon": [[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]]}],
}


@dataclass(slots=True)
class _Kill:
    """Messages that arrived between the kill of one worker and the kill of the next worker."""

    worker: str
    at_s: float
    gaps_s: dict[str, float] = field(default_factory=dict)  # longest time without a message, by camera
    latencies_ms: dict[str, list[float]] = field(default_factory=dict)  # by camera
    own: set[str] = field(default_factory=set)  # cameras of the worker, which begin a new epoch
    _last_s: dict[str, float] = field(default_factory=dict)

    def add(self, message: DetectionsMessage, since_s: float, late_ms: float, *, is_new_epoch: bool) -> None:
        gap_s = since_s - self._last_s.get(message.camera, self.at_s)
        self.gaps_s[message.camera] = max(gap_s, self.gaps_s.get(message.camera, 0.0))
        self._last_s[message.camera] = since_s
        self.latencies_ms.setdefault(message.camera, []).append(late_ms)
        if is_new_epoch:
            self.own.add(message.camera)

    def summary(self) -> dict[str, Any]:
        others = [late for camera, values in self.latencies_ms.items() if camera not in self.own for late in values]
        return {
            "worker": self.worker,
            "cameras": len(self.own),
            "longest_gap_s": round(max((self.gaps_s[camera] for camera in self.own), default=0.0), 2),
            "longest_gap_of_others_s": round(
                max((gap_s for camera, gap_s in self.gaps_s.items() if camera not in self.own), default=0.0), 2
            ),
            "latency_of_others_ms": _percentiles(others),
        }


@dataclass(slots=True)
class _Received:
    """Messages that arrived during the measurement."""

    clip_frames: dict[str, tuple[int, float]]  # number of frames of each camera's clip, and frames/s
    latencies_ms: dict[str, list[float]] = field(default_factory=dict)  # by camera
    settled_ms: list[float] = field(default_factory=list)  # latencies of streams that were opened long enough ago
    epochs: dict[str, tuple[int, float]] = field(default_factory=dict)  # of each camera, with the time of its begin
    seconds: Counter[int] = field(default_factory=Counter)  # number of frames in each second
    dropped: Counter[str] = field(default_factory=Counter)
    events: int = 0
    verdicts_ms: list[float] = field(default_factory=list)  # from the event to the receipt of its verdict
    verdict_requests_ms: list[float] = field(default_factory=list)  # from the request to the answer
    node: NodeStatusMessage | None = None
    lost: int = 0
    restarts: int = 0
    last_status: dict[str, CameraStatusMessage] = field(default_factory=dict)
    kills: list[_Kill] = field(default_factory=list)

    def add(self, item: Item, since_s: float) -> None:
        if isinstance(item, DetectionsMessage):
            late_ms = time.monotonic() * 1e3 - item.captured_monotonic_ns / 1e6
            self.latencies_ms.setdefault(item.camera, []).append(late_ms)
            epoch, opened_s = self.epochs.get(item.camera, (item.epoch, -math.inf))
            if is_new := epoch != item.epoch:
                opened_s = since_s
            self.epochs[item.camera] = item.epoch, opened_s
            frames, rate = self.clip_frames[item.camera]
            if since_s - opened_s >= _OPENING_S and item.frame % frames >= _OPENING_S * rate:
                self.settled_ms.append(late_ms)
            for kill in self.kills[-1:]:
                kill.add(item, since_s, late_ms, is_new_epoch=is_new)
            self.seconds[int(since_s)] += 1
            self.dropped.update(item.dropped_before)
        elif isinstance(item, EventMessage) and item.amends is None:
            self.events += 1
        elif isinstance(item, EventMessage) and item.verdict is not None:
            self.verdicts_ms.append(time.monotonic() * 1e3 - item.at_monotonic_ns / 1e6)
            self.verdict_requests_ms.append(item.verdict.latency_ms)
        elif isinstance(item, NodeStatusMessage):
            self.node = item
        elif isinstance(item, CameraStatusMessage):
            self.last_status[item.camera] = item
        elif isinstance(item, Gap):
            self.lost += item.lost
        elif isinstance(item, Restart):
            self.restarts += 1

    def summary(self, seconds: float) -> dict[str, Any]:
        every = [late for of_camera in self.latencies_ms.values() for late in of_camera]
        status = self.last_status.values()
        in_flight = [one.grabbed - one.published - sum(one.dropped.values()) for one in status]
        return {
            "published_per_s": round(len(every) / seconds, 1),
            "published_each_second": [self.seconds[second] for second in range(int(seconds))],
            "cameras_heard": len(self.latencies_ms),
            "dropped": dict(self.dropped),
            "lost_messages": self.lost,
            "restarts": self.restarts,
            "events": self.events,
            "most_in_flight": max(map(abs, in_flight), default=None),
            "latency_ms": _percentiles(every),
            "latency_of_settled_streams_ms": _percentiles(self.settled_ms),
            **self._language(),
            "kills": [kill.summary() for kill in self.kills],
            "worst_camera_p99_ms": max((_percentiles(one)["p99"] for one in self.latencies_ms.values()), default=None),
        }

    def _language(self) -> dict[str, Any]:
        """Return the figures of `verify`, and the counters since the start, or an empty dict without `verify`."""
        counters = {} if self.node is None else self.node.counters
        asked = {name: count for name, count in counters.items() if name.startswith("language.")}
        if not asked:
            return {}
        return {
            "verdicts": len(self.verdicts_ms),
            "event_to_verdict_ms": _percentiles(self.verdicts_ms),
            "request_to_verdict_ms": _percentiles(self.verdict_requests_ms),
            "language_counters_since_start": asked,
        }


def _percentiles(latencies_ms: Sequence[float]) -> dict[str, float]:
    if not latencies_ms:
        return {}
    p50, p95, p99, most = np.percentile(latencies_ms, [50, 95, 99, 100]).round(2).tolist()
    return {"p50": p50, "p95": p95, "p99": p99, "max": most}


@dataclass(frozen=True, slots=True)
class Run:
    """Options of a run, except for the number of cameras."""

    seconds: float
    reader: str
    detect: dict[str, Any]
    service_ms: float | None  # duration of a batch of the stand-in detector; None means the real detector
    overload: float | None
    objects: int
    processes: str | None
    kill_s: float | None
    kill: str
    top: dict[str, Any]


def measure(clips: Sequence[Path], cameras: int, run: Run) -> dict[str, Any]:
    """Run `vision run` on `cameras` cameras, to which the clips are assigned in rotation. Return the measurements."""
    top = dict(run.top) if run.processes is None else run.top | {"processes": _number(run.processes)}
    asked_per_s = round(sum(_length(clips[number % len(clips)])[1] for number in range(cameras)), 1)
    service_ms = run.service_ms
    if run.overload is not None:  # the detector's rate is `max_batch` frames per `service_ms`
        service_ms = 1e3 * run.overload * run.detect["max_batch"] / asked_per_s
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "camera.yaml"
        top["analytics"] = {f"camera-{number}": _ANALYTICS for number in range(cameras)}
        sources = [str(clips[number % len(clips)]) for number in range(cameras)]
        write_config(path, sources, reader=run.reader, pipeline="count", detect=run.detect, **top)
        kinds: tuple[Kind, ...] = ("detections", "events", "status")
        with ExitStack() as opened:
            process = opened.enter_context(_started(path, service_ms, run.objects))
            subscription = opened.enter_context(Subscription(f"ipc://{path}.ipc", kinds=kinds, queue=_QUEUE))
            watch = opened.enter_context(watching(process.pid))
            frames = {f"camera-{number}": _length(Path(source)) for number, source in enumerate(sources)}
            measured = _receive(_items(subscription, process), watch, run, _Received(frames))
        measured["exit_code"] = process.returncode
    settings = {"cameras": cameras, "reader": run.reader, "seconds": run.seconds, "processes": run.processes}
    return settings | {"service_ms": service_ms, "asked_per_s": asked_per_s} | measured


@contextmanager
def _started(path: Path, service_ms: float | None, objects: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run the program in the background, with the stand-in detector unless `service_ms` is None."""
    if service_ms is None:
        with running(path) as process:
            yield process
        return
    options = ["--service-ms", f"{service_ms:g}", "--objects", str(objects)]
    with subprocess.Popen([sys.executable, "-m", "tests.perf.stand_in", str(path), *options]) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(10)


def _items(subscription: Subscription, process: subprocess.Popen[bytes]) -> Iterator[Item]:
    """Yield received messages. Raise `RuntimeError` if the program ends, or if no detections arrive for `_START_S`."""
    last_s = time.monotonic()
    while process.poll() is None and time.monotonic() - last_s < _START_S:
        if (item := subscription.receive(1.0)) is not None:
            last_s = time.monotonic() if isinstance(item, DetectionsMessage) else last_s
            yield item
    raise RuntimeError(f"the program sends no detections; exit code {process.poll()}")


def _receive(items: Iterator[Item], watch: ProcessWatch, run: Run, received: _Received) -> dict[str, Any]:
    """Receive messages for `run.seconds` after the warm-up. Return the measurements."""
    while not isinstance(next(items), DetectionsMessage):
        pass
    begin_s = time.monotonic() + _SETTLE_S
    killing = _Killing(watch, run.kill, run.kill_s or math.inf)
    next_look_s = begin_s
    for item in items:
        since_s = time.monotonic() - begin_s
        if since_s >= run.seconds:
            break
        if since_s < 0:
            continue
        if received.seconds.total() == 0:
            watch.reset()
        killing.continue_at(since_s, begin_s, received.kills)
        received.add(item, since_s)
        if begin_s + since_s >= next_look_s:
            watch.look()
            next_look_s += 1.0
    cores, memory_mib = watch.usage(run.seconds)
    time.sleep(_LAST_S)
    totals = {"cores": round(sum(cores.values()), 2), "cores_by_process": cores, "rss_mib": memory_mib}
    return {"begin_s": begin_s} | received.summary(run.seconds) | {"killed": len(received.kills)} | totals


@dataclass(slots=True)
class _Killing:
    """Schedule that kills a worker after each interval of `every_s` seconds."""

    watch: ProcessWatch
    name: str
    every_s: float
    turn: int = 0
    pending: Future[tuple[str, float]] | None = None

    def continue_at(self, since_s: float, begin_s: float, kills: list[_Kill]) -> None:
        """Request the next kill when it is due. Add each finished kill to `kills`."""
        if self.pending is None and since_s >= (self.turn + 1) * self.every_s:
            self.pending = self.watch.kill(self.name, self.turn)
        if self.pending is not None and self.pending.done():
            worker, at_s = self.pending.result()
            if worker:
                kills.append(_Kill(worker, at_s - begin_s))
            self.turn, self.pending = self.turn + 1, None


def _number(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _length(clip: Path) -> tuple[int, float]:
    """Return the number of frames of a clip, and its frame rate in frames/s."""
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate is not None
        return stream.frames, float(stream.average_rate)


def prepare(clip: Path, folder: Path, run_s: float, reopen_s: float | None) -> list[Path]:
    """Write the clips that the cameras play, and return their paths.

    Args:
        run_s: time in seconds for which a stream must last.
        reopen_s: mean length of the clips in seconds, or None if no stream may end during the run. The lengths differ
            by up to 15 %, so that streams end at different times.
    """
    if reopen_s is None:
        return [_repeat(clip, folder / "long.mp4", run_s)]
    lengths = [reopen_s * (0.85 + 0.3 * (number * _GOLDEN % 1)) for number in range(_PHASES)]
    return [_repeat(clip, folder / f"clip-{number}.mp4", length) for number, length in enumerate(lengths)]


def _repeat(clip: Path, path: Path, seconds: float) -> Path:
    """Copy a clip to `path` without a new encoding. Repeat or cut the clip so that the copy lasts `seconds`."""
    rate = Fraction(_length(clip)[1]).limit_denominator(1001)
    with av.open(str(path), "w") as out:
        stream = None
        written = 0
        for _ in count():
            with av.open(str(clip)) as container:
                video = container.streams.video[0]
                stream = stream or out.add_stream_from_template(video)
                packets = [packet for packet in container.demux(video) if packet.size]
            first = min(packet.pts or 0 for packet in packets)
            for packet in packets:
                step = 1 / rate / (packet.time_base or Fraction(1, 90000))
                offset = round(written * step) - first
                packet.pts, packet.dts = (packet.pts or 0) + offset, (packet.dts or 0) + offset
                packet.stream = stream
            for packet in packets[: max(1, math.ceil(seconds * rate) - written)]:
                out.mux(packet)
            written += len(packets)
            if written >= seconds * rate:
                return path
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    backends = ("auto", "tensorrt", "onnxruntime", "fake")
    parser.add_argument("clip", type=Path, help="H.264 file that each camera plays")
    parser.add_argument("--cameras", type=int, nargs="+", default=[2], help="numbers of cameras, one run for each")
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of a measurement. Default: %(default)g")
    parser.add_argument("--reader", choices=("nvdec", "ffmpeg"), default="nvdec", help="decoder. Default: %(default)s")
    parser.add_argument("--backend", choices=backends, default="auto", help="back-end. Default: %(default)s")
    parser.add_argument("--max-batch", type=int, default=32, help="largest batch. Default: %(default)s")
    parser.add_argument("--processes", help="value of the key `processes`. Default: the key is absent")
    parser.add_argument("--reopen-s", type=float, help="mean time after which a stream ends and is opened again")
    parser.add_argument("--service-ms", type=float, help="use a stand-in detector with this duration of a batch")
    parser.add_argument("--objects", type=int, default=6, help="objects of the stand-in. Default: %(default)s")
    parser.add_argument(
        "--overload", type=float, help="use a stand-in detector that serves only this fraction of the frames: 3 = 1/3"
    )
    parser.add_argument("--kill-s", type=float, help="kill one worker process after each of these intervals")
    parser.add_argument("--kill", default="", help="part of the name of the worker processes to kill. Default: all")
    parser.add_argument("--top", type=json.loads, default={}, help="further keys of camera.yaml, as JSON")
    return parser


def main() -> None:
    options = _parser().parse_args()
    run = Run(
        seconds=options.seconds,
        reader=options.reader,
        detect={"backend": options.backend, "max_batch": options.max_batch},
        service_ms=options.service_ms,
        overload=options.overload,
        objects=options.objects,
        processes=options.processes,
        kill_s=options.kill_s,
        kill=options.kill,
        top=options.top,
    )
    with tempfile.TemporaryDirectory() as folder:
        clips = prepare(options.clip.absolute(), Path(folder), options.seconds + SPARE_S, options.reopen_s)
        for cameras in options.cameras:
            print(json.dumps(measure(clips, cameras, run)), flush=True)


if __name__ == "__main__":
    main()
