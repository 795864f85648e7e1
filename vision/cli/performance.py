"""The verbs about speed: their arguments, and what they print. `vision.cli.main` adds them to its own.

Nothing is imported here that a verb which is not called would pay for.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, TypeVar

from vision.errors import EXIT_OK, EXIT_RUNTIME, VisionError
from vision.version import pip_hint

if TYPE_CHECKING:
    from rich.console import Console

    from vision.benchmark.document import Bench
    from vision.config import DetectConfig, ModelSpec
    from vision.engine.profiler import Profile

PRECISIONS: Final = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8")
BACKENDS: Final = ("auto", "tensorrt", "onnxruntime", "fake")
FORMATS: Final = ("bgr", "bgrx", "nv12", "i420")
PARTS: Final = ("engine", "stage", "pipeline")
MOST_BATCH: Final = 256
MOST_SLOTS: Final = 8
"""As `detect.max_batch` and `detect.batches_in_flight` allow them."""

NVTX_VARIABLE: Final = "VISION_NVTX"

_CHATTY: Final = (
    "vision.runtime.builder",
    "vision.capture",
    "vision.detect.open",
    "vision.detect.tensorrt.detector",
    "matplotlib",
)
_FILE_WIDTH: Final = 150  # columns, where tables go into a file

_Value = TypeVar("_Value")


class AddVerb(Protocol):
    """What `vision.cli.main` makes a verb with."""

    def __call__(
        self, name: str, run: Callable[[argparse.Namespace, threading.Event], int], text: str, /
    ) -> argparse.ArgumentParser:
        """Its parser, for its arguments."""


def add_verbs(verb: AddVerb) -> None:
    """`build`, `bench`, `profile` and `plan`."""
    _add_build(verb("build", _build, "build a model's TensorRT engine ahead of time; list and prune those there are"))
    _add_bench(verb("bench", _bench, "measure a model here: the network, the stage, the whole program"))
    _add_profile(verb("profile", _profile, "show where the time goes: layer by layer, and stage by stage"))
    _add_plan(
        verb("plan", _plan, "run a configuration with stand-in cameras: throughput, latency, bottleneck, how many fit")
    )


def add_nvtx(parser: argparse.ArgumentParser) -> None:
    """The switch for Nsight Systems."""
    parser.add_argument(
        "--nvtx",
        action="store_true",
        help=f"mark every stage for Nsight Systems (NVTX); {NVTX_VARIABLE}=1 in the environment does the same",
    )


def start_nvtx(asked: bool) -> None:
    """Switch the marks on where they are asked for.

    Raises:
        VisionError: they are, and nvtx is not installed.
    """
    from vision.metrics import enable_nvtx

    wanted = asked or os.environ.get(NVTX_VARIABLE, "") not in ("", "0")
    if wanted and not enable_nvtx():
        raise VisionError("--nvtx needs the package nvtx, which is not installed", hint=pip_hint("nvtx"))


# ------------------------------------------------------------------------------------------------ arguments


def listed(
    convert: Callable[[str], _Value], allowed: Sequence[_Value] | None = None
) -> Callable[[str], tuple[_Value, ...]]:
    """An argument with several values and commas between them."""

    def parse(text: str) -> tuple[_Value, ...]:
        try:
            values = tuple(convert(part.strip()) for part in text.split(",") if part.strip())
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"expected values with commas between them, got {text!r}") from error
        wrong = [value for value in values if allowed is not None and value not in allowed]
        if not values or wrong:
            known = ", ".join(map(str, allowed or ()))
            raise argparse.ArgumentTypeError(f"expected some of {known or 'a list'}, got {text!r}")
        return tuple(dict.fromkeys(values))

    return parse


def positive(text: str) -> int:
    """A whole number above 0."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise ValueError(text)
    return number


def whole(least: int, most: int) -> Callable[[str], int]:
    """An argument that is a whole number of this range: what camera.yaml takes too."""

    def parse(text: str) -> int:
        number = int(text) if text.isdecimal() else -1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"expected a whole number, {least} to {most}, got {text!r}")
        return number

    return parse


