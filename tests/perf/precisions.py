"""Precisions of the shipped detector and of networks with published architectures, with and without CUDA graphs.

    python -m tests.perf.precisions [--networks resnet50,yolov8s] [--seconds 1]
    python -m tests.perf.precisions --video vtest.avi --truth gt.txt

The networks of `tests.perf.networks` have random weights and random inputs. The program measures like `vision bench
--precisions`, and writes the result to `results/MACHINE/precisions.json`.

With a labeled video, the program instead measures the AP@0.5 of the shipped detector, with ONNX Runtime and with
TensorRT in fp32, fp16, and bf16. It writes the result to `results/MACHINE/precision_accuracy.json`.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.perf.__main__ import result
from tests.perf.networks import NETWORKS
from tests.perf.results import PerfResult, save
from vision.benchmark.precisions import PrecisionReport, PrecisionSettings, measure_precisions
from vision.config import DetectConfig
from vision.detect.open import open_detector
from vision.engine.build_plan import Precision
from vision.errors import DeviceMissing, ModelError
from vision.evaluation.passes import LOWEST_SCORE
from vision.optimize.accuracy import Labels, average_precision, average_precision_of
from vision.runtime.builder import find_model

_PRECISIONS: Final = ("fp32", "tf32", "fp16", "bf16")
_DETECTOR: Final = "nanodet-g-416"
_BATCHES: Final = (1, 8)
_ONLY_ONE: Final = ("yolov8x",)  # the float32 reference takes long on the CPU
_ACCURATE: Final[tuple[Precision, ...]] = ("fp32", "fp16", "bf16")
_ACCURACY_TITLE: Final = "AP@0.5 of the shipped detector on a labeled video, by precision"
_TITLE: Final = "Precisions of networks, measured by `vision bench --precisions`, with and without CUDA graphs"


def measure(name: str, batch: int, seconds: float) -> PrecisionReport:
    """Measure the shipped detector, or the network `name` of `NETWORKS`."""
    if name == _DETECTOR:
        folder, spec = find_model(name)
        settings = PrecisionSettings((*_PRECISIONS, "int8", "int8-sparse"), (batch,), seconds)
        return measure_precisions(folder / spec.file, spec, settings, print)
    make, shapes = NETWORKS[name]
    sizes = {key: (batch, *others) for key, others in shapes.items()}
    with tempfile.TemporaryDirectory() as folder_name:
        path = Path(folder_name) / f"{name}.onnx"
        path.write_bytes(make())
        return measure_precisions(path, None, PrecisionSettings(_PRECISIONS, (batch,), seconds, shapes=sizes), print)


def rows(report: PrecisionReport) -> Sequence[Mapping[str, Any]]:
    """Return the figures of each row of a report. For a row without figures, return the reason instead."""
    found: list[Mapping[str, Any]] = []
    for row in report.rows:
        if row.durations is None or row.difference is None:
            found.append({"precision": row.precision, "batch": row.batch, "reason": row.reason})
            continue
        times = row.durations
        figures = {
            "mean_ms": times.mean_ms,
            "p50_ms": times.p50_ms,
            "p95_ms": times.p95_ms,
            "p99_ms": times.p99_ms,
            "mean_without_graph_ms": row.without_graph and row.without_graph.mean_ms,
            "rows_per_s": row.rows_per_s,
            "engine_bytes": row.size_bytes,
            "memory_mib": row.memory_mib,
            "relative_error": row.difference.error,
            "agreement": row.difference.agreement,
        }
        rounded = {key: value and float(f"{value:.4g}") for key, value in figures.items()}
        found.append({"precision": row.precision, "batch": row.batch, **rounded})
    return found


def accuracy(labels: Labels) -> Sequence[Mapping[str, Any]]:
    """Return, for each precision, the AP@0.5 of the shipped detector on a labeled video, or the reason for no value."""
    folder, spec = find_model(_DETECTOR)
    reference = average_precision(folder / spec.file, spec, labels, _ignore)
    found: list[Mapping[str, Any]] = [{"backend": "onnxruntime", "precision": "fp32", "ap50": round(reference, 4)}]
    for precision in _ACCURATE:
        row: dict[str, Any] = {"backend": "tensorrt", "precision": precision}
        detect = DetectConfig(backend="tensorrt", precision=precision, score_threshold=LOWEST_SCORE)
        try:
            with closing(open_detector(folder, spec, detect)) as detector:
                row["ap50"] = round(average_precision_of(detector, spec, labels, _ignore), 4)
        except (DeviceMissing, ModelError) as error:
            row["reason"] = str(error.args[0])
        found.append(row)
    return found


def _ignore(_frames: int) -> None:
    """Do nothing with the progress."""


def _on_gpu(found: PerfResult) -> PerfResult:
    """Return the result with the GPU as its machine. If there is no GPU, return the result unchanged."""
    try:
        from vision.gpu.cuda import open_device

        name = open_device().name
    except DeviceMissing:
        return found
    folder = re.sub(r"[^a-z0-9]+", "-", name.lower())
    return msgspec.structs.replace(found, machine=folder, measured_on=f"{name}, {found.date}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join((_DETECTOR, *NETWORKS)))
    parser.add_argument("--seconds", type=float, default=1.0, help="duration of a measurement. Default: %(default)g")
    parser.add_argument("--video", help="labeled video, to measure the AP instead")
    parser.add_argument("--truth", type=Path, help="labels of the video, in the format of MOTChallenge")
    parser.add_argument("--class", dest="class_name", default="person", help="class of the labels")
    options = parser.parse_args()
    if (options.video is None) != (options.truth is None):
        parser.error("expected both --video and --truth, or neither")
    measured: dict[str, Any] = {}
    if options.video is not None:
        labels = Labels(options.video, options.truth, options.class_name)
        measured = {"video": Path(options.video).name, "class": options.class_name, "rows": accuracy(labels)}
        print(json.dumps(measured, indent=1))
        save(_on_gpu(result("precision_accuracy", measured, _ACCURACY_TITLE)))
        return
    for name in options.networks.split(","):
        for batch in _BATCHES[:1] if name in _ONLY_ONE else _BATCHES:
            report = measure(name, batch, options.seconds)
            measured.setdefault(name.replace("-", "_"), []).extend(rows(report))
            print(name, measured[name.replace("-", "_")][-len(report.rows) :], flush=True)
            save(_on_gpu(result("precisions", measured, _TITLE)))


if __name__ == "__main__":
    main()
