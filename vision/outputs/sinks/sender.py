"""`Sender` delivers the messages of a spool in order, and reconnects after errors."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

from vision.errors import redact
from vision.outputs.sinks.delivery import Connection, Outgoing, SinkSettings, connect
from vision.outputs.sinks.spool import Spool

log = logging.getLogger(__name__)

_CHECK_S: Final = 10.0
"""Time in seconds without messages after which the far side is checked."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0

_MAX_ATTEMPTS: Final = 4
"""Number of attempts to send a message alone, before the sender abandons the message.

The sender abandons only messages that the far side does not confirm although it responds to checks, for example because
a message is too large for the broker.
"""


class Sender:
    """Sender that delivers the messages of a spool until `stop` is set.

    Attributes:
        wake: event to set when the spool has new messages, and after `stop` is set.
        stop: event to set to end `run`. Unless `wake` is also set, `run` can wait for up to 10 s before it ends.
        connected: True if the most recent call to the broker or server succeeded.
        sent: number of delivered messages.
        refused: number of messages that the broker or server never accepts, or that were abandoned.
        last_error: the most recent error, without secrets, or an empty string if there was no error.
    """

    def __init__(
        self,
        spool: Spool,
        settings: SinkSettings,
        connect: Callable[[SinkSettings], AbstractAsyncContextManager[Connection]] = connect,
    ) -> None:
        self.wake, self.stop = asyncio.Event(), asyncio.Event()
        self.connected = False
        self.sent = self.refused = 0
        self.last_error = ""
        self._spool = spool
        self._settings = settings
        self._connect = connect
        self._pause_s = _FIRST_PAUSE_S
        self._failed_number = self._attempts = 0  # number of the message that failed alone, and of its attempts
        self._one_by_one = False  # True from an error until a message is delivered

    async def run(self) -> None:
        """Deliver messages until `stop` is set. After an error, pause and reconnect.

        Double the pause after each further error, up to 15 s.
        """
        while not self.stop.is_set():
            try:
                async with self._connect(self._settings) as connection:
                    await self._deliver(connection)
            except Exception as error:  # noqa: BLE001 - libraries raise many types, and each error is handled alike
                self._failed(error)
                await _wait(self.stop, self._pause_s * random.uniform(0.5, 1.0))
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self.connected = False

    async def _deliver(self, connection: Connection) -> None:
        while not self.stop.is_set():
            self.wake.clear()
            messages = self._spool.first(1 if self._one_by_one else connection.batch)
            if not messages:
                self._succeeded()
                if not await _wait(self.wake, _CHECK_S):
                    await connection.check()
                continue
            for message, reason in zip(messages, await self._send(connection, messages), strict=True):
                if reason:
                    self.refused += 1
                    self.last_error = redact(f"{message.topic}: {reason}")
                    log.warning("sink %s refuses a message of %s: %s", self._settings.name, message.topic, reason)
                else:
                    self.sent += 1
            self._spool.remove(messages)
            self._succeeded()

    async def _send(self, connection: Connection, messages: Sequence[Outgoing]) -> list[str]:
        """Send messages. For each message, return why it was abandoned, or an empty string if it was delivered."""
        if self._one_by_one:
            await connection.check()
            self._succeeded()
        try:
            reasons = await connection.send(messages)
        except Exception as error:
            alone = messages[0].number if self._one_by_one else 0
            self._attempts = self._attempts + 1 if alone == self._failed_number else 1
            self._failed_number, self._one_by_one = alone, True
            if not alone or not connection.answers_checks or self._attempts < _MAX_ATTEMPTS:
                raise
            return [f"{error}; given up after {self._attempts} attempts"]
        self._one_by_one = False
        return reasons

    def _succeeded(self) -> None:
        if not self.connected:
            log.info("sink %s: connected to %s", self._settings.name, self._settings.address.servers)
        self.connected, self._pause_s = True, _FIRST_PAUSE_S

    def _failed(self, error: Exception) -> None:
        text = redact(str(error) or type(error).__name__)
        if self.connected or text != self.last_error:
            log.warning("sink %s: %s; messages wait on disk", self._settings.name, text)
        self.connected, self.last_error = False, text


async def _wait(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait for an event. Return False if the event is not set within `timeout_s` seconds."""
    try:
        return await asyncio.wait_for(event.wait(), timeout_s)
    except asyncio.TimeoutError:
        return False
