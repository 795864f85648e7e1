"""ONNX Runtime with nothing around it: prepared tensors, in several arrangements of sessions and threads.

    python -m tests.perf.onnxruntime_alone MODEL.onnx RUNS

prints one line of JSON: runs per second of each arrangement.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


def _session(model: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def runs_per_s(model: Path, sessions: int, threads: int, runs: int) -> float:
    """Runs per second of `sessions` sessions side by side, each with `threads` threads, batch 1, IO bound once."""
    start = threading.Barrier(sessions + 1)
    seconds: list[float] = []

    def work() -> None:
        session = _session(model, threads)
        binding = session.io_binding()
        generator = np.random.default_rng(0)
        for value in session.get_inputs():
            shape = [1, *value.shape[1:]]
            binding.bind_cpu_input(value.name, generator.standard_normal(shape, dtype=np.float32))
        for value in session.get_outputs():
            binding.bind_output(value.name, "cpu")
        for _ in range(3):
            session.run_with_iobinding(binding)
        start.wait()
        began = time.perf_counter()
        for _ in range(runs):
            session.run_with_iobinding(binding)
        seconds.append(time.perf_counter() - began)

    workers = [threading.Thread(target=work) for _ in range(sessions)]
    for worker in workers:
        worker.start()
    start.wait()
    for worker in workers:
        worker.join()
    return sessions * runs / max(seconds)


if __name__ == "__main__":
    model, runs = Path(sys.argv[1]), int(sys.argv[2])
    arrangements = {"one session, 2 threads": (1, 2), "two sessions, 1 thread each": (2, 1)}
    print(json.dumps({name: runs_per_s(model, *shape, runs) for name, shape in arrangements.items()}))
