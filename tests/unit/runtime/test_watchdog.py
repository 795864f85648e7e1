"""Tests of the watchdog with each part that can hang: the watchdog replaces the part or ends the program."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.messages.processes import REPOSITORY, wait_until
from tests.unit.runtime.test_runtime import Collector, check_accounts, make_runtime
from tests.unit.scripted_camera import ManualClock
from vision.capture.supervisor import CameraSupervisor, SupervisorPolicy
from vision.detect.fake import FakeDetector
from vision.errors import EXIT_RUNTIME, DeviceError
from vision.runtime.camera_threads import MAX_ABANDONED, CameraThreads
from vision.runtime.hang_watchdog import Part, Watchdog
from vision.runtime.latest_slot import LatestSlot
from vision.stages.frame_worker import FrameWorker
from vision.types import Frame, Result

SOURCE = "synthetic:160x120@50"


class Parts:
    """Part whose progress the test sets, and the reactions of the watchdog."""

    def __init__(self, *, repairs: bool | None = None) -> None:
        self.clock = ManualClock()
        self.progress: object = 0
        self.failed: list[tuple[str, float]] = []
        self.repaired: list[float] = []
        self.watchdog = Watchdog(lambda part, still_s: self.failed.append((part.name, still_s)), clock=self.clock)

        def repair(still_s: float) -> bool:
            self.repaired.append(still_s)
            return bool(repairs)

        part = Part("a", lambda: self.progress, 10.0, None if repairs is None else repair)
        self.watchdog.watch(part)

    def wait(self, seconds: int) -> bool:
        """Run a check for each of `seconds`. Return the result of the last check."""
        working = True
        for _ in range(seconds):
            self.clock.advance(1)
            working = self.watchdog.check()
        return working


def test_part_without_progress_fails_after_its_limit() -> None:
    parts = Parts()
    assert parts.wait(11)
    parts.progress = 1
    assert parts.wait(11)
    assert not parts.wait(1)
    assert parts.failed == [("a", 11.0)]


def test_part_with_nothing_to_do_does_not_fail() -> None:
    parts = Parts()
    parts.progress = None
    assert parts.wait(100)
    parts.progress = 0
    assert parts.wait(11)


def test_time_in_which_the_process_was_suspended_does_not_count() -> None:
    parts = Parts()
    assert parts.wait(5)
    parts.clock.advance(3600)
    assert parts.wait(3)


def test_repaired_part_has_its_whole_time_again() -> None:
    parts = Parts(repairs=True)
    assert parts.wait(25)
    assert parts.repaired == [11.0, 11.0]
    assert parts.failed == []


def test_part_that_cannot_be_repaired_fails() -> None:
    parts = Parts(repairs=False)
    assert not parts.wait(12)
    assert parts.failed == [("a", 11.0)]


class HangingStage:
    """Stage whose tenth call does not return."""

    def __init__(self) -> None:
        self.calls = 0
        self.returns = threading.Event()

    def __call__(self, result: Result) -> Result:
        self.calls += 1
        if self.calls == 10:
            self.returns.wait()
        return result


class HangingSink(Collector):
    """Sink whose method `publish` does not return."""

    def __init__(self, returns: threading.Event) -> None:
        super().__init__()
        self.returns = returns

    def publish(self, result: Result) -> None:
        self.returns.wait()


@contextmanager
def returning(name: str) -> Iterator[threading.Event]:
    """At the end of the `with` block, make all hanging calls return, and wait for their threads."""
    returns = threading.Event()
    try:
        yield returns
    finally:
        returns.set()
        for thread in threading.enumerate():
            if thread.name == name:
                thread.join(60)


@pytest.mark.integration
def test_stage_that_hangs_ends_the_run(caplog: pytest.LogCaptureFixture) -> None:
    with returning("results") as returns:
        stage = HangingStage()
        stage.returns = returns
        runtime, _, _ = make_runtime([SOURCE], FakeDetector(), stages=(stage,), hang_s=0.5)
        with pytest.raises(DeviceError) as caught:
            runtime.run(threading.Event(), for_s=100)
    assert (caught.value.code, caught.value.exit_code) == ("stuck", EXIT_RUNTIME)
    assert "self.returns.wait()" in caplog.text


@pytest.mark.integration
def test_sink_that_hangs_ends_the_run() -> None:
    with returning("results") as returns:
        runtime, _, _ = make_runtime([SOURCE], FakeDetector(), sink=HangingSink(returns), hang_s=0.5)
        with pytest.raises(DeviceError) as caught:
            runtime.run(threading.Event(), for_s=100)
    assert caught.value.code == "stuck"


class StageWithThread:
    """Stage that passes its frames to a thread that never finishes a frame."""

    def __init__(self, returns: threading.Event) -> None:
        self.returns = returns
        self.worker = FrameWorker("slow", self.work, buffers=1, lossless=False)

    def work(self, copies: Iterator[tuple[Frame, Result]]) -> None:
        for _ in copies:
            self.returns.wait()

    def with_frame(self, result: Result, frame: Frame) -> Result:
        self.worker.add(frame, result)
        return result

    def progress(self) -> dict[str, object]:
        return {"slow": self.worker.progress()}


@pytest.mark.integration
def test_thread_of_a_stage_that_hangs_ends_the_run(caplog: pytest.LogCaptureFixture) -> None:
    with returning("slow") as returns:
        stage = StageWithThread(returns)
        runtime, _, _ = make_runtime([SOURCE], FakeDetector(), stages=(stage,), hang_s=0.5, leases=4)
        with pytest.raises(DeviceError) as caught:
            runtime.run(threading.Event(), for_s=100)
        stage.worker.finish()
    assert caught.value.code == "stuck"
    assert "slow" in caught.value.args[0]


class SlowStage:
    """Stage that needs a quarter of the limit for each result."""

    def __call__(self, result: Result) -> Result:
        time.sleep(0.25)
        return result


@pytest.mark.integration
def test_slow_stage_does_not_end_the_run() -> None:
    runtime, sink, _ = make_runtime([SOURCE], FakeDetector(), stages=(SlowStage(),), hang_s=1.0)
    runtime.run(threading.Event(), for_s=2)
    assert sink.results["camera-0"]


@pytest.mark.integration
def test_camera_that_hangs_gets_a_new_thread(caplog: pytest.LogCaptureFixture) -> None:
    runtime, sink, cameras = make_runtime(
        [f"{SOURCE}?hang=20:5", SOURCE], FakeDetector(), hang_s=2.0, read_timeout_s=0.3
    )
    runtime.run(threading.Event(), for_s=7)
    abandoned = max(report.node.counters["cameras.abandoned_threads"] for report in sink.reports)
    assert abandoned >= 1
    epochs = {result.meta.epoch for result in sink.results["camera-0"]}
    assert {0, 1} <= epochs
    assert all(camera.slot.counts().grabbed > 30 for camera in cameras)
    assert len(sink.results["camera-1"]) > 100
    for camera in cameras:
        check_accounts(camera, sink.results[camera.slot.camera_id])
    assert "time.sleep(spec.hang[1])" in caplog.text
    errors = {camera.last_error for report in sink.reports for camera in report.cameras if camera.camera == "camera-0"}
    assert any(error and "grab" in error for error in errors)

    def left() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("camera-")]

    wait_until(lambda: not left(), "the abandoned threads have ended")


def test_run_fails_if_too_many_threads_hang() -> None:
    returns, calls = threading.Event(), threading.Semaphore(0)

    def hang() -> object:
        calls.release()
        returns.wait()
        raise ZeroDivisionError

    slot = LatestSlot("a", FakeDetector().frame_buffer)
    supervisor = CameraSupervisor("a", hang, slot, SupervisorPolicy(), wait=lambda _: None)  # type: ignore[arg-type]
    threads = CameraThreads({"a": supervisor}, {"a": slot}, lambda _name, run: run())
    threads.start()
    _, opening = threads.parts(1.0)
    assert opening.repair is not None
    for number in range(MAX_ABANDONED):
        assert calls.acquire(timeout=10)
        assert opening.progress() is not None
        assert opening.repair(1.0)
        assert threads.abandoned == number + 1
    assert calls.acquire(timeout=10)
    assert not opening.repair(1.0)
    supervisor.stop()
    returns.set()
    wait_until(lambda: not threads.join(time.monotonic()) and not threads.abandoned, "all threads have ended")
    assert slot.finished


PROGRAM = """
import threading, time
from tests.unit.runtime.test_runtime import Collector, make_runtime
from vision.detect.fake import FakeDetector