def frame_source(text: str) -> str:
    """Where frames come from. A recording has to be there; what else is wrong with it, reading it tells."""
    from vision.capture.synthetic.spec import SyntheticSpec
    from vision.config.source_address import File, Folder, Synthetic, parse_source
    from vision.errors import SourceError

    try:
        address = parse_source(text)
        if isinstance(address, Synthetic):
            SyntheticSpec.parse(text)
    except (ValueError, SourceError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if isinstance(address, (File, Folder)) and not Path(text).exists():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return text


def duration(text: str) -> float:
    """A time that is measured for."""
    try:
        value = float(text.removesuffix("s"))
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"expected seconds, 0.01 to 3600, got {text!r}")
    return value


def _one(text: str) -> int:
    try:
        return positive(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}") from None


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="a name that `vision models` lists, or a folder with model.yaml")
    parser.add_argument("--config", metavar="CONFIG", help="take the model and `detect` from this camera.yaml")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: fp16, or what --config says")
    parser.add_argument("--max-batch", type=whole(1, 256), metavar="N", help="default: 8, or what --config says")
    parser.add_argument("--list", action="store_true", dest="show_list", help="what is in the cache, and its state")
    parser.add_argument("--prune", action="store_true", help="remove what cannot be used here any more")
    parser.add_argument("--force", action="store_true", help="build it, though it is there")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="default: where `vision run` looks for it")
    taken = "; `vision run` takes it with the same in camera.yaml, detect.engine."
    parser.add_argument(
        "--workspace-mib",
        type=whole(1, 1_000_000),
        metavar="MIB",
        help=f"most scratch memory of one layer{taken}workspace_mib",
    )
    parser.add_argument(
        "--level", type=int, choices=range(6), help=f"0 quick to build .. 5 quick to run{taken}optimization_level"
    )
    parser.add_argument(
        "--dla",
        type=whole(0, 15),
        metavar="CORE",
        help=f"run on this accelerator of a Jetson, where it has one{taken}dla_core",
    )
    parser.add_argument(
        "--for-gpu", metavar="NAME:SM", help="ahead of time for another GPU, such as 'RTX 4090:89' (TensorRT-RTX only)"
    )


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="a name that `vision models` lists, or a folder with model.yaml")
    parser.set_defaults(parser=parser)
    batch, slots = f"up to {MOST_BATCH}; default: 1,2,4,8", f"up to {MOST_SLOTS}; default: 1 up to its own"
    parser.add_argument("--batch", type=listed(whole(1, MOST_BATCH)), default=(1, 2, 4, 8), metavar="N,N", help=batch)
    parser.add_argument("--precision", type=listed(str, PRECISIONS), default=("fp16",), help="default: fp16")
    parser.add_argument("--slots", type=listed(whole(1, MOST_SLOTS)), default=(), metavar="N,N", help=slots)
    parser.add_argument("--seconds", type=duration, default=2.0, help="for each measurement; default: %(default)s")
    parser.add_argument("--parts", type=listed(str, PARTS), default=PARTS, help=f"default: {','.join(PARTS)}")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="default: %(default)s")
    source = "recording to take the frames from; default: the shipped one"
    parser.add_argument("--source", type=frame_source, metavar="FILE", help=source)
    parser.add_argument("--format", choices=FORMATS, default="bgr", help="of the frames; default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there; - is standard output")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="throughput and p99 over batch size: .svg, .png, .pdf"
    )
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A", "B"), help="measure nothing: ratios of two files, B over A"
    )
    parser.add_argument(
        "--read", type=Path, metavar="FILE", help="measure nothing: the table, and with --plot the frame, of a file"
    )
    add_nvtx(parser)


