"""The command `vision llm`, whose subcommands choose, check, and evaluate language models."""

from __future__ import annotations

import json as json_module
import os
import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.table import Table

from vision.cli.console import with_progress
from vision.cli.options import Json, JsonFile, argument_parser, check_plot, read_config, table_console, write_text
from vision.cli.session import add_command, command
from vision.errors import EXIT_OK, EXIT_RUNTIME, Closed, ConfigError, redact, register_secret
from vision.language.known_models import KNOWN_MODELS
from vision.language.recipes import MACHINES, PORT, SERVERS, Host, Recipe, fits, recipes, usable_precisions

if TYPE_CHECKING:
    from vision.benchmark.language import Answers, LanguageCheck
    from vision.config.language import LanguageServer

_TITLES: Final = {"edge-llm": "TensorRT Edge-LLM", "vllm": "vLLM", "llama.cpp": "llama.cpp"}
_NAMES: Final = ", ".join(known.name for known in KNOWN_MODELS)
_UNTESTED: Final = "Nobody has run these commands on this kind of machine for `vision`. The memory is an estimate."
_MAX_PARALLEL: Final = 64
MAX_REQUESTS: Final = 90  # the shipped clip has 200 frames, and each question needs a different frame
_TIMEOUT_S: Final = 60.0
DEFAULT_URL: Final = f"http://127.0.0.1:{PORT}/v1"


def _model_name(text: str) -> str:
    if text not in {known.name for known in KNOWN_MODELS}:
        raise typer.BadParameter(f"expected one of {_NAMES}, got {text!r}")
    return text


def _machine_name(text: str) -> str:
    if text not in MACHINES:
        raise typer.BadParameter(f"expected one of {', '.join(MACHINES)}, got {text!r}")
    return text


_Server = Annotated[str, typer.Argument(metavar="SERVER", help="Base URL of a server, or camera.yaml with `language`.")]
_ServerModel = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="Name of the model. [default: the first of the server]")
]
_Key = Annotated[
    str | None, typer.Option("--key", metavar="NAME", help="Environment variable that holds the key of the server.")
]
_Requests = Annotated[int, typer.Option(min=2, max=MAX_REQUESTS, metavar="N", help="Number of questions of each kind.")]


def _server(text: str, model: str | None, key: str | None) -> LanguageServer:
    """Return the server at a URL, or the server of a configuration.

    Args:
        text: the URL, or the name or path of a configuration.
        model: name of the model; None means the first model of the server.
        key: environment variable that contains the key of the server, or None if there is no key.

    Raises:
        typer.BadParameter: the URL is invalid, or an option is not valid with a configuration.
        ConfigError: the environment variable is not set, or the configuration is invalid or has no server.
    """
    if "://" in text:
        return _server_at(text, model, key)
    if model is not None or key is not None:
        raise typer.BadParameter("expected `model` and `api_key` in the configuration", param_hint="--model, --key")
    language = read_config(text).language
    if language is None:
        raise ConfigError(f"{text}: expected `language`, the server of a language model", code="no-language")
    return language


def _server_at(url: str, model: str | None, key: str | None) -> LanguageServer:
    from vision.config.language import LanguageServer, check_server_url
    from vision.config.wording import InvalidValue

    try:
        check_server_url(url)
    except InvalidValue as error:
        raise typer.BadParameter(f"{error}, got {redact(url)!r}", param_hint="SERVER") from error
    secret = None
    if key is not None:
        secret = os.environ.get(key)
        if not secret:
            raise ConfigError(f"--key: the environment variable {key} is not set", hint=f"export {key}", code="no-key")
        register_secret(secret)
    return LanguageServer(url=url, model=model, api_key=secret, timeout_s=_TIMEOUT_S)


