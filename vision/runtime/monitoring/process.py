"""The program's side of the process that serves metrics and health over HTTP."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from typing import Final

from vision.config.app import HttpConfig
from vision.errors import ConfigError
from vision.messaging.curve import KeyFolder, KeyPair
from vision.messaging.exposed_port import listen
from vision.messaging.helper_process import SILENT_S, HelperProcess
from vision.messaging.publisher import Publisher
from vision.messaging.sockets import bind_error

log = logging.getLogger(__name__)

_PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from vision.runtime.monitoring.server import main; main()"
)
_PACKAGES: Final = ("prometheus_client", "starlette", "uvicorn")


def open_monitoring(
    config: HttpConfig, publisher: Publisher, interval_s: float, keys: KeyFolder | None
) -> MonitoringProcess:
    """Start the process that serves metrics and health, and log its address.

    Args:
        config: the section `http` of the configuration.
        publisher: publisher whose messages the process receives.
        interval_s: interval in seconds between two status messages.
        keys: keys of the publisher for CURVE, or None if messages are not encrypted.

    Raises:
        ConfigError, Unavailable, OSError: the process cannot be started; see `MonitoringProcess`.
    """
    client = None if keys is None else keys.internal_client()
    monitoring = MonitoringProcess(config, publisher.internal_address, interval_s=interval_s, keys=client)
    log.info("metrics and health on %s", monitoring.address)
    return monitoring


class MonitoringProcess:
    """A process that subscribes to the program, and handles HTTP requests. `address` is the URL of its port."""

    def __init__(self, config: HttpConfig, address: str, *, interval_s: float, keys: KeyPair | None = None) -> None:
        """Bind the port and start the process.

        Args:
            config: the section `http` of the configuration.
            address: address to subscribe to.
            interval_s: interval in seconds between two status messages.
            keys: keys for CURVE, or None if messages are not encrypted.

        Raises:
            ConfigError: a package is missing.
            ConfigError, Unavailable: the address cannot be bound; see `BoundSocket`.
            OSError: the process cannot be started.
        """
        missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            hint = "pip install 'vision-streams[http]'"
            raise ConfigError(f"http: the package {missing[0]} is missing", hint=hint, code="package-missing")
        bind = f"tcp://{config.bind}"
        try:
            self._listener, bound = listen(bind)
        except OSError as error:
            raise bind_error("http.bind", bind, error.errno, str(error)) from error
        self.address = f"http://{bound.removeprefix('tcp://')}"
        options = {
            "listener": self._listener.fileno(),
            "address": address,
            "token": config.token,
            "interval_s": interval_s,
            "keys": None if keys is None else [keys.public, keys.secret, keys.server],
        }
        # In isolated mode, no file in the current folder can replace a module.
        program = ["-I", "-c", _PROGRAM, json.dumps(sys.path)]
        self._process = HelperProcess("http", program, options, fds=[self._listener.fileno()], silent_s=SILENT_S)
        self._process.start()

    def counters(self) -> dict[str, int]:
        """Return the counter ``http.restarts``, the number of restarts of the process."""
        return {"http.restarts": self._process.restarts}

    def close(self) -> None:
        """End the process and free the port. Idempotent."""
        self._process.close()
        self._listener.close()

    def __enter__(self) -> MonitoringProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
