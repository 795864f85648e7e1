"""`RecordingProcess` starts and supervises the process that records cameras."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from vision.errors import from_os_error
from vision.messaging.helper_process import DISK_SILENT_S, HelperProcess
from vision.outputs.recording.index import DamagedIndex, RecordingIndex
from vision.outputs.recording.recorder import RecorderOptions

log = logging.getLogger(__name__)

_PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from vision.outputs.recording.recorder import main; main()"
)
_STOP_S: Final = 5.0  # time to complete all files


class RecordingProcess:
    """The process that writes the video of the configured cameras to files. If the process ends, it is restarted."""

    def __init__(self, options: RecorderOptions) -> None:
        """Check the folders, and start the process.

        Raises:
            ConfigError: a folder is not writable, or a newer version of the program wrote the index.
            Unavailable: a folder cannot be used at present, for example because the disk is full.
            OSError: the process cannot be started.
        """
        self._options = options
        self._counters: dict[str, int] = {}
        _check_folder(Path(options.config.folder))
        _check_index(options.state_dir)
        # In isolated mode, no file in the current folder can replace a module.
        program = ["-I", "-c", _PROGRAM, json.dumps(sys.path)]
        self._process = HelperProcess(
            "recorder", program, options.as_json(), on_line=self._take, stop_s=_STOP_S, silent_s=DISK_SILENT_S
        )
        self._process.start()

    def follow(self, cameras: Sequence[str]) -> None:
        """Make the process record `cameras` instead of the previous cameras."""
        self._options = replace(self._options, cameras=list(cameras))
        self._process.update(self._options.as_json())

    def _take(self, line: str) -> None:
        content: dict[str, Any] = json.loads(line)
        if "counters" in content:
            self._counters = content["counters"]
        else:
            log.log(content["level"], "%s", content["text"])

    def counters(self) -> dict[str, int]:
        """Return the counters of the process since its most recent start, and the number of its restarts."""
        return self._counters | {"recording.restarts": self._process.restarts}

    def close(self) -> None:
        """Complete all files, and end the process. Idempotent."""
        self._process.close()


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}.part"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        text, hint = f"recording.folder: cannot write to {folder}", "make the folder writable for this user"
        raise from_os_error(text, error, hint=hint, code="recording-folder") from error


def _check_index(state_dir: Path) -> None:
    try:
        RecordingIndex(state_dir).close()
    except DamagedIndex:
        return  # the process replaces it
    except (OSError, sqlite3.Error) as error:
        cause = error if isinstance(error, OSError) else OSError(0, str(error))
        text, hint = f"cannot list recordings in {state_dir}", "make the folder writable for this user"
        raise from_os_error(text, cause, hint=hint, code="state-unwritable") from error
