"""`MetadataProcess` starts and supervises the process that serves ONVIF metadata."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from typing import Final

from vision.config.onvif import OnvifConfig
from vision.messaging.curve import KeyPair
from vision.messaging.exposed_port import listen
from vision.messaging.helper_process import SILENT_S, HelperProcess
from vision.messaging.sockets import bind_error

log = logging.getLogger(__name__)

_PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from vision.outputs.onvif.program import main; main()"
)


class MetadataProcess:
    """A process that subscribes to the program, and serves ONVIF metadata.

    `address` is the URL to which clients append the id of a camera.
    """

    def __init__(
        self, config: OnvifConfig, address: str, cameras: Sequence[str], *, keys: KeyPair | None = None
    ) -> None:
        """Bind the port and start the process.

        Args:
            config: the section `onvif` of the configuration.
            address: address to subscribe to.
            cameras: ids of the configured cameras.
            keys: keys for CURVE, or None if messages are not encrypted.

        Raises:
            ConfigError, Unavailable: the address cannot be bound; see `BoundSocket`.
            OSError: the process cannot be started.
        """
        bind = f"tcp://{config.bind}"
        try:
            self._listener, bound = listen(bind)
        except OSError as error:
            raise bind_error("onvif.bind", bind, error.errno, str(error)) from error
        self.address = f"rtsp://{bound.removeprefix('tcp://')}/"
        options = {
            "listener": self._listener.fileno(),
            "address": address,
            "cameras": list(cameras),
            "account": None if config.user is None else [config.user, config.password],
            "keys": None if keys is None else [keys.public, keys.secret, keys.server],
        }
        # In isolated mode, no file in the current folder can replace a module.
        program = ["-I", "-c", _PROGRAM, json.dumps(sys.path)]
        self._process = HelperProcess("onvif", program, options, fds=[self._listener.fileno()], silent_s=SILENT_S)
        self._process.start()
        log.info("ONVIF metadata at %sCAMERA", self.address)

    def counters(self) -> dict[str, int]:
        """Return the counter ``onvif.restarts``, the number of restarts of the process."""
        return {"onvif.restarts": self._process.restarts}

    def close(self) -> None:
        """End the process and free the port. Idempotent."""
        self._process.close()
        self._listener.close()

    def __enter__(self) -> MetadataProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
