"""`PageProcess` starts and supervises the process that serves the page."""

from __future__ import annotations

import importlib.util
import json
import logging
import socket
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
from vision.messaging.helper_process import SILENT_S, HelperProcess
from vision.messaging.sockets import bind_error
from vision.outputs.page.live_scene import LiveSettings
from vision.outputs.page.settings import PageSettings
from vision.version import install_hint

log = logging.getLogger(__name__)

_PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from vision.outputs.page.server import main; main()"
)
PACKAGES: Final = ("starlette", "uvicorn", "websockets")
"""The packages that the process needs."""


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
        page: the section `page` of the configuration.
        address: address to subscribe to.
        class_names: the published classes of the model.
        packets: addresses of the sockets that pass on the packets of the cameras.
        keys: keys for CURVE, or None if messages are not encrypted.
        config_file: file of the configuration, or None if the configuration was built in Python.
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


def check_page(page: PageConfig, *, can_bind: bool = True) -> None:
    """Check that the page can be served.

    Args:
        page: the section `page` of the configuration.
        can_bind: if True, also check that the address can be bound. Pass False if a running program uses the address.

    Raises:
        ConfigError: a package is missing.
        ConfigError, Unavailable: the address cannot be bound; see `BoundSocket`.
    """
    _require_packages()
    if can_bind:
        _listen(page.bind)[0].close()


def _require_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        text = f"page: the package {missing[0]} is missing"
        raise ConfigError(text, hint=install_hint("page"), code="package-missing")


def _listen(bind: str) -> tuple[socket.socket, str]:
    """Return a listening socket, and its actual address.

    Raise `ConfigError` or `Unavailable` if the address cannot be bound.
    """
    try:
        return listen(f"tcp://{bind}")
    except OSError as error:
        raise bind_error("page.bind", f"tcp://{bind}", error.errno, str(error)) from error


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
        _require_packages()
        self._listener, bound = _listen(bind)
        self.address = f"http://{bound.removeprefix('tcp://')}/"
        self._settings = settings
        # In isolated mode, no file in the current folder can replace a module.
        program = ["-I", "-c", _PROGRAM, json.dumps(sys.path)]
        # The editor of the page reads camera.yaml again, with the variables in it.
        fds = [self._listener.fileno()]
        self._process = HelperProcess("page", program, self._options(), fds=fds, silent_s=SILENT_S, reads_secrets=True)
        self._process.start()
        log.info("the page is at %s", self.address)

    def reconfigure(self, config: AppConfig) -> None:
        """Send the lines, zones, and privacy settings of a new configuration to the process, without waiting for it."""
        live = LiveSettings.of(config, self._settings.live.packets)
        self._settings = msgspec.structs.replace(self._settings, live=live)
        self._process.update(self._options())

    def _options(self) -> dict[str, object]:
        return {"listener": self._listener.fileno(), "settings": msgspec.to_builtins(self._settings)}

    def counters(self) -> dict[str, int]:
        """Return the counter ``page.restarts``, the number of restarts of the process."""
        return {"page.restarts": self._process.restarts}

    def close(self) -> None:
        """End the process and free the port. Idempotent."""
        self._process.close()
        self._listener.close()

    def __enter__(self) -> PageProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
