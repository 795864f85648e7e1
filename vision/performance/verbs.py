"""The verbs about speed: their arguments, and what they print. `vision.cli` adds them to its own.

Nothing is imported here that a verb which is not called would pay for.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from vision.errors import EXIT_OK, EXIT_RUNTIME, VisionError

if TYPE_CHECKING:
    from rich.console import Console

    from vision.config import ModelCard, SiteConfig
    from vision.performance.document import Bench
    from vision.performance.plan import Check, Plan

PRECISIONS: Final = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8")
BACKENDS: Final = ("auto", "tensorrt", "onnxruntime", "fake")
FORMATS: Final = ("bgr", "bgrx", "nv12", "i420")
PARTS: Final = ("engine", "stage", "pipeline")
NVTX_VARIABLE: Final = "VISION_NVTX"

_CHATTY: Final = ("vision.assemble", "vision.capture", "vision.detect.open", "vision.detect.tensorrt", "matplotlib")
_FILE_WIDTH: Final = 150  # columns, where tables go into a file

_Value = TypeVar("_Value")


class AddVerb(Protocol):
    """What `vision.cli` makes a verb with."""

    def __call__(
        self, name: str, run: Callable[[argparse.Namespace, threading.Event], int], text: str, /
    ) -> argparse.ArgumentParser:
        """Its parser, for its arguments."""


def add_verbs(verb: AddVerb) -> None:
    """`build`, `bench`, `profile` and `plan`."""
    _add_build(verb("build", _build, "build a model's TensorRT engine ahead of time; list and prune those there are"))
    _add_bench(verb("bench", _bench, "measure a model here: the network, the stage, the whole program"))
    _add_profile(verb("profile", _profile, "show where the time goes: layer by layer, and stage by stage"))
    _add_plan(verb("plan", _plan, "say what a configuration will come to on this machine, and what limits it"))


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
        raise VisionError("--nvtx needs the package nvtx, which is not installed", hint="pip install 'vision[nvtx]'")


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
    parser.add_argument("--max-batch", type=_one, metavar="N", help="default: 8, or what --config says")
    parser.add_argument("--list", action="store_true", dest="show_list", help="what is in the cache, and its state")
    parser.add_argument("--prune", action="store_true", help="remove what cannot be used here any more")
    parser.add_argument("--force", action="store_true", help="build it, though it is there")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="default: where `vision run` looks for it")
    taken = "; `vision run` takes it with the same in camera.yaml, detect.engine."
    parser.add_argument(
        "--workspace-mib", type=_one, metavar="MIB", help=f"most scratch memory of one layer{taken}workspace_mib"
    )
    parser.add_argument(
        "--level", type=int, choices=range(6), help=f"0 quick to build .. 5 quick to run{taken}optimization_level"
    )
    parser.add_argument(
        "--dla",
        type=int,
        metavar="CORE",
        help=f"run on this accelerator of a Jetson, where it has one{taken}dla_core",
    )
    parser.add_argument(
        "--for-gpu", metavar="NAME:SM", help="ahead of time for another GPU, such as 'RTX 4090:89' (TensorRT-RTX only)"
    )


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="a name that `vision models` lists, or a folder with model.yaml")
    parser.add_argument("--batch", type=listed(positive), default=(1, 2, 4, 8), metavar="N,N", help="default: 1,2,4,8")
    parser.add_argument("--precision", type=listed(str, PRECISIONS), default=("fp16",), help="default: fp16")
    parser.add_argument("--slots", type=listed(positive), default=(), metavar="N,N", help="default: 1 up to its own")
    parser.add_argument("--seconds", type=duration, default=2.0, help="for each measurement; default: %(default)s")
    parser.add_argument("--parts", type=listed(str, PARTS), default=PARTS, help=f"default: {','.join(PARTS)}")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="default: %(default)s")
    parser.add_argument("--source", default="", help="recording to take the pictures from; default: the shipped one")
    parser.add_argument("--format", choices=FORMATS, default="bgr", help="of the pictures; default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there; - is standard output")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="throughput and p99 over batch size: .svg, .png, .pdf"
    )
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A", "B"), help="measure nothing: ratios of two files, B over A"
    )
    parser.add_argument(
        "--read", type=Path, metavar="FILE", help="measure nothing: the table, and with --plot the picture, of a file"
    )
    add_nvtx(parser)


def _add_profile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a name that `vision models` lists, or a folder with model.yaml")
    parser.add_argument("--batch", type=_one, default=1, help="default: %(default)s")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16", help="default: %(default)s")
    parser.add_argument("--backend", choices=BACKENDS[:3], default="auto", help="default: %(default)s")
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
        "--bench", type=Path, metavar="FILE", help="of `vision bench --json`; measured now where absent"
    )
    parser.add_argument("--seconds", type=duration, default=1.0, help="for each measurement; default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there; - is standard output")
    parser.add_argument("--verify", type=duration, metavar="SECONDS", help="then run it, and compare with the plan")


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


def _model(name: str) -> tuple[Path, ModelCard]:
    from vision.assemble import model_of
    from vision.config import SiteConfig

    site = SiteConfig.model_validate({"cameras": [{"id": "none", "source": "synthetic:"}]})
    return model_of(site.model_copy(update={"model": name}))


def _build(arguments: argparse.Namespace, _stop: threading.Event) -> int:
    from vision.assemble import model_of
    from vision.config import DetectConfig, load_site, resolve_config
    from vision.engine.command import build_command
    from vision.engine.opening import settings_of

    detect, model = DetectConfig(), None
    if arguments.config is not None:
        site = load_site(resolve_config(arguments.config), os.environ)
        detect, model = site.detect, model_of(site)
    if arguments.model is not None:
        model = _model(arguments.model)
    if model is None and not (arguments.show_list or arguments.prune):
        raise VisionError("nothing to do", hint="vision build MODEL, vision build --list, vision build --prune")
    given = {
        "workspace_mib": arguments.workspace_mib,
        "optimization_level": arguments.level,
        "dla_core": arguments.dla,
    }
    over = {name: value for name, value in given.items() if value is not None}
    gpu, prepare = _gpu(arguments.for_gpu, required=model is not None)
    from dataclasses import replace

    return build_command(
        model,
        detect,
        gpu,
        precision=arguments.precision,
        max_batch=arguments.max_batch,
        settings=replace(settings_of(detect), **over),
        show_list=arguments.show_list,
        prune=arguments.prune,
        force=arguments.force,
        ahead_of_time=arguments.for_gpu is not None,
        cache_folder=arguments.cache,
        console=_console(None),
        prepare_thread=prepare,
    )


def _gpu(described: str | None, *, required: bool) -> tuple[Any, Callable[[], object]]:
    """The GPU to build for, and what makes it current in another thread. None where it is not there and not needed.

    Raises:
        DeviceMissing: there is none.
        VisionError: the description is not understood.
    """
    from vision.engine.library import GpuDescription
    from vision.errors import DeviceMissing

    if described is not None:
        name, _, capability = described.rpartition(":")
        if not name or not capability.isdecimal() or len(capability) < 2:
            raise VisionError(f"--for-gpu: expected a name and a compute capability, got {described!r}", hint="Orin:87")
        return GpuDescription(name, (int(capability[:-1]), int(capability[-1]))), lambda: None
    try:
        from vision.cuda import open_device, use_device

        device = open_device()
    except DeviceMissing:
        if required:
            raise
        return None, lambda: None
    return device, lambda: use_device(device)


def _bench(arguments: argparse.Namespace, _stop: threading.Event) -> int:
    console = _console(arguments.json)
    if arguments.compare is not None:
        first, second = arguments.compare
        return _compare(first, second, console)
    if arguments.model is None and arguments.read is None:
        raise VisionError("which model?", hint="vision bench MODEL, or vision bench --compare A.json B.json")
    from vision.performance.tables import print_bench

    if arguments.plot is not None:
        from vision.performance.plot import check_plot_path

        check_plot_path(arguments.plot)
    bench = _read_bench(arguments.read) if arguments.read is not None else _measured(arguments)
    print_bench(bench, console)
    if arguments.json is not None:
        _write(bench.text(), arguments.json)
    if arguments.plot is not None:
        from vision.performance.plot import draw

        draw(bench, arguments.plot)
    return EXIT_OK


def _read_bench(path: Path) -> Bench:
    from vision.performance.document import load_bench

    return load_bench(path)


def _measured(arguments: argparse.Namespace) -> Bench:
    from vision.performance.bench import BenchSettings, measure

    start_nvtx(arguments.nvtx)
    folder, card = _model(arguments.model)
    settings = BenchSettings(
        backend=arguments.backend,
        batches=tuple(sorted(arguments.batch)),
        precisions=arguments.precision,
        slots=tuple(sorted(arguments.slots)),
        seconds=arguments.seconds,
        parts=arguments.parts,
        source=arguments.source,
        pixel_format=arguments.format,
    )
    return _watched(lambda say: measure(folder, card, settings, say))


def _watched(work: Callable[[Callable[[str], None]], _Value]) -> _Value:
    """Say on the terminal what is being done; a line each where standard error is none."""
    from vision.logs import terminal

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
    from vision.performance.compare import comparability, compare
    from vision.performance.document import load_bench
    from vision.performance.tables import print_comparison

    one, other = load_bench(a), load_bench(b)
    able = comparability(one, other)
    print_comparison(able, compare(one, other), (str(a), str(b)), console)
    return EXIT_RUNTIME if able.faults else EXIT_OK


def _profile(arguments: argparse.Namespace, _stop: threading.Event) -> int:
    folder, card = _model(arguments.model)
    if arguments.print_nsys or arguments.print_trtexec:
        from vision.performance import commands

        if arguments.print_nsys:
            print(commands.nsys(arguments.model, arguments.batch, arguments.precision))
        if arguments.print_trtexec:
            print(commands.trtexec(folder, card, arguments.batch, arguments.precision))
        return EXIT_OK
    from vision.performance.profile import ProfileSettings, check_trace_path, profile_json, profile_model

    if arguments.trace is not None:
        check_trace_path(arguments.trace)
    settings = ProfileSettings(arguments.batch, arguments.precision, arguments.backend, arguments.runs, arguments.trace)
    profile = _watched(lambda say: profile_model(folder, card, settings, say))
    console = _console(arguments.json)
    console.print(f"{profile.label}, {profile.shape}", highlight=False, markup=False)
    console.print(profile.table(arguments.top), highlight=False, markup=False, soft_wrap=True)
    if arguments.json is not None:
        _write(profile_json(profile), arguments.json)
    if arguments.trace is not None:
        console.print(f"time line: {arguments.trace}, for chrome://tracing or https://ui.perfetto.dev", highlight=False)
    return EXIT_OK


def _verified(site: SiteConfig, plan: Plan, seconds: float, say: Callable[[str], None]) -> tuple[Check, ...]:
    from vision.performance.plan import verify

    say(f"the site itself, for {seconds:g} s")
    return verify(site, plan, seconds)


def _plan(arguments: argparse.Namespace, _stop: threading.Event) -> int:
    import json
    from dataclasses import asdict

    from vision.config import load_site, resolve_config
    from vision.performance.document import load_bench
    from vision.performance.plan import make_plan
    from vision.performance.tables import print_checks, print_plan
    from vision.pipelines import load_pipeline

    site = load_site(resolve_config(arguments.config), os.environ)
    load_pipeline(site.pipeline)
    bench: Bench | None = load_bench(arguments.bench) if arguments.bench is not None else None
    plan = _watched(lambda say: make_plan(site, bench, seconds=arguments.seconds, say=say))
    console = _console(arguments.json)
    print_plan(plan, console)
    document = {"schema": "vision.plan/1", **plan.as_json()}
    if arguments.verify is not None:
        found = _watched(lambda say: _verified(site, plan, arguments.verify, say))
        print_checks(found, console)
        document["checks"] = [asdict(each) for each in found]
    if arguments.json is not None:
        _write(json.dumps(document, indent=1), arguments.json)
    return EXIT_OK
