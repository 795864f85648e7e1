"""Requests to a running program and its replies, the places of control sockets, and `ask`, which sends a request.

A message consists of the length of its JSON text, as 4 bytes in network byte order, and the JSON text. Each connection
has one request and one reply. docs/control.md describes the messages.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import UNSET, Struct, UnsetType

from vision.errors import ConfigError, MessageError, Unavailable, VisionError, from_os_error
from vision.messaging.schema import CameraReport, NodeReport

MAX_MESSAGE_BYTES: Final = 1 << 20
LENGTH_BYTES: Final = 4
SUFFIX: Final = ".control"

_ANSWER_S: Final = 120.0  # longest wait for a reply; a change of many cameras takes seconds
_SERVICE_FOLDER: Final = Path("/run/vision")
_NAME_CHARACTERS: Final = 40


class _Request(Struct, frozen=True, kw_only=True, tag_field="request", forbid_unknown_fields=True):
    pass


class StatusRequest(_Request, frozen=True, kw_only=True, tag="status"):
    """A request for the status of the program and of all cameras."""


class ReloadRequest(_Request, frozen=True, kw_only=True, tag="reload"):
    """A request to reload the configuration, and to apply the changes."""


class AddCameraRequest(_Request, frozen=True, kw_only=True, tag="add-camera"):
    """A request to add a camera. `camera` has the keys of an entry under `cameras` in camera.yaml."""

    camera: dict[str, Any]


class RemoveCameraRequest(_Request, frozen=True, kw_only=True, tag="remove-camera"):
    """A request to remove a camera."""

    id: str


class GetAnalyticsRequest(_Request, frozen=True, kw_only=True, tag="get-analytics"):
    """A request for the lines, zones, and masks of a camera."""

    camera: str


class SetAnalyticsRequest(_Request, frozen=True, kw_only=True, tag="set-analytics"):
    """A request to replace a camera's section in `analytics` and, if `privacy` is set, its section in `privacy`.

    The sections have the keys of camera.yaml. If a section is None, the current section is removed. If `version` is not
    None, and the current sections have a different version, the request is refused.
    """

    camera: str
    analytics: dict[str, Any] | None
    privacy: dict[str, Any] | UnsetType | None = UNSET
    version: str | None = None


Request: TypeAlias = (
    StatusRequest | ReloadRequest | AddCameraRequest | RemoveCameraRequest | GetAnalyticsRequest | SetAnalyticsRequest
)


class _Reply(Struct, frozen=True, kw_only=True, tag_field="reply"):
    pass


class StatusReply(_Reply, frozen=True, kw_only=True, tag="status"):
    """The latest status of the program and of its cameras, as in status messages."""

    node: NodeReport
    cameras: list[CameraReport]


class AnalyticsReply(_Reply, frozen=True, kw_only=True, tag="analytics"):
    """The sections of a camera in `analytics` and `privacy`, with the keys of camera.yaml. A missing section is None.

    `version` differs whenever a section differs.
    """

    analytics: dict[str, Any] | None
    privacy: dict[str, Any] | None
    version: str


class ChangedReply(_Reply, frozen=True, kw_only=True, tag="changed"):
    """A report of what was changed. All lists are empty if nothing had to change."""

    added: list[str]  # cameras
    removed: list[str]
    reopened: list[str]  # cameras that connect again, with a new epoch
    adjusted: list[str]  # cameras whose limits have changed
    stages: list[str]  # keys of lines, zones, masks, rules, tracking, and scores


class FaultEntry(Struct, frozen=True, kw_only=True):
    """One error in a configuration, with the fields of `vision.errors.Fault`."""

    line: int
    column: int
    key: str
    code: str
    message: str


class ErrorReply(_Reply, frozen=True, kw_only=True, tag="error"):
    """A report that a request was refused or failed, with the reason."""

    message: str
    hint: str
    code: str
    exit_code: int  # exit code for the command that sent the request
    faults: list[FaultEntry] = []


Reply: TypeAlias = StatusReply | AnalyticsReply | ChangedReply | ErrorReply

_encoder: Final = msgspec.json.Encoder()
_requests: Final = msgspec.json.Decoder(Request)
_replies: Final = msgspec.json.Decoder(Reply)


def encode(message: Request | Reply) -> bytes:
    """Return the encoded message, preceded by its length."""
    payload = _encoder.encode(message)
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


def decode_request(payload: bytes) -> Request:
    """Return a request. Raise `MessageError` if the payload is not a valid request."""
    try:
        request: Request = _requests.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"expected a request: {error}", code="request-invalid") from error
    return request


def error_reply(error: VisionError) -> ErrorReply:
    """Return the reply for a request that has failed."""
    faults = [
        FaultEntry(line=each.line, column=each.column, key=each.key, code=each.code, message=each.message)
        for each in error.faults
    ]
    message = str(error.args[0])
    return ErrorReply(message=message, hint=error.hint, code=error.code, exit_code=error.exit_code, faults=faults)


# --- places -----------------------------------------------------------------------------------------------------------


def socket_name(config: Path) -> str:
    """Return the name of the control socket of the program that runs the configuration at this path."""
    path = os.path.abspath(config)  # noqa: PTH100 - resolve() would follow links
    stem = re.sub(r"[^A-Za-z0-9_-]", "_", config.stem)[:_NAME_CHARACTERS]
    return f"{stem}-{hashlib.sha256(path.encode()).hexdigest()[:8]}{SUFFIX}"


def own_folder() -> Path:
    """Return the folder for the sockets of this user: the runtime folder of the service or user, or one in /tmp."""
    if service := os.environ.get("RUNTIME_DIRECTORY"):
        return Path(service.split(":")[0])
    if user := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(user) / "vision"
    return _temporary_folder()


def _temporary_folder() -> Path:
    return Path("/tmp") / f"vision-{os.geteuid()}"


def _folders() -> Iterator[Path]:
    """Yield folders for control sockets: `own_folder`, the folder of the service, and this user's folder in /tmp."""
    temporary = _temporary_folder()
    for folder in dict.fromkeys([own_folder(), _SERVICE_FOLDER, temporary]):
        if folder != temporary or _is_own(folder):
            yield folder


