"""`open_sinks` starts the processes that send messages to sinks. A `SinkProcess` supervises one process.

Each sink has its own process, so a library that hangs, crashes, or needs much memory affects only one sink.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import msgspec

from vision.config import AppConfig
from vision.config.fields import VERIFY
from vision.config.sinks import Protocol, SinkConfig
from vision.config.tls import tls_context
from vision.errors import ConfigError, redact, registered_secrets
from vision.messaging.curve import KeyFolder
from vision.messaging.helper_process import DISK_SILENT_S, HelperProcess
from vision.messaging.publisher import Publisher
from vision.messaging.schema import SinkStatus
from vision.state.events import EventLog
from vision.version import install_hint

log = logging.getLogger(__name__)

_PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from vision.outputs.sinks.program import main; main()"
)
_PACKAGES: Final[Mapping[Protocol, str]] = {
    "mqtt": "aiomqtt",
    "kafka": "confluent_kafka",
    "redis": "redis",
    "nats": "nats",
    "webhook": "httpx",
}
"""The Python package that each protocol needs. The extra that installs it has the name of the protocol."""


def open_sinks(
    config: AppConfig, publisher: Publisher, events: EventLog, keys: KeyFolder | None, resources: ExitStack
) -> None:
    """Start a process for each configured sink, and register it with `resources`.

    Args:
        publisher: the publisher of the messages. Its status then contains the status of the sinks.
        events: log of the events. A new sink starts after the newest event in the log.
        keys: the publisher's keys for CURVE, or None if messages are not encrypted.
        resources: stack whose end closes the processes.

    Raises:
        ConfigError: a package is missing, or a file with certificates cannot be used.
        OSError: a process cannot be started.
    """
    for sink in config.sinks:
        check_sink(sink)
    assert config.state_dir is not None
    client = None if keys is None else keys.internal_client()
    common = {
        "address": publisher.internal_address,
        "replay": publisher.internal_replay,
        "keys": None if client is None else [client.public, client.secret, client.server],
        "position": [events.journal, events.newest],
        "node": publisher.numbering.node,
        "secrets": registered_secrets(),
    }
    processes = [SinkProcess(sink, Path(config.state_dir), common) for sink in config.sinks]
    for process in processes:
        resources.callback(process.close)
        process.start()
    publisher.sinks = lambda: {process.name: process.status() for process in processes}


def check_sink(sink: SinkConfig) -> None:
    """Raise `ConfigError` if the package that a sink needs is missing, or its certificate file cannot be used."""
    protocol = sink.target.protocol
    package = _PACKAGES[protocol]
    if importlib.util.find_spec(package) is None:
        text = f"sinks: {sink.name} needs the package {package}, which is missing"
        raise ConfigError(text, hint=install_hint(protocol), code="package-missing")
    if sink.tls == VERIFY:
        return
    try:
        tls_context(sink.tls)
    except OSError as error:  # ssl.SSLError is one too
        text = f"sinks: {sink.name}: tls: expected a PEM file with certificates, cannot use {sink.tls}: {error}"
        raise ConfigError(text, hint="`openssl x509 -in FILE -text` shows a certificate", code="tls-file") from error


class SinkProcess:
    """A process that sends messages to one sink."""

    def __init__(self, sink: SinkConfig, folder: Path, common: Mapping[str, Any]) -> None:
        """Prepare the process of `sink`, without starting it.

        Messages that wait for delivery are stored below `folder`. `common` contains the options that all sinks share.
        """
        self.name = sink.name
        self._status = SinkStatus(protocol=sink.target.protocol)
        self._pid = 0
        self._before = (0, 0)  # numbers of messages that earlier processes sent and lost
        default = f"vision/{re.sub('[^A-Za-z0-9_-]', '-', common['node'])}"
        options = {
            **common,
            "sink": sink.address,
            "name": sink.name,
            "user": sink.user,
            "password": sink.password,
            "secret": sink.secret,
            "tls": sink.tls,
            "prefix": sink.prefix or default,
            "messages": sink.messages,
            "cameras": sink.cameras,
            "interval_s": sink.interval_s,
            "home_assistant": sink.home_assistant,
            "spool": str(folder / "sinks" / f"{sink.name}.sqlite"),
            "spool_bytes": sink.spool_mb * 1_000_000,
            "spool_age_s": sink.spool_age_s,
        }
        # In isolated mode, no file in the current folder can replace a module.
        program = ["-I", "-c", _PROGRAM, json.dumps(sys.path)]
        name = f"sink-{sink.name}"
        self._process = HelperProcess(name, program, options, on_line=self._receive, silent_s=DISK_SILENT_S)

    def start(self) -> None:
        """Start the process. Raise `OSError` if this fails."""
        self._process.start()

    def status(self) -> SinkStatus:
        """Return the latest status of the sink. Counts include the counts of previous processes."""
        return self._status

    def close(self) -> None:
        """End the process. Messages that the process has not delivered stay on disk. Idempotent."""
        self._process.close()

    def _receive(self, line: str) -> None:
        content = json.loads(line)
        if "text" in content:
            log.log(content["level"], "%s", redact(content["text"]))
            return
        status = content["status"]
        if content["process"] != self._pid:
            self._pid, self._before = content["process"], (self._status.sent, self._status.lost)
        sent, lost = status["sent"] + self._before[0], status["lost"] + self._before[1]
        self._status = msgspec.structs.replace(self._status, **(status | {"sent": sent, "lost": lost}))
