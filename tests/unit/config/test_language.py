"""Tests of the sections `language`, `verify`, and `describe`: values, conflicts, secrets, and paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.config.faults import config_faults, fault_keys
from vision.config import AppConfig, check_classes, load_config
from vision.config.language import LanguageConfig
from vision.errors import ConfigError, redact

CONFIG = """\
cameras: [{id: gate, source: a.mp4}, {id: yard, source: b.mp4}]
analytics: {gate: {zones: [{name: lawn, polygon: [[0, 0], [9, 0], [0, 9]]}]}}
rules: [{name: intruder, when: zone_entered lawn}]
"""
SERVER = "language: {url: 'http://127.0.0.1:8000/v1'}\n"
VERIFY = "verify: [{name: a, prompt: 'Is it?'"


def faults(text: str) -> list[tuple[str, str]]:
    return [(key, code) for _, key, code in config_faults(CONFIG + text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (SERVER, []),
        (SERVER + VERIFY + ", kinds: [rule], names: [intruder, lawn], cameras: [yard], wait_s: 2, keep: [no]}]", []),
        (SERVER + "describe: [{name: a}, {name: b, statement: It rains., every_s: 5, again_after_s: 60}]", []),
        (SERVER + "pipeline: mine.py\nverify: [{name: a, prompt: x, kinds: [fell], names: [stairs]}]", []),
        (VERIFY + "}]", [("verify[0]", "needs-language")]),
        (SERVER + VERIFY + ", kinds: [ruler]}]", [("verify[0].kinds[0]", "unknown-kind")]),
        (SERVER + VERIFY + ", names: [lown]}]", [("verify[0].names[0]", "unknown-name")]),
        (SERVER + VERIFY + ", cameras: [gaet]}]", [("verify[0].cameras[0]", "unknown-camera")]),
        (SERVER + VERIFY + "}]\ndescribe: [{name: a}]", [("describe[0].name", "duplicate-name")]),
        (SERVER + VERIFY + ", on_timeout: drop}]", [("verify[0].on_timeout", "no-effect")]),
        (SERVER + VERIFY + ", keep: [no]}]", [("verify[0].keep", "no-effect")]),
        (SERVER + VERIFY + ", wait_s: 1, keep: [maybe]}]", [("verify[0].keep[0]", "unknown-answer")]),
        (SERVER + VERIFY + ", wait_s: 2, frames: 5}]", [("verify[0].wait_s", "short-wait")]),
        (SERVER + VERIFY + ", wait_s: 2.1, frames: 5}]", []),
        (SERVER + VERIFY + ", answers: [yes, Yes]}]", [("verify[0].answers", "answers")]),
        (SERVER + VERIFY + ", answers: ['yes, sir']}]", [("verify[0].answers", "answers")]),
        (SERVER + VERIFY + ", classes: [cat]}]\ndetect: {classes: [person]}",
         [("verify[0].classes[0]", "never-detected")]),
        (SERVER + "describe: [{name: a, statement: x}]", [("describe[0].statement", "given-alone")]),
        (SERVER + "describe: [{name: a, statement: x, every_s: 1, format: token}]", []),
        (SERVER + "describe: [{name: a, format: token}]", [("describe[0].format", "given-alone")]),
        (SERVER + "describe: [{name: a, every_s: 1}]", [("describe[0].every_s", "given-alone")]),
        (SERVER + "describe: [{name: a, statement: x, every_s: 1, kinds: [rule]}]",
         [("describe[0].kinds", "no-effect")]),
    ],
)  # fmt: skip
def test_conflicts(text: str, found: list[tuple[str, str]]) -> None:
    assert faults(text) == found


def test_events_need_a_pipeline_that_has_them() -> None:
    text = "cameras: [{id: gate, source: a.mp4}]\npipeline: track\n" + SERVER + VERIFY + "}]\n"
    assert [(key, code) for _, key, code in config_faults(text)] == [("verify[0]", "wrong-pipeline")]
    watch = "cameras: [{id: gate, source: a.mp4}]\npipeline: detect\n" + SERVER
    assert config_faults(watch + "describe: [{name: a, statement: x, every_s: 1}]\n") == []


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("127.0.0.1:8000", "server-url"),
        ("ftp://127.0.0.1/v1", "server-url"),
        ("http:///v1", "server-url"),
        ("http://h:99999/v1", "server-url"),
        ("http://h/v1?key=1", "server-url"),
        ("http://h/v1/chat/completions", "server-url"),
        ("http://user:${KEY}@h/v1", "server-account"),
    ],
)
def test_urls(url: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (code in [found for _, found in faults(f"language: {{url: '{url}'}}\n")]) or "${" in url
    with pytest.raises(ValueError):
        LanguageConfig(url=url.replace("${KEY}", "x"))


@pytest.mark.parametrize("key", ["messages", "model", "stream", "n"])
def test_extra_body_cannot_replace_the_request(key: str) -> None:
    assert faults(f"language: {{url: 'http://h/v1', extra_body: {{{key}: 1}}}}\n") == [
        ("language.extra_body", "extra-body")
    ]


def test_a_key_comes_from_the_environment_and_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text(CONFIG + "language: {url: 'http://h/v1', api_key: sk-written-here}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    assert fault_keys(caught.value) == [(4, "language.api_key", "written-password")]
    assert "sk-written" not in str(caught.value)
    path.write_text(CONFIG + "language: {url: 'http://h/v1', api_key: '${KEY}', ledger: led}\n")
    config = load_config(path, {"KEY": "sk-0123456789"})
    assert config.language is not None
    assert config.language.ledger == str(tmp_path / "led")
    assert redact("sk-0123456789 fails") == "*** fails"
    assert "sk-0123" not in repr(config)


@pytest.mark.parametrize("section", ["verify", "describe"])
def test_unknown_classes_are_refused(tmp_path: Path, section: str) -> None:
    entry: dict[str, Any] = {"name": "a", "classes": ("persn",)} | ({"prompt": "x"} if section == "verify" else {})
    config = AppConfig.model_validate(
        {"cameras": ({"id": "gate", "source": "a.mp4"},), "pipeline": "count", "language": {"url": "http://h/v1"}}
        | {section: (entry,)}
    )
    with pytest.raises(ConfigError) as caught:
        check_classes(config, ["person"])
    assert [fault.code for fault in caught.value.faults] == ["unknown-class"]
