"""Types that the parts of a sink share: the messages, the settings, and the connection to the far side.

The *far side* of a sink is the broker or the server that receives the messages.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from vision.config.sinks import SinkAddress, parse_sink_address
from vision.config.tls import tls_context

TIMEOUT_S: Final = 10.0
"""Timeout in seconds of a connection, a delivery, or a check."""

MAX_PAYLOAD_BYTES: Final = 900_000
"""Maximum size of a message in bytes. NATS and Kafka refuse messages of more than about 1 MB by default."""

MAX_BATCH_BYTES: Final = 4_000_000
"""Approximate maximum size in bytes of the messages that are stored or delivered together, to limit the memory."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message that a sink sends to its broker or server, with its topic and its key."""

    key: str  # the same for each repetition of the message
    topic: str  # such as ``events/gate``; a topic that starts with a slash is complete and gets no prefix
    payload: bytes
    number: int = 0  # position in the spool
    is_state: bool = False  # True if a newer message of the topic replaces this one

    @property
    def kind(self) -> str:
        """The first part of the topic, such as ``events``."""
        return self.topic.partition("/")[0]

    @property
    def camera(self) -> str:
        """The part of the topic after the kind."""
        return self.topic.partition("/")[2]


@dataclass(frozen=True, slots=True)
class SinkSettings:
    """The settings that a connection to the broker or server of one sink needs, such as its address and its account."""

    name: str
    address: SinkAddress
    node: str
    prefix: tuple[str, ...]  # the parts of the prefix
    user: str | None
    password: str | None
    secret: str | None
    tls: str  # ``verify``, or the path of a file with certificates

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> SinkSettings:
        """Return the settings of a sink from the options that `SinkProcess` sends to the process of this sink."""
        return cls(
            name=options["name"],
            address=parse_sink_address(options["sink"]),
            node=options["node"],
            prefix=tuple(options["prefix"].split("/")),
            user=options["user"],
            password=options["password"],
            secret=options["secret"],
            tls=options["tls"],
        )

    def tls_context(self) -> ssl.SSLContext | None:
        """Return a context that checks certificates, or None if TLS is off. Raise `OSError` if a file is unreadable."""
        if not self.address.tls:
            return None
        return tls_context(self.tls)


class DeliveryError(Exception):
    """The broker or server refused or did not confirm a delivery. The sender retries the delivery."""


class Connection(Protocol):
    """Interface of a connection to the broker or server (the far side) that receives the messages of a sink."""

    batch: int
    """Maximum number of messages in one call to `send`."""
    answers_checks: bool
    """True if `check` fails when the far side does not respond. False if `check` does nothing."""

    async def send(self, messages: Sequence[Outgoing]) -> list[str]:
        """Deliver messages in order. Return when the far side has confirmed all messages.

        Returns:
            For each message, the reason why the far side will never accept it, or an empty string if it was delivered.

        Raises:
            Exception: the messages were not confirmed. All messages are resent.
        """

    async def check(self) -> None:
        """Raise an exception if the broker or server does not respond. If `answers_checks` is False, do nothing."""


Connect: TypeAlias = Callable[[SinkSettings], AbstractAsyncContextManager[Connection]]


@asynccontextmanager
async def connect(settings: SinkSettings) -> AsyncIterator[Connection]:
    """Connect to the broker or server of a sink with the library of its protocol. Disconnect after the block."""
    async with _connect_function(settings)(settings) as connection:
        yield connection


def _connect_function(settings: SinkSettings) -> Connect:
    if settings.address.protocol == "mqtt":
        from vision.outputs.sinks.mqtt import connect_mqtt

        return connect_mqtt
    if settings.address.protocol == "kafka":
        from vision.outputs.sinks.kafka import connect_kafka

        return connect_kafka
    if settings.address.protocol == "redis":
        from vision.outputs.sinks.redis_streams import connect_redis

        return connect_redis
    if settings.address.protocol == "nats":
        from vision.outputs.sinks.nats_jetstream import connect_nats

        return connect_nats
    from vision.outputs.sinks.webhook import connect_webhook

    return connect_webhook
