"""The command `vision bench`, which measures a model on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Final, get_args

import typer
from rich.console import Console

from vision.benchmark.bench import BenchSettings, measure
from vision.benchmark.compare import comparability, compare
from vision.benchmark.document import Bench, load_bench
from vision.benchmark.plot import draw
from vision.benchmark.tables import print_bench, print_comparison
from vision.cli.console import with_progress
from vision.cli.options import (
    MAX_BATCH,
    MAX_BATCHES_IN_FLIGHT,
    Backend,
    Format,
    JsonFile,
    ModelName,
    Nvtx,
    PlotFile,
    Precision,
    Seconds,
    Values,
    argument_parser,
    check_frame_source,
    start_nvtx,
    table_console,
    values_parser,
    write_text,
)
from vision.cli.session import command
from vision.config import AppConfig, ModelSpec
from vision.config.model_file import ONNX_SUFFIX, read_model_header
from vision.config.paths import is_file
from vision.errors import EXIT_OK, EXIT_RUNTIME, ModelError
from vision.runtime.builder import find_model
from vision.version import install_hint, require_package

PRECISIONS: Final = get_args(Precision)
ALL_PRECISIONS: Final = (*PRECISIONS, "int8-sparse")
PARTS: Final = Values(("engine", "stage", "pipeline"))

_BATCHES = values_parser(range(1, MAX_BATCH + 1), f"whole numbers, 1 to {MAX_BATCH}")
_IN_FLIGHT = values_parser(range(1, MAX_BATCHES_IN_FLIGHT + 1), f"whole numbers, 1 to {MAX_BATCHES_IN_FLIGHT}")
_IN_FLIGHT_HELP = f"Numbers of batches in flight, 1 to {MAX_BATCHES_IN_FLIGHT}. [default: 1 to the detector's number]"
_PRECISIONS = values_parser(PRECISIONS, f"some of {', '.join(PRECISIONS)}")
_PARTS = values_parser(PARTS, f"some of {', '.join(PARTS)}")

_Batches = Annotated[Values, typer.Option(parser=_BATCHES, metavar="N,N", help=f"Batch sizes, 1 to {MAX_BATCH}.")]
_InFlight = Annotated[Values | None, typer.Option(parser=_IN_FLIGHT, metavar="N,N", help=_IN_FLIGHT_HELP)]
_Precisions = Annotated[
    Values, typer.Option(parser=_PRECISIONS, metavar="P,P", help=f"Precisions, some of {', '.join(PRECISIONS)}.")
]
_Parts = Annotated[Values, typer.Option(parser=_PARTS, metavar="P,P", help=f"Parts, some of {', '.join(PARTS)}.")]
_FrameSource = Annotated[
    str | None,
    typer.Option(
        parser=argument_parser(check_frame_source),
        metavar="FILE",
        help="Video file to read the frames from. [default: the shipped clip]",
    ),
]


_CompareFiles = Annotated[
    tuple[Path, Path] | None,
    typer.Option("--compare", metavar="A B", help="Print the ratios B/A of the results in two files, and exit."),
]
_ReadFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Print the results in FILE instead of measuring; plot them with --plot."),
]
_ComparePrecisions = Annotated[
    Values | None,
    typer.Option(
        "--precisions",
        parser=values_parser(ALL_PRECISIONS, f"some of {', '.join(ALL_PRECISIONS)}"),
        metavar="P,P",
        help="Compare the speed, size, memory, and accuracy of the network in these precisions, some of "
        f"{', '.join(ALL_PRECISIONS)}. MODEL can be any ONNX file.",
    ),
]
_Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME=1x128",
        help="Shape of an input that is not fixed in the file, for --precisions. Can be repeated.",
    ),
]


@command()
def bench(
    context: typer.Context,
    model: ModelName = None,
    batch: _Batches = Values((1, 2, 4, 8)),  # noqa: B008 - immutable
    precision: _Precisions = Values(("fp16",)),  # noqa: B008 - immutable
    batches_in_flight: _InFlight = None,
    seconds: Seconds = 2.0,
    parts: _Parts = PARTS,
    backend: Annotated[Backend, typer.Option(help="Inference back-end.")] = "auto",
    source: _FrameSource = None,
    frame_format: Annotated[Format, typer.Option("--format", help="Pixel format of the frames.")] = "bgr",
    json: JsonFile = None,
    plot: PlotFile = None,
    compared: _CompareFiles = None,
    read: _ReadFile = None,
    precisions: _ComparePrecisions = None,
    shape: _Shapes = None,
    nvtx: Nvtx = False,
) -> int:
    """Measure the speed of a model on this machine.

    The parts are the network alone (engine), the detection stage (stage), and the whole program (pipeline).

    Examples:
      vision bench
      vision bench nanodet-g-416 --batch 1,4,8 --precision fp16,int8 --json a.json --plot a.svg
      vision bench nanodet-g-416 --precisions fp32,fp16,int8,int8-sparse
      vision bench --compare a.json b.json
    """
    if precisions is not None:
        return _compare_precisions(context)
    if shape:
        context.fail("--shape requires --precisions")
    outputs = {"MODEL": model, "--read": read, "--json": json, "--plot": plot}
    others = [name for name, value in outputs.items() if value is not None]
    if compared is not None and others:
        context.fail(f"--compare only compares files: it cannot be combined with {' or '.join(others)}")
    if read is not None and model is not None:
        context.fail("--read does not measure: it cannot be combined with MODEL")
    console = table_console(json)
    if compared is not None:
        return _compare(*compared, console)
    if read is not None:
        document = load_bench(read)
    else:
        start_nvtx(nvtx)
        settings = BenchSettings(
            backend=backend,
            batches=tuple(sorted(batch)),
            precisions=tuple(precision),
            batches_in_flight=tuple(sorted(batches_in_flight or ())),
            seconds=seconds,
            parts=tuple(parts),
            source=source or "",
            pixel_format=frame_format,
        )
        folder, spec = find_model(str(model or AppConfig.model_fields["model"].default))
        document = with_progress(lambda progress: measure(folder, spec, settings, progress))
    _write_results(document, json, plot, console)
    return EXIT_OK


def _is_given(context: typer.Context, name: str) -> bool:
    origin = context.get_parameter_source(name)
    return origin is not None and origin.name == "COMMANDLINE"


def _compare_precisions(context: typer.Context) -> int:
    """Compare precisions, print the table, and write the JSON file if requested. Return the exit code.

    The exit code is 1 if no precision could be measured.
    """
    excluded = ("precision", "batches_in_flight", "parts", "frame_format", "plot", "compared", "read")
    for name in excluded:
        if _is_given(context, name):
            context.fail(f"--precisions cannot be combined with --{name.replace('_', '-')}")
    require_package("onnx", "--precisions needs onnx", install_hint("build"))
    require_package("onnxruntime", "--precisions needs ONNX Runtime", install_hint("build"))
    from vision.benchmark.precisions import PrecisionSettings, measure_precisions, print_precisions

    values = context.params
    path, spec = _network(str(values["model"] or AppConfig.model_fields["model"].default))
    request = PrecisionSettings(
        precisions=tuple(values["precisions"]),
        batches=tuple(sorted(values["batch"])) if _is_given(context, "batch") else (1,),
        seconds=values["seconds"],
        backend=values["backend"],
        source=values["source"] or "",
        shapes=parse_shapes(values["shape"] or ()),
    )
    report = with_progress(lambda progress: measure_precisions(path, spec, request, progress))
    print_precisions(report, table_console(values["json"]))
    if values["json"] is not None:
        write_text(report.text(), values["json"])
    return EXIT_RUNTIME if all(row.reason for row in report.rows) else EXIT_OK


def _network(name: str) -> tuple[Path, ModelSpec | None]:
    """Return the ONNX file and the spec of a model. If `name` is an ONNX file without a spec, the spec is None."""
    try:
        folder, spec = find_model(name)
    except ModelError as error:
        path = Path(name)
        if path.suffix.lower() != ONNX_SUFFIX or not is_file(path) or error.code == "damaged-model":
            raise
        read_model_header(path)
        return path, None
    return folder / spec.file, spec


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Parse shapes such as ``input_ids=1x128``. Return the sizes by the name of the input.

    Raises:
        typer.BadParameter: a text has a different form.
    """
    shapes = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        parts = sizes.split("x")
        if not name or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise typer.BadParameter(f"expected a name and sizes, such as input_ids=1x128, got {text!r}")
        shapes[name] = tuple(map(int, parts))
    return shapes


def _write_results(document: Bench, json: Path | None, plot: Path | None, console: Console) -> None:
    """Print the tables of a benchmark, and write the JSON file and the plot if requested.

    If a step fails, continue with the next.
    """
    with ExitStack() as results:  # calls the callbacks in reverse order
        results.callback(print_bench, document, console)
        if plot is not None:
            results.callback(draw, document, plot)
        if json is not None:
            results.callback(write_text, document.text(), json)


def _compare(a: Path, b: Path, console: Console) -> int:
    first, second = load_bench(a), load_bench(b)
    verdict = comparability(first, second)
    print_comparison(verdict, compare(first, second), (str(a), str(b)), console)
    return EXIT_RUNTIME if verdict.faults else EXIT_OK
