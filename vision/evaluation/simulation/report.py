"""Command that reports how well tracking and counting work in every simulated scene.

    python -m vision.evaluation.simulation.report [--fps 5,10,25] [--seeds 1] [--errors none|moderate] [--timing ...]

Prints one line per scene and frame rate: crossings, wrong crossings, identity switches, IDF1, HOTA, and the first
percentile of the overlap of published boxes with their detections. TrackEval must be installed (docs/evaluation.md).
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Final

import numpy as np

from vision.analytics.tracker import Tracker
from vision.evaluation.simulation.detector_errors import ErrorModel
from vision.evaluation.simulation.scenes import SCENES
from vision.evaluation.simulation.simulate import TIMINGS, SceneScores, prepare, run_scene

MODERATE: Final = ErrorModel(
    recall=(0.6, 0.8, 0.93, 0.98, 0.99),
    miss_s=0.2,
    jitter=(0.02, 0.015, 0.03, 0.02),
    jitter_s=0.2,
    score=(0.4, 0.5, 0.6, 0.7, 0.8),
    score_deviation=0.1,
    cut=0.6,
    double=0.02,
    false_per_frame=0.1,
    flicker=0.0,
    smallest_px=12.0,
)
"""Errors of a good detector. nanodet-g-416 has larger errors: on PETS09-S2L1, sides of boxes are off by 15 %."""
MODELS: Final = {"none": ErrorModel(), "moderate": MODERATE}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vision.evaluation.simulation")
    parser.add_argument("--fps", default="10")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--errors", choices=MODELS, default="none")
    parser.add_argument("--timing", choices=TIMINGS, default="steady")
    arguments = parser.parse_args()
    runs: list[SceneScores] = []
    print("scene       frames/s  crossings  wrong  switches   IDF1   HOTA  overlap p1")
    for name in SCENES:
        for fps in map(float, arguments.fps.split(",")):
            for seed in range(arguments.seeds):
                scene = prepare(name, seed, fps, arguments.timing)
                view = scene.scene.view
                size = (view.width_px, view.height_px)
                run = run_scene(scene, fps, MODELS[arguments.errors], seed, partial(Tracker, None, size))
                runs.append(run)
                print(_line(run), flush=True)
    true, wrong = sum(run.true_crossings for run in runs), sum(run.wrong_crossings for run in runs)
    switches = sum(run.tracking.switches for run in runs)
    print(
        f"all: {wrong} of {true} crossings wrong ({wrong / true:.1%}), {switches} switches, "
        f"mean IDF1 {np.mean([run.tracking.idf1 for run in runs]):.3f}, "
        f"mean HOTA {np.mean([run.tracking.hota for run in runs]):.3f}"
    )


def _line(run: SceneScores) -> str:
    tracking = run.tracking
    return (
        f"{run.scene:<12}{run.frames_per_s:8g}  {run.true_crossings:9}  {run.wrong_crossings:5}  "
        f"{tracking.switches:8}  {tracking.idf1:5.3f}  {tracking.hota:5.3f}  {np.quantile(run.box_overlap, 0.01):10.3f}"
    )


if __name__ == "__main__":
    main()
