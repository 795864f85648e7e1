"""Options and argument types that several commands share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

import typer
from rich.console import Console

from vision.capture.synthetic.spec import SyntheticSpec
from vision.config import AppConfig, DetectConfig, load_config, resolve_config
from vision.config.paths import exists
from vision.config.source_address import File, Folder, Synthetic, parse_source
from vision.config.user_files import write_output
from vision.errors import ConfigError, SourceError, VisionError, from_os_error
from vision.metrics import enable_nvtx
from vision.version import pip_hint

NVTX_VARIABLE: Final = "VISION_NVTX"
MAX_BATCH: Final = 256
"""Largest value of `detect.max_batch`."""
MAX_BATCHES_IN_FLIGHT: Final = 8
"""Largest value of `detect.batches_in_flight`."""

Precision: TypeAlias = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "int8"]
Backend: TypeAlias = Literal["auto", "tensorrt", "onnxruntime", "fake"]
Format: TypeAlias = Literal["bgr", "bgrx", "nv12", "i420"]

_FILE_WIDTH: Final = 150  # columns of a table that is written to a file
_DURATION: Final = re.compile(r"^(?P<number>\d+(?:\.\d+)?)(?P<unit>ms|s|m|h|d)?$")
_UNIT_S: Final = {"ms": 0.001, None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_Value = TypeVar("_Value")


def parse_duration(text: str) -> float:
    """Parse a duration such as ``90s``, ``5m``, ``2h``, ``1d``, or ``500ms``. Return the duration in seconds.

    A number without a unit is in seconds.

    Raises:
        typer.BadParameter: the text is not a positive duration.
    """
    match = _DURATION.match(str(text))  # a default is a number
    if match is None or float(match["number"]) <= 0:
        raise typer.BadParameter(f"expected a duration such as 90s, 5m or 2h, got {text!r}")
    return float(match["number"]) * _UNIT_S[match["unit"]]


def parse_seconds(text: str) -> float:
    """Parse the duration of a measurement. Return the duration in seconds.

    Raises:
        typer.BadParameter: the text is not a duration from 0.01 s to 1 h.
    """
    seconds = parse_duration(str(text))
    if not 0.01 <= seconds <= 3600:
        raise typer.BadParameter(f"expected 0.01 to 3600 seconds, got {text!r}")
    return seconds


class Values(tuple[Any, ...]):
    """The values of one option, which are separated by commas on the command line."""

    __slots__ = ()

    def __str__(self) -> str:
        return ",".join(map(str, self))


def values_parser(allowed: Iterable[object], expected: str) -> Callable[[str], Values]:
    """Return a parser of comma-separated values, which must be in `allowed`.

    The parser raises `typer.BadParameter` for other values. Its message describes the allowed values as `expected`.
    """
    by_word = {str(value): value for value in allowed}

    def parse(text: str) -> Values:
        words = [word.strip() for word in str(text).split(",") if word.strip()]
        if not words or not by_word.keys() >= set(words):
            raise typer.BadParameter(f"expected {expected}, got {str(text)!r}")
        return Values(dict.fromkeys(by_word[word] for word in words))

    return parse


def argument_parser(parse: Callable[[str], _Value]) -> Callable[[str], _Value]:
    """Return a function that calls `parse`, and raises the errors of `parse` as `typer.BadParameter`."""

    def run(text: str) -> _Value:
        try:
            return parse(text)
        except (ValueError, ConfigError, SourceError) as error:
            raise typer.BadParameter(str(error)) from error

    return run


def check_frame_source(text: str) -> str:
    """Check the address of a source of frames, and return the address.

    Raises:
        ValueError: the address is malformed, or the file or folder does not exist.
        SourceError: the options of a synthetic address are invalid.
    """
    source = parse_source(text)
    if isinstance(source, Synthetic):
        SyntheticSpec.parse(text)
    if isinstance(source, File | Folder) and not exists(Path(text)):
        raise ValueError(f"the file {text} does not exist")
    return text


def _check_output(text: str) -> Path:
    from vision.benchmark.document import check_writable

    check_writable(Path(text))
    return Path(text)


def check_plot(text: str) -> Path:
    """Return the path of a plot. Raise `ConfigError` if the plot cannot be written, or if its format is unknown."""
    from vision.benchmark.plot import check_plot_path

    check_plot_path(Path(text))
    return Path(text)


_SHIPPED = "counting, demo, four-cameras, jetson, or reference"
CONFIG_HELP = f"Path of a camera.yaml, or name of a shipped configuration: {_SHIPPED}."
_MODEL_HELP = "Name of a model that `vision models` lists, or path of a folder that contains model.yaml."

ConfigName = Annotated[str, typer.Argument(metavar="CONFIG", help=CONFIG_HELP)]
ModelName = Annotated[str | None, typer.Argument(metavar="MODEL", help=_MODEL_HELP)]
ModelConfig = Annotated[
    str | None, typer.Option("--config", metavar="CONFIG", help="Use `model` and `detect` of this camera.yaml.")
]
ForTime = Annotated[
    float | None, typer.Option("--for", parser=parse_duration, metavar="TIME", help="Stop after TIME, such as 5m.")
]
Seconds = Annotated[
    float, typer.Option(parser=parse_seconds, metavar="SECONDS", help="Time per measurement.", show_default=True)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json",
        parser=argument_parser(_check_output),
        metavar="FILE",
        help="Write all results to FILE, as JSON. Use - for standard output.",
    ),
]
PlotFile = Annotated[
    Path | None,
    typer.Option(
        parser=argument_parser(check_plot),
        metavar="FILE",
        help="Plot throughput and p99 latency over the batch size to FILE (.svg, .png, or .pdf).",
    ),
]
TraceFile = Annotated[
    Path | None,
    typer.Option(parser=argument_parser(_check_output), metavar="FILE", help="Write a timeline for Perfetto to FILE."),
]
Nvtx = Annotated[
    bool, typer.Option("--nvtx", help=f"Mark every stage for Nsight Systems. {NVTX_VARIABLE}=1 has the same effect.")
]


def start_nvtx(requested: bool) -> None:
    """Enable NVTX marks for Nsight Systems if the option or the environment variable requests them.

    Raises:
        VisionError: the marks are requested, but the package nvtx is not installed.
    """
    requested = requested or os.environ.get(NVTX_VARIABLE, "") not in ("", "0")
    if requested and not enable_nvtx():
        raise VisionError(
            "--nvtx requires the package nvtx, which is not installed", hint=pip_hint("nvtx"), code="nvtx-missing"
        )


def read_config(name: str) -> AppConfig:
    """Load a configuration by its path or shipped name, with the values of environment variables.

    Raises:
        ConfigError: the configuration does not exist, or is invalid.
    """
    return load_config(resolve_config(name), os.environ)


def given(**values: object) -> dict[str, object]:
    """Return the options that the user has given, by name. These are the options whose value is not None."""
    return {name: value for name, value in values.items() if value is not None}


def select_model(model: str | None, config: str | None, **changes: object) -> tuple[str | None, DetectConfig]:
    """Return the name of the model, and the configuration of the detector.

    Args:
        model: name of the model; None means the model in `config`. If `config` is also None, the name is None.
        config: configuration that contains the keys of `detect`; None means the default values.
        changes: values of keys of `detect`; None leaves a value unchanged.
    """
    app_config = None if config is None else read_config(config)
    detect = DetectConfig() if app_config is None else app_config.detect
    name = model or (None if app_config is None else app_config.model)
    return name, detect.model_copy(update=given(**changes))


def table_console(json: Path | None = None) -> Console:
    """Return the console for tables. It writes to standard error if `json` is ``-``, otherwise to standard output."""
    console = Console(stderr=json is not None and str(json) == "-")
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    return console


def write_text(text: str, path: Path) -> None:
    """Write a text to a file, or to standard output if `path` is ``-``.

    Raises:
        ConfigError: the file cannot be written.
        Unavailable: the file cannot currently be written, for example because the disk is full.
    """
    if str(path) == "-":
        print(text)
        return
    try:
        write_output(path, text + "\n")
    except OSError as error:
        raise from_os_error(f"{path} cannot be written", error) from error
