"""Comparison of `vision.gpu` with `cuda.core` in one run on one GPU, without TensorRT.

    python -m tests.perf.cuda_core_trial [--out trial.json] [--iterations 400] [--threads 32]

The command measures:

* the phases of a start: import the package, open the device, create streams and events, compile and load a kernel, and
  capture a graph. Each start runs in its own process, and the implementations alternate;
* the host time of a graph launch, and of a submit (eight copies from page-locked memory, an event, a wait of another
  stream, a graph launch), with and without threads that compete for the interpreter lock. The implementations also
  alternate here.

The command prints one JSON object. Each ratio is the time of `cuda.core` divided by the time of `vision.gpu`. If a
ratio is above 1, `vision.gpu` is faster. See docs/decisions/030-cuda-core.md.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

KERNEL: Final = """
extern "C" __global__ void scale(float* values, unsigned count, float factor) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) values[i] = values[i] * factor + 1.0f;
}
"""
VALUES: Final = 1 << 16
BLOCK: Final = 256
GRAPH_KERNELS: Final = 60  # about as many as the engine of a small detector has
FRAMES: Final = 8  # in one batch
FRAME_BYTES: Final = 1920 * 1080 * 3 // 2
STREAMS: Final = 8

SIDES: Final = ("vision.gpu", "cuda.core")


class Side(Protocol):
    """One of the two implementations, after its start phase."""

    def copy(self, index: int) -> None:
        """Queue the copy of one frame on the copy stream."""

    def record(self) -> None:
        """Record the event on the copy stream after the copies."""

    def wait(self) -> None:
        """Make the work stream wait for the event."""

    def launch(self) -> None:
        """Launch the graph on the work stream."""

    def synchronize(self) -> None:
        """Wait until both streams have finished."""


class Timer:
    """Timer for the phases of a start, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    def phase(self, name: str) -> None:
        """End the phase `name`, which started when the previous phase ended."""
        now = time.perf_counter()
        self.seconds[name] = now - self._began
        self._began = now


