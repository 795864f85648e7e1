"""Keys of CURVE, the protocol of ZeroMQ that encrypts messages and lets only clients with a known key connect.

The folder of a publisher contains the key file `server.key`, and, for each client that can connect, a file
`clients/NAME.pub` with the public key of the client. A key file is JSON with the fields `public` and `secret`. The key
file of a client also has the field `server`, the public key of the publisher. Keys are strings of 40 characters (Z85).
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import zmq
from zmq.utils import z85

from vision.errors import ConfigError, register_secret
from vision.state.private_files import require_private_folder

log = logging.getLogger(__name__)

SERVER_KEY: Final = "server.key"
_CLIENTS: Final = "clients"
_KEY: Final = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_ZAP: Final = "inproc://zeromq.zap.01"
_CHECK_MS: Final = 1000
_MAX_KEY_BYTES: Final = 4096
_REMEDY: Final = "`vision keys new` creates a key file"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """The keys of a publisher or of a client."""

    public: str
    secret: str = field(repr=False)
    server: str = ""  # public key of the publisher; empty in the key file of a publisher

    def use_as_client(self, socket: zmq.Socket[bytes]) -> None:
        """Make a socket use CURVE, as a client."""
        socket.curve_publickey, socket.curve_secretkey = self.public.encode(), self.secret.encode()
        socket.curve_serverkey = self.server.encode()


def new_key(path: Path, server: str = "") -> KeyPair:
    """Create a key pair, and write it to a file that only this user can read. Return the key pair.

    If the file is for a client, `server` is the public key of the publisher. If the file is for a publisher, `server`
    is an empty string.

    Raises:
        ConfigError: the file exists or cannot be written, or `server` is not a key.
    """
    if server:
        check_key(server)
    public, secret = (key.decode() for key in zmq.curve_keypair())
    content = {"public": public, "secret": secret} | ({"server": server} if server else {})
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(content, file)
    except OSError as error:
        hint = "choose a different name, because a key file is never overwritten" if path.exists() else ""
        raise ConfigError(f"cannot create {path}: {error.strerror}", hint=hint, code="key-file") from error
    return KeyPair(public, secret, server)


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file without waiting, and return its descriptor. A named pipe that has no writer appears to be empty."""
    return os.open(path, flags | os.O_NONBLOCK)


def _public_key(path: Path) -> str:
    """Return the contents of a file with a public key."""
    with open(path, "rb", opener=_open_without_waiting) as file:
        return (file.read(_MAX_KEY_BYTES) or b"").decode().strip()


