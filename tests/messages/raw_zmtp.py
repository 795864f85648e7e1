"""Client of ZMTP 3 for tests. It can send data that ZeroMQ's own sockets never send."""

from __future__ import annotations

import socket
import struct

SIGNATURE = b"\xff" + b"\0" * 8 + b"\x7f"
GREETING = SIGNATURE + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" * 32


def frame(body: bytes, flags: int = 0) -> bytes:
    """Return a ZMTP frame. `flags` is 1 if more parts follow, and 4 for a command."""
    if len(body) > 255:
        return bytes([flags | 2]) + struct.pack(">Q", len(body)) + body
    return bytes([flags, len(body)]) + body


def ready(kind: bytes) -> bytes:
    """Return the command that ends the handshake of a socket of the type `kind`, such as ``SUB``."""
    return frame(b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind, 4)


def connect(address: str, kind: bytes = b"SUB") -> socket.socket:
    """Connect to the address, and perform the handshake. Return the socket."""
    client = connect_only(address)
    client.sendall(GREETING + ready(kind))
    read(client, len(GREETING))
    read(client, read(client, 2)[1])
    return client


def connect_only(address: str) -> socket.socket:
    """Connect to the address without a handshake. Return the socket."""
    if address.startswith("ipc://"):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(10)
        client.connect(address.removeprefix("ipc://").replace("@", "\0"))
        return client
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def read(client: socket.socket, count: int) -> bytes:
    """Return the next `count` bytes. Raise `ConnectionError` if the peer closes the connection."""
    data = b""
    while len(data) < count:
        part = client.recv(count - len(data))
        if not part:
            raise ConnectionError("closed during the handshake")
        data += part
    return data


def send_until_closed(client: socket.socket, data: bytes, most: int) -> int:
    """Send `data` until the peer closes the connection or `most` bytes are sent. Return the number of sent bytes."""
    sent = 0
    try:
        while sent < most:
            sent += client.send(data)
    except OSError:
        pass
    return sent
