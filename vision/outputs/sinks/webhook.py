"""Delivery as signed HTTP requests, in the format of the Standard Webhooks specification."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import httpx

from vision.outputs.sinks.delivery import TIMEOUT_S, DeliveryError, Outgoing, SinkSettings
from vision.version import version

_NEVER_ACCEPTED: Final = frozenset({400, 413, 415, 422})
"""Status codes with which a server refuses one message. Other errors can be temporary, so the message is resent."""

_MAX_RESPONSE_BYTES: Final = 65_536


def signature(secret: str, key: str, timestamp: int, payload: bytes) -> str:
    """Return the value of the header ``webhook-signature``: an HMAC-SHA256 of the three other arguments.

    Args:
        secret: secret that the sink and the receiver share.
        key: value of the header ``webhook-id``.
        timestamp: value of the header ``webhook-timestamp``, seconds since 1970 (UTC).
        payload: body of the request.
    """
    signed = f"{key}.{timestamp}.".encode() + payload
    return f"v1,{base64.b64encode(hmac.digest(secret.encode(), signed, hashlib.sha256)).decode()}"


class WebhookConnection:
    """A client that sends one request per message."""

    batch = 1
    answers_checks = False

    def __init__(self, client: httpx.AsyncClient, settings: SinkSettings, clock: Callable[[], float]) -> None:
        address = settings.address
        self._client = client
        self._url = f"{'https' if address.tls else 'http'}://{address.servers}{address.path}"
        self._secret = settings.secret
        self._clock = clock

    async def send(self, messages: Sequence[Outgoing]) -> list[str]:
        """Send each message in its own request. Never follow a redirect.

        Raises:
            DeliveryError: the server responds with a redirect, or with an error that can be temporary.
            httpx.HTTPError: the request fails.
        """
        return [await self._post(message) for message in messages]

    async def check(self) -> None:
        """Do nothing, because a request without a message could have an effect."""

    async def _post(self, message: Outgoing) -> str:
        timestamp = int(self._clock())
        headers = {
            "content-type": "application/json",
            "webhook-id": message.key,
            "webhook-timestamp": str(timestamp),
            "x-vision-topic": message.topic,
        }
        if self._secret is not None:
            headers["webhook-signature"] = signature(self._secret, message.key, timestamp, message.payload)
        async with self._client.stream("POST", self._url, content=message.payload, headers=headers) as response:
            size = 0
            async for part in response.aiter_raw():
                size += len(part)
                if size > _MAX_RESPONSE_BYTES:
                    break
        if response.is_success:
            return ""
        if response.status_code in _NEVER_ACCEPTED:
            return f"HTTP status {response.status_code}"
        text = " (redirects are not followed)" if response.is_redirect else ""
        raise DeliveryError(f"HTTP status {response.status_code}{text}")


@asynccontextmanager
async def connect_webhook(
    settings: SinkSettings, clock: Callable[[], float] = time.time
) -> AsyncIterator[WebhookConnection]:
    """Create a client, which connects with the first request. `clock` returns the time in seconds since 1970."""
    verify = settings.tls_context()
    client = httpx.AsyncClient(
        verify=True if verify is None else verify,
        timeout=TIMEOUT_S,
        follow_redirects=False,
        trust_env=False,
        headers={"user-agent": f"vision/{version()}"},
    )
    async with client:
        yield WebhookConnection(client, settings, clock)
