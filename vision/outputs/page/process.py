"""The program's side of the process that serves the page."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from vision.config import AppConfig
from vision.config.page import PageConfig
from vision.errors import ConfigError
from vision.messaging.curve import KeyPair
from vision.messaging.exposed_port import listen
from vision.messaging.helper_process import HelperProcess
from vision.messaging.sockets import bind_error
from vision.outputs.page.live_scene import LiveSettings
from vision.outputs.page.settings import PageSettings
from vision.version import install_hint

log = logging.getLogger(__name__)

_PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from vision.outputs.page.server import main; main()"
)
_PACKAGES: Final = ("starlette", "uvicorn", "websockets")


def page_settings(
    config: AppConfig,
    page: PageConfig,
    address: str,
    *,
    class_names: Sequence[str] = (),
    packets: tuple[str, ...] = (),
    keys: KeyPair | None = None,
    config_file: Path | None = None,
) -> PageSettings:
    """Return the settings of the page of a program.

    Args:
        config: the whole configuration.
        page: its section `page`.
        address: address to subscribe to.
        class_names: the published classes of the model.
        packets: addresses at which the cameras pass their packets on.
        keys: keys for CURVE; None if messages are not encrypted.
        config_file: file of the configuration; None if the configuration was built in Python.
    """
    return PageSettings(
        address=address,
        keys=None if keys is None else (keys.public, keys.secret, keys.server),
        interval_s=config.status.interval_s,
        token=page.token,
        hosts=page.hosts,
        edit=page.edit,
        class_names=tuple(class_names),
        config_file=None if config_file is None else str(config_file.absolute()),
        state_dir=config.state_dir,
        recordings=None if config.recording is None else config.recording.folder,
        snapshots=None if config.snapshots is None else config.snapshots.folder,
        archive=None if config.archive is None else config.archive.folder,
        live=LiveSettings.of(config, packets),
    )


def require_packages() -> None:
    """Raise `ConfigError` if a package that the page needs is not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"page: the package {missing[0]} is missing", hint=install_hint("page"), code="package-missing"
        )


class PageProcess:
    """A process that subscribes to the program, and serves the page. `address` is the URL of the page."""

    def __init__(self, bind: str, settings: PageSettings) -> None:
        """Bind the port, and start the process.

        Args:
            bind: address and port.
            settings: settings of the process.

        Raises:
            ConfigError: a package is missing.
            ConfigError, Unavailable: the address cannot be bound; see `BoundSocket`.
            OSError: the process cannot be started.
        """
        require_packages()
        try:
            self._listener, bound = listen(f"tcp://{bind}")
        except OSError as error:
            raise bind_error("page.bind", f"tcp://{bind}", error.errno, str(error)) from error
        self.address = f"http://{bound.removeprefix('tcp://')}/"
        options = {"listener": self._listener.fileno(), "settings": msgspec.to_builtins(settings)}
        # In isolated mode, no file in the current folder can replace a module.
        program = ["-I", "-c", _PROGRAM, json.dumps(sys.path)]
        self._process = HelperProcess("page", program, options, fds=[self._listener.fileno()])
        self._process.start()
        log.info("the page is at %s", self.address)

    def counters(self) -> dict[str, int]:
        """Return the number of restarts of the process."""
        return {"page.restarts": self._process.restarts}

    def close(self) -> None:
        """End the process and free the port. Idempotent."""
        self._process.close()
        self._listener.close()

    def __enter__(self) -> PageProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