def read_key(path: Path, *, client: bool) -> KeyPair:
    """Read a key file, and return its keys. Register the secret key, so that logs and messages do not show it.

    If `client` is True, the file must contain the public key of the publisher.

    Raises:
        ConfigError: the file cannot be read or is not a key file, or other users can access it.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_MAX_KEY_BYTES) if stat.S_ISREG(mode) else b""
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint=_REMEDY, code="key-file") from error
    if mode & 0o077:
        raise ConfigError(f"other users can access {path}", hint=f"chmod 600 {path}", code="key-access")
    try:
        content = json.loads(text)
        key = KeyPair(content["public"], content["secret"], content.get("server", ""))
        if not all(map(_KEY.fullmatch, (key.public, key.secret, *([key.server] if client else [])))):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        expected = "public, secret, and server" if client else "public and secret"
        raise ConfigError(f"{path}: expected a key file with {expected}", hint=_REMEDY, code="key-file") from None
    register_secret(key.secret)
    return key


def check_key(text: str) -> str:
    """Return `text` if it is a key. Otherwise, raise `ConfigError`."""
    if not _KEY.fullmatch(text):
        raise ConfigError("expected a public key, which has 40 characters", hint=_REMEDY, code="key-form")
    return text


class KeyFolder:
    """The keys of a publisher and of the clients that can connect to this publisher."""

    def __init__(self, folder: Path) -> None:
        """Create the object for the keys in `folder`, without reading them."""
        self.folder = folder
        self._clients = folder / _CLIENTS
        self._internal: set[str] = set()
        self._known: dict[str, str] = {}
        self._changed_ns = -1

    def server_key(self) -> KeyPair:
        """Read the key of the publisher.

        Raises:
            ConfigError: the key file cannot be used; see `read_key`.
            Untrusted: other users can write to the folder or to a folder above it.
        """
        if self.folder.is_dir():
            require_private_folder(self.folder, content="keys")
        return read_key(self.folder / SERVER_KEY, client=False)

    def internal_client(self) -> KeyPair:
        """Create keys with which a helper process of this program can connect. The keys are not stored.

        Raises:
            ConfigError, Untrusted: the key of the publisher cannot be used; see `server_key`.
        """
        public, secret = (key.decode() for key in zmq.curve_keypair())
        register_secret(secret)
        self._internal.add(public)
        return KeyPair(public, secret, self.server_key().public)

    def is_allowed(self, public: str) -> bool:
        """Return True if the client with this public key can connect."""
        return public in self.clients() or public in self._internal

    def clients(self) -> dict[str, str]:
        """Return the name of each allowed client, by its public key. The contents of the files are not checked.

        If a file cannot be read, log the error, and return no clients.
        """
        try:
            changed_ns = self._clients.stat().st_mtime_ns
            if changed_ns != self._changed_ns:
                self._known = {_public_key(path): path.stem for path in sorted(self._clients.glob("*.pub"))}
                self._changed_ns = changed_ns
        except FileNotFoundError:
            self._known, self._changed_ns = {}, -1
        except (OSError, UnicodeDecodeError) as error:
            if self._known or self._changed_ns != 0:
                log.error("cannot read the keys in %s, so no client is allowed: %s", self._clients, error)
            self._known, self._changed_ns = {}, 0
        return self._known

    def allow(self, name: str, public: str) -> None:
        """Allow a client to connect.

        Raises:
            ConfigError: the name or the key is invalid, the name is in use, or the file cannot be created.
        """
        check_key(public)
        path = self._path(name)
        try:
            self._clients.mkdir(mode=0o700, parents=True, exist_ok=True)
            with path.open("x") as file:
                file.write(f"{public}\n")
        except OSError as error:
            hint = f"`vision keys revoke {self.folder} {name}` removes the present key" if path.exists() else ""
            raise ConfigError(f"cannot create {path}: {error.strerror}", hint=hint, code="key-file") from error

    def revoke(self, name: str) -> None:
        """Remove the key of a client, so that the client can no longer connect.

        Raises:
            ConfigError: the name is invalid, there is no such client, or the file cannot be removed.
        """
        path = self._path(name)
        try:
            path.unlink()
        except OSError as error:
            hint = f"`vision keys list {self.folder}` lists the clients"
            raise ConfigError(f"cannot remove {path}: {error.strerror}", hint=hint, code="key-unknown") from error

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            expected = "a name of letters, digits, '-', '_' and '.' that starts with a letter or digit"
            raise ConfigError(f"expected {expected}, got {name!r}", code="key-name")
        return self._clients / f"{name}.pub"


class CurveServer:
    """The server side of CURVE for one socket. For each new connection, a thread checks the key of the client."""

    def __init__(self, socket: zmq.Socket[bytes], keys: KeyFolder, when_revoked: Callable[[], None]) -> None:
        """Configure `socket`, which must not be bound yet, and start the thread.

        The thread calls `when_revoked` after a key was removed, so that the caller can close existing connections,
        which ZeroMQ keeps open.

        Raises:
            ConfigError: the key of the publisher cannot be read, or other users can access it.
            Untrusted: other users can write to the folder of the keys or to a folder above it.
        """
        key = keys.server_key()
        socket.curve_secretkey, socket.curve_publickey = key.secret.encode(), key.public.encode()
        socket.curve_server = True
        socket.zap_domain = b"vision"
        self._keys = keys
        self._when_revoked = when_revoked
        self._answers = socket.context.socket(zmq.REP)
        self._answers.bind(_ZAP)
        self._thread = threading.Thread(target=self._serve, name="keys", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until the thread ends. The thread ends when the context of the socket is terminated."""
        self._thread.join()

    def _serve(self) -> None:
        try:
            with self._answers as answers:
                known = set(self._keys.clients())
                while True:
                    if answers.poll(_CHECK_MS):
                        answers.send_multipart(self._answer(answers.recv_multipart()))
                    now = set(self._keys.clients())
                    if known - now:
                        self._when_revoked()
                    known = now
        except zmq.ContextTerminated:
            return

    def _answer(self, request: list[bytes]) -> list[bytes]:
        """Return the reply to a ZeroMQ request (ZAP, RFC 27): accept the client if its key is allowed."""
        version, request_id, *_, client_key = request
        if len(client_key) == 32 and self._keys.is_allowed(z85.encode(client_key).decode()):
            return [version, request_id, b"200", b"OK", b"", b""]
        return [version, request_id, b"400", b"this key is not allowed", b"", b""]
