"""Tests of errors in the section `page`, which `vision check` and `vision run` report."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.page.conftest import StartProgram
from tests.page.harness import TWO_CAMERAS, until
from vision.cli.check import check_configuration
from vision.config.page import PageConfig
from vision.errors import ConfigError, Unavailable
from vision.outputs.page.process import PageProcess, check_page
from vision.outputs.page.settings import PageSettings


def test_address_in_use_is_found_unless_the_same_program_uses_it(tmp_path: Path, start_program: StartProgram) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        path = tmp_path / "camera.yaml"
        path.write_text(TWO_CAMERAS.replace("127.0.0.1:0", f"127.0.0.1:{other.getsockname()[1]}"))
        with pytest.raises(Unavailable) as raised:
            check_configuration(str(path))
    line = next(number for number, text in enumerate(path.read_text().splitlines(), 1) if text.startswith("page:"))
    assert [(fault.line, fault.key) for fault in raised.value.faults] == [(line, "page.bind")]
    program = start_program(path.read_text())
    until(lambda: "streaming" in program.log, "the program does not run")
    check_configuration(str(path))


def test_open_address_needs_a_token(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    for bind in ("*:0", "192.0.2.7:8080", "[::]:8080", "eth0:1"):
        path.write_text(TWO_CAMERAS.replace("127.0.0.1:0", bind))
        with pytest.raises(ConfigError) as raised:
            check_configuration(str(path))
        assert [(fault.key, fault.code) for fault in raised.value.faults] == [("page.bind", "insecure-address")]
    path.write_text(TWO_CAMERAS.replace('"127.0.0.1:0"', '"*:0", token: "0123456789abcdef"'))
    with pytest.raises(ConfigError) as raised:
        check_configuration(str(path))
    assert [(fault.key, fault.code) for fault in raised.value.faults] == [("page.token", "written-password")]


def test_missing_package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision.outputs.page.process.PACKAGES", ("starlette", "websockets_that_is_missing"))
    for start in (lambda: check_page(PageConfig()), lambda: PageProcess("127.0.0.1:0", PageSettings(address="x"))):
        with pytest.raises(ConfigError) as raised:
            start()
        assert raised.value.code == "package-missing"
        assert "page" in raised.value.hint


def test_address_that_cannot_be_bound_is_refused() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(Unavailable):
            PageProcess(f"127.0.0.1:{other.getsockname()[1]}", PageSettings(address="x"))


@pytest.mark.parametrize("host", ["https://cams.example.com", "cams.example.com:80", "a b", "", "-a", "*.example.com"])
def test_invalid_host_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="host"):
        PageConfig(hosts=(host,))
