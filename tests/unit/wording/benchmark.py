"""Expected texts of the commands for benchmarks, comparisons, and plans."""

from __future__ import annotations

from pathlib import Path

from tests.unit.benchmark.test_files import STAGE, bench, row
from vision.benchmark.compare import comparability
from vision.benchmark.conditions import Machine
from vision.benchmark.document import load_bench
from vision.benchmark.plan import Capacity, Load, verdict
from vision.benchmark.tables import result_text
from vision.errors import ConfigError


def _missing_file() -> str:
    try:
        load_bench(Path("/no/a.json"))
    except ConfigError as error:
        return str(error)
    return "no error"


ROWS = [
    (
        "the result of a benchmark",
        lambda: result_text(bench(row(STAGE, 15.0), row(STAGE, 24.0))),
        "this machine: 15 to 24 frames/s (detection stage; best: 2 in flight, fp16, batch 8)",
    ),
    (
        "a missing benchmark",
        _missing_file,
        "/no/a.json cannot be read: No such file or directory",
    ),
    (
        "another machine",
        lambda: comparability(bench(), bench(machine=Machine("Xeon", 16, 128.0, "NVIDIA H200"))).faults[0],
        "machine, gpu: NVIDIA H100 and NVIDIA H200",
    ),
    (
        "a bottleneck",
        lambda: verdict([Load("detector", 0.97, "")], fits=False),
        (
            "The detector is the bottleneck, at 97%. Lower `max_fps` or use a smaller model. With TensorRT, "
            "use precision fp16 and a larger `max_batch`."
        ),
    ),
    (
        "no part that is fully used",
        lambda: verdict([Load("detector", 0.5, "")], fits=False),
        (
            "No single part is at its limit. The threads wait for each other, because one runs Python at a time. "
            "Set `processes` to 2 or more. If it is set, run two programs with half the cameras each."
        ),
    ),
    ("a capacity without an upper limit", lambda: str(Capacity(256, None)), "at least 256"),
]