class OurSide:
    """Implementation with `vision.gpu`."""

    def __init__(self, resources: ExitStack, timer: Timer) -> None:
        from vision.gpu import cuda, memory, nvrtc

        timer.phase("import")
        device = cuda.open_device()
        timer.phase("open device")
        streams = [resources.enter_context(cuda.Stream()) for _ in range(STREAMS)]
        events = [resources.enter_context(cuda.Event()) for _ in range(STREAMS)]
        timer.phase("streams and events")
        source = nvrtc.Source("scale.cu", KERNEL, {}, {})
        cubin = nvrtc.compile_cubin(source, device.arch)
        timer.phase("compile")
        kernel = resources.enter_context(nvrtc.Module(cubin, "scale.cu")).kernel("scale")
        timer.phase("load module")
        self._work, self._copies, self._event = streams[0], streams[1], events[0]
        self._queue = memory.queue_to_device
        values = resources.enter_context(memory.DeviceBuffer(4 * VALUES, "values"))
        self._targets = [resources.enter_context(memory.DeviceBuffer(FRAME_BYTES, "frames")) for _ in range(FRAMES)]
        self._sources = [resources.enter_context(memory.HostBuffer(FRAME_BYTES, "frames")) for _ in range(FRAMES)]
        timer.phase("memory")
        import numpy as np

        arguments = (values.address, np.uint32(VALUES), np.float32(0.5))
        bound = kernel.bind((VALUES // BLOCK, 1, 1), (BLOCK, 1, 1), *arguments)

        def enqueue() -> None:
            for _ in range(GRAPH_KERNELS):
                bound.enqueue(self._work)

        self._graph = resources.enter_context(cuda.Graph.capture(self._work, enqueue, "the trial"))
        timer.phase("graph")

    def copy(self, index: int) -> None:
        self._queue(self._targets[index].address, self._sources[index].address, FRAME_BYTES, self._copies)

    def record(self) -> None:
        self._event.record(self._copies)

    def wait(self) -> None:
        self._work.wait(self._event)

    def launch(self) -> None:
        self._graph.launch(self._work)

    def synchronize(self) -> None:
        self._copies.synchronize()
        self._work.synchronize()


class CoreSide:
    """Implementation with `cuda.core`, used as its documentation describes."""

    def __init__(self, resources: ExitStack, timer: Timer) -> None:
        from cuda import core

        timer.phase("import")
        device: Any = core.Device(0)
        device.set_current()
        timer.phase("open device")
        streams = [device.create_stream(options=core.StreamOptions(nonblocking=True)) for _ in range(STREAMS)]
        events = [device.create_event(options=core.EventOptions(blocking_sync=True)) for _ in range(STREAMS)]
        timer.phase("streams and events")
        options = core.ProgramOptions(std="c++17", arch=f"sm_{device.arch}")
        code = core.Program(KERNEL, "c++", options=options).compile("cubin")
        timer.phase("compile")
        kernel = code.get_kernel("scale")
        timer.phase("load module")
        self._work, self._copies, self._event = streams[0], streams[1], events[0]
        pinned = core.LegacyPinnedMemoryResource()
        values = device.allocate(4 * VALUES, stream=self._work)
        self._targets = [device.allocate(FRAME_BYTES, stream=self._copies) for _ in range(FRAMES)]
        self._sources = [pinned.allocate(FRAME_BYTES) for _ in range(FRAMES)]
        self.synchronize()
        timer.phase("memory")
        import numpy as np

        config = core.LaunchConfig(grid=VALUES // BLOCK, block=BLOCK)
        arguments = (values, np.uint32(VALUES), np.float32(0.5))
        core.launch(self._work, config, kernel, *arguments)  # a warm-up, as in `vision.gpu`
        self._work.sync()
        builder = self._work.create_graph_builder()
        builder.begin_building("thread_local")
        for _ in range(GRAPH_KERNELS):
            core.launch(builder, config, kernel, *arguments)
        self._graph = builder.end_building().complete()
        self._graph.upload(self._work)
        self._work.sync()
        timer.phase("graph")
        self._kept = (values, code, kernel, builder, streams, events)
        resources.callback(self.synchronize)

    def copy(self, index: int) -> None:
        self._targets[index].copy_from(self._sources[index], stream=self._copies)

    def record(self) -> None:
        self._copies.record(self._event)

    def wait(self) -> None:
        self._work.wait(self._event)

    def launch(self) -> None:
        self._graph.launch(self._work)

    def synchronize(self) -> None:
        self._copies.sync()
        self._work.sync()


MAKE: Final[Mapping[str, Callable[[ExitStack, Timer], Side]]] = {"vision.gpu": OurSide, "cuda.core": CoreSide}


# ------------------------------------------------------------------------------------------------ start


def time_start(side: str) -> dict[str, float]:
    """Start one implementation in a new process. Return the duration of each phase, in seconds."""
    command = [sys.executable, "-m", "tests.perf.cuda_core_trial", "--start", side]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{side} did not start:\n{done.stderr[-3000:]}")
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def start_once(side: str) -> None:
    """Start one implementation in this process. Print the durations of the phases, in seconds, as JSON."""
    with ExitStack() as resources:
        timer = Timer()
        made = MAKE[side](resources, timer)
        made.launch()
        made.synchronize()
        timer.phase("first launch")
    print(json.dumps(timer.seconds))


def start_times(repeats: int) -> dict[str, Any]:
    """Start both implementations `repeats` times. Return the median duration of each phase, in ms, and the ratios."""
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side in SIDES:
            runs[side].append(time_start(side))
    phases = list(runs[SIDES[0]][0])
    ms = {
        side: {name: 1e3 * statistics.median(run[name] for run in runs[side]) for name in phases}
        | {"total": 1e3 * statistics.median(sum(run.values()) for run in runs[side])}
        for side in SIDES
    }
    ratio = {name: ms[SIDES[1]][name] / max(ms[SIDES[0]][name], 1e-6) for name in ms[SIDES[0]]}
    return {"ms": ms, "ratio": ratio}


# ------------------------------------------------------------------------------------------------ host time


@contextmanager
def competing(threads: int, busy_us: float, period_s: float) -> Iterator[None]:
    """Inside a `with` block, run threads that alternately compute for `busy_us` and sleep for `period_s`."""
    stop = threading.Event()

    def work(first_s: float) -> None:
        time.sleep(first_s)
        while not stop.is_set():
            until = time.perf_counter_ns() + int(busy_us * 1e3)
            while time.perf_counter_ns() < until:
                pass
            time.sleep(period_s)

    workers = [threading.Thread(target=work, args=(random.random() * period_s,), daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        stop.set()
        for worker in workers:
            worker.join()


def launch_once(side: Side) -> None:
    """Launch the graph once."""
    side.launch()


def submit_once(side: Side) -> None:
    """Submit a batch with the calls that `vision.detect.tensorrt.slot.Slot.submit` makes."""
    for index in range(FRAMES):
        side.copy(index)
    side.record()
    side.wait()
    side.launch()


def host_times(sides: Mapping[str, Side], operation: Callable[[Side], None], iterations: int) -> dict[str, Any]:
    """Measure the host time of an operation. Return percentiles, in us, for each implementation, and their ratios."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for _ in range(iterations):
        random.shuffle(order)
        for name in order:
            began = time.perf_counter_ns()
            operation(sides[name])
            taken[name].append((time.perf_counter_ns() - began) / 1e3)
            sides[name].synchronize()
    us = {name: percentiles(values) for name, values in taken.items()}
    ratio = {key: us[SIDES[1]][key] / us[SIDES[0]][key] for key in us[SIDES[0]]}
    return {"us": us, "ratio": ratio}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return the median, the 99th percentile, and the mean of the values."""
    ordered = sorted(values)
    return {
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
        "mean": statistics.fmean(ordered),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both implementations, and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the result to this file")
    parser.add_argument(
        "--iterations", type=int, default=400, help="number of measurements per operation and implementation"
    )
    parser.add_argument(
        "--threads", type=int, default=32, help="number of threads that compete for the interpreter lock"
    )
    parser.add_argument(
        "--busy-us", type=float, default=500.0, help="CPU time of each thread per frame, in microseconds"
    )
    parser.add_argument("--repeats", type=int, default=5, help="number of starts of each implementation")
    parser.add_argument("--start", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.start:
        start_once(given.start)
        return
    found: dict[str, Any] = {"start": start_times(given.repeats)}
    with ExitStack() as resources:
        sides = {name: MAKE[name](resources, Timer()) for name in SIDES}
        found["versions"] = versions()
        for name, operation in (("graph launch", launch_once), ("submit", submit_once)):
            host_times(sides, operation, 50)  # warm-up
            found[f"{name}, alone"] = host_times(sides, operation, given.iterations)
            with competing(given.threads, given.busy_us, 1 / 30):
                found[f"{name}, {given.threads} threads"] = host_times(sides, operation, given.iterations)
    text = json.dumps(found, indent=1)
    if given.out is not None:
        given.out.write_text(text + "\n")
    print(text)


def versions() -> dict[str, str]:
    """Return the versions of the compared packages and of the driver, and the name of the GPU."""
    import platform

    import cuda.bindings
    import cuda.core

    from vision.gpu.cuda import open_device

    device = open_device()
    return {
        "python": platform.python_version(),
        "cuda.bindings": cuda.bindings.__version__,
        "cuda.core": cuda.core.__version__,
        "gpu": device.name,
        "driver": str(device.driver_version),
    }


if __name__ == "__main__":
    main()