def _is_own(folder: Path) -> bool:
    """Return True if `folder` is a folder of this user, and not a link."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def find_socket(config: Path | None) -> Path:
    """Return the control socket of the program that runs `config`. None means the only running program.

    Raises:
        Unavailable: no such program is running.
        ConfigError: several such programs are running.
    """
    pattern = f"*{SUFFIX}" if config is None else socket_name(config)
    found = {path.resolve(): path for folder in _folders() for path in sorted(folder.glob(pattern)) if _answers(path)}
    if not found:
        text = "no program is running" if config is None else f"no program is running with {config}"
        hint = "start it with `vision run`; for a program of another user, use `--socket`, or run this as that user"
        raise Unavailable(text, hint=hint, code="not-running")
    if len(found) > 1:
        names = ", ".join(sorted(path.name.removesuffix(SUFFIX) for path in found))
        raise ConfigError(f"several programs are running: {names}", hint="add `--config`", code="several-programs")
    return next(iter(found))


def _answers(path: Path) -> bool:
    """Return True if a program listens on the socket at `path`, or if this user cannot connect to this socket.

    This check is necessary because a program that was killed leaves its socket behind.
    """
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            probe.connect(str(path))
    except PermissionError:
        return True  # the request explains this
    except OSError:
        return False
    return True


# --- client -----------------------------------------------------------------------------------------------------------


def ask(path: Path, request: Request, *, timeout_s: float = _ANSWER_S) -> StatusReply | AnalyticsReply | ChangedReply:
    """Send a request to a running program. Return its reply.

    Raises:
        Unavailable: no program listens on the socket, the program does not reply within `timeout_s` seconds, or it
            closes the connection.
        ConfigError: this user cannot use the socket.
        RefusedRequest: the program has refused the request, or has failed to handle it.
        MessageError: the reply is not valid, for example because the program has a different version.
    """
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(timeout_s)
            sock.connect(str(path))
            sock.sendall(encode(request))
            payload = _receive(sock)
    except (FileNotFoundError, ConnectionError) as error:
        text, hint = f"no program answers on {path}", "start it with `vision run`; the log shows why it has ended"
        raise Unavailable(text, hint=hint, code="not-running") from error
    except TimeoutError as error:
        text = f"the program did not answer within {timeout_s:.0f} s"
        raise Unavailable(text, hint="its log shows what it does", code="no-answer") from error
    except OSError as error:
        raise from_os_error(f"cannot use {path}", error, code="control-socket") from error
    try:
        reply: Reply = _replies.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"the reply of the program is not valid: {error}", code="reply-invalid") from error
    if isinstance(reply, ErrorReply):
        raise RefusedRequest(reply)
    return reply


def _receive(sock: socket.socket) -> bytes:
    length = int.from_bytes(_receive_exactly(sock, LENGTH_BYTES), "big")
    return _receive_exactly(sock, length)


def _receive_exactly(sock: socket.socket, nbytes: int) -> bytes:
    data = bytearray()
    while len(data) < nbytes:
        part = sock.recv(min(65536, nbytes - len(data)))
        if not part:
            raise ConnectionResetError("the program has closed the connection")
        data += part
    return bytes(data)


class RefusedRequest(VisionError):
    """The program has refused a request, or an error has occurred while it handled the request."""

    def __init__(self, reply: ErrorReply) -> None:
        super().__init__(reply.message, hint=reply.hint, code=reply.code)
        self.exit_code = reply.exit_code
        self.reply = reply