class Sink(Collector):
    def report(self, report):
        super().report(report)
        if len(self.reports) == 3:
            {in_report}

runtime, sink, cameras = make_runtime(["synthetic:160x120@50"], FakeDetector(), hang_s=0.5, sink=Sink())
threading.Timer(1.0, lambda: {after_1_s}).start()
runtime.run(threading.Event(), for_s=30, end_process=True)
"""


@pytest.mark.integration
@pytest.mark.parametrize(
    ("in_report", "after_1_s"),
    [("time.sleep(1e6)", "None"), ("pass", "cameras[0].slot.changed.acquire() and time.sleep(1e6)")],
    ids=["main thread", "lock held forever"],
)
def test_program_ends_even_if_it_cannot_end_in_order(in_report: str, after_1_s: str) -> None:
    program = PROGRAM.format(in_report=in_report, after_1_s=after_1_s)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == EXIT_RUNTIME, done.stderr
    assert "time.sleep" in done.stderr or "Timeout (" in done.stderr


CONFIG = """
cameras: [{id: a, source: "synthetic:160x120@30"}]
detect: {backend: fake}
pipeline: pipeline.py
publish: {bind: "ipc://FOLDER/out"}
hang_s: 1
status: {interval_s: 0.2}
"""
PIPELINE = """
import time
from vision.pipelines import pipeline_with

