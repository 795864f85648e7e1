"""Implementation of `vision eval --simulate`, which evaluates simulated scenes with an exact ground truth."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from rich.console import Console

from vision.config.paths import can_write
from vision.errors import EXIT_OK, ConfigError
from vision.evaluation.progress import show_progress
from vision.evaluation.simulation.detector_errors import DETECTORS
from vision.evaluation.simulation.painting import outputs, painted_classes, write_painted
from vision.evaluation.simulation.report import Simulation, print_simulation, write_json
from vision.evaluation.simulation.scenes import build_scene
from vision.evaluation.simulation.simulate import SceneScores, Timing, frame_times, prepare, run_scene, score_scene
from vision.evaluation.tracks import load_metrics


@dataclass(frozen=True, slots=True)
class SimulationRequest:
    """Arguments of `vision eval --simulate`."""

    scenes: tuple[str, ...]  # names of scenes
    rates: tuple[float, ...]  # frame rates in frames/s
    detector: str = "good"  # name of an error model
    timing: Timing = "steady"
    seeds: int = 1  # number of runs of each scene, with seeds from 0
    json: Path | None = None
    video: Path | None = None

    def check_outputs(self) -> None:
        """Check that all outputs can be written. Call this before the simulation runs.

        Raises:
            ConfigError: an output cannot be written, the name of the video does not end in .mp4, or a video is
                requested for more than one scene, frame rate, or seed.
        """
        if self.video is not None and self.video.suffix.lower() != ".mp4":
            raise ConfigError(f"--video: expected a name that ends in .mp4, got {self.video}", code="video-format")
        if self.video is not None and len(self.scenes) * len(self.rates) * self.seeds > 1:
            fault = f"--video: expected one scene, one frame rate and one seed, got {len(self.scenes)} scenes, "
            fault += f"{len(self.rates)} frame rates and {self.seeds} seeds"
            hint = "for example: vision eval --simulate --scene street --video street.mp4"
            raise ConfigError(fault, hint=hint, code="several-runs")
        for option, path in (("--json", self.json), ("--video", self.video)):
            if path is not None and not can_write(path):
                hint = "name a file that you can write, in an existing folder"
                raise ConfigError(f"{option}: cannot write {path}", hint=hint, code="not-writable")


def run_simulation(request: SimulationRequest, stop: threading.Event) -> int:
    """Simulate all runs, print the table, and write the requested files. Return the exit code.

    Raises:
        Closed: `stop` was set.
        ConfigError: an argument is invalid, a file cannot be written, or a package is missing.
        VisionError: a file cannot be written.
    """
    request.check_outputs()
    load_metrics()  # before the simulation runs
    console = Console()
    runs = tuple(_simulate(request, stop))
    simulation = Simulation(request.detector, request.timing, runs)
    print_simulation(simulation, console)
    written = []
    if request.json is not None:
        write_json(simulation, request.json)
        written.append(request.json)
    if request.video is not None:
        written += _paint(request, request.video, stop)
    for path in written:
        console.print(f"written: {path}", highlight=False, markup=False, soft_wrap=True)
    if request.video is not None:
        for line in _next_commands(request, request.video):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    return EXIT_OK


def _simulate(request: SimulationRequest, stop: threading.Event) -> list[SceneScores]:
    cases = list(product(request.scenes, request.rates, range(request.seeds)))
    frames = [
        len(frame_times(build_scene(name, seed).duration_s, rate, request.timing, seed)) for name, rate, seed in cases
    ]
    scores: list[SceneScores] = []
    with show_progress("simulating", sum(frames), stop) as progress:
        for case, (name, rate, seed) in enumerate(cases):
            before = sum(frames[:case])
            prepared = prepare(name, seed, rate, request.timing)
            finished = run_scene(prepared, DETECTORS[request.detector], progress=partial(_step, progress, before))
            scores.append(score_scene(prepared, finished))
    return scores


def _step(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


def _paint(request: SimulationRequest, video: Path, stop: threading.Event) -> list[Path]:
    prepared = prepare(request.scenes[0], 0, request.rates[0], request.timing)
    with show_progress("drawing the video", len(prepared.frames), stop) as progress:
        write_painted(video, prepared, progress)
    return outputs(video, prepared.scene)


def _next_commands(request: SimulationRequest, video: Path) -> list[str]:
    """Return lines with the commands that evaluate the pipeline on the video, one per class."""
    scene = build_scene(request.scenes[0], 0)
    _, config, *truths = outputs(video, scene)
    of_class = truths[1:] or truths
    return [
        f"next: vision eval {config} --truth {truth} --class {name}"
        for name, truth in zip(painted_classes(scene), of_class, strict=True)
    ]
