"""Tests of the detector's state in reports, in status messages, and in the terminal."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

import pytest
from rich.console import Console

from vision.benchmark.pipeline import CountingSink
from vision.cli.status_view import render_status
from vision.config import AppConfig
from vision.detect.detector import GpuMemory, GpuSpec
from vision.detect.fake import FakeDetector
from vision.messaging.schema import DetectorStatus
from vision.pipelines import load_pipeline
from vision.runtime.builder import RunOptions
from vision.stages.stage import Report

REASON = "the model has outputs whose size depends on the frame"


class OnAGpu(FakeDetector):
    """Fake detector that reports the properties of a detector on a GPU."""

    def __init__(self, graphs_off: str) -> None:
        super().__init__(max_batch=4)
        self.spec = replace(self.spec, gpu=GpuSpec("fp16", graphs_off))

    def memory(self) -> GpuMemory:
        return GpuMemory(device_bytes=5000, page_locked_bytes=300)

    def counters(self) -> Mapping[str, int]:
        return {"detector.outputs_grown": 3}


class OnTheCpu(FakeDetector):
    """Fake detector that runs on the CPU although the machine has a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = replace(self.spec, gpu_unused=REASON)


def reported(detector: FakeDetector) -> Report:
    site = AppConfig.model_validate({"cameras": [{"id": "gate", "source": "synthetic:64x64@100?frames=3"}]})
    with ExitStack() as resources:
        options = RunOptions(
            stop=threading.Event(), offline=True, sink=CountingSink(), open_detector=lambda *_: detector
        )
        return load_pipeline("detect")(site, options, resources).run(threading.Event())


def on_terminal(report: Report) -> str:
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(render_status(report, 120))
    return " ".join(console.export_text().split())  # wrapped as wide as the table


@pytest.mark.parametrize(
    ("detector", "expected", "counters"),
    [
        (FakeDetector(), DetectorStatus(batches_in_flight=2, max_batch=8), {}),
        (
            OnAGpu(""),
            DetectorStatus(batches_in_flight=2, max_batch=4, graphs=True, device_bytes=5000, page_locked_bytes=300),
            {"detector.outputs_grown": 3},
        ),
        (
            OnAGpu(REASON),
            DetectorStatus(
                batches_in_flight=2,
                max_batch=4,
                graphs=False,
                graphs_off=REASON,
                device_bytes=5000,
                page_locked_bytes=300,
            ),
            {"detector.outputs_grown": 3},
        ),
        (OnTheCpu(), DetectorStatus(batches_in_flight=2, max_batch=8, gpu_unused=REASON), {}),
    ],
    ids=["no GPU", "graphs", "no graphs", "GPU unused"],
)
def test_status_describes_the_detector(
    detector: FakeDetector, expected: DetectorStatus, counters: Mapping[str, int]
) -> None:
    report = reported(detector)
    node = report.node
    assert node.detector == expected
    assert node.counters == {"detector.truncated_candidates": 0, "cameras.abandoned_threads": 0, **counters}
    assert (REASON in on_terminal(report)) == bool(expected.graphs_off or expected.gpu_unused)
