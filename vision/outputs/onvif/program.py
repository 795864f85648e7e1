"""The process that subscribes to the program, and serves its results as ONVIF metadata over RTSP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from vision.client import Item, Subscription
from vision.messaging.curve import KeyPair
from vision.messaging.helper_process import show_life
from vision.messaging.schema import (
    REMOVED,
    CameraStatusMessage,
    CountsMessage,
    DetectionsMessage,
    EventMessage,
    Kind,
)
from vision.messaging.times import utc_ns
from vision.outputs.onvif.metadata import counts_document, event_document, frame_document
from vision.outputs.onvif.server import MetadataServer

_IN_FLIGHT: Final = 256  # documents between the two threads
_LIFE_S: Final = 1.0


class Documents:
    """Converter of messages to ONVIF documents.

    The conversion runs in the subscription's thread. The server's thread sends the documents.
    """

    def __init__(self, account: tuple[str, str] | None, cameras: tuple[str, ...]) -> None:
        """Create the server. `cameras` are the ids of the initial cameras. `MetadataServer` describes `account`."""
        self.server = MetadataServer(account, cameras, self.greeting)
        self._counts: dict[str, CountsMessage] = {}
        self._slots = threading.BoundedSemaphore(_IN_FLIGHT)

    def greeting(self, camera: str) -> tuple[bytes, int] | None:
        """Return the document with the current counts of a camera, and the time of the counts in ns since 1970 (UTC).

        Return None before the first counts have arrived.
        """
        counts = self._counts.get(camera)
        return None if counts is None else (counts_document(counts), utc_ns(counts.at))

    def follow(self, subscription: Subscription, loop: asyncio.AbstractEventLoop) -> None:
        """Receive messages until the subscription ends.

        At most `_IN_FLIGHT` documents wait for the server's thread. If that thread is too slow, this method waits, and
        the subscription loses messages.
        """
        for item in subscription.items():
            action = self.action(item)
            if action is not None:
                self._slots.acquire()
                loop.call_soon_threadsafe(self._run, action)

    def _run(self, action: Callable[[], None]) -> None:
        self._slots.release()
        action()

    def action(self, item: Item) -> Callable[[], None] | None:
        """Return the function with which the server's thread processes a received message.

        Return None if the message does not concern the server.
        """
        server = self.server
        if isinstance(item, CameraStatusMessage):
            camera = item.camera
            if item.state == REMOVED:
                self._counts.pop(camera, None)
                return lambda: server.remove_camera(camera)
            return lambda: server.add_camera(camera)
        if isinstance(item, CountsMessage):
            is_first = item.camera not in self._counts
            self._counts[item.camera] = item
            if is_first and item.camera in server.watched:  # these clients had no greeting
                return self._delivery(item.camera, counts_document(item), item.at)
        elif isinstance(item, DetectionsMessage) and item.camera in server.watched:
            return self._delivery(item.camera, frame_document(item), item.captured_at)
        elif isinstance(item, EventMessage) and item.camera in server.watched:
            document = event_document(item)
            return None if document is None else self._delivery(item.camera, document, item.at)
        return None

    def _delivery(self, camera: str, document: bytes, at: str) -> Callable[[], None]:
        when_ns = utc_ns(at)
        return lambda: self.server.deliver(camera, document, when_ns)


def _follow(documents: Documents, subscription: Subscription, loop: asyncio.AbstractEventLoop) -> None:
    with contextlib.suppress(Exception), subscription:  # the program has ended
        documents.follow(subscription, loop)
    os._exit(1)  # the program starts this process again


def _wait_for_end() -> None:
    sys.stdin.read()
    os._exit(0)


async def _show_life() -> None:
    while True:
        show_life()
        await asyncio.sleep(_LIFE_S)


def serve(options: Mapping[str, Any]) -> None:
    """Serve clients until standard input closes or the subscription fails. Then end the process.

    `vision.outputs.onvif.process.MetadataProcess` creates the `options`.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the program ends this process
        signal.signal(number, signal.SIG_IGN)
    keys = KeyPair(*options["keys"]) if options["keys"] else None
    account = tuple(options["account"]) if options["account"] else None
    documents = Documents(account, tuple(options["cameras"]))
    kinds: Sequence[Kind] = ("detections", "events", "counts", "status")
    subscription = Subscription(options["address"], kinds=kinds, key=keys, silence_s=1e6)
    listener = socket.socket(fileno=options["listener"])

    async def run() -> None:
        loop = asyncio.get_running_loop()
        threading.Thread(target=_follow, args=(documents, subscription, loop), daemon=True).start()
        threading.Thread(target=_wait_for_end, daemon=True).start()
        await asyncio.gather(documents.server.serve(listener), _show_life())

    asyncio.run(run())


def main() -> None:
    """Run the process. The first line of standard input contains the options as JSON."""
    serve(json.loads(sys.stdin.readline()))
