"""Delivery to Kafka: one topic for each kind of message, with the camera as the key."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from confluent_kafka import KafkaError, Producer

from vision.config.fields import VERIFY
from vision.outputs.sinks.delivery import TIMEOUT_S, DeliveryError, Outgoing, SinkSettings

_NEVER_ACCEPTED: Final = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG, KafkaError.INVALID_RECORD})


class KafkaConnection:
    """A producer for a Kafka cluster.

    Kafka stores each of its messages once, and the messages of each camera in order.
    """

    batch = 100
    answers_checks = True

    def __init__(self, producer: Producer, settings: SinkSettings) -> None:
        self._producer = producer
        self._prefix = ".".join(settings.prefix)

    async def send(self, messages: Sequence[Outgoing]) -> list[str]:
        """Deliver messages. Return when all in-sync replicas have stored the messages.

        Raises:
            DeliveryError: a message was not confirmed, because of a timeout or an error that can be temporary.
        """
        return await asyncio.to_thread(self._send, messages)

    async def check(self) -> None:
        """Raise `confluent_kafka.KafkaException` if no broker responds."""
        await asyncio.to_thread(self._producer.list_topics, timeout=TIMEOUT_S)

    def _send(self, messages: Sequence[Outgoing]) -> list[str]:
        errors: list[KafkaError | None] = [None] * len(messages)
        confirmed = [False] * len(messages)

        def on_delivery(index: int) -> Callable[[KafkaError | None, object], None]:
            def store(error: KafkaError | None, _message: object) -> None:
                errors[index], confirmed[index] = error, error is None

            return store

        for index, message in enumerate(messages):
            self._producer.produce(
                f"{self._prefix}.{message.kind}",
                key=message.camera,
                value=message.payload,
                headers=[("id", message.key.encode())],
                on_delivery=on_delivery(index),
            )
        self._producer.flush(TIMEOUT_S)
        refused = ["" if each is None or each.code() not in _NEVER_ACCEPTED else each.str() for each in errors]
        for index, error in enumerate(errors):
            if not confirmed[index] and not refused[index]:
                raise DeliveryError("no broker confirmed the message in time" if error is None else error.str())
        return refused

    def discard(self) -> None:
        """Discard the messages that were not confirmed. The sender resends these messages over a new connection."""
        self._producer.purge()
        self._producer.flush(0)


@asynccontextmanager
async def connect_kafka(settings: SinkSettings) -> AsyncIterator[KafkaConnection]:
    """Connect to a cluster for the duration of a `with` block.

    Raises:
        confluent_kafka.KafkaException: no broker responds.
    """
    connection = KafkaConnection(Producer(_options(settings)), settings)
    try:
        await connection.check()
        yield connection
    finally:
        connection.discard()


def _options(settings: SinkSettings) -> dict[str, Any]:
    tls, account = settings.address.tls, settings.password is not None
    security = f"{'sasl_' if account else ''}{'ssl' if tls else 'plaintext'}"
    options: dict[str, Any] = {
        "bootstrap.servers": settings.address.servers,
        "client.id": f"vision-{settings.node}-{settings.name}",
        "security.protocol": security,
        "enable.idempotence": True,
        "delivery.timeout.ms": int(TIMEOUT_S * 1000),
        "request.timeout.ms": int(TIMEOUT_S * 1000) // 2,
        "socket.timeout.ms": int(TIMEOUT_S * 1000),
        "reconnect.backoff.max.ms": 1000,
        "linger.ms": 1,
        "logger": _silent(),
    }
    if account:
        options |= {"sasl.mechanism": "PLAIN", "sasl.username": settings.user, "sasl.password": settings.password}
    if settings.tls != VERIFY:
        options["ssl.ca.location"] = settings.tls
    return options


def _silent() -> Any:
    """Return a logger without output, because `send` or `check` also raises every error."""
    logger = logging.getLogger("vision.kafka")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger
