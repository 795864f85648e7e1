"""Delivery to NATS JetStream. Each message has an id, by which JetStream ignores repetitions for some time."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import nats
from nats.aio.client import Client
from nats.errors import MaxPayloadError
from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from nats.js.errors import NotFoundError

from vision.outputs.sinks.delivery import TIMEOUT_S, Outgoing, SinkSettings

_MAX_STREAM_BYTES: Final = 1_000_000_000
_REPETITION_S: Final = 120.0
"""Time in seconds for which a stream that the program creates recognizes repetitions."""


class NatsConnection:
    """Interface `Connection` for a NATS server with JetStream: it publishes each message under a subject."""

    batch = 100
    answers_checks = True

    def __init__(self, client: Client, stream: JetStreamContext, settings: SinkSettings) -> None:
        self._client = client
        self._stream = stream
        self._prefix = ".".join(settings.prefix)

    async def send(self, messages: Sequence[Outgoing]) -> list[str]:
        """Deliver messages one after another.

        For each message, return "", or the reason if it is too large for the server. If messages were sent together,
        they could be stored in the wrong order: while a cluster elects a leader, the cluster could confirm a message,
        but not the message before it.
        """
        return [await self._publish(message) for message in messages]

    async def check(self) -> None:
        """Raise an exception if the server does not respond."""
        await self._client.flush(int(TIMEOUT_S))

    async def _publish(self, message: Outgoing) -> str:
        subject = f"{self._prefix}.{message.topic.replace('/', '.')}"
        try:
            await self._stream.publish(subject, message.payload, TIMEOUT_S, headers={"Nats-Msg-Id": message.key})
        except MaxPayloadError:
            return f"{len(message.payload)} bytes are too large for the server"
        return ""


@asynccontextmanager
async def connect_nats(settings: SinkSettings) -> AsyncIterator[NatsConnection]:
    """Connect to a server for the duration of a `with` block. If no stream contains the subjects, create one."""
    scheme = "tls" if settings.address.tls else "nats"
    client = await nats.connect(
        f"{scheme}://{settings.address.servers}",
        name=f"vision {settings.node} {settings.name}",
        user=settings.user,
        password=settings.password,
        tls=settings.tls_context(),
        connect_timeout=int(TIMEOUT_S),
        allow_reconnect=False,
        max_reconnect_attempts=0,
        error_cb=_ignore,
    )
    try:
        stream = client.jetstream(timeout=TIMEOUT_S)
        await _ensure_stream(stream, settings)
        yield NatsConnection(client, stream, settings)
    finally:
        with suppress(Exception):
            await client.close()


async def _ensure_stream(stream: JetStreamContext, settings: SinkSettings) -> None:
    subjects = f"{'.'.join(settings.prefix)}.>"
    try:
        await stream.find_stream_name_by_subject(subjects)
    except NotFoundError:
        config = StreamConfig(
            name=re.sub("[^A-Za-z0-9_-]", "-", "-".join(settings.prefix)),
            subjects=[subjects],
            max_bytes=_MAX_STREAM_BYTES,
            duplicate_window=_REPETITION_S,
        )
        await stream.add_stream(config)


async def _ignore(_error: Exception) -> None:
    """Ignore an error that the NATS client reports in the background, because the failed call also raises it."""
