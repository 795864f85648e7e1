"""Implementation of `vision llm eval`, which evaluates prompts of a language model on labeled events.

The prompts are those of the section `verify:` of the configuration, and those in additional files.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from vision.config import AppConfig, load_config, resolve_config
from vision.config.language import VerifyConfig
from vision.config.user_files import read_input
from vision.errors import ConfigError, from_os_error
from vision.evaluation.language.judgments import Judgments, PromptEvaluation
from vision.evaluation.language.labels import LabeledEvent, read_labels
from vision.evaluation.progress import show_progress
from vision.language.client import ChatServer
from vision.language.messages import chosen
from vision.version import require_cv2

_MOST_CHARACTERS = 10_000  # maximum length of a prompt


def evaluate_prompts(
    config_name: str, labels: Path, prompts: Sequence[Path], stop: threading.Event
) -> PromptEvaluation:
    """Ask the language model about every labeled event, with each prompt.

    The prompts are those of the section `verify:` of the configuration, and those in the files `prompts`.

    Args:
        config_name: name or path of the configuration.
        labels: file of labeled events.
        prompts: files that each contain one prompt.
        stop: event that ends the evaluation when it is set.

    Raises:
        Closed: `stop` was set.
        ConfigError: the configuration, the labels, an image, or a prompt is invalid, or a package is missing.
        LanguageError: the server cannot be reached, refuses the key or the model, or does not list its models.
        Unavailable: a file cannot currently be read.
    """
    require_cv2("vision llm eval")
    from vision.evaluation.language.judge import Prompt, judge  # needs OpenCV

    config = load_config(resolve_config(config_name), os.environ)
    if config.language is None or not config.verify:
        text = f"{config_name}: expected `language`, the server, and `verify`, the events and the prompt"
        raise ConfigError(text, hint="docs/language-models.md contains an example", code="no-verify")
    events = read_labels(labels)
    by_entry = _by_entry(config, events)
    texts = {path.stem: _read_prompt(path) for path in prompts}
    server = ChatServer(config.language)
    server.models()  # reports early that the server cannot be reached, or refuses the key
    results: list[Judgments] = []
    for entry, own in by_entry:
        variants = {entry.name: entry}
        variants |= {f"{entry.name}, {name}": entry.model_copy(update={"prompt": text}) for name, text in texts.items()}
        for name, variant in variants.items():
            with show_progress(name, len(own), stop, unit="events") as progress:
                results.append(judge(server, config.language, Prompt(name, variant, own), progress, stop))
    notes = tuple(_notes(by_entry, events))
    return PromptEvaluation(config_name, str(labels), tuple(results), notes)


def _by_entry(config: AppConfig, events: Sequence[LabeledEvent]) -> list[tuple[VerifyConfig, tuple[LabeledEvent, ...]]]:
    """Return each entry of the section `verify:` that selects any of the events, together with the selected events.

    Raises:
        ConfigError: no entry selects an event.
    """
    found: dict[str, list[LabeledEvent]] = {entry.name: [] for entry in config.verify}
    for event in events:
        entry = chosen(config.verify, camera=event.camera, kind=event.kind, name=event.name, data=event.data)
        if entry is not None:
            found[entry.name].append(event)
    if not any(found.values()):
        hint = "compare `cameras`, `kinds`, `names`, and `classes` of `verify` with the events"
        raise ConfigError("no entry of `verify` chooses a labeled event", hint=hint, code="no-event-chosen")
    return [(entry, tuple(found[entry.name])) for entry in config.verify if found[entry.name]]


def _read_prompt(path: Path) -> str:
    """Read the text of a prompt.

    Raises:
        ConfigError: the file is empty, too long, or not UTF-8, or cannot be read.
        Unavailable: the file cannot currently be read.
    """
    try:
        text = read_input(path).decode().strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prompt: {path} is not valid UTF-8", code="prompt") from error
    except OSError as error:
        raise from_os_error(f"--prompt: cannot read {path}", error, code="prompt-not-readable") from error
    if not 0 < len(text) <= _MOST_CHARACTERS:
        fault = f"--prompt: {path}: expected 1 to {_MOST_CHARACTERS} characters, got {len(text)}"
        raise ConfigError(fault, code="prompt")
    return text


def _notes(
    by_entry: Sequence[tuple[VerifyConfig, tuple[LabeledEvent, ...]]], events: Sequence[LabeledEvent]
) -> Iterator[str]:
    used = sum(len(own) for _, own in by_entry)
    if used < len(events):
        yield f"{len(events) - used} of {len(events)} events are chosen by no entry of `verify`, and are not judged"
    for entry, own in by_entry:
        few = sum(len(event.images) < entry.frames for event in own)
        if few:
            yield f"{entry.name}: {few} events have fewer images than `frames: {entry.frames}`"
        whole = sum(entry.crop and event.box is None for event in own)
        if whole:
            yield f"{entry.name}: {whole} events have no `box`, so their whole images are sent despite `crop`"
