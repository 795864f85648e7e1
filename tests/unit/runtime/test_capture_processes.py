"""Tests of capture workers: frames in shared memory, accounting, and workers that crash, hang, leak, or are killed."""

from __future__ import annotations

import contextlib
import gc
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.messages.processes import wait_until
from tests.unit.runtime.capture_sources import FRAMES
from tests.unit.runtime.test_runtime import Collector, check_accounts
from tests.unit.runtime.worker_children import worker_children
from vision.capture.open import NamedOpener
from vision.config import AppConfig
from vision.detect.fake import FakeDetector
from vision.errors import OutOfMemory, SourceError
from vision.runtime import capture_processes
from vision.runtime.builder import RunOptions
from vision.runtime.camera_factory import CameraFactory, build_capture
from vision.runtime.camera_set import Camera
from vision.runtime.capture_processes import CaptureProcesses
from vision.runtime.runtime import Runtime
from vision.runtime.shared_frames import FrameMemory, allocate_frames
from vision.runtime.worker_channel import SPARE
from vision.runtime.worker_process import SpareProcess, worker_name
from vision.stages.stage import Report
from vision.types import DropReason, FrameBuffer, PixelFormat, Result

pytestmark = pytest.mark.integration

CLIP = Path(__file__).parents[3] / "configs" / "vtest.mp4"


@dataclass
class Site:
    """Program with capture workers. The main program runs in a thread of the test."""

    runtime: Runtime
    cameras: dict[str, Camera]
    sink: Collector
    capture: CaptureProcesses | None
    stop: threading.Event = field(default_factory=threading.Event)
    report: Report | None = None
    error: BaseException | None = None

    def run(self, for_s: float | None = None) -> Report:
        return self.runtime.run(self.stop, for_s=for_s)

    def results(self, camera: str) -> list[Result]:
        return self.sink.results[camera]

    def check(self) -> None:
        for name, camera in self.cameras.items():
            check_accounts(camera, self.results(name))

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.report = self.run()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def finish(self) -> Report:
        self.stop.set()
        self._thread.join(60)
        assert self.error is None
        assert self.report is not None
        return self.report


def site(
    sources: dict[str, str],
    *,
    workers: int = 2,
    detector: Any = None,
    offline: bool = False,
    faulty: bool = False,
    hang_s: float = 30.0,
) -> Site:
    config = AppConfig.model_validate(
        {
            "detect": {"backend": "fake"},
            "hang_s": hang_s,
            "cameras": [{"id": name, "source": source} for name, source in sources.items()],
        }
    )
    sink, detector = Collector(), detector or FakeDetector()
    opening = NamedOpener("tests.unit.runtime.capture_sources:open_faulty") if faulty else None
    options = RunOptions(threading.Event(), offline=offline, capture_workers=workers, open_source=opening)
    spare = None if offline else SpareProcess(["vision.runtime.capture_worker"])
    cameras, capture = build_capture(config, CameraFactory.of(options, detector), spare)
    runtime = Runtime(cameras=cameras, capture=capture, detector=detector, sinks=[sink], status_interval_s=0.1)
    return Site(runtime, {camera.slot.camera_id: camera for camera in cameras}, sink, capture)


@pytest.fixture(autouse=True)
def _no_process_remains() -> Iterator[None]:
    yield
    assert not worker_children()


def children() -> list[psutil.Process]:
    """Return the capture workers, except the spare process."""
    return [child for child in worker_children() if name_of(child) != SPARE.strip()]


