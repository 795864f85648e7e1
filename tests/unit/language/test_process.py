"""Tests of `LanguageProcess`: the limit of waiting answers, and the counters."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vision.config import AppConfig
from vision.language.messages import LogLine, Outcome, encode_line
from vision.language.process import LanguageProcess

pytestmark = pytest.mark.unit

PAGE = Path(__file__).parents[3] / "docs" / "language-models.md"
CONFIG = AppConfig.model_validate(
    {
        "pipeline": "count",
        "cameras": [{"id": "gate", "source": "synthetic:64x48"}],
        "language": {"url": "http://127.0.0.1:9/v1"},
        "verify": [{"name": "real", "prompt": "Is it a person?"}],
        "publish": {"bind": "tcp://127.0.0.1:*"},
        "state_dir": "/nonexistent",
    }
)


def documented() -> list[re.Pattern[str]]:
    """Return a pattern for each counter in the documentation's table.

    In a row with several names, each name after the first replaces the last part of the first name.
    """
    patterns = []
    for row in re.findall(r"^\| (`language\..*?) \|", PAGE.read_text(), re.MULTILINE):
        first, *others = re.findall(r"`([^`]+)`", row)
        stem = first.rpartition(".")[0]
        names = [first, *(stem + name if name.startswith(".") else name for name in others)]
        patterns += [re.compile(re.sub(r"<\w+>", "[^.]+", re.escape(name))) for name in names]
    return patterns


def undocumented(counters: dict[str, int]) -> list[str]:
    return [
        name
        for name in counters
        if name.startswith("language.") and not any(pattern.fullmatch(name) for pattern in documented())
    ]


def test_answers_beyond_the_limit_are_discarded_and_counted() -> None:
    process = LanguageProcess(CONFIG)  # not started, so nothing takes the answers
    line = encode_line(Outcome(id="1", purpose="verify", error="busy"))
    for _ in range(5000):
        process._read(line)
    process._read(encode_line(LogLine(text="a line for the log is not an answer", is_problem=False)))
    assert process.counters()["language.events.discarded"] == 5000 - 4096


def test_the_page_explains_each_counter_of_the_program() -> None:
    assert documented()
    assert undocumented(LanguageProcess(CONFIG).counters()) == []
    assert undocumented({"language.other": 1, "language.queue": 1}) == ["language.other"]
