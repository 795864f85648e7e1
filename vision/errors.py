"""The exceptions of the project, grouped by what the operator must do.

::

    VisionError
    ├── ConfigError       fix the configuration; exit code 78, so systemd does not restart the program
    ├── ModelError        fix or rebuild the model; exit code 78
    ├── Unavailable       nothing: the start is retried; exit code 75
    ├── SourceError       nothing: the camera is reopened after a pause
    │   ├── EndOfStream   nothing: a file or folder has ended
    │   └── SizeChanged   nothing: the frame has a new size, which starts a new epoch
    ├── DeviceError       nothing: CUDA, TensorRT, or ONNX Runtime failed, and systemd restarts the program
    │   ├── DeviceMissing install the GPU, driver, or library that is missing; exit code 78
    │   │   └── DeviceNotReady  nothing: systemd restarts the program; exit code 75
    │   └── OutOfMemory   reduce the memory that is needed; for the frames of a camera, it becomes a SourceError
    ├── LanguageError     the server of a language model gave no usable answer
    │   ├── ServerRefusal fix the key, the name of the model, or the request; exit code 78
    │   ├── ServerFailure nothing: a retry can succeed; exit code 75
    │   └── InvalidAnswer change the prompt or the model
    ├── MessageError      use a program that can read the message or the recording
    └── Closed            nothing: a slot, queue, or database was closed, or an operation was canceled

The message of an exception states what was expected and what was received. Its `hint` states what to do.
"""

from __future__ import annotations

import errno
import html
import json
import re
import threading
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import quote, quote_plus, unquote

EXIT_OK = 0
EXIT_RUNTIME = 1
EXIT_TEMPORARY = 75  # sysexits.h EX_TEMPFAIL
EXIT_CONFIG = 78  # sysexits.h EX_CONFIG; systemd/vision@.service lists it in RestartPreventExitStatus


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One error in a configuration file."""

    line: int  # from 1; 0 means the whole file, or that there is no file
    column: int  # from 1
    key: str  # path of the key, such as ``cameras[1].transport``; "" at the top level
    code: str  # stable name, such as ``unknown-key``
    message: str


class VisionError(Exception):
    """Base class of the errors that the project reports to the operator."""

    exit_code = EXIT_RUNTIME

    def __init__(self, message: str, *, hint: str = "", code: str = "", faults: tuple[Fault, ...] = ()) -> None:
        """Create the error. `redact` removes user names, passwords, and tokens from `message`, `hint`, and `faults`.

        Args:
            message: what was expected and what was received.
            hint: what the operator can do.
            code: stable name of the error for programs and tests, such as ``port-in-use``.
            faults: the errors in a configuration file, which `message` lists.
        """
        super().__init__(redact(message))
        self.hint = redact(hint)
        self.code = code
        self.faults = tuple(replace(fault, message=redact(fault.message)) for fault in faults)

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\n  hint: {self.hint}" if self.hint else message


class ConfigError(VisionError):
    """The configuration is invalid or cannot be used. For a file, the message lists every error with its line."""

    exit_code = EXIT_CONFIG


class ModelError(VisionError):
    """A model or engine is missing, damaged, or differs from its description."""

    exit_code = EXIT_CONFIG


class Unavailable(VisionError):
    """A disk, an address, or a lock cannot be used at present. A retry can succeed without a change by the operator."""

    exit_code = EXIT_TEMPORARY


class SourceError(VisionError):
    """A camera could not be opened or read. Other cameras are not affected."""


class EndOfStream(SourceError):
    """A file or a folder has no more frames."""


class SizeChanged(SourceError):
    """The size or format of a camera's new frame differs from the size or format of the buffer for its frames."""

    def __init__(self, height_px: int, width_px: int) -> None:
        super().__init__(f"the frame is now {width_px}x{height_px}")
        self.height_px = height_px
        self.width_px = width_px


class DeviceError(VisionError):
    """The inference device failed while running. CUDA errors persist in their context, so the process must end."""


class DeviceMissing(DeviceError):
    """A GPU, a driver, or a library is missing or too old. Restarting the program does not help."""

    exit_code = EXIT_CONFIG


class DeviceNotReady(DeviceMissing):
    """The driver does not respond or finds no GPU, for example because the driver is not loaded yet.

    Only a new process can detect that the driver has become ready.
    """

    exit_code = EXIT_TEMPORARY


class OutOfMemory(DeviceError):
    """An allocation failed for lack of memory. CUDA remains usable, so the caller can continue with less memory."""


class LanguageError(VisionError):
    """The server of a language model gave no usable answer."""

    model: str | None = None  # name of the model; None if it is unknown
    response: str = ""  # beginning of the answer or, without an answer, of the server's response; without secrets


class ServerRefusal(LanguageError):
    """The server refuses the request, and will refuse each retry until an operator changes something."""

    exit_code = EXIT_CONFIG


class ServerFailure(LanguageError):
    """The server is unreachable, busy, or too slow, or has failed. A retry can succeed without a change."""

    exit_code = EXIT_TEMPORARY


class InvalidAnswer(LanguageError):
    """The server responded, but the answer is too long, unreadable, or not one of the expected answers."""


class MessageError(VisionError):
    """A message or a line of a recording is unreadable or invalid, or a publisher cannot send missed events."""


class Closed(VisionError):
    """A slot, queue, database, subscription, or similar object is closed, or an operation was canceled."""