@command()
def check(
    context: typer.Context,
    server: _Server = DEFAULT_URL,
    model: _ServerModel = None,
    key: _Key = None,
    requests: _Requests = 10,
    json: Json = False,
) -> int:
    """Check that a server has a language model that sees images, and measure how fast it answers.

    The questions are about frames with people and about empty images. Exit codes: 1 if an answer is invalid or wrong,
    75 if the server cannot be reached or is too slow, and 78 if it refuses the key, the model, or images.

    Examples:
      vision llm check
      vision llm check camera.yaml
      vision llm check http://192.0.2.5:8000/v1 --model Qwen/Qwen3-VL-2B-Instruct --key LANGUAGE_KEY
    """
    from vision.benchmark.language import check_server

    config = _server(server, model, key)
    found = with_progress(lambda progress: check_server(config, requests, progress))
    if json:
        print(json_module.dumps(found.as_json(), indent=1))
    else:
        _print_check(found)
    return EXIT_OK if found.works else EXIT_RUNTIME


def _print_check(found: LanguageCheck) -> None:
    console = table_console()
    console.print(f"{found.url}: model {found.model}", highlight=False, markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("answers")
    for name in ("right", "wrong", "invalid", "p50 ms", "p95 ms", "max ms"):
        table.add_column(name, justify="right")
    table.add_row("one word", *_cells(found.words))
    table.add_row("JSON", *_cells(found.json))
    console.print(table)
    rate = "not known" if found.tokens_per_s is None else f"{found.tokens_per_s:.1f} tokens/s"
    confidence = "reported" if found.reports_confidence else "not reported"
    lines = [f"long answers: {rate}", f"confidence of words: {confidence}", *(f"note: {note}" for note in found.notes)]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _cells(answers: Answers) -> list[str]:
    invalid = ", ".join(f"{count} {code}" for code, count in answers.invalid.items()) or "0"
    times = answers.durations
    return [
        str(answers.right),
        str(answers.wrong),
        invalid,
        *(f"{ms:.0f}" for ms in (times.p50_ms, times.p95_ms, times.max_ms)),
    ]


@command()
def show_recipes(
    context: typer.Context,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Output of `vision plan CONFIG --json FILE`. [default: the memory that is free now]"
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            parser=_model_name, metavar="NAME", help=f"Model to serve: {_NAMES}. [default: the largest that fits]"
        ),
    ] = None,
    parallel: Annotated[
        int,
        typer.Option(min=1, max=_MAX_PARALLEL, metavar="N", help="Number of requests that are answered at once."),
    ] = 1,
    machine: Annotated[
        str | None,
        typer.Option(
            parser=_machine_name, metavar="NAME", help=f"Other machine: {', '.join(MACHINES)}. [default: this machine]"
        ),
    ] = None,
    jetpack: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="Version of JetPack on the machine of --machine. [default: 7.2]"),
    ] = None,
    json: Json = False,
) -> int:
    """Print the commands that start a server for language models on this machine, or on the Jetson of --machine.

    With --plan, each server fits in the memory that `vision` leaves free. Exit code 1 means that no model fits.

    Examples:
      vision plan camera.yaml --json plan.json && vision llm recipes --plan plan.json
      vision llm recipes --model qwen3-vl-2b
      vision llm recipes --machine orin-nano-8gb --jetpack 6.2
    """
    from vision.benchmark.host import find_host, other_host

    if machine is not None:
        _check_jetpack(machine, jetpack)
        host = other_host(machine, jetpack, plan)
    elif jetpack is not None:
        raise typer.BadParameter("expected --machine too", param_hint="--jetpack")
    else:
        host = find_host(plan)
    found = recipes(host, parallel=parallel, model=model)
    if json:
        document = {"schema": "vision.llm-recipes/1", "host": asdict(host), "recipes": [asdict(each) for each in found]}
        print(json_module.dumps(document, indent=1))
    else:
        _print_recipes(host, found, parallel, source=_source_of_memory(machine, plan))
    return EXIT_OK if found else EXIT_RUNTIME


