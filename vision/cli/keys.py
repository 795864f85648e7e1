"""The command `vision keys`, which creates keys, and allows or revokes subscribers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vision.cli.session import command
from vision.errors import EXIT_OK, EXIT_RUNTIME
from vision.messaging.curve import SERVER_KEY, KeyFolder, new_key

_ARGUMENTS = {"new": 1, "allow": 3, "revoke": 2, "list": 1}


@command()
def keys(
    context: typer.Context,
    action: Annotated[Literal["new", "allow", "revoke", "list"], typer.Argument(help="What to do.")],
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE | FOLDER [NAME [KEY]]",
            help="new: the key file to create. allow, revoke, list: folder of the publisher's keys; "
            "name of the subscriber; public key of the subscriber.",
        ),
    ],
    server: Annotated[
        str, typer.Option(metavar="KEY", help="new: public key of the publisher, for the key of a subscriber.")
    ] = "",
) -> int:
    """Create keys, and choose which subscribers can connect.

    With `publish.curve: FOLDER`, `vision run` encrypts messages, and accepts only subscribers with an allowed key. A
    running program accepts an allowed key immediately. If a key is revoked, the program disconnects all subscribers,
    and the other subscribers connect again.

    Examples:
      vision keys new keys/server.key              on the publisher: prints its public key
      vision keys new desk.key --server KEY        on the subscriber: prints its public key
      vision keys allow keys desk KEY              on the publisher: the subscriber can connect
      vision keys list keys                        shows the public key of the publisher and all subscribers
      vision keys revoke keys desk                 the subscriber can no longer connect
      vision watch tcp://192.0.2.7:5555 --key desk.key
    """
    if len(words) != _ARGUMENTS[action]:
        raise typer.BadParameter(f"expected {_ARGUMENTS[action]} after {action!r}, got {len(words)}")
    if action == "new":
        print(new_key(Path(words[0]), server).public)
        return EXIT_OK
    folder = KeyFolder(Path(words[0]))
    if action == "allow":
        folder.allow(words[1], words[2])
    elif action == "revoke":
        folder.revoke(words[1])
    else:
        return _list(folder)
    return EXIT_OK


def _list(folder: KeyFolder) -> int:
    clients = folder.clients()
    print(f"{folder.server_key().public}  publisher ({SERVER_KEY})")
    for key, name in clients.items():
        print(f"{key}  {name}")
    return EXIT_OK if clients else EXIT_RUNTIME