seen = []

def stage(result):
    seen.append(1)
    if len(seen) == HANG:
        time.sleep(1e6)
    return result

build = pipeline_with([stage])
"""


class Manager:
    """Service manager that started `vision run`."""

    def __init__(self, folder: Path, *, hang: int = 0, abstract: bool = False, config: str = CONFIG) -> None:
        (folder / "camera.yaml").write_text(config.replace("FOLDER", str(folder)))
        (folder / "pipeline.py").write_text(PIPELINE.replace("HANG", str(hang)))
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = f"\0vision-test-{os.getpid()}-{time.monotonic_ns()}" if abstract else str(folder / "notify")
        self.socket.bind(address)
        self.socket.settimeout(60)
        environment = {**os.environ, "NOTIFY_SOCKET": address.replace("\0", "@"), "WATCHDOG_USEC": "2000000"}
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vision", "run", str(folder / "camera.yaml")],
            cwd=REPOSITORY,
            env=environment,
            stderr=self.log,
        )

    def wait_for(self, start: str) -> list[str]:
        """Receive messages until a message starts with `start`. Return all messages received by this call."""
        messages: list[str] = []
        while not any(message.startswith(start) for message in messages):
            messages += self.socket.recv(4096).decode().split("\n")
        return messages

    def close(self) -> str:
        self.process.kill()
        self.process.wait()
        self.socket.close()
        self.log.seek(0)
        with self.log:
            return self.log.read()


@pytest.mark.integration
@pytest.mark.parametrize("abstract", [False, True])
def test_service_manager_is_told_each_state(tmp_path: Path, abstract: bool) -> None:
    manager = Manager(tmp_path, abstract=abstract)
    try:
        assert manager.wait_for("READY=1")[0] == "READY=1"
        manager.wait_for("WATCHDOG=1")
        manager.wait_for("STATUS=1 of 1 cameras up, ")
        manager.process.send_signal(signal.SIGHUP)
        manager.wait_for("RELOADING=1")
        manager.wait_for("READY=1")
        manager.process.send_signal(signal.SIGTERM)
        manager.wait_for("STOPPING=1")
        assert manager.process.wait(60) == 0
    finally:
        manager.close()


@pytest.mark.integration
def test_hang_ends_the_feed_and_then_the_service(tmp_path: Path) -> None:
    manager = Manager(tmp_path, hang=30)
    try:
        manager.wait_for("WATCHDOG=1")
        later = manager.wait_for("STOPPING=1")
        assert manager.process.wait(60) == EXIT_RUNTIME
        assert later.count("WATCHDOG=1") <= 6
    finally:
        log = manager.close()
    assert "time.sleep(1e6)" in log


@pytest.mark.integration
def test_service_waits_for_its_address(tmp_path: Path) -> None:
    config = CONFIG.replace('"ipc://FOLDER/out"', '"tcp://203.0.113.7:5555", insecure: true')
    manager = Manager(tmp_path, config=config)
    try:
        messages = manager.wait_for("STATUS=waiting to start: ")
        assert messages[0].startswith("EXTEND_TIMEOUT_USEC=")
        assert "READY=1" not in messages
        manager.process.send_signal(signal.SIGTERM)
        assert manager.process.wait(60) == 0
    finally:
        log = manager.close()
    assert log.count("203.0.113.7") == 1


@pytest.mark.integration
def test_crash_of_a_library_prints_all_stacks(tmp_path: Path) -> None:
    manager = Manager(tmp_path)
    try:
        manager.wait_for("READY=1")
        manager.process.send_signal(signal.SIGSEGV)
        assert manager.process.wait(60) == -signal.SIGSEGV
    finally:
        log = manager.close()
    assert "Fatal Python error: Segmentation fault" in log
    assert "inference_loop.py" in log


STOPPING = """
import sys
import vision.cli.session as session
from vision.cli.main import entry

session._STOP_TIMEOUT_S = 1.0
sys.argv[1:] = ["run", sys.argv[1]]
entry()
"""


@pytest.mark.integration
def test_start_that_ignores_the_stop_ends_before_systemd_kills_it(tmp_path: Path) -> None:
    (tmp_path / "camera.yaml").write_text(CONFIG.replace("FOLDER", str(tmp_path)))
    (tmp_path / "pipeline.py").write_text("import time\nprint('starting', flush=True)\ntime.sleep(1e6)\n")
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "nobody")}
    command = [sys.executable, "-c", STOPPING, str(tmp_path / "camera.yaml")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=pipe, stderr=pipe, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "starting\n"
        program.send_signal(signal.SIGTERM)
        _, log = program.communicate(timeout=60)
    assert program.returncode == EXIT_RUNTIME
    assert "pipeline.py" in log
