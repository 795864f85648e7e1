"""The verbs, their arguments, signals and exit codes. What a verb does is in the module that it imports when called."""

from __future__ import annotations

import argparse
import errno
import gc
import json
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from vision.cli.signals import Signals, restore_default_signals
from vision.console import terminal
from vision.errors import EXIT_OK, EXIT_RUNTIME, Closed, VisionError

log = logging.getLogger(__name__)

Verb = Callable[[argparse.Namespace, threading.Event], int]

_OUTPUT_FAILS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # a full disk, a terminal that is gone

_ORDERLY = ("run", "check", "draw", "eval")

_DURATION = re.compile(r"^(?P<number>\d+(?:\.\d+)?)(?P<unit>ms|s|m|h|d)?$")
_UNIT_S = {"ms": 0.001, None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration_s(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``5m``, ``2h``, ``1d`` or ``500ms``."""
    match = _DURATION.match(text)
    if match is None or float(match["number"]) <= 0:
        raise argparse.ArgumentTypeError(f"expected a duration such as 90s, 5m or 2h, got {text!r}")
    return float(match["number"]) * _UNIT_S[match["unit"]]


def main(argv: Sequence[str] | None = None) -> int:
    """The command `vision`. Returns its exit code."""
    with Signals() as signals:
        arguments = _parser().parse_args(argv)
        if arguments.verb not in _ORDERLY:
            restore_default_signals()
        return _run_verb(arguments, signals.stop)


def _run_verb(arguments: argparse.Namespace, stop: threading.Event) -> int:
    from vision.cli.logs import start_logging

    start_logging(arguments.log_level, terminal())
    try:
        code = int(arguments.run(arguments, stop))
        print(end="", flush=True)  # here and not at exit, where nobody could say what is wrong with it
        return code
    except Closed:
        return EXIT_OK
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output is gone
        _discard_output()
        return EXIT_RUNTIME
    except OSError as error:
        if error.filename is not None or error.errno not in _OUTPUT_FAILS:
            raise
        _discard_output()
        print(f"vision: the output cannot be written: {error.strerror}", file=sys.stderr)
        return EXIT_RUNTIME
    except VisionError as error:
        print(f"vision: {error}", file=sys.stderr)
        return error.exit_code


def _discard_output() -> None:
    """Python would complain once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    from vision.cli.performance import add_nvtx, add_verbs
    from vision.version import version

    parser = argparse.ArgumentParser(prog="vision", description="Streaming video analytics for many cameras.")
    parser.add_argument("--version", action="version", version=f"vision {version()}")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Verb, text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    run = verb("run", _run, "watch the cameras of a configuration and publish what is found")
    run.add_argument("config", help="camera.yaml, or the name of a shipped one: demo")
    run.add_argument("--for", dest="for_s", type=duration_s, metavar="TIME", help="stop after 90s, 5m, 2h")
    run.add_argument("--offline", action="store_true", help="every frame of every file once, as fast as it goes")
    run.add_argument("--record", type=Path, metavar="FILE.jsonl", help="also write each result there, one JSON a line")
    add_nvtx(run)

    check = verb("check", _check, "validate a configuration and open each camera once")
    check.add_argument("config")

    evaluation = verb("eval", _eval, "how right a camera's pipeline is on a labelled video")
    evaluation.add_argument("config")
    evaluation.add_argument("--truth", type=Path, required=True, metavar="GT.txt", help="MOTChallenge rows")
    evaluation.add_argument("--camera", metavar="ID", help="whose video it is; may be left out where there is only one")
    evaluation.add_argument("--class", dest="class_name", default="person", metavar="NAME", help="default: %(default)s")
    evaluation.add_argument("--json", type=Path, metavar="FILE", help="also write every figure there")
    evaluation.add_argument("--plots", type=Path, metavar="DIR", help="also write curves and time lines there, as PNG")
    evaluation.add_argument("--video", type=Path, metavar="OUT.mp4", help="also write the video with everything on it")
    evaluation.add_argument("--result", type=Path, metavar="FILE.txt", help="also write what was found, for scorers")

    draw = verb("draw", _draw, "write a frame of each camera with its lines and zones")
    draw.add_argument("config")
    draw.add_argument("--out", type=Path, default=Path("drawn"), metavar="DIR", help="default: %(default)s")

    verb("doctor", _doctor, "what this machine has, what is missing, and how to mend it")

    watch = verb("watch", _watch, "show what a running vision publishes")
    watch.add_argument("address", nargs="?", default="tcp://127.0.0.1:5555", help="default: %(default)s")
    watch.add_argument("--for", dest="for_s", type=duration_s, metavar="TIME", help="stop after 90s, 5m, 2h")

    add_verbs(verb)

    verb("schema", _schema, "print the JSON Schema of camera.yaml, for editors")
    verb("models", _models, "list the known models")
    return parser


def _run(arguments: argparse.Namespace, stop: threading.Event) -> int:
    from vision.cli.performance import start_nvtx
    from vision.cli.status_view import StatusView
    from vision.config import load_config, resolve_config
    from vision.pipelines import load_pipeline
    from vision.runtime.builder import RunOptions, open_state
    from vision.runtime.hang_watchdog import hang_watchdog

    start_nvtx(arguments.nvtx)
    site = load_config(resolve_config(arguments.config), os.environ)
    build = load_pipeline(site.pipeline)
    with ExitStack() as resources:
        state = None if arguments.offline else open_state(site, resources)
        options = RunOptions(stop=stop, offline=arguments.offline, record=arguments.record, state=state)
        runtime = build(site, options, resources)
        # What was made so far stays: a full collection would walk through all of it and hold every thread meanwhile.
        gc.collect()
        gc.freeze()
        with StatusView(terminal()) as view, hang_watchdog():
            runtime.run(stop, for_s=arguments.for_s, on_report=view.show)
    return EXIT_OK


def _check(arguments: argparse.Namespace, stop: threading.Event) -> int:
    from rich.console import Console

    from vision.cli.check import check_cameras, print_checks
    from vision.config import check_classes, load_config, resolve_config
    from vision.detect.open import published_class_names
    from vision.pipelines import load_pipeline
    from vision.runtime.builder import find_model, find_second_model

    path = resolve_config(arguments.config)
    site = load_config(path, os.environ)
    load_pipeline(site.pipeline)
    _, spec = find_model(site)
    check_classes(site, published_class_names(spec, site.detect), path)
    if site.cascade is not None:
        find_second_model(site.cascade)
    print(f"{path}: {len(site.cameras)} cameras, pipeline {site.pipeline}, model {spec.name}: no faults")
    return print_checks(check_cameras(site.cameras, ("bgr",), stop), Console())


def _eval(arguments: argparse.Namespace, stop: threading.Event) -> int:
    from vision.evaluation.evaluate import Request, run

    names = ("config", "truth", "camera", "class_name", "json", "plots", "video", "result")
    try:
        return run(Request(**{name: getattr(arguments, name) for name in names}), stop)
    except Closed:  # half an evaluation is none
        return 128 + signal.SIGINT


def _draw(arguments: argparse.Namespace, stop: threading.Event) -> int:
    from rich.console import Console

    from vision.cli.draw import draw_site, print_drawings
    from vision.config import load_config, resolve_config

    site = load_config(resolve_config(arguments.config), os.environ)
    return print_drawings(draw_site(site, arguments.out, stop), Console())


def _doctor(_arguments: argparse.Namespace, _stop: threading.Event) -> int:
    from rich.console import Console

    from vision.cli.doctor import examine, print_findings

    return print_findings(examine(), Console())


def _watch(arguments: argparse.Namespace, _stop: threading.Event) -> int:
    from vision.cli.watch import watch

    return watch(arguments.address, for_s=arguments.for_s)


def _schema(_arguments: argparse.Namespace, _stop: threading.Event) -> int:
    from vision.config import config_schema

    print(json.dumps(config_schema(), indent=2))
    return EXIT_OK


def _models(_arguments: argparse.Namespace, _stop: threading.Event) -> int:
    from rich.console import Console

    from vision.detect.catalog import list_models, print_models

    return print_models(list_models(), Console())


def entry() -> None:
    """The process `vision`, from its start to its end."""
    code = main()
    if threading.active_count() > 1:
        # A thread is still inside a camera's library. If it came back from there while the interpreter is being taken
        # down, C++ would abort; everything of ours is closed by now.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
