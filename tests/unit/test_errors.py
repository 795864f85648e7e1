"""Tests of errors: redaction of secrets, faults, and exit codes."""

from __future__ import annotations

import errno
import html
import json
import os
from urllib.parse import quote, quote_plus, unquote

import pytest

from vision.errors import (
    EXIT_CONFIG,
    EXIT_TEMPORARY,
    ConfigError,
    Fault,
    VisionError,
    conceal,
    from_os_error,
    redact,
    register_secret,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rtsp://admin:secret@10.0.0.4/stream1", "rtsp://***@10.0.0.4/stream1"),
        ("rtsp://10.0.0.4/stream1", "rtsp://10.0.0.4/stream1"),
        ("RTSPS://u@h/x and http://a:b@h2/y", "RTSPS://***@h/x and http://***@h2/y"),
        ("cannot open 'rtsp://u:p@ss@h/x'", "cannot open 'rtsp://***@h/x'"),
        ("http://h/cgi?user=admin&password=secret&channel=1", "http://h/cgi?user=***&password=***&channel=1"),
        ("http://h/cgi?token=abc", "http://h/cgi?token=***"),
        ("rtsp://h/user=a_password=x7_channel=1", "rtsp://h/user=***_password=***_channel=1"),
        ("http://h/cgi?loginuse=a&loginpas=b", "http://h/cgi?loginuse=***&loginpas=***"),
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


@pytest.mark.parametrize("secret", ["Zq7S3cret", "a b/c?d&e#f%", "ö\"\\<'>xy", "%41%2fpath", "12345678"])
def test_registered_secret_is_replaced_in_every_encoding(secret: str) -> None:
    register_secret(secret)
    forms = [
        secret,
        quote(secret, safe=""),
        quote_plus(secret),
        json.dumps(secret),
        repr([secret]),
        html.escape(secret),
    ]
    for form in forms:
        hidden = conceal(f"before{form}after")
        assert secret not in hidden
        assert secret not in unquote(hidden)
        assert secret not in html.unescape(hidden)
        assert hidden.startswith("before")
        assert hidden.endswith("after")


def test_short_secret_is_replaced_only_as_a_whole_word() -> None:
    register_secret("1234")
    assert conceal("pin=1234_x 12345 (1234)") == "pin=***_x 12345 (***)"
    register_secret("abc")
    assert conceal("abc") == "abc"


def test_longer_secret_is_replaced_before_its_part() -> None:
    register_secret("Zq7S3cret")
    register_secret("Zq7S3cret/and-more")
    assert conceal("x Zq7S3cret/and-more Zq7S3cret") == "x *** ***"


OPERATOR = ("EACCES", "EPERM", "ENOENT", "ENOTDIR", "EEXIST", "EISDIR", "ENAMETOOLONG", "ELOOP", "EINVAL")


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_only_errors_of_an_operator_end_the_start_for_good(number: int) -> None:
    error = from_os_error("cannot write /x", OSError(number, os.strerror(number)), code="c")
    assert error.exit_code == (EXIT_CONFIG if errno.errorcode[number] in OPERATOR else EXIT_TEMPORARY)
    assert os.strerror(number) in error.args[0]
    assert error.code == "c"


def test_hints_of_a_full_disk_and_of_missing_rights_differ() -> None:
    full, refused = (from_os_error("x", OSError(number, "y")) for number in (errno.ENOSPC, errno.EACCES))
    assert full.hint and refused.hint and full.hint != refused.hint
