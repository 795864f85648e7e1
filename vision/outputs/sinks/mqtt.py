"""Delivery over MQTT 3.1.1, with quality of service 1: the broker confirms each message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import aiomqtt

from vision.outputs.sinks.delivery import TIMEOUT_S, Outgoing, SinkSettings

ONLINE, OFFLINE = b"online", b"offline"
_AT_LEAST_ONCE: Final = 1
_KEEPALIVE_S: Final = 15


def availability_topic(settings: SinkSettings) -> str:
    """Return the topic that shows whether the sink is connected, with the payload ``online`` or ``offline``."""
    return "/".join([*settings.prefix, "available"])


class MqttConnection:
    """A connection to an MQTT broker. Messages about a state are retained."""

    batch = 100
    answers_checks = True

    def __init__(self, client: aiomqtt.Client, settings: SinkSettings) -> None:
        self._client = client
        self._prefix = "/".join(settings.prefix)
        self._availability = availability_topic(settings)
        self._end = asyncio.create_task(_wait_for_end(client))

    async def send(self, messages: Sequence[Outgoing]) -> list[str]:
        """Deliver messages. Return when the broker has confirmed all messages.

        Raises:
            aiomqtt.MqttError: the connection has ended, or the broker has not confirmed a message in time.
        """
        await self._until_end(asyncio.gather(*(self._publish(message) for message in messages)))
        return [""] * len(messages)

    async def check(self) -> None:
        """Publish that the sink is online. Raise `aiomqtt.MqttError` if the broker does not confirm this message."""
        await self._until_end(self._say(ONLINE))

    async def close(self) -> None:
        """Publish that the sink is offline, if the sink is still connected."""
        if not self._end.done():
            await self._until_end(self._say(OFFLINE))
        self._end.cancel()

    async def _until_end(self, call: Awaitable[object]) -> None:
        """Wait for a call to aiomqtt. Raise `aiomqtt.MqttError` if the connection ends before the call finishes.

        aiomqtt itself notices a lost connection only after its timeout.
        """
        task = asyncio.ensure_future(call)
        await asyncio.wait([task, self._end], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self._end
            raise aiomqtt.MqttError("the broker closed the connection")
        await task

    async def _publish(self, message: Outgoing) -> None:
        topic = message.topic[1:] if message.topic.startswith("/") else f"{self._prefix}/{message.topic}"
        await self._client.publish(topic, message.payload, qos=_AT_LEAST_ONCE, retain=message.is_state)

    async def _say(self, state: bytes) -> None:
        await self._client.publish(self._availability, state, qos=_AT_LEAST_ONCE, retain=True)


async def _wait_for_end(client: aiomqtt.Client) -> None:
    """Wait until the connection ends. Raise `aiomqtt.MqttError` with the reason."""
    async for _ in client.messages:  # there are none, because nothing is subscribed
        pass


@asynccontextmanager
async def connect_mqtt(settings: SinkSettings) -> AsyncIterator[MqttConnection]:
    """Connect to a broker for the duration of a `with` block. The broker publishes ``offline`` if the connection ends.

    Raises:
        aiomqtt.MqttError: the connection cannot be made.
    """
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
        try:
            await connection.check()
            yield connection
        finally:
            await connection.close()