_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^/\s\"'<>]*@")
_SECRET_KEY: Final = (
    r"[A-Za-z_-]*(?:pass|password|passwd|pwd|pas|psw|token|secret|apikey|api_key|auth|key|session|sid"
    r"|user|usr|username|loginuse)"
)
_SECRET_QUERY: Final = re.compile(rf"(?P<key>[?&;]{_SECRET_KEY}=)[^&;\s\"'<>]+", re.IGNORECASE)
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>]+")
_SECRET_IN_PATH: Final = re.compile(rf"(?P<key>[/_]{_SECRET_KEY}=)[^&;/_]+", re.IGNORECASE)
_HIDDEN: Final = "***"
_SHORTEST: Final = 4  # a shorter value is also a part of many ordinary texts
_SHORTEST_INSIDE_WORDS: Final = 8

_secrets: dict[str, str] = {}
"""Replacement text of each secret, longest secret first. Changes replace the dictionary, so readers need no lock."""

_registering = threading.Lock()


def register_secret(secret: str, *, shown: str = _HIDDEN) -> None:
    """Make `redact` and `conceal` replace a secret with `shown`.

    Both functions also replace the secret as encoded in URLs, JSON, HTML, and Python. A secret with fewer than 8
    characters is replaced only where no letter or digit is next to it. A secret with fewer than 4 characters is
    ignored.
    """
    global _secrets  # noqa: PLW0603 - secrets of the whole process
    if len(secret) < _SHORTEST:
        return
    with _registering:
        known = _secrets | {form: shown for form in _encodings(secret) if len(form) >= _SHORTEST}
        _secrets = dict(sorted(known.items(), key=lambda item: -len(item[0])))


def registered_secrets() -> dict[str, str]:
    """Return each registered secret and its replacement text, so that another process can register the secrets."""
    return dict(_secrets)


def _encodings(secret: str) -> set[str]:
    """Return the secret itself, and the encoded and escaped forms in which programs may print it."""
    forms = {secret, unquote(secret)}
    for plain in tuple(forms):
        percent = {quote(plain, safe=""), quote(plain), quote_plus(plain)}
        forms |= percent | {re.sub("%..", lambda match: match[0].lower(), form) for form in percent}
        forms |= {html.escape(plain), repr(plain)[1:-1], ascii(plain)[1:-1], json.dumps(plain)[1:-1]}
    return forms


def conceal(text: str) -> str:
    """Return `text` with every registered secret replaced."""
    for secret, shown in _secrets.items():
        if secret in text:
            text = _without(secret, shown, text)
    return text


def _without(secret: str, shown: str, text: str) -> str:
    if len(secret) >= _SHORTEST_INSIDE_WORDS:
        return text.replace(secret, shown)
    return re.sub(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])", lambda _: shown, text)


def redact(text: str) -> str:
    """Return `text` after replacing all registered secrets, and the users, passwords, and tokens in every URL."""
    if not text:
        return text
    text = _SECRET_QUERY.sub(r"\g<key>***", _USERINFO.sub(r"\g<scheme>***@", conceal(text)))
    return _URL.sub(lambda url: _SECRET_IN_PATH.sub(r"\g<key>***", url[0]), text)


_OPERATOR: Final = {
    errno.EACCES: "give the user of the program access: `ls -ld` shows the owner and the mode",
    errno.EPERM: "give the user of the program access: `ls -ld` shows the owner and the mode",
    errno.ENOENT: "create the folder, or correct the path",
    errno.ENOTDIR: "a part of the path is a file: correct the path",
    errno.EEXIST: "a file has the name of the folder: correct the path",
    errno.EISDIR: "the path is a folder: add the name of a file",
    errno.ENAMETOOLONG: "use a shorter path",
    errno.ELOOP: "a link leads back to itself: correct the path",
    errno.EINVAL: "correct the path",
}
"""Hints for the errors that only an operator can resolve, by error number. All other errors can end by themselves."""

_PASSING: Final = {
    errno.ENOSPC: "free space on this disk: `df -h` shows it",
    errno.EDQUOT: "free space, or raise the quota of the user",
    errno.EROFS: "the file system is read-only: `dmesg` shows whether the disk failed. A service can write only to the "
    "folders that its unit permits",
    errno.EIO: "the disk or the network file system fails: `dmesg` shows the reason",
    errno.ESTALE: "the network file system has changed: mount it again",
    errno.ENODEV: "the device is not connected",
    errno.ENXIO: "the device is not connected",
    errno.EMFILE: "raise the limit of open files: `LimitNOFILE=` in the unit, or `ulimit -n`",
    errno.ENFILE: "the machine has too many open files: end other programs",
    errno.ENOMEM: "free memory: `free -h` shows it",
    errno.EBUSY: "another program uses the file: `fuser` shows it",
    errno.EAGAIN: "another program uses the file: `fuser` shows it",
}
"""Hints for common errors that can end by themselves, by error number."""


def is_passing(error: OSError) -> bool:
    """Return True if a retry of the failed system call can succeed without a change by an operator."""
    return error.errno not in _OPERATOR


def from_os_error(text: str, error: OSError, *, code: str = "", hint: str = "") -> ConfigError | Unavailable:
    """Return a `ConfigError` if only an operator can resolve `error`. Otherwise, return `Unavailable`.

    Args:
        text: what was attempted. The system's description of the error is appended.
        error: the error of the call. An unknown error number counts as temporary.
        code: see `VisionError`.
        hint: text that replaces the usual hint if only an operator can resolve the error.
    """
    message = f"{text}: {error.strerror or error}"
    if is_passing(error):
        return Unavailable(message, hint=_PASSING.get(error.errno or 0, ""), code=code)
    return ConfigError(message, hint=hint or _OPERATOR[error.errno or 0], code=code)