def name_of(child: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return worker_name(child.cmdline())
    return ""


def epochs(results: Sequence[Result]) -> set[int]:
    return {result.meta.epoch for result in results}


def has_frames(sink: Collector, camera: str, epoch: int) -> bool:
    return sum(result.meta.epoch == epoch for result in sink.results[camera]) > 5


def seen(result: Result) -> tuple[Any, ...]:
    objects = result.objects
    return (result.meta.index, result.meta.epoch, objects.boxes_xyxy.tolist(), objects.class_ids.tolist())


def test_offline_results_equal_those_of_one_process() -> None:
    formats = ("bgr", "bgrx", "nv12", "i420")
    sources = {
        form: f"synthetic:160x120@1000?frames={30 + number}&seed={number}&format={form}&resize=20:200x160"
        for number, form in enumerate(formats)
    }
    runs = []
    for workers in (0, 2):
        run = site(sources, workers=workers, offline=True)
        run.run()
        run.check()
        runs.append({name: [seen(result) for result in run.results(name)] for name in sources})
    assert runs[0] == runs[1]
    assert [len(runs[1][name]) for name in formats] == [30, 31, 32, 33]
    assert all(boxes for name in formats for _, _, boxes, _ in runs[1][name])


def test_worker_that_closes_many_cameras_is_not_killed(caplog: pytest.LogCaptureFixture) -> None:
    run = site({f"slow-{n}": "synthetic:64x48@5" for n in range(16)}, workers=1, faulty=True)
    run.start()
    wait_until(lambda: all(run.results(name) for name in run.cameras), "a frame of each camera")
    run.finish()
    run.check()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_slow_detector_drops_old_frames() -> None:
    detector = FakeDetector(max_batch=1, service_ns=40_000_000)
    run = site({f"c{n}": "synthetic:160x120@50" for n in range(4)}, detector=detector)
    run.start()
    wait_until(lambda: all(len(run.results(name)) >= 3 for name in run.cameras), "three results of each camera")
    run.finish()
    for camera in run.cameras.values():
        assert camera.slot.counts().dropped[DropReason.SUPERSEDED] > 3
    run.check()


def allocations(monkeypatch: pytest.MonkeyPatch) -> list[FrameMemory]:
    """Return a list to which each subsequent memory allocation of the main process is added."""
    allocated: list[FrameMemory] = []

    def allocate(*arguments: Any, on_gpu: bool) -> FrameMemory:
        allocated.append(allocate_frames(*arguments, on_gpu=on_gpu))
        return allocated[-1]

    monkeypatch.setattr(capture_processes, "allocate_frames", allocate)
    return allocated


def test_killed_workers_are_replaced_and_every_frame_is_accounted_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new processes reuse the memory of the killed processes, because a new allocation would interrupt the GPU."""
    allocated = allocations(monkeypatch)
    run = site(
        {f"c{n}": "synthetic:160x120@100" for n in range(4)}, workers=4, detector=FakeDetector(service_ns=5_000_000)
    )
    run.start()
    try:
        for kill in range(2):
            wait_until(lambda: all(run.results(f"c{n}") for n in range(4)), "frames of all cameras")
            victim = run.cameras["c1"]
            assert victim.supervisor.status().epoch == kill
            worker = next(child for child in children() if name_of(child) == "capture worker 2")
            worker.send_signal(signal.SIGKILL)
            wait_until(partial(has_frames, run.sink, "c1", kill + 1), "frames of the new process")
    finally:
        report = run.finish()
    run.check()
    assert len(allocated) == 4
    assert epochs(run.results("c0")) == epochs(run.results("c2")) == {0}
    assert epochs(run.results("c1")) == {0, 1, 2}
    by_name = {camera.camera: camera for camera in report.cameras}
    assert by_name["c1"].reconnects == 2
    assert by_name["c0"].reconnects == 0
    indices = [(result.meta.epoch, result.meta.index) for result in run.results("c1")]
    assert indices == sorted(set(indices))


@pytest.mark.parametrize(("fault", "number"), [("crash", signal.SIGSEGV), ("gil", None), ("leak", None)])
def test_faulty_camera_disturbs_only_its_worker(
    fault: str, number: int | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(capture_processes, "_MEMORY_BYTES", 200 << 20)
    name = f"{fault}-0"
    run = site({name: "synthetic:160x120@25", "good-1": "synthetic:160x120@25"}, faulty=True, hang_s=2.0)
    run.start()
    try:
        wait_until(lambda: len(epochs(run.results(name))) >= 2, "a new epoch")
        wait_until(lambda: len(run.results("good-1")) > 20, "frames of the other camera")
    finally:
        report = run.finish()
    run.check()
    assert epochs(run.results("good-1")) == {0}
    assert next(camera for camera in report.cameras if camera.camera == name).reconnects > 0
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert errors
    if number is not None:
        assert str(int(number)) in errors[0]


def test_camera_whose_library_does_not_return_gets_a_new_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The camera also gets new memory, because the blocked call can still write to the previous memory."""
    allocated = allocations(monkeypatch)
    run = site(
        {"stuck-0": "synthetic:160x120@25", "good-1": "synthetic:160x120@25"}, workers=1, faulty=True, hang_s=2.0
    )
    run.start()
    try:
        wait_until(partial(has_frames, run.sink, "stuck-0", 1), "a new epoch")
        assert len(children()) == 1
    finally:
        run.finish()
    run.check()
    assert len(allocated) == 3
    assert epochs(run.results("good-1")) == {0}
    assert epochs(run.results("stuck-0")) == {0, 1}


def test_stop_does_not_wait_for_a_camera_that_hangs() -> None:
    run = site({"open-0": "synthetic:160x120@25", "good-1": "synthetic:160x120@25"}, workers=1, faulty=True)
    run.start()
    wait_until(lambda: len(run.results("good-1")) > 5, "frames of the other camera")
    run.finish()
    run.check()


class SmallMemory(FakeDetector):
    """Detector that has no memory for wide frames when the main process allocates these frames."""

    def shared_buffers(self, memory: np.ndarray[Any, Any], frames: Sequence[FrameBuffer]) -> list[FrameBuffer]:
        if frames[0].width_px > 200:
            raise OutOfMemory("too large", code="out-of-memory")
        return list(frames)

    def exported_buffers(self, count: int, height_px: int, width_px: int, pixel_format: PixelFormat) -> None:
        return None


def test_lack_of_memory_is_an_error_of_one_camera() -> None:
    run = site({"large": "synthetic:320x240@25", "small": "synthetic:160x120@25"}, workers=1, detector=SmallMemory())
    run.start()
    try:
        wait_until(lambda: len(run.results("small")) > 20, "frames")
        status = run.cameras["large"].supervisor.status()
    finally:
        run.finish()
    assert "too large" in status.last_error
    assert status.last_hint
    assert not run.results("large")
    run.check()


def test_files_end_the_run_and_unreadable_files_fail_it(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    run = site({"clip": str(CLIP), "broken": str(tmp_path / "empty.mp4")}, offline=True)
    with pytest.raises(SourceError) as caught:
        run.run()
    assert caught.value.code == "source-failed"
    assert "broken" in caught.value.args[0]
    assert len(run.results("clip")) > 100
    run.check()


def test_offline_run_fails_if_a_worker_ends() -> None:
    run = site(
        {"crash-0": "synthetic:160x120@1000?frames=50", "good-1": "synthetic:160x120@1000?frames=50"},
        offline=True,
        faulty=True,
    )
    with pytest.raises(SourceError) as caught:
        run.run()
    assert "crash-0" in caught.value.args[0]
    assert len(run.results("good-1")) == 50
    assert len(run.results("crash-0")) <= FRAMES
    run.check()


def test_message_that_is_not_valid_replaces_the_worker() -> None:
    run = site({"c0": "synthetic:160x120@25"}, workers=1)
    run.start()
    try:
        wait_until(lambda: len(run.results("c0")) > 3, "frames")
        assert run.capture is not None
        ((_, link),) = run.capture._links
        link._apply([b"Agarbage"])
        wait_until(lambda: 1 in epochs(run.results("c0")), "a new process")
    finally:
        run.finish()
    run.check()


def run_with_shared_memory() -> None:
    run = site({"c0": "synthetic:1920x1080@25", "c1": "synthetic:1920x1080@25"}, workers=1)
    run.start()
    try:
        wait_until(lambda: all(len(run.results(name)) > 3 for name in run.cameras), "frames")
        (worker,) = children()
        mapped = Path(f"/proc/{worker.pid}/maps").read_text()
        assert "vision-frames" in mapped
        assert "vision-frames" in Path("/proc/self/maps").read_text()
    finally:
        run.finish()


def test_memory_of_frames_is_shared_and_freed() -> None:
    run_with_shared_memory()
    gc.collect()
    wait_until(lambda: "vision-frames" not in Path("/proc/self/maps").read_text(), "the memory is freed")
