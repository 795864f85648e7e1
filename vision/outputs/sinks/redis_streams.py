"""Delivery to Redis Streams: one stream for each kind of message."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from vision.config.fields import VERIFY
from vision.outputs.sinks.delivery import TIMEOUT_S, Outgoing, SinkSettings

_MAX_LENGTH: Final = 100_000
"""Approximate maximum number of messages of a stream. Redis deletes older messages."""


class RedisConnection:
    """Interface `Connection` for a Redis server: it adds each message to the stream of its kind."""

    batch = 100
    answers_checks = True

    def __init__(self, client: Redis, settings: SinkSettings) -> None:
        self._client = client
        self._prefix = ":".join(settings.prefix)

    async def send(self, messages: Sequence[Outgoing]) -> list[str]:
        """Add messages to their streams in one transaction. Raise `redis.RedisError` if the transaction fails."""
        async with self._client.pipeline(transaction=True) as pipeline:
            for message in messages:
                entry: dict[str | bytes, str | bytes] = {
                    "id": message.key,
                    "topic": message.topic,
                    "payload": message.payload,
                }
                stream = f"{self._prefix}:{message.kind}"
                pipeline.xadd(stream, entry, maxlen=_MAX_LENGTH, approximate=True)  # type: ignore[arg-type]
            await pipeline.execute()
        return [""] * len(messages)

    async def check(self) -> None:
        """Raise an exception if the server does not respond."""
        await self._client.ping()


@asynccontextmanager
async def connect_redis(settings: SinkSettings) -> AsyncIterator[RedisConnection]:
    """Connect to a server for the duration of a `with` block.

    Raise `redis.RedisError` if the server does not respond.
    """
    host, port = settings.address.hosts[0]
    tls: dict[str, Any] = {}
    if settings.address.tls:
        tls["ssl_ca_certs"] = None if settings.tls == VERIFY else settings.tls
        tls["ssl_exclude_verify_flags"] = [ssl.VERIFY_X509_STRICT]  # as in `vision.config.tls`
    client = Redis(
        host=host,
        port=port,
        db=int(settings.address.path),
        username=settings.user,
        password=settings.password,
        ssl=settings.address.tls,
        ssl_check_hostname=settings.address.tls,
        retry=Retry(NoBackoff(), 0),  # the sender sends again
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        **tls,
    )
    try:
        connection = RedisConnection(client, settings)
        await connection.check()
        yield connection
    finally:
        await client.aclose()
