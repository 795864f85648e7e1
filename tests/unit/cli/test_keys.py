"""Tests of `vision keys`, from the creation of keys to a subscriber that `vision run` accepts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.cli.in_process import call
from tests.unit.cli.test_main import read_until, started, write_config

pytestmark = pytest.mark.integration


def test_keys_are_created_allowed_listed_used_and_revoked(tmp_path: Path) -> None:
    folder, desk = str(tmp_path / "keys"), str(tmp_path / "desk.key")
    server = call("keys", "new", f"{folder}/server.key").stdout.strip()
    client = call("keys", "new", desk, "--server", server).stdout.strip()
    assert call("keys", "allow", folder, "desk", client).returncode == 0
    listed = call("keys", "list", folder).stdout
    assert server in listed
    assert f"{client}  desk" in listed
    publish = {"bind": "tcp://127.0.0.1:*", "curve": "keys"}
    with started("run", str(write_config(tmp_path, publish=publish))) as process:
        match = re.search(r"publishing on (\S+)", read_until(process, "publishing on"))
        assert match is not None
        watched = call("watch", match[1], "--for", "2s", "--key", desk)
        assert watched.returncode == 0, watched.stderr
        assert call("keys", "revoke", folder, "desk").returncode == 0
        assert call("watch", match[1], "--for", "2s", "--key", desk).returncode == 1


@pytest.mark.parametrize("words", [["allow", "a", "b"], ["other", "x"]])
def test_wrong_words_exit_with_2(words: list[str]) -> None:
    assert call("keys", *words).returncode == 2


def test_bind_option_must_not_expose_messages(tmp_path: Path) -> None:
    done = call("run", str(write_config(tmp_path)), "--bind", "tcp://*:*", "--for", "1s")
    assert done.returncode == 78
    assert "insecure" in done.stderr
