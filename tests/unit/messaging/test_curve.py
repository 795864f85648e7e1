"""Tests of CURVE keys: their files and folders, and the subscribers that can connect."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.messages.samples import camera_status, node_status, result
from vision.client import DetectionsMessage, EventMessage, Subscription
from vision.errors import ConfigError, conceal
from vision.messaging.curve import KeyFolder, KeyPair, new_key, read_key
from vision.messaging.publisher import Publisher
from vision.state.database import StateDatabase
from vision.state.private_files import Untrusted
from vision.types import Event

ANY_PORT = "tcp://127.0.0.1:*"


@pytest.fixture
def keys(tmp_path: Path) -> KeyFolder:
    """Return the key folder of a publisher that allows the client `desk`, whose key is in desk.key."""
    folder = KeyFolder(tmp_path / "keys")
    server = new_key(folder.folder / "server.key")
    folder.allow("desk", new_key(tmp_path / "desk.key", server.public).public)
    return folder


def received(publisher: Publisher, key: Path | None) -> bool:
    with Subscription(publisher.address, key=key) as subscription:
        for _ in range(20):
            publisher.publish(result())
            if isinstance(subscription.receive(0.05), DetectionsMessage):
                return True
    return False


def test_key_files_are_private_and_are_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.key"
    key = new_key(path, server="x" * 40)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_key(path, client=True) == key
    assert key.secret not in repr(key)
    assert key.secret not in conceal(f"the key {key.secret}")
    with pytest.raises(ConfigError) as caught:
        new_key(path)
    assert caught.value.code == "key-file"
    assert read_key(path, client=True) == key


@pytest.mark.parametrize(
    ("text", "mode", "code"),
    [
        ("", 0o600, "key-file"),
        ("{}", 0o600, "key-file"),
        ("[1]", 0o600, "key-file"),
        ('{"public": "x", "secret": "y", "server": "z"}', 0o600, "key-file"),
        ('{"public": 1, "secret": 2, "server": 3}', 0o600, "key-file"),
        ("{}", 0o640, "key-access"),
        ("{}", 0o604, "key-access"),
        (None, 0, "key-file"),
    ],
)
def test_unusable_key_file_is_refused(tmp_path: Path, text: str | None, mode: int, code: str) -> None:
    path = tmp_path / "a.key"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        Subscription("tcp://127.0.0.1:1", key=path)
    assert caught.value.code == code


def test_key_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.key", 0o600)
    with pytest.raises(ConfigError) as caught:
        read_key(tmp_path / "a.key", client=False)
    assert caught.value.code == "key-file"


def test_publisher_needs_a_private_folder(keys: KeyFolder) -> None:
    keys.folder.chmod(0o777)
    with pytest.raises(Untrusted):
        Publisher(ANY_PORT, node="n", keys=keys)


@pytest.mark.parametrize(("name", "key"), [("../x", "x" * 40), ("", "x" * 40), ("a", "x" * 39), ("desk", "x" * 40)])
def test_invalid_client_is_refused(keys: KeyFolder, name: str, key: str) -> None:
    before = keys.clients()
    with pytest.raises(ConfigError):
        keys.allow(name, key)
    assert KeyFolder(keys.folder).clients() == before


def test_unknown_client_cannot_be_revoked(keys: KeyFolder) -> None:
    with pytest.raises(ConfigError) as caught:
        keys.revoke("other")
    assert caught.value.code == "key-unknown"


def test_only_allowed_clients_receive_messages(keys: KeyFolder, tmp_path: Path) -> None:
    server = read_key(keys.folder / "server.key", client=False)
    new_key(tmp_path / "stranger.key", server.public)
    new_key(tmp_path / "lost.key", "y" * 40)
    with Publisher(ANY_PORT, node="n", keys=keys) as publisher:
        assert received(publisher, tmp_path / "desk.key")
        assert not received(publisher, None)
        assert not received(publisher, tmp_path / "stranger.key")
        assert not received(publisher, tmp_path / "lost.key")
        keys.allow("stranger", read_key(tmp_path / "stranger.key", client=True).public)
        assert received(publisher, tmp_path / "stranger.key")


def test_missed_events_are_requested_with_the_key(keys: KeyFolder, tmp_path: Path) -> None:
    with (
        closing(StateDatabase(tmp_path / "state", boot="b", max_events=100)) as database,
        Publisher(ANY_PORT, node="n", event_log=database.events, replay=ANY_PORT, keys=keys) as publisher,
    ):
        publisher.publish(result(events=(Event("line_crossed", "door", "gate", 1, 0, {}),)))
        publisher.publish_status(node_status())
        with Subscription(publisher.address, kinds=("events",), since=0, key=tmp_path / "desk.key") as subscription:
            event = subscription.receive(20)
    assert isinstance(event, EventMessage)
    assert event.number == 1


@pytest.fixture
def limited(keys: KeyFolder) -> Iterator[Publisher]:
    with Publisher(ANY_PORT, node="n", keys=keys, max_subscribers=4) as publisher:
        yield publisher


@pytest.mark.integration
def test_revoked_client_is_disconnected_and_others_return(limited: Publisher, keys: KeyFolder, tmp_path: Path) -> None:
    server = read_key(keys.folder / "server.key", client=False)
    keys.allow("other", new_key(tmp_path / "other.key", server.public).public)
    limited.publish_status(camera_status())
    with (
        Subscription(limited.address, kinds=("status",), key=tmp_path / "desk.key", silence_s=60) as desk,
        Subscription(limited.address, kinds=("status",), key=tmp_path / "other.key", silence_s=60) as other,
    ):
        for subscription in (desk, other):
            assert subscription.receive(20) is not None
        joins = limited.socket.joins
        keys.revoke("desk")
        while limited.socket.joins == joins:
            assert other.receive(0.05) is None  # this connects again
        limited.publish_status(camera_status())
        assert other.receive(20) is not None
        assert desk.receive(0.5) is None
        assert limited.socket.joins == joins + 1


def test_secret_is_not_part_of_the_text_of_a_key() -> None:
    key = KeyPair("p" * 40, "s" * 40)
    assert "s" * 40 not in repr(replace(key, server="x" * 40))
