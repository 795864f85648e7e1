"""The command `vision eval`, which measures the accuracy of a pipeline on a labeled video or on simulated scenes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import typer

from vision.cli.options import CONFIG_HELP, Values, argument_parser
from vision.cli.session import command
from vision.errors import Closed

_LABELED: Final = {
    "config": "CONFIG",
    "truth": "--truth",
    "camera": "--camera",
    "class_name": "--class",
    "plots": "--plots",
    "result": "--result",
    "accuracy": "--accuracy",
}
"""The parameters that apply only without `--simulate`."""

_SIMULATED: Final = {name: f"--{name}" for name in ("scene", "fps", "detector", "timing", "seeds")}
"""The parameters that apply only with `--simulate`."""

_LOWEST_FPS, _HIGHEST_FPS = 1.0, 60.0
_MOST_SEEDS: Final = 100


def _parse_scene(text: str) -> str:
    from vision.evaluation.simulation.scenes import SCENES  # needs NumPy

    if text not in SCENES:
        raise ValueError(f"expected one of {', '.join(SCENES)}, got {text!r}")
    return text


def _parse_rates(text: str) -> Values:
    words = [word.strip() for word in str(text).split(",")]
    try:
        rates = [float(word) for word in words]
    except ValueError:
        rates = []
    if not rates or not all(_LOWEST_FPS <= rate <= _HIGHEST_FPS for rate in rates):
        raise ValueError(f"expected frame rates from {_LOWEST_FPS:g} to {_HIGHEST_FPS:g}, such as 5,15, got {text!r}")
    return Values(dict.fromkeys(rates))


_Scenes: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        parser=argument_parser(_parse_scene), metavar="NAME", help="Scene to simulate. Can be repeated. [default: all]"
    ),
]
_Rates: TypeAlias = Annotated[
    Values,
    typer.Option(parser=argument_parser(_parse_rates), metavar="N,N", help="Frame rates to simulate, 1 to 60."),
]
_Detector: TypeAlias = Annotated[
    Literal["exact", "good", "poor"], typer.Option(help="Errors of the simulated detector.")
]
_Timing: TypeAlias = Annotated[
    Literal["steady", "gaps", "bursts"], typer.Option(help="Intervals between the simulated frames.")
]
_Seeds: TypeAlias = Annotated[
    int, typer.Option(metavar="N", min=1, max=_MOST_SEEDS, help="Number of variants of each scene.")
]


@command(orderly=True)
def evaluate(
    context: typer.Context,
    config: Annotated[str | None, typer.Argument(metavar="CONFIG", help=CONFIG_HELP)] = None,
    truth: Annotated[
        Path | None, typer.Option(metavar="GT.txt", help="Ground truth in the MOTChallenge format. Required.")
    ] = None,
    camera: Annotated[
        str | None, typer.Option(metavar="ID", help="Camera to evaluate. Required if CONFIG has several cameras.")
    ] = None,
    class_name: Annotated[str, typer.Option("--class", metavar="NAME", help="Class to evaluate.")] = "person",
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all metrics to FILE, as JSON.")] = None,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Write plots to DIR, as PNG files.")] = None,
    video: Annotated[
        Path | None,
        typer.Option(metavar="OUT.mp4", help="Write an annotated video to OUT.mp4, or the scene with --simulate."),
    ] = None,
    result: Annotated[
        Path | None, typer.Option(metavar="FILE.txt", help="Write the tracks to FILE.txt, in the MOTChallenge format.")
    ] = None,
    accuracy: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Add the errors of the counts to FILE.json, for `accuracy` in CONFIG."),
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Simulate scenes and detections instead. Needs no CONFIG and --truth.")
    ] = False,
    scene: _Scenes = None,
    fps: _Rates = Values((10.0,)),  # noqa: B008 - immutable
    detector: _Detector = "good",
    timing: _Timing = "steady",
    seeds: _Seeds = 1,
) -> int:
    """Measure accuracy on a labeled video or on simulated scenes.

    Examples:
      vision eval camera.yaml --truth gt.txt
      vision eval camera.yaml --truth gt.txt --plots plots --video checked.mp4
      vision eval --simulate --fps 5,15 --detector poor
      vision eval --simulate --scene street --video street.mp4
    """
    _check_combination(context, simulate, {"config": config, "truth": truth})
    try:
        if simulate:
            from vision.evaluation.simulation.evaluate import SimulationRequest, run_simulation
            from vision.evaluation.simulation.scenes import SCENES

            wanted = tuple(dict.fromkeys(scene or SCENES))
            request = SimulationRequest(wanted, tuple(fps), detector, timing, seeds, json, video)
            return run_simulation(request, context.obj.stop)
        from vision.evaluation.evaluate import Request, run

        assert config is not None and truth is not None
        labeled = Request(config, truth, camera, class_name, json, plots, video, result, accuracy)
        return run(labeled, context.obj.stop)
    except Closed:  # an incomplete evaluation has no result
        return 128 + signal.SIGINT


def _check_combination(context: typer.Context, simulate: bool, required: dict[str, Any]) -> None:
    """Check that the arguments fit together. `required` contains the arguments that are required without `--simulate`.

    Raises:
        typer.BadParameter: a required argument is missing, or an argument is not valid in this mode.
    """
    given = [name for name in context.params if _is_given(context, name)]
    excluded = _LABELED if simulate else _SIMULATED
    for name in given:
        if name in excluded:
            fault = "expected no value with --simulate" if simulate else "expected a value only with --simulate"
            raise typer.BadParameter(fault, param_hint=excluded[name])
    for name, value in required.items():
        if value is None and not simulate:
            fault = "expected a configuration and its ground truth, or --simulate"
            raise typer.BadParameter(fault, param_hint=_LABELED[name])


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
