"""Tests of the progress and the cancellation of a build."""

from __future__ import annotations

import _thread
import logging
import threading
from collections.abc import Sequence

import pytest

from tests.log_records import log_args
from vision.engine.progress import LogListener, Monitor, Phase, run_interruptible


class Recorder:
    def __init__(self) -> None:
        self.events: list[tuple[tuple[str, int, int, int], ...]] = []

    def parsed(self, layers: int) -> None: ...

    def progress(self, phases: Sequence[Phase]) -> None:
        self.events.append(tuple((phase.name, phase.depth, phase.done, phase.steps) for phase in phases))

    def built(self, plan_bytes: int) -> None: ...


def test_phases_are_nested() -> None:
    recorder = Recorder()
    monitor = Monitor(recorder, threading.Event())
    monitor.phase_start("build", None, 2)
    monitor.phase_start("tactics", "build", 3)
    assert monitor.step_complete("tactics", 0)
    monitor.phase_finish("tactics")
    assert monitor.step_complete("build", 0)
    monitor.phase_finish("build")
    assert recorder.events == [
        (("build", 0, 0, 2),),
        (("build", 0, 0, 2), ("tactics", 1, 0, 3)),
        (("build", 0, 0, 2), ("tactics", 1, 1, 3)),
        (("build", 0, 0, 2),),
        (("build", 0, 1, 2),),
        (),
    ]


def test_ended_phase_closes_its_inner_phases() -> None:
    recorder = Recorder()
    monitor = Monitor(recorder, threading.Event())
    monitor.phase_start("a", None, 1)
    monitor.phase_start("b", "a", 1)
    monitor.phase_start("c", "b", 1)
    monitor.phase_finish("a")
    assert recorder.events[-1] == ()


def test_unordered_monitor_calls_are_tolerated() -> None:
    recorder = Recorder()
    monitor = Monitor(recorder, threading.Event())
    assert monitor.step_complete("never begun", 3)
    monitor.phase_finish("never begun")
    monitor.phase_start("orphan", "unknown parent", 1)
    assert recorder.events[-1] == (("orphan", 0, 0, 1),)


def test_cancelling_is_answered_at_the_next_step() -> None:
    cancel = threading.Event()
    monitor = Monitor(Recorder(), cancel)
    monitor.phase_start("a", None, 2)
    assert monitor.step_complete("a", 0)
    cancel.set()
    assert not monitor.step_complete("a", 1)


def test_log_lines_are_rate_limited(caplog: pytest.LogCaptureFixture) -> None:
    now_ns = 0
    caplog.set_level(logging.INFO)
    listener = LogListener("tiny fp16", clock=lambda: now_ns, every_s=10.0)
    listener.parsed(133)
    for second in range(31):
        now_ns = second * 1_000_000_000
        listener.progress((Phase("build", 0, 0, 6), Phase("tactics", 1, second, 40)))
    listener.progress(())
    listener.built(3 << 20)
    assert log_args(caplog, "vision.engine.progress", logging.INFO) == [
        ("tiny fp16", 133),
        ("tiny fp16", 10.0, "tactics", 10, 40),
        ("tiny fp16", 20.0, "tactics", 20, 40),
        ("tiny fp16", 30.0, "tactics", 30, 40),
        ("tiny fp16", 3.0, 30.0),
    ]


def test_result_of_the_work_is_returned() -> None:
    assert run_interruptible(lambda: 7, threading.Event()) == 7


def test_exception_of_the_work_is_raised() -> None:
    def work() -> None:
        raise ZeroDivisionError("inside")

    with pytest.raises(ZeroDivisionError):
        run_interruptible(work, threading.Event())


def test_first_ctrl_c_waits_for_the_work_to_stop() -> None:
    cancel = threading.Event()
    left: list[str] = []

    def work() -> None:
        _thread.interrupt_main()
        assert cancel.wait(60)
        threading.Event().wait(0.3)  # TensorRT needs some time until its next step
        left.append("orderly")

    with pytest.raises(KeyboardInterrupt):
        run_interruptible(work, cancel)
    assert left == ["orderly"]


def test_second_ctrl_c_is_raised_at_once() -> None:
    cancel, release = threading.Event(), threading.Event()

    def work() -> None:
        _thread.interrupt_main()
        assert cancel.wait(60)
        _thread.interrupt_main()
        release.wait(60)

    try:
        with pytest.raises(KeyboardInterrupt):
            run_interruptible(work, cancel)
        assert not release.is_set()
        assert any(thread.name == "engine build" for thread in threading.enumerate())
    finally:
        release.set()
