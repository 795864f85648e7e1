"""Faulty subscribers: one that reads nothing, and a group that connects, sends invalid data, and disconnects."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import Final
from urllib.parse import urlsplit

import zmq

_POLITE: Final = 10  # number of real subscribers in one round of the flood
_RUDE: Final = 10  # number of connections in one round that send random bytes
_TOPICS: Final = 50  # number of topics of each real subscriber
_ROUND_S: Final = 0.2  # duration for which the connections of a round stay open


class StoppedSubscriber:
    """Subscriber to all topics that never reads, like a suspended program."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, 1)
        self._socket.setsockopt(zmq.RCVBUF, 4096)
        self._socket.subscribe("")
        self._socket.connect(address)

    def close(self) -> None:
        """Close the connection to the publisher."""
        self._context.destroy(linger=0)


class Flood:
    """Thread of faulty subscribers: it repeatedly opens many connections, sends invalid data, and disconnects."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flood", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop opening connections, close the open connections, and wait for the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        target = urlsplit(self._address)
        assert target.port is not None
        while not self._stop.is_set():
            with contextlib.ExitStack() as opened:
                context = zmq.Context()
                opened.callback(context.destroy, linger=0)
                for _ in range(_POLITE):
                    subscriber = context.socket(zmq.SUB)
                    for topic in range(_TOPICS):
                        subscriber.subscribe(f"detections/unknown-{topic}")
                    subscriber.connect(self._address)
                for _ in range(_RUDE):
                    with contextlib.suppress(OSError):  # the program refuses or closes the connection
                        connection = socket.create_connection((target.hostname, target.port), timeout=1)
                        opened.enter_context(connection)
                        connection.sendall(os.urandom(2000))
                self._stop.wait(_ROUND_S)
