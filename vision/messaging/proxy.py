"""`Proxy`, which merges the messages of several processes in one public socket.

The thread of the proxy runs in C, without the GIL. Subscriptions travel in the opposite direction, so a process sends
only the messages to which a client has subscribed.
"""

from __future__ import annotations

import os
import secrets
import threading
from typing import Final

import zmq

from vision.messaging.sockets import BoundSocket

_QUIET_MS: Final = 20  # time without a message from any process after which all messages have arrived

FIRST_SUBSCRIPTION: Final = b"vision"
"""Topic to which the proxy always subscribes.

In sorted order, this topic follows the topics of messages, and ZeroMQ sends subscriptions in sorted order. Therefore, a
process that has received this subscription has received all subscriptions.
"""

_END: Final = b"TERMINATE"  # defined by ZeroMQ


class Proxy:
    """Thread that forwards the messages of other processes to the subscribers of `bound`.

    Attributes:
        zmq: socket of this process, connected to the proxy.
        address: public address.
        internal_address: address at which subscribers of this user reach the public socket, as in `BoundSocket`.
        private: address to which other processes of this user connect. ZeroMQ refuses the processes of other users.
    """

    def __init__(self, bound: BoundSocket, *, queue: int) -> None:
        """Start the thread. `queue` is the maximum number of messages that wait in one process."""
        self._bound = bound
        self.address, self.internal_address = bound.address, bound.internal_address
        self.private = f"ipc://@vision-{secrets.token_hex(16)}"  # abstract, so that no file can stay behind
        self._front = bound.second(zmq.XSUB)
        self._front.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
        self._front.setsockopt(zmq.RCVHWM, queue)
        self._front.bind(self.private)
        inner = f"inproc://{secrets.token_hex(8)}"
        bound.zmq.bind(inner)
        self._first = bound.second(zmq.SUB)
        self._first.subscribe(FIRST_SUBSCRIPTION)
        self._first.connect(inner)
        self._context = zmq.Context()
        name = f"inproc://{secrets.token_hex(8)}"
        self._inner, self._control = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._inner.bind(name)
        self._control.connect(name)
        self.zmq = connect(self._context, self.private, queue=queue)
        self._thread = threading.Thread(target=self._forward, name="proxy", daemon=True)
        self._thread.start()

    def counters(self) -> dict[str, int]:
        """Return the counters of the public port, such as refused connections, by name."""
        return self._bound.counters()

    def close(self, linger_s: float) -> None:
        """Forward the remaining messages, free the address, and wait up to `linger_s` seconds for messages to be sent.

        Before the call, close the sockets that other processes have connected to the proxy.
        """
        self.zmq.close(linger=int(linger_s * 1000))
        self._control.send(_END)
        self._thread.join()
        self._control.close()
        self._inner.close()
        self._context.term()
        self._front.close(linger=0)
        self._first.close(linger=0)
        self._bound.close(linger_s)

    def _forward(self) -> None:
        zmq.proxy_steerable(self._front, self._bound.zmq, None, self._inner)
        while self._front.poll(_QUIET_MS):
            self._bound.zmq.send_multipart(self._front.recv_multipart())


def connect(context: zmq.Context[zmq.Socket[bytes]], private: str, *, queue: int) -> zmq.Socket[bytes]:
    """Return a socket that sends messages to the proxy at the address `private`, and that receives subscriptions."""
    sock: zmq.Socket[bytes] = context.socket(zmq.XPUB)
    sock.setsockopt(zmq.XPUB_VERBOSE, 1)
    sock.setsockopt(zmq.SNDHWM, queue)
    sock.connect(private)
    return sock
