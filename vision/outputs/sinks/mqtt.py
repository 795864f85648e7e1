"""Delivery over MQTT 3.1.1, with quality of service 1: the broker confirms each message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import aiomqtt

from vision.outputs.sinks.delivery import TIMEOUT_S, Outgoing, SinkSettings

ONLINE, OFFLINE = b"online", b"offline"
_AT_LEAST_ONCE: Final = 1
_KEEPALIVE_S: Final = 15


def availability_topic(settings: SinkSettings) -> str:
    """Return the topic that contains ``online`` or ``offline``."""
    return "/".join([*settings.prefix, "available"])


class MqttConnection:
    """A connection to an MQTT broker. Messages about a state are retained."""

    batch = 100

    def __init__(self, client: aiomqtt.Client, settings: SinkSettings) -> None:
        self._client = client
        self._prefix = "/".join(settings.prefix)
        self._availability = availability_topic(settings)

    async def send(self, messages: Sequence[Outgoing]) -> list[str]:
        """Deliver messages in order."""
        await asyncio.gather(*(self._publish(message) for message in messages))
        return [""] * len(messages)

    async def check(self) -> None:
        """Publish that the sink is online."""
        await self._client.publish(self._availability, ONLINE, qos=_AT_LEAST_ONCE, retain=True)

    async def _publish(self, message: Outgoing) -> None:
        topic = message.topic[1:] if message.topic.startswith("/") else f"{self._prefix}/{message.topic}"
        await self._client.publish(topic, message.payload, qos=_AT_LEAST_ONCE, retain=message.is_state)


@asynccontextmanager
async def connect_mqtt(settings: SinkSettings) -> AsyncIterator[MqttConnection]:
    """Connect to a broker, which publishes ``offline`` if the connection is lost."""
    host, port = settings.address.hosts[0]
    will = aiomqtt.Will(availability_topic(settings), OFFLINE, qos=_AT_LEAST_ONCE, retain=True)
    client = aiomqtt.Client(
        host,
        port,
        username=settings.user,
        password=settings.password,
        identifier=f"vision-{settings.node}-{settings.name}",
        protocol=aiomqtt.ProtocolVersion.V311,
        will=will,
        timeout=TIMEOUT_S,
        keepalive=_KEEPALIVE_S,
        tls_context=settings.tls_context(),
    )
    async with client:
        connection = MqttConnection(client, settings)
        await connection.check()
        yield connection
        await client.publish(availability_topic(settings), OFFLINE, qos=_AT_LEAST_ONCE, retain=True)