def _add_profile(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(parser=parser)
    parser.add_argument("model", nargs="?", help="a name that `vision models` lists, or a folder with model.yaml")
    parser.add_argument("--config", metavar="CONFIG", help="take the model and `detect` from this camera.yaml")
    parser.add_argument("--batch", type=whole(1, MOST_BATCH), default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: fp16, or what --config says")
    parser.add_argument("--backend", choices=BACKENDS[:3], help="default: auto, or what --config says")
    parser.add_argument("--runs", type=_one, default=50, help="default: %(default)s")
    parser.add_argument("--top", type=_one, metavar="N", help="print the N slowest layers only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there; - is standard output")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="a time line for chrome://tracing or ui.perfetto.dev"
    )
    parser.add_argument("--print-nsys", action="store_true", help="print the command for Nsight Systems, run nothing")
    parser.add_argument("--print-trtexec", action="store_true", help="print the commands for trtexec, run nothing")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="camera.yaml, or the name of a shipped one: demo")
    parser.add_argument(
        "--seconds",
        type=duration,
        default=10.0,
        help="length of the run; the whole plan takes up to 8 times as long; default: %(default)s",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan there; - is standard output")
    parser.set_defaults(parser=parser)


# ------------------------------------------------------------------------------------------------ verbs


def _console(json: Path | None) -> Console:
    """Where tables go: not among JSON on standard output."""
    from rich.console import Console

    console = Console(stderr=json is not None and str(json) == "-")
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    return console


def _write(text: str, path: Path) -> None:
    from vision.errors import ConfigError

    if str(path) == "-":
        sys.stdout.write(text + "\n")
        return
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def _model(name: str) -> tuple[Path, ModelSpec]:
    from vision.config import AppConfig
    from vision.runtime.builder import find_model

    site = AppConfig.model_validate({"cameras": [{"id": "none", "source": "synthetic:"}]})
    return find_model(site.model_copy(update={"model": name}))


def _build(arguments: argparse.Namespace, _stop: threading.Event) -> int:
    from vision.cli.build import build_command
    from vision.config import DetectConfig, load_config, resolve_config
    from vision.runtime.builder import find_model

    detect, model = DetectConfig(), None
    console = _console(None)
    if arguments.config is not None:
        site = load_config(resolve_config(arguments.config), os.environ)
        detect, model = site.detect, find_model(site)
    if arguments.model is not None:
        model = _model(arguments.model)
    if model is None and not (arguments.show_list or arguments.prune):
        raise VisionError("nothing to do", hint="vision build MODEL, vision build --list, vision build --prune")
    detect = _with_arguments(detect, arguments)
    gpu, prepare = _gpu(arguments.for_gpu, required=model is not None)
    code = build_command(
        model,
        detect,
        gpu,
        show_list=arguments.show_list,
        prune=arguments.prune,
        force=arguments.force,
        ahead_of_time=arguments.for_gpu is not None,
        cache_folder=arguments.cache,
        console=console,
        prepare_thread=prepare,
    )
    if model is not None and arguments.for_gpu is None and arguments.cache is None:
        _start_once(*model, detect, console)
    return code


def _with_arguments(detect: DetectConfig, arguments: argparse.Namespace) -> DetectConfig:
    """`detect` with what the command line says in its place."""

    def said(**values: object) -> dict[str, object]:
        return {name: value for name, value in values.items() if value is not None}

    engine = said(workspace_mib=arguments.workspace_mib, optimization_level=arguments.level, dla_core=arguments.dla)
    over = said(precision=arguments.precision, max_batch=arguments.max_batch)
    return detect.model_copy(update={**over, "engine": detect.engine.model_copy(update=engine)})


def _start_once(folder: Path, spec: ModelSpec, detect: DetectConfig, console: Console) -> None:
    """Open the detector as `vision run` does. TensorRT-RTX compiles an engine's kernels only then, which may take as
    long as building it, and keeps them; and a graph that computes something else is noticed here.
    """
    from contextlib import closing

    from vision.detect.open import open_detector

    console.print("starting it once: its kernels are compiled and kept, its graphs are checked")
    with closing(open_detector(folder, spec, detect.model_copy(update={"backend": "tensorrt"}))) as detector:
        console.print(f"{detector.spec.name}: ready", markup=False)


def _gpu(described: str | None, *, required: bool) -> tuple[Any, Callable[[], object]]:
    """The GPU to build for, and what makes it current in another thread. None where it is not there and not needed.

    Raises:
        DeviceError: there is none, or it does not work.
        VisionError: the description is not understood.
    """
    from vision.engine.library import GpuDescription
    from vision.errors import DeviceError

    if described is not None:
        name, _, capability = described.rpartition(":")
        if not name or not capability.isdecimal() or len(capability) < 2:
            raise VisionError(f"--for-gpu: expected a name and a compute capability, got {described!r}", hint="Orin:87")
        return GpuDescription(name, (int(capability[:-1]), int(capability[-1]))), lambda: None
    try:
        from vision.gpu.cuda import open_device, use_device

        device = open_device()
    except DeviceError:
        if required:
            raise
        return None, lambda: None
    return device, lambda: use_device(device)


def _bench(arguments: argparse.Namespace, _stop: threading.Event) -> int:
    _check_bench(arguments)
    console = _console(arguments.json)
    if arguments.compare is not None:
        first, second = arguments.compare
        return _compare(first, second, console)
    from vision.benchmark.tables import print_bench

    bench = _read_bench(arguments.read) if arguments.read is not None else _measured(arguments)
    with ExitStack() as results:  # from the last to the first, each whatever becomes of the others
        results.callback(print_bench, bench, console)
        if arguments.plot is not None:
            from vision.benchmark.plot import draw

            results.callback(draw, bench, arguments.plot)
        if arguments.json is not None:
            results.callback(_write, bench.text(), arguments.json)
    return EXIT_OK


def _check_bench(arguments: argparse.Namespace) -> None:
    """Refuse what cannot come to anything before minutes are spent on it."""
    others = {"MODEL": arguments.model, "--read": arguments.read, "--json": arguments.json, "--plot": arguments.plot}
    beside = [name for name, value in others.items() if value is not None]
    if arguments.compare is not None and beside:
        _refuse(arguments, f"--compare prints a comparison and nothing else: no {' and no '.join(beside)} beside it")
    if arguments.read is not None and arguments.model is not None:
        _refuse(arguments, "--read measures nothing: it takes no model")
    if arguments.model is None and arguments.read is None and arguments.compare is None:
        _refuse(arguments, "which model? `vision bench MODEL`, or `vision bench --compare A.json B.json`")
    _check_output(arguments, "json")
    if arguments.plot is not None:
        from vision.benchmark.plot import check_plot_path

        _check_output(arguments, "plot", check_plot_path)


def _check_output(arguments: argparse.Namespace, name: str, check: Callable[[Path], None] | None = None) -> None:
    """Refuse a file that cannot be written."""
    from vision.benchmark.document import check_writable
    from vision.errors import ConfigError

    path = getattr(arguments, name)
    try:
        if path is not None:
            (check or check_writable)(path)
    except ConfigError as error:
        _refuse(arguments, f"--{name}: {error}")


def _refuse(arguments: argparse.Namespace, text: str) -> NoReturn:
    """As argparse does with wrong arguments: the usage, `text`, exit code 2."""
    parser: argparse.ArgumentParser = arguments.parser
    parser.error(text)


def _read_bench(path: Path) -> Bench:
    from vision.benchmark.document import load_bench

    return load_bench(path)


def _measured(arguments: argparse.Namespace) -> Bench:
    from vision.benchmark.bench import BenchSettings, measure

    start_nvtx(arguments.nvtx)
    folder, spec = _model(arguments.model)
    settings = BenchSettings(
        backend=arguments.backend,
        batches=tuple(sorted(arguments.batch)),
        precisions=arguments.precision,
        slots=tuple(sorted(arguments.slots)),
        seconds=arguments.seconds,
        parts=arguments.parts,
        source=arguments.source or "",
        pixel_format=arguments.format,
    )
    return _watched(lambda say: measure(folder, spec, settings, say))


def _watched(work: Callable[[Callable[[str], None]], _Value]) -> _Value:
    """Say on the terminal what is being done; a line each where standard error is none."""
    from vision.console import terminal

    for name in _CHATTY:
        logger = logging.getLogger(name)
        if logger.getEffectiveLevel() == logging.INFO:  # what a run of the program says is not what was asked for
            logger.setLevel(logging.WARNING)
    console = terminal()
    if console is None:
        return work(lambda text: print(f"measuring {text}", file=sys.stderr, flush=True))
    with console.status("...") as status:
        return work(lambda text: status.update(f"measuring {text}"))


def _compare(a: Path, b: Path, console: Console) -> int:
    from vision.benchmark.compare import comparability, compare
    from vision.benchmark.document import load_bench
    from vision.benchmark.tables import print_comparison

    one, other = load_bench(a), load_bench(b)
    able = comparability(one, other)
    print_comparison(able, compare(one, other), (str(a), str(b)), console)
    return EXIT_RUNTIME if able.faults else EXIT_OK


def _profile(arguments: argparse.Namespace, _stop: threading.Event) -> int:
    if arguments.model is None and arguments.config is None:
        _refuse(arguments, "which model? `vision profile MODEL`, or `vision profile --config CONFIG`")
    for name in ("json", "trace"):
        _check_output(arguments, name)
    model, detect = _profiled(arguments)
    folder, spec = _model(model)
    if arguments.print_nsys or arguments.print_trtexec:
        from vision.benchmark import commands

        if arguments.print_nsys:
            print(commands.nsys(model, arguments.batch, detect.precision))
        if arguments.print_trtexec:
            named = [model] if arguments.config is None else [model, "--config", arguments.config]
            print(commands.trtexec(folder, spec, arguments.batch, detect, named))
        return EXIT_OK
    from vision.benchmark.profile import ProfileSettings, profile_json, profile_model

    settings = ProfileSettings(arguments.batch, detect, arguments.runs, arguments.trace)
    profile = _watched(lambda say: profile_model(folder, spec, settings, say))
    try:
        if arguments.json is not None:
            _write(profile_json(profile), arguments.json)
    finally:
        _print_profile(profile, arguments)
    return EXIT_OK


def _print_profile(profile: Profile, arguments: argparse.Namespace) -> None:
    console = _console(arguments.json)
    console.print(f"{profile.label}, {profile.shape}", highlight=False, markup=False)
    console.print(profile.table(arguments.top), highlight=False, markup=False, soft_wrap=True)
    if arguments.trace is not None:
        console.print(f"time line: {arguments.trace}, for chrome://tracing or https://ui.perfetto.dev", highlight=False)


def _profiled(arguments: argparse.Namespace) -> tuple[str, DetectConfig]:
    """The model by its name or folder, and the detector of `vision run`, for such batches."""
    from vision.config import DetectConfig, load_config, resolve_config

    detect, model = DetectConfig(), arguments.model
    if arguments.config is not None:
        site = load_config(resolve_config(arguments.config), os.environ)
        detect, model = site.detect, model or site.model
        if arguments.batch > detect.max_batch:
            _refuse(arguments, f"--batch: {arguments.config} has batches of {detect.max_batch} at most")
    given = {"precision": arguments.precision, "backend": arguments.backend}
    over: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return model, detect.model_copy(update={**over, "max_batch": max(detect.max_batch, arguments.batch)})


def _plan(arguments: argparse.Namespace, _stop: threading.Event) -> int:
    import json

    from vision.benchmark.plan import make_plan
    from vision.benchmark.tables import print_plan
    from vision.config import load_config, resolve_config

    config = load_config(resolve_config(arguments.config), os.environ)
    _check_output(arguments, "json")
    plan = _watched(lambda progress: make_plan(config, seconds=arguments.seconds, progress=progress))
    if arguments.json is not None:
        _write(json.dumps(plan.as_json(), indent=1), arguments.json)
    print_plan(plan, _console(arguments.json))
    return EXIT_OK
