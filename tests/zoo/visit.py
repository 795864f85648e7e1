"""Visits of zoo cameras. A visit reads a camera under a supervisor, as the program does, and counts all frames."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

from vision.capture.open import open_source
from vision.capture.supervisor import CameraSupervisor, SupervisorPolicy
from vision.capture.zoo.barcode import read_number
from vision.capture.zoo.camera import Camera
from vision.capture.zoo.clips import FRAMES
from vision.capture.zoo.persona import Fault, HttpStream, Persona, Reader, RtspStream
from vision.capture.zoo.playback import Playback
from vision.capture.zoo.zoo import Zoo
from vision.config import CameraConfig
from vision.types import DropReason, FrameBuffer, FrameMeta, PixelFormat

FAULT_AFTER_S = 1.5
OPEN_TIMEOUT_S = 10.0  # each camera must deliver its first frame within this time
READ_TIMEOUT_S = 2.5
PATIENCE_S = 60.0  # for slow machines; a visit ends as soon as its goal is reached
ENOUGH = 8  # frames of a visit without a fault
AFTER_FAULT = 3  # frames that must arrive after the fault
_IN_FLIGHT_S = 0.3  # frames that were sent before the fault
_RECOVERED_AT = 31  # the number of the first intact frame after all kinds of losses


@dataclass(frozen=True)
class Published:
    """Published frame, and the number of frames before it."""

    number: int | None  # in its pixels; None if it is damaged
    counted: int  # frames that were published or dropped before it
    epoch: int
    at_s: float  # monotonic


class Sink:
    """`FrameSink` that reads the number in every frame."""

    def __init__(self) -> None:
        self.published: list[Published] = []
        self.dropped: Counter[DropReason] = Counter()
        self._format: PixelFormat = "bgr"
        self._size = (0, 0)
        self._buffer = FrameBuffer.allocate(2, 2, "bgr")

    def configure(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> None:
        self._buffer = FrameBuffer.allocate(height_px, width_px, pixel_format)
        self._format = pixel_format
        self._size = height_px, width_px

    def write_buffer(self, timeout_s: float) -> FrameBuffer | None:
        return self._buffer

    def commit(self, meta: FrameMeta) -> None:
        assert (meta.height_px, meta.width_px) == self._size
        pixels = self._buffer.require_host()
        counted = len(self.published) + self.dropped.total()
        luma = pixels[: meta.height_px] if self._format in ("i420", "nv12") else pixels[..., 1]
        self.published.append(Published(read_number(luma), counted, meta.epoch, time.monotonic()))

    def drop(self, reason: DropReason) -> None:
        self.dropped[reason] += 1

    def flush(self, reason: DropReason) -> None:
        pass

    def end(self) -> None:
        pass


@dataclass(slots=True)
class Visit:
    """Result of a visit. `faults` is empty if the camera behaved as expected."""

    name: str
    reader: Reader
    fault: Fault
    faults: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # each reason of a lost connection, with its hint
    published: int = 0
    dropped: Mapping[DropReason, int] = field(default_factory=dict)
    first_frame_s: float | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.name} with {self.reader}, {self.fault}"


def config_of(camera: Camera, reader: Reader, remedy: Mapping[str, object] | None = None) -> CameraConfig:
    """Return the configuration of a camera of the zoo."""
    persona = camera.persona
    keys = {"reader": reader, **persona.settings, **(remedy or {})}
    return CameraConfig.model_validate(
        {
            "id": f"{persona.name}_{reader}",
            "source": camera.address,
            "open_timeout_s": OPEN_TIMEOUT_S,
            "read_timeout_s": READ_TIMEOUT_S,
            **keys,
        }
    )


def visit(
    zoo: Zoo, persona: Persona, reader: Reader, fault: Fault, remedy: Mapping[str, object] | None = None
) -> Visit:
    """Read a zoo camera until the goal of the fault is reached. Return the result."""
    result = Visit(persona.name, reader, fault)
    camera = Camera(persona, fault, fault_after_s=FAULT_AFTER_S, repeats=False)
    zoo.start([camera])
    config = config_of(camera, reader, remedy)
    sink = Sink()
    supervisor = CameraSupervisor(
        config.id,
        lambda: open_source(config, offline=False, pixel_formats=("i420", "bgr")),
        sink,
        SupervisorPolicy(config.read_timeout_s, config.frozen_after_s, first_retry_s=0.2, longest_retry_s=0.5),
    )
    thread = threading.Thread(target=supervisor.run, name=f"visit-{config.id}")
    began_s = time.monotonic()
    thread.start()
    first_errors: list[str] | None = None
    while not _is_reached(camera, sink) and time.monotonic() - began_s < PATIENCE_S:
        time.sleep(0.02)
        status = supervisor.status()
        error = f"{status.last_error} -- {status.last_hint}"
        if status.last_error and error not in result.errors:
            result.errors.append(error)
        if sink.published and first_errors is None:
            first_errors = list(result.errors)
    reached = _is_reached(camera, sink)
    supervisor.stop()
    thread.join(60)
    if thread.is_alive():
        result.faults.append("the camera's thread hangs")
    if not reached:
        result.faults.append(
            f"the goal was not reached in {PATIENCE_S:g} s: {supervisor.status().state}, {result.errors}"
        )
    if first_errors and fault in ("none", "slow", "loss"):
        result.faults.append(f"the first connection failed: {first_errors}")
    zoo.stop_camera(camera)
    result.seconds = time.monotonic() - began_s
    result.published, result.dropped = len(sink.published), dict(sink.dropped)
    if sink.published:
        result.first_frame_s = sink.published[0].at_s - began_s
    if persona.counts_all(reader, fault):
        result.faults += account(camera, sink.published)
    return result


def codes_while_running(configs: Sequence[CameraConfig]) -> dict[str, str]:
    """Read cameras as the program does, until the first connection of each camera fails. Return the error codes."""
    supervisors = [
        CameraSupervisor(
            config.id,
            partial(open_source, config, offline=False, pixel_formats=("i420", "bgr")),
            Sink(),
            SupervisorPolicy(config.read_timeout_s, config.frozen_after_s, first_retry_s=60.0, longest_retry_s=60.0),
        )
        for config in configs
    ]
    threads = [threading.Thread(target=each.run, name=f"refused-{each.camera_id}") for each in supervisors]
    for thread in threads:
        thread.start()
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s and not all(each.status().last_code for each in supervisors):
        time.sleep(0.02)
    codes = {each.camera_id: each.status().last_code for each in supervisors}
    for supervisor in supervisors:
        supervisor.stop()
    for thread in threads:
        thread.join(60)
    return codes


def _is_reached(camera: Camera, sink: Sink) -> bool:
    published, slow = sink.published, camera.persona.stream.fps < 5
    match camera.fault:
        case "none" | "slow":
            return len(published) >= _enough(camera)
        case "loss":
            goal = min(_RECOVERED_AT, 11 if slow else FRAMES)
            return bool(published) and (published[-1].number or 0) >= goal
        case _:
            over_s = camera.fault_over_s
            return over_s is not None and sum(p.at_s > over_s + _IN_FLIGHT_S for p in published[-9:]) >= AFTER_FAULT


def _enough(camera: Camera) -> int:
    """Return the number of frames of a visit without a fault, which includes oddities that occur late in the stream."""
    stream = camera.persona.stream
    if isinstance(stream, RtspStream):
        late = max(stream.jump_at, stream.new_ssrc_at, 2 * stream.resize_every)
        lasts = camera.persona.server.session_timeout_s * 2.5 * stream.fps
        return max(ENOUGH if stream.fps > 2 else 5, late + ENOUGH if late else 0, round(lasts) if lasts < 100 else 0)
    return ENOUGH if stream.fps > 2 else 5


def account(camera: Camera, published: list[Published]) -> list[str]:
    """Return the faults of the published frames: damaged, repeated, and uncounted frames.

    The function compares the frames of each connection with the frames that the camera sent to each client, because a
    library can connect more often than the program.
    """
    damaged = sum(frame.number is None for frame in published)
    faults = [f"{damaged} damaged frames were published"] if damaged else []
    readable = [frame for frame in published if frame.number is not None]
    for _, frames in groupby(readable, lambda frame: frame.epoch):
        of_epoch = list(frames)
        found = [_account_epoch(camera, of_epoch, playback) for playback in camera.playbacks if playback.sent]
        faults += min(found, key=lambda each: len(list(each)), default=["frames were published, but none was sent"])
    if readable:
        faults += _account_start(camera, readable[0])
    return faults


def _account_epoch(camera: Camera, published: list[Published], playback: Playback) -> list[str]:
    """Compare the frames of one epoch with the frames of a playback. All sent frames must be counted."""
    start = playback.sent[0]
    sent = sorted((number - start) % FRAMES for number in playback.sent[:FRAMES])
    lost = {(playback.sent[position] - start) % FRAMES for position in playback.damaged if position < FRAMES}
    faults = []
    first = last = published[0]
    uncounted = 0
    for frame in published[1:]:
        before, now = (_number(one) - start for one in (last, frame))
        step = (now - before) % FRAMES
        if not 0 < step < FRAMES // 2:
            faults.append(f"frame {frame.number} was published after frame {last.number}")
        between = {(before + offset) % FRAMES for offset in range(1, step + 1)}
        uncounted += len(between.intersection(sent)) - (frame.counted - last.counted)
        allowed = {(_number(first) - start + offset) % FRAMES for offset in range(1, _span(first, frame) + 1)}
        if uncounted > len(lost & allowed) + _reordered(camera):
            faults.append(f"{uncounted} frames up to {frame.number} were not counted")
            break
        last = frame
    # A frame is counted when it is dropped, which can be before an earlier one is published.
    rest = len(sent) - sent.index((_number(last) - start) % FRAMES) if _is_in(last, start, sent) else 0
    if uncounted < -max(0, rest) - _reordered(camera):
        faults.append(f"{-uncounted} frames too many were counted")
    return faults


def _reordered(camera: Camera) -> int:
    """Return the number of frames that a decoder can hold back to reorder B-frames. They are dropped out of order."""
    stream = camera.persona.stream
    return 2 if isinstance(stream, RtspStream) and stream.b_frames else 0


def _span(first: Published, last: Published) -> int:
    return (_number(last) - _number(first)) % FRAMES


def _is_in(frame: Published, start: int, sent: list[int]) -> bool:
    return (_number(frame) - start) % FRAMES in sent


def _number(frame: Published) -> int:
    assert frame.number is not None
    return frame.number


def _account_start(camera: Camera, first: Published) -> list[str]:
    """Check the frames of the first connection before the first published frame."""
    stream = camera.persona.stream
    if isinstance(stream, HttpStream) and stream.kind == "hls":  # a player chooses where it starts
        return []
    uncounted = []
    for playback in camera.playbacks:
        if not playback.sent:
            continue
        earlier = (_number(first) - playback.sent[0]) % FRAMES
        lost = sum((playback.sent[at] - playback.sent[0]) % FRAMES < earlier for at in playback.damaged)
        uncounted.append(earlier - first.counted)
        if 0 <= uncounted[-1] <= lost or -2 <= uncounted[-1] < 0:
            return []
    return [f"{uncounted} frames before frame {first.number} were not counted"]


def in_parallel(jobs: list[Callable[[], Visit]], at_once: int) -> list[Visit]:
    """Run the visits in `at_once` threads. If a visit raises an exception, raise it after the end of all visits."""
    results: list[Visit | None] = [None] * len(jobs)
    failures: list[BaseException] = []
    indices = iter(range(len(jobs)))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                index = next(indices, None)
            if index is None:
                return
            try:
                results[index] = jobs[index]()
            except BaseException as error:  # noqa: BLE001 - raised below
                failures.append(error)

    threads = [threading.Thread(target=work, name=f"visitor-{number}") for number in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [result for result in results if result is not None]
