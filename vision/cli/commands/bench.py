"""`vision bench`: measure a model on this machine."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from vision.cli.options import (
    MAX_BATCH,
    MAX_BATCHES_IN_FLIGHT,
    Backend,
    Format,
    JsonFile,
    ModelName,
    Nvtx,
    PlotFile,
    Seconds,
    Values,
    find_named_model,
    parse_frame_source,
    parse_integers,
    parse_words,
    start_nvtx,
    table_console,
    write_text,
)
from vision.cli.progress import with_progress
from vision.cli.session import add_command
from vision.errors import EXIT_OK, EXIT_RUNTIME

if TYPE_CHECKING:
    from rich.console import Console

    from vision.benchmark.bench import BenchSettings
    from vision.benchmark.document import Bench

PRECISIONS: Final = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8")
PARTS: Final = ("engine", "stage", "pipeline")

_EXAMPLES = """
vision bench
vision bench nanodet-g-416 --batch 1,4,8 --precision fp16,int8 --json a.json --plot a.svg
vision bench --compare a.json b.json
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, "bench", _EXAMPLES)(bench)


def bench(
    context: typer.Context,
    model: ModelName = None,
    batch: Annotated[
        Values, typer.Option(parser=parse_integers(1, MAX_BATCH), metavar="N,N", help=f"Batch sizes, 1 to {MAX_BATCH}.")
    ] = Values((1, 2, 4, 8)),  # noqa: B008 - immutable
    precision: Annotated[
        Values, typer.Option(parser=parse_words(PRECISIONS), metavar="P,P", help=f"Some of {', '.join(PRECISIONS)}.")
    ] = Values(("fp16",)),  # noqa: B008 - immutable
    slots: Annotated[
        Values | None,
        typer.Option(
            parser=parse_integers(1, MAX_BATCHES_IN_FLIGHT),
            metavar="N,N",
            help=f"Batches in flight, 1 to {MAX_BATCHES_IN_FLIGHT}. [default: 1 to the back-end's own number]",
        ),
    ] = None,
    seconds: Seconds = 2.0,
    parts: Annotated[
        Values, typer.Option(parser=parse_words(PARTS), metavar="P,P", help=f"Some of {', '.join(PARTS)}.")
    ] = Values(PARTS),  # noqa: B008 - immutable
    backend: Annotated[Backend, typer.Option(help="Inference back-end.")] = "auto",
    source: Annotated[
        str | None,
        typer.Option(parser=parse_frame_source, metavar="FILE", help="Recording to read. [default: the shipped one]"),
    ] = None,
    frame_format: Annotated[Format, typer.Option("--format", help="Format of the frames.")] = "bgr",
    json: JsonFile = None,
    plot: PlotFile = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Measure nothing; print the ratios of two files, B over A."),
    ] = None,
    read: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Measure nothing; print the table and the plot of a file.")
    ] = None,
    nvtx: Nvtx = False,
) -> int:
    """Measure a model on this machine.

    The parts are the network alone (engine), the detection stage (stage) and the whole program (pipeline).
    """
    from vision.benchmark.bench import BenchSettings
    from vision.config import AppConfig

    _check(context, model, compare, read, {"--json": json, "--plot": plot})
    console = table_console(json)
    if compare is not None:
        return _compare(*compare, console)
    if read is not None:
        from vision.benchmark.document import load_bench

        document = load_bench(read)
    else:
        start_nvtx(nvtx)
        settings = BenchSettings(
            backend=backend,
            batches=tuple(sorted(batch)),
            precisions=tuple(precision),
            slots=tuple(sorted(slots or ())),
            seconds=seconds,
            parts=tuple(parts),
            source=source or "",
            pixel_format=frame_format,
        )
        document = _measure(str(model or AppConfig.model_fields["model"].default), settings)
    _write_results(document, json, plot, console)
    return EXIT_OK


def _check(
    context: typer.Context,
    model: str | None,
    compare: tuple[Path, Path] | None,
    read: Path | None,
    outputs: dict[str, Path | None],
) -> None:
    """Refuse arguments that do not fit together, before minutes are spent on them."""
    others = [name for name, value in {"MODEL": model, "--read": read, **outputs}.items() if value is not None]
    if compare is not None and others:
        context.fail(f"--compare prints a comparison only: it cannot be combined with {' or '.join(others)}")
    if read is not None and model is not None:
        context.fail("--read measures nothing: it cannot be combined with MODEL")


def _measure(model: str, settings: BenchSettings) -> Bench:
    from vision.benchmark.bench import measure

    folder, spec = find_named_model(model)
    return with_progress(lambda progress: measure(folder, spec, settings, progress))


def _write_results(document: Bench, json: Path | None, plot: Path | None, console: Console) -> None:
    """Write each result, even if another one fails."""
    from vision.benchmark.tables import print_bench

    with ExitStack() as results:  # runs from the last to the first
        results.callback(print_bench, document, console)
        if plot is not None:
            from vision.benchmark.plot import draw

            results.callback(draw, document, plot)
        if json is not None:
            results.callback(write_text, document.text(), json)


def _compare(a: Path, b: Path, console: Console) -> int:
    from vision.benchmark.compare import comparability, compare
    from vision.benchmark.document import load_bench
    from vision.benchmark.tables import print_comparison

    first, second = load_bench(a), load_bench(b)
    verdict = comparability(first, second)
    print_comparison(verdict, compare(first, second), (str(a), str(b)), console)
    return EXIT_RUNTIME if verdict.faults else EXIT_OK
