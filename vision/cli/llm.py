"""The command `vision llm`, with subcommands for servers of language models."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.table import Table

from vision.cli.options import Json, table_console
from vision.cli.session import add_command, command
from vision.errors import EXIT_OK, EXIT_RUNTIME
from vision.language.known_models import KNOWN_MODELS
from vision.language.recipes import SERVERS, Host, Recipe, fits, recipes, usable_precisions

_TITLES: Final = {"edge-llm": "TensorRT Edge-LLM", "vllm": "vLLM", "llama.cpp": "llama.cpp"}
_NAMES: Final = ", ".join(known.name for known in KNOWN_MODELS)
_UNTESTED: Final = "Nobody has run these commands on this kind of machine for `vision`. The memory is an estimate."
_MAX_PARALLEL: Final = 64


def _model_name(text: str) -> str:
    if text not in {known.name for known in KNOWN_MODELS}:
        raise typer.BadParameter(f"expected one of {_NAMES}, got {text!r}")
    return text


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
    json: Json = False,
) -> int:
    """Print the commands that start a server for language models on this machine.

    The commands fit in the memory that `vision` leaves free. Exit code 1 means that no model fits.

    Examples:
      vision plan camera.yaml --json plan.json && vision llm recipes --plan plan.json
      vision llm recipes --model qwen3-vl-2b
    """
    from vision.benchmark.host import find_host

    host = find_host(plan)
    found = recipes(host, parallel=parallel, model=model)
    if json:
        document = {"schema": "vision.llm-recipes/1", "host": asdict(host), "recipes": [asdict(each) for each in found]}
        print(json_module.dumps(document, indent=1))
    else:
        _print_recipes(host, found, parallel, measured=plan is not None)
    return EXIT_OK if found else EXIT_RUNTIME


def _print_recipes(host: Host, found: list[Recipe], parallel: int, *, measured: bool) -> None:
    console = table_console()
    source = "while `vision` ran" if measured else "now; with --plan FILE, the memory of `vision` is taken into account"
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
        console.print(f"\n{_UNTESTED}", highlight=False)


llm = typer.Typer(rich_markup_mode=None)
add_command(llm, "recipes", show_recipes)


@llm.callback(
    help="Check, choose, and evaluate a language model that judges events.",
    epilog="\b\nExamples:\n  vision llm recipes\n",
    no_args_is_help=True,
)
def _describe() -> None:
    """Do nothing: a group of commands needs a function for its help text."""
