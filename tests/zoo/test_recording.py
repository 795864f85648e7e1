"""Tests that recordings of all zoo cameras with H.264 or H.265 show every frame at the right time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path

import av
import pytest

from tests.zoo.visit import Sink, config_of
from vision.capture.open import open_source
from vision.capture.packet_tap import PacketTap
from vision.capture.supervisor import CameraSupervisor, SupervisorPolicy
from vision.capture.zoo.barcode import read_number
from vision.capture.zoo.camera import Camera
from vision.capture.zoo.clips import FRAMES, GOP
from vision.capture.zoo.persona import Fault, HttpStream, Persona, RtspStream
from vision.capture.zoo.zoo import PERSONAS, Zoo, missing, running_zoo
from vision.config.recording import RecordingConfig
from vision.messaging.packets import PacketReceiver, PacketSocket, packet_address_prefix
from vision.outputs.recording.index import RecordedFile, RecordingIndex
from vision.outputs.recording.recorder import Recorder, RecorderOptions
from vision.outputs.recording.repair import find_differences
from vision.outputs.recording.segment_times import MIN_SPAN_NS

AT_ONCE = 12
PATIENCE_S = 60.0
WANTED = 40  # published frames
FAULT_AFTER_S = 2.5


def is_recorded(persona: Persona) -> bool:
    stream = persona.stream
    if missing(persona) is not None or "ffmpeg" not in persona.readers or "ffmpeg" in persona.verdicts:
        return False
    if isinstance(stream, RtspStream):
        return stream.codec in ("h264", "h265") and stream.fps >= 5
    return isinstance(stream, HttpStream) and stream.kind in ("hls", "mp4", "ts", "flv")


def record(zoo: Zoo, folder: Path, fault: Fault, persona: Persona) -> tuple[str, list[str]]:
    """Record a camera. Return the name of the camera, and the faults of its files."""
    camera = Camera(persona, fault, fault_after_s=FAULT_AFTER_S, repeats=False)
    zoo.start([camera])
    config = config_of(camera, "ffmpeg")
    address = packet_address_prefix()
    recording = RecordingConfig(folder=str(folder / config.id), mode="continuous")
    options = RecorderOptions(recording, folder / config.id, [config.id], [address], "", None)
    with (
        closing(PacketSocket(address)) as socket,
        closing(RecordingIndex(options.state_dir)) as index,
        closing(PacketReceiver([address], [config.id])) as receiver,
    ):
        tap = PacketTap(config.id, socket)
        factory = partial(open_source, config, offline=False, pixel_formats=("i420",), tap=tap)
        sink = Sink()
        supervisor = CameraSupervisor(config.id, factory, sink, SupervisorPolicy(2.5, frozen_after_s=None))
        recorder = Recorder(options, index)
        threads = [
            threading.Thread(target=supervisor.run, daemon=True),
            threading.Thread(target=recorder.receive, args=(receiver,), daemon=True),
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + PATIENCE_S
        wanted = WANTED if fault == "none" else 2 * WANTED
        while time.monotonic() < deadline and len(sink.published) < wanted:
            time.sleep(0.2)
            recorder.step()
        supervisor.stop()
        threads[0].join()
        recorder.stopping.set()
        threads[1].join()
        recorder.write(lambda _: None)
        faults = [f"{each.fault} {each.name}" for each in find_differences(index, options.state_dir, thorough=True)]
        files = index.files()
    if sum(file.frames + file.lost for file in files) < wanted - GOP:
        faults.append(f"{[file.frames for file in files]} frames")
    for file in files:
        faults += faults_of(options.state_dir / file.name, file, persona, fault)
    return f"{persona.name} {fault}", faults


def faults_of(path: Path, file: RecordedFile, persona: Persona, fault: Fault) -> list[str]:
    """Return the faults of a file: missing frames and late frames."""
    numbers: list[int | None] = []
    times_s: list[float] = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            numbers.append(read_number(frame.to_ndarray(format="gray")))
            assert frame.pts is not None
            times_s.append(float(frame.pts * frame.time_base))
    faults: list[str] = []
    known = [number for number in numbers if number is not None]
    arrives = fault != "loss" and persona.name != "new-ssrc"  # otherwise, packets of RTP are lost before FFmpeg
    steps = {(later - earlier) % FRAMES for earlier, later in pairwise(known[:-1])}  # the last can follow B-frames
    if arrives and steps - {1} and not file.lost:
        faults.append(f"numbers {numbers}")
    if times_s != sorted(set(times_s)):
        faults.append(f"times {times_s}")
    span_s, expected_s = times_s[-1] - times_s[0], (known[-1] - known[0]) % FRAMES / persona.stream.fps
    is_short = expected_s < MIN_SPAN_NS / 1e9  # the rate of the camera is unknown
    if not is_short and abs(span_s - expected_s) > 0.5 + 0.25 * expected_s:
        faults.append(f"{span_s:.2f} s instead of {expected_s:.2f} s")
    return faults


@pytest.mark.zoo
@pytest.mark.parametrize("fault", ["none", "cut", "loss"])
def test_every_camera_is_recorded(tmp_path: Path, fault: Fault) -> None:
    personas = [persona for persona in PERSONAS if is_recorded(persona)]
    with running_zoo() as zoo, ThreadPoolExecutor(AT_ONCE) as pool:
        done = list(pool.map(partial(record, zoo, tmp_path, fault), personas))
    assert len(done) == len(personas) > 40
    wrong = [f"{name}: {'; '.join(faults)}" for name, faults in done if faults]
    assert not wrong, "\n".join(wrong)
