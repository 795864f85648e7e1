"""Accuracy of the shipped model in int8 and with 2:4 sparsity, on a labeled video.

    python -m tests.perf.optimization VIDEO GT.txt
    python -m tests.perf.optimization VIDEO GT.txt MODELOPT_PYTHON

The optimizations use only the first 100 frames of the video. The evaluation uses the whole video and ONNX Runtime. The
result is written to `results/MACHINE/optimization.json`. The second command measures only NVIDIA ModelOpt, which runs
in the interpreter MODELOPT_PYTHON, and writes `modelopt.json`.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from tests.perf.__main__ import result
from tests.perf.results import save
from vision.capture.frame_reader import read_frames
from vision.config import CameraConfig, ModelSpec
from vision.optimize.accuracy import Judge, Labels
from vision.optimize.calibration import Calibration
from vision.optimize.frames import Frames, collected
from vision.optimize.modelopt import ModelOpt
from vision.optimize.onnx_graph import Graph, open_graph
from vision.optimize.quantize import quantize
from vision.optimize.repair import LeastSquares
from vision.optimize.sensitivity import layers_without, rank_layers
from vision.optimize.sparse import REPAIR_FRAMES
from vision.optimize.sparsity import sparsify, verify
from vision.optimize.task import Progresses
from vision.optimize.thresholds import ALGORITHMS, Algorithm
from vision.runtime.builder import find_model

FRAMES = 100
KEPT = (0, 4)
MODELOPT_ALGORITHMS: tuple[Algorithm, ...] = ("minmax", "entropy")
TITLE = "AP@0.5 of persons on a labeled video, in int8, with frames from its first 100 only"


def first_frames(video: str, spec: ModelSpec, folder: Path) -> Frames:
    """Store the first 100 frames of a video in `folder`. Return the stored frames."""
    with closing(read_frames(CameraConfig(id="video", source=video), offline=True)) as frames:
        return collected((frame.pixels for frame in islice(frames, FRAMES)), folder, spec.input, FRAMES)


def in_int8(judge: Judge, graph: Graph, spec: ModelSpec, frames: Frames, folder: Path) -> Mapping[str, Any]:
    """Return, for each algorithm, the AP with all layers in int8, and the AP with the four worst layers in float."""
    calibration = Calibration(graph, spec, frames, cache=folder / "cache")
    found: dict[str, Any] = {}
    for algorithm in ALGORITHMS:
        began = time.monotonic()
        thresholds = calibration.thresholds(algorithm, print)
        seconds = time.monotonic() - began
        ranking = rank_layers(graph, spec, thresholds, frames, print)
        ap = {}
        for keep in KEPT:
            contents = quantize(graph, thresholds, layers_without(graph, ranking, keep)).serialized()
            ap[f"kept_{keep}"] = judge.measure_contents(contents, folder, algorithm).value
        worst = [each.name for each in ranking[: max(KEPT)]]
        found[algorithm] = {"calibration_s": round(seconds, 1), "ap50": ap, "worst_layers": worst}
        print(algorithm, found[algorithm], flush=True)
    return found


def with_sparsity(judge: Judge, graph: Graph, spec: ModelSpec, frames: Frames, folder: Path) -> Mapping[str, Any]:
    """Return the AP and the 2:4 compliance of the model after pruning by magnitude, and after repair of the weights."""
    found = {}
    for name in ("magnitude", "repaired"):
        began = time.monotonic()
        pruned = (
            sparsify(graph, LeastSquares(graph, spec, frames, REPAIR_FRAMES)) if name == "repaired" else sparsify(graph)
        )
        seconds = time.monotonic() - began
        compliant = [layer.compliant for layer in verify(pruned) if not layer.skipped]
        ap = judge.measure_contents(pruned.serialized(), folder, name).value
        found[name] = {
            "ap50": ap,
            "least_compliance": min(compliant),
            "layers": len(compliant),
            "seconds": round(seconds, 1),
        }
        print(name, found[name], flush=True)
    return found


def with_modelopt(judge: Judge, graph: Graph, spec: ModelSpec, frames: Frames, python: Path) -> Mapping[str, Any]:
    """Return the AP for each algorithm of ModelOpt. All layers that ModelOpt selects are in int8."""
    found: dict[str, Any] = {}
    for algorithm in MODELOPT_ALGORITHMS:
        with tempfile.TemporaryDirectory() as temporary:
            folder, began = Path(temporary), time.monotonic()
            contents = ModelOpt(python).quantize(
                graph, spec, frames, algorithm=algorithm, kept=[], folder=folder, stop=threading.Event()
            )
            seconds = time.monotonic() - began
            ap = judge.measure_contents(contents, folder, algorithm).value
        found[algorithm] = {"seconds": round(seconds, 1), "ap50": ap}
        print(algorithm, found[algorithm], flush=True)
    return found


def main(video: str, truth: str, modelopt: str = "") -> None:
    """Measure everything, or only ModelOpt if its interpreter is given. Write the result."""
    folder, spec = find_model("nanodet-g-416")
    path = folder / spec.file
    with tempfile.TemporaryDirectory() as temporary:
        frames = first_frames(video, spec, Path(temporary))
        judge = Judge(path, spec, None, Labels(video, Path(truth)), Progresses(threading.Event()))
        graph = open_graph(path)
        if modelopt:
            measured = {
                "float32_ap50": judge.parent,
                "modelopt": with_modelopt(judge, graph, spec, frames, Path(modelopt)),
            }
            print(save(result("modelopt", measured, f"{TITLE}, with NVIDIA ModelOpt")))
            return
        measured = {
            "float32_ap50": judge.parent,
            "sparsity": with_sparsity(judge, graph, spec, frames, Path(temporary)),
            "int8": in_int8(judge, graph, spec, frames, Path(temporary)),
        }
    print(save(result("optimization", measured, f"{TITLE}, and with 2:4 sparsity")))


if __name__ == "__main__":
    main(*sys.argv[1:])