def _check_jetpack(machine: str, jetpack: str | None) -> None:
    """Raise `typer.BadParameter` if the version `jetpack` of JetPack does not run on `machine`."""
    known = MACHINES[machine].jetpacks
    if jetpack is not None and jetpack not in known:
        raise typer.BadParameter(f"expected one of {', '.join(known)} on {machine}", param_hint="--jetpack")


def _source_of_memory(machine: str | None, plan: Path | None) -> str:
    if plan is not None:
        return "while `vision` ran"
    if machine is not None:
        return "(assumed; with --plan FILE from such a machine, measured)"
    return "now; with --plan FILE, the memory of `vision` is taken into account"


def _print_recipes(host: Host, found: list[Recipe], parallel: int, *, source: str) -> None:
    console = table_console()
    console.print(f"free memory: {host.left_mib:.0f} of {host.total_mib:.0f} MiB {source}", highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("model", "server", "weights"):
        table.add_column(name)
    for name in ("needs MiB", "fits"):
        table.add_column(name, justify="right")
    for known in KNOWN_MODELS:
        for server in SERVERS[host.platform]:
            for precision in usable_precisions(host, server, known):
                need = f"{known.need_mib(precision, parallel):.0f}"
                fitting = "yes" if fits(host, known, precision, parallel) else "no"
                table.add_row(known.name, _TITLES[server], precision, need, fitting)
    console.print(table)
    for recipe in found:
        title = f"{_TITLES[recipe.server]}: {recipe.model}, {recipe.precision}, about {recipe.need_mib:.0f} MiB"
        console.print(
            f"\n{title}{', with speculative decoding' if recipe.draft else ''}", highlight=False, style="bold"
        )
        for line in recipe.commands:
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
        for note in recipe.notes:
            console.print(f"  note: {note}", highlight=False, markup=False, soft_wrap=True)
    if found:
        console.print(f"\n{_UNTESTED}\nWhen the server runs: vision llm check {DEFAULT_URL}", highlight=False)


@command(orderly=True)
def evaluate(
    context: typer.Context,
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Configuration with `language` and `verify`.")],
    labels: Annotated[Path, typer.Argument(metavar="LABELS.jsonl", help="Labeled events, one JSON object per line.")],
    prompt: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE.txt", help="Evaluate this prompt, too, instead of that of CONFIG. Can be repeated."),
    ] = None,
    json: JsonFile = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            parser=argument_parser(check_plot),
            metavar="FILE",
            help="Plot removed false alarms over lost true events to FILE (.svg, .png, or .pdf).",
        ),
    ] = None,
) -> int:
    """Measure how many false alarms a prompt removes, and how many true events it loses.

    The command asks the language model about labeled events, as `verify` in CONFIG does in a running program.

    Examples:
      vision llm eval camera.yaml labels.jsonl
      vision llm eval camera.yaml labels.jsonl --prompt short.txt --prompt long.txt --plot removed.png
    """
    from vision.evaluation.language.evaluate import evaluate_prompts
    from vision.evaluation.language.report import as_json, print_report
    from vision.evaluation.plots import plot_removals

    try:
        evaluation = evaluate_prompts(config, labels, prompt or (), context.obj.stop)
    except Closed:  # an incomplete evaluation has no result
        return 128 + signal.SIGINT
    print_report(evaluation, table_console(json))
    if json is not None:
        write_text(json_module.dumps(as_json(evaluation), indent=1), json)
    if plot is not None:
        plot_removals({each.name: each for each in evaluation.results}, plot)
    return EXIT_OK


llm = typer.Typer(rich_markup_mode=None)
add_command(llm, "check", check)
add_command(llm, "recipes", show_recipes)
add_command(llm, "eval", evaluate)


@llm.callback(
    help="Check, choose, and evaluate a language model that judges events.",
    epilog="\b\nExamples:\n  vision llm recipes\n  vision llm check http://127.0.0.1:8000/v1\n",
    no_args_is_help=True,
)
def _describe() -> None:
    """Do nothing: a group of commands needs a function for its help text."""
