"""Expected texts of the commands for language models."""

from __future__ import annotations

import tempfile
from pathlib import Path

from vision.benchmark.host import read_memory
from vision.benchmark.language import Answers, _check_model, _notes
from vision.benchmark.loops import Durations
from vision.config.language import LanguageServer
from vision.errors import ConfigError, ServerRefusal
from vision.evaluation.language.labels import read_labels
from vision.language.client import Answer

_ANSWER = Answer("yes", "yes", None, "small", 1, 5.0)
_HINT = "\n  hint: docs/language-models.md describes labeled events"


def _labels(*lines: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.jpg").write_bytes(b"")
        path = Path(folder) / "labels.jsonl"
        path.write_text("\n".join(lines))
        try:
            read_labels(path)
        except ConfigError as error:
            return str(error).replace(folder, "FOLDER")
    return "no error"


def _plan(text: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        path.write_text(text)
        try:
            read_memory(path)
        except ConfigError as error:
            return str(error).replace(folder, "FOLDER")
    return "no error"


def _model() -> str:
    try:
        _check_model("large", ["small", "smaller"])
    except ServerRefusal as error:
        return str(error)
    return "no error"


def _remarks(wrong: int, invalid: dict[str, int]) -> list[str]:
    answers = Answers(Durations.of([8_000_000_000]), 1, wrong, invalid)
    return _notes(LanguageServer(url="http://127.0.0.1/v1", model="large"), _ANSWER, answers, answers)


ROWS = [
    (
        "labels that are invalid",
        lambda: _labels(
            '{"true": true, "camera": "gate", "kind": "rule", "name": "climb", "snapshot": "b.jpg"}',
            '{"camera": "gate"}',
            '{"true": true, "camera": "gate", "kind": "rule", "name": "climb"}',
        ),
        (
            "FOLDER/labels.jsonl:1: the image FOLDER/b.jpg does not exist\n"
            "FOLDER/labels.jsonl:2: not a labeled event: Object missing required field `true`\n"
            f"FOLDER/labels.jsonl:3: expected `frames`, a list of image files, or `snapshot`{_HINT}"
        ),
    ),
    (
        "labels without a false alarm",
        lambda: _labels('{"true": true, "camera": "gate", "kind": "rule", "name": "climb", "snapshot": "a.jpg"}'),
        "FOLDER/labels.jsonl: expected true events and false alarms, got true events: 1, false alarms: 0" + _HINT,
    ),
    (
        "a plan without a measurement of the memory",
        lambda: _plan('{"schema": "vision.plan/1"}'),
        (
            "--plan: FOLDER/plan.json has no valid `memory`: Expected `object`, got `null`\n"
            "  hint: write the file with: vision plan CONFIG --json plan.json"
        ),
    ),
    (
        "a file that is no plan",
        lambda: _plan("{}"),
        (
            "--plan: expected a file with the schema vision.plan/1: FOLDER/plan.json\n"
            "  hint: write the file with: vision plan CONFIG --json plan.json"
        ),
    ),
    (
        "a model that the server does not list",
        _model,
        "the server has no model 'large'; it lists small, smaller\n  hint: correct `model`",
    ),
    (
        "notes about answers",
        lambda: "\n".join(_remarks(1, {"schema": 1})),
        (
            "the model 'small' answered instead of 'large'\n"
            "wrong answers: the model is too weak, does not see images, or does not follow instructions\n"
            "the server does not enforce JSON schemas: use answers of one word\n"
            "the p95 of the latency is more than half of `timeout_s`"
        ),
    ),
    (
        "remarks on answers that the model does not end",
        lambda: "\n".join(_remarks(0, {"cut-short": 1})),
        (
            "the model 'small' answered instead of 'large'\n"
            "the model does not end its JSON answers: use answers of one word\n"
            "the p95 of the latency is more than half of `timeout_s`"
        ),
    ),
]
