"""WS-Discovery: search for ONVIF devices with UDP datagrams (probes), and the responses of the devices."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import unquote
from xml.etree.ElementTree import Element

import psutil

from vision.capture.onvif.documents import NAMESPACES, find_text, parse_document, printable, split_address
from vision.errors import SourceError

GROUP: Final = "239.255.255.250"
PORT: Final = 3702
MOST_DEVICES: Final = 4096

_MOST_ADDRESSES: Final = 16  # of one device
_NAME_SCOPE: Final = "onvif://www.onvif.org/name/"
_REPEATS_S: Final = (0.0, 0.3, 0.9)  # a datagram can be lost; a device ignores a datagram that it has seen
_BUFFER_BYTES: Final = 4 << 20
_TYPES: Final = (
    'xmlns:dn="http://www.onvif.org/ver10/network/wsdl"><d:Types>dn:NetworkVideoTransmitter</d:Types>',
    'xmlns:tds="http://www.onvif.org/ver10/device/wsdl"><d:Types>tds:Device</d:Types>',
)
_PROBE: Final = (
    '<?xml version="1.0" encoding="utf-8"?>'
    '<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope"'
    ' xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing"><s:Header>'
    "<a:Action>http://schemas.xmlsoap.org/ws/2005/04/discovery/Probe</a:Action>"
    "<a:MessageID>{number}</a:MessageID>"
    "<a:ReplyTo><a:Address>http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous</a:Address></a:ReplyTo>"
    "<a:To>urn:schemas-xmlsoap-org:ws:2005:04:discovery</a:To></s:Header>"
    '<s:Body><d:Probe xmlns:d="http://schemas.xmlsoap.org/ws/2005/04/discovery" {types}</d:Probe></s:Body>'
    "</s:Envelope>"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """The response of one device to a probe (a request of WS-Discovery)."""

    host: str
    """The IP address that sent the answer."""
    address: str | None
    """URL of the device service on `host`; None if the device names only other hosts."""
    elsewhere: tuple[str, ...] = ()
    """Addresses on other hosts that the device names."""
    name: str = ""
    """Name from the scopes of the device; empty if there is none."""


class _Probing(asyncio.DatagramProtocol):
    """asyncio protocol that sends probes (requests of WS-Discovery) from one socket, and collects the responses."""

    def __init__(self, answers: dict[tuple[str, str | None], Answer]) -> None:
        self._answers = answers
        self._numbers: set[str] = set()
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)  # before Python 3.12, it is no subclass

    def send(self, host: str) -> None:
        """Send one probe for each type of device to `host`."""
        assert self._transport is not None
        for types in _TYPES:
            number = f"urn:uuid:{uuid.uuid4()}"
            self._numbers.add(number)
            self._transport.sendto(_PROBE.format(number=number, types=types).encode(), (host, PORT))

    def datagram_received(self, data: bytes, sender: tuple[str, int]) -> None:
        """Store each device in a response. Ignore datagrams that do not respond to a probe of this socket."""
        with contextlib.suppress(SourceError):
            for answer in _answers(parse_document(data), sender[0], self._numbers):
                if len(self._answers) < MOST_DEVICES:
                    self._answers.setdefault((answer.host, answer.address), answer)

    def error_received(self, _error: Exception) -> None:
        """Ignore the error, because a host without WS-Discovery rejects the datagram."""


def _answers(root: Element, host: str, numbers: set[str]) -> Iterator[Answer]:
    answered = root.findtext("s:Header/a:RelatesTo", "", NAMESPACES).strip()
    if answered not in numbers and f"urn:{answered}" not in numbers:
        return
    for match in root.iterfind("s:Body/d:ProbeMatches/d:ProbeMatch", NAMESPACES):
        addresses = (match.findtext("d:XAddrs", "", NAMESPACES)).split()[:_MOST_ADDRESSES]
        own = [address for address in addresses if is_on_host(address, host)]
        yield Answer(
            host,
            own[0] if own else None,
            tuple(printable(address) for address in addresses if address not in own),
            _name(find_text(match, "d:Scopes")),
        )


def is_on_host(address: str, host: str) -> bool:
    """Return True if `address` is an HTTP or HTTPS URL without a user, and its host is the IP address `host`."""
    parts = split_address(address)
    if parts is None or parts.scheme not in ("http", "https") or parts.username is not None:
        return False
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(str(parts.hostname)) == ipaddress.ip_address(host)
    return False


def _name(scopes: str) -> str:
    names = [scope[len(_NAME_SCOPE) :] for scope in scopes.split() if scope.startswith(_NAME_SCOPE)]
    return printable(unquote(names[0])) if names else ""


async def search(timeout_s: float) -> list[Answer]:
    """Send probes by multicast on each network interface. Return the responses received within `timeout_s` seconds."""
    hosts = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET
    ]
    return await _collect(timeout_s, [(_multicast_socket, host, GROUP) for host in hosts])


async def ask_hosts(hosts: Sequence[str], timeout_s: float) -> list[Answer]:
    """Send probes to each of the IP addresses `hosts`. Return the responses that arrive within `timeout_s` seconds.

    Return as soon as all hosts have responded.
    """
    answers = await _collect(timeout_s, [(_socket, "", host) for host in hosts], expected=len(set(hosts)))
    return [answer for answer in answers if answer.host in hosts]


async def _collect(
    timeout_s: float, probes: Sequence[tuple[Callable[[str], socket.socket], str, str]], expected: int | None = None
) -> list[Answer]:
    """Send the probes. Return the responses after `timeout_s` seconds, or as soon as `expected` hosts have responded.

    Each entry of `probes` contains a function that creates a socket, the argument of the function, and the host to
    which probes are sent.
    """
    loop = asyncio.get_running_loop()
    answers: dict[tuple[str, str | None], Answer] = {}
    with contextlib.ExitStack() as resources:
        senders = []
        for make_socket, own_host, host in probes:
            with contextlib.suppress(OSError):  # an interface that cannot send multicast
                transport, sender = await loop.create_datagram_endpoint(
                    lambda: _Probing(answers), sock=make_socket(own_host)
                )
                resources.callback(transport.close)
                senders.append((sender, host))
        began_s = time.monotonic()
        for repeat_s in (*_REPEATS_S, timeout_s):
            while (wait_s := began_s + min(repeat_s, timeout_s) - time.monotonic()) > 0:
                if expected is not None and len({answer.host for answer in answers.values()}) >= expected:
                    return list(answers.values())
                await asyncio.sleep(min(wait_s, 0.05))
            for sender, host in senders if repeat_s < timeout_s else ():
                sender.send(host)
    return list(answers.values())


def _socket(host: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    sock.bind((host, 0))
    return sock


def _multicast_socket(host: str) -> socket.socket:
    sock = _socket(host)
    try:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(host))
    except OSError:
        sock.close()
        raise
    return sock
