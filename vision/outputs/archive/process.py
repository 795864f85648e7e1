"""`ArchiveProcess` starts and supervises the process that writes the archive."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import threading
from pathlib import Path
from typing import Final

from vision.config.archive import ArchiveConfig
from vision.errors import ConfigError, from_os_error
from vision.messaging.curve import KeyPair
from vision.messaging.helper_process import DISK_SILENT_S, HelperProcess
from vision.outputs.archive.reports import LOSES, READY, STORES_AGAIN
from vision.version import pip_hint

log = logging.getLogger(__name__)

_READY_S: Final = 20.0

_PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from vision.outputs.archive.writer import main; main()"
)


def require_pyarrow(key: str) -> None:
    """Raise `ConfigError` if pyarrow is not installed. `key` is the name of the section or command that needs it."""
    if importlib.util.find_spec("pyarrow") is None:
        text = f"{key}: the package pyarrow is missing"
        raise ConfigError(text, hint=pip_hint("vision-streams[archive]"), code="package-missing")


class ArchiveProcess:
    """A process that subscribes to the program, and writes the archive."""

    def __init__(self, config: ArchiveConfig, address: str, *, replay: bool, keys: KeyPair | None = None) -> None:
        """Create the folder, start the process, and wait up to 20 s until it is ready.

        Args:
            config: the section `archive` of the configuration. Its folder must be an absolute path.
            address: address to subscribe to.
            replay: True if subscribers can request missed events from the publisher.
            keys: keys for CURVE, or None if messages are not encrypted.

        Raises:
            ConfigError: pyarrow is missing, or the folder cannot be created.
            Unavailable: the folder cannot be created at present.
            OSError: the process cannot be started.
        """
        require_pyarrow("archive")
        try:
            Path(config.folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os_error(f"archive.folder: cannot create {config.folder}", error) from error
        options = {
            **config.model_dump(),
            "address": address,
            "replay": replay,
            "keys": None if keys is None else [keys.public, keys.secret, keys.server],
        }
        # In isolated mode, no file in the current folder can replace a module.
        program = ["-I", "-c", _PROGRAM, json.dumps(sys.path)]
        self._ready = threading.Event()
        self._is_stopped = False
        self._process = HelperProcess(
            "archive", program, options, on_line=self._take, on_end=self._stopped, silent_s=DISK_SILENT_S
        )
        self._process.start()
        if not self._ready.wait(_READY_S):
            log.warning("archive: the process does not respond, so the first frames can be missing")

    def _take(self, line: str) -> None:
        text = line.strip()
        if text == READY:
            self._ready.set()
            self._is_stopped = False
            return
        if text.startswith(LOSES):
            self._is_stopped = True
        elif text == STORES_AGAIN:
            self._is_stopped = False
        log.warning("%s", text)

    def _stopped(self) -> None:
        self._is_stopped = True

    def counters(self) -> dict[str, int]:
        """Return the number of restarts of the process, and ``archive.stopped``, which is 1 while storing fails."""
        return {"archive.restarts": self._process.restarts, "archive.stopped": int(self._is_stopped)}

    def close(self) -> None:
        """End the process. Idempotent."""
        self._process.close()

    def __enter__(self) -> ArchiveProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
