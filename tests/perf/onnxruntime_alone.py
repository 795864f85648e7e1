"""Speed of ONNX Runtime alone, with prepared input, for several numbers of sessions and threads.

    python -m tests.perf.onnxruntime_alone MODEL.onnx RUNS [VIDEO]

The command prints one line of JSON: the runs per second of each arrangement. With VIDEO, another thread decodes one
frame per run to BGR and discards the frame, because every program that reads video must decode it.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime


def _session(model: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _decode(video: Path, wanted: queue.SimpleQueue[bool]) -> None:
    """Decode the next frame for each True in the queue. Repeat the video at its end. Return after a False."""
    capture, frame = cv2.VideoCapture(str(video)), None
    while wanted.get():
        found, frame = capture.read(frame)
        if not found:
            capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
    capture.release()


def runs_per_s(model: Path, sessions: int, threads: int, runs: int, video: Path | None = None) -> float:
    """Measure the runs per second of `sessions` parallel sessions with `threads` threads each, at batch size 1.

    The function binds input and output once, before the runs.
    """
    start = threading.Barrier(sessions + 1)
    wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
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
            wanted.put(True)
        seconds.append(time.perf_counter() - began)

    workers = [threading.Thread(target=work) for _ in range(sessions)]
    decoder = threading.Thread(target=_decode, args=(video, wanted)) if video else None
    for thread in (*workers, decoder):
        if thread:
            thread.start()
    start.wait()
    for worker in workers:
        worker.join()
    wanted.put(False)
    if decoder:
        decoder.join()
    return sessions * runs / max(seconds)


if __name__ == "__main__":
    model, runs, video = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None
    arrangements = {"one session, 2 threads": (1, 2), "two sessions, 1 thread each": (2, 1)}
    print(json.dumps({name: runs_per_s(model, *shape, runs, video) for name, shape in arrangements.items()}))
