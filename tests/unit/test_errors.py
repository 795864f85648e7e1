"""Errors: redaction of secrets, faults and exit codes."""

from __future__ import annotations

import pytest

from vision.errors import ConfigError, Fault, VisionError, redact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rtsp://admin:secret@10.0.0.4/stream1", "rtsp://***@10.0.0.4/stream1"),
        ("rtsp://10.0.0.4/stream1", "rtsp://10.0.0.4/stream1"),
        ("RTSPS://u@h/x and http://a:b@h2/y", "RTSPS://***@h/x and http://***@h2/y"),
        ("cannot open 'rtsp://u:p@ss@h/x'", "cannot open 'rtsp://***@h/x'"),
        ("http://h/cgi?user=admin&password=secret&channel=1", "http://h/cgi?user=***&password=***&channel=1"),
        ("http://h/cgi?token=abc", "http://h/cgi?token=***"),
        ("no url, mail a@b.c", "no url, mail a@b.c"),
        ("", ""),
    ],
)
def test_redact_removes_accounts_and_tokens(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(redact(text)) == expected


def test_errors_redact_their_texts() -> None:
    error = ConfigError("cannot open rtsp://u:p4ss@h/x", hint="try rtsp://u:p4ss@h/y")
    assert "p4ss" not in f"{error} {error!r} {error.args} {error.hint}"
    assert "rtsp://***@h/y" in str(error)


def test_errors_redact_their_faults() -> None:
    error = ConfigError("a.yaml:1: a", faults=(Fault(1, 1, "source", "scheme", "got rtsp://u:p4ss@h/x"),))
    assert error.faults == (Fault(1, 1, "source", "scheme", "got rtsp://***@h/x"),)


@pytest.mark.parametrize(("kind", "code"), [(VisionError, 1), (ConfigError, 78)])
def test_exit_code_follows_the_kind_of_error(kind: type[VisionError], code: int) -> None:
    assert kind("x").exit_code == code
