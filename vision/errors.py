"""The exceptions of the project, grouped by what the operator has to do.

::

    VisionError
    ├── ConfigError       fix the configuration            exit 78, systemd does not restart
    ├── ModelError        fix or rebuild the model          exit 78
    ├── SourceError       one camera; retried with back-off
    │   ├── EndOfStream   a file or folder has ended; not an error
    │   └── SizeChanged   the frame has a new size, which starts a new epoch; not an error
    ├── DeviceError       CUDA, TensorRT or ONNX Runtime at run time: fatal, systemd restarts
    │   ├── DeviceMissing the GPU, the driver or TensorRT is missing: exit 78
    │   └── OutOfMemory   CUDA can continue; for the frames of a camera, it becomes a SourceError
    ├── MessageError      a message or a recording that this version cannot read
    └── Closed            a slot or a queue was closed: the normal end of a wait

A message states what was expected, what was received, and what to do (`hint`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

EXIT_OK = 0
EXIT_RUNTIME = 1
EXIT_CONFIG = 78  # sysexits.h EX_CONFIG; systemd/vision@.service lists it in RestartPreventExitStatus


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One error in a configuration file."""

    line: int  # from 1; 0 means the whole file, or a configuration without a file
    column: int
    key: str  # path of the key, such as ``cameras[1].transport``; "" at the top level
    code: str  # stable name, such as ``unknown-key``
    message: str


class VisionError(Exception):
    """Base of all errors that the project raises."""

    exit_code = EXIT_RUNTIME

    def __init__(self, message: str, *, hint: str = "", code: str = "", faults: tuple[Fault, ...] = ()) -> None:
        """Create the error. User names, passwords and tokens are removed from its texts.

        Args:
            message: Expected and received values.
            hint: Advice for the operator.
            code: Stable name of the error for programs and tests, such as ``port-in-use``.
            faults: The errors in a configuration file, which `message` lists.
        """
        super().__init__(redact(message))
        self.hint = redact(hint)
        self.code = code
        self.faults = tuple(replace(fault, message=redact(fault.message)) for fault in faults)

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\n  hint: {self.hint}" if self.hint else message


class ConfigError(VisionError):
    """The configuration is invalid. The message lists every error with its file and line."""

    exit_code = EXIT_CONFIG


class ModelError(VisionError):
    """A model or engine is missing, damaged, or differs from its description."""

    exit_code = EXIT_CONFIG


class SourceError(VisionError):
    """A camera could not be opened or read. Other cameras are not affected."""


class EndOfStream(SourceError):
    """A finite source has no more frames."""


class SizeChanged(SourceError):
    """The grabbed frame and its buffer differ in size or format."""

    def __init__(self, height_px: int, width_px: int) -> None:
        super().__init__(f"the frame is now {width_px}x{height_px}")
        self.height_px = height_px
        self.width_px = width_px


class DeviceError(VisionError):
    """The inference device failed at run time. CUDA errors persist in their context, so the process must end."""


class DeviceMissing(DeviceError):
    """A GPU, a driver or a library is missing or too old. A restart does not help."""

    exit_code = EXIT_CONFIG


class OutOfMemory(DeviceError):
    """An allocation failed for lack of memory. CUDA remains usable, so the caller can continue with less memory."""


class MessageError(VisionError):
    """A message or a line of a recording has a schema that this version cannot read."""


class Closed(VisionError):
    """The other side closed the slot or queue."""


_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^/\s\"'<>]*@")
_SECRET_QUERY = re.compile(
    r"(?P<key>[?&;](?:[A-Za-z_-]*(?:pass|password|passwd|pwd|token|secret|apikey|api_key|auth|key|user|usr|username))=)[^&;\s\"'<>]+",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Replace the user names, passwords and tokens in every URL of `text` by ``***``."""
    return _SECRET_QUERY.sub(r"\g<key>***", _USERINFO.sub(r"\g<scheme>***@", text))
