"""Search for ONVIF cameras, and choice of the stream in which to detect objects."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlunsplit

import httpx

from vision.capture.onvif.device import DEVICE_PATH, Device, Profile, query
from vision.capture.onvif.discovery import ask_hosts, search
from vision.capture.onvif.documents import split_address
from vision.capture.onvif.soap import Account, SoapClient
from vision.errors import SourceError, redact

CODECS: Final = ("H264", "H265", "JPEG")
"""Codecs that `vision` can read over RTSP."""

_QUERIES: Final = 64
"""Maximum number of devices to which requests are sent at the same time."""


@dataclass(frozen=True, slots=True)
class Target:
    """The host and port of a device that the user has named."""

    host: str
    port: int | None = None
    """HTTP port of the device. If it is None, the port is found with WS-Discovery; without an answer, it is 80."""


@dataclass(frozen=True, slots=True)
class Camera:
    """One video source of a device, with its streams."""

    id: str
    """Suggested id for camera.yaml. No other camera of the search has the same id."""
    profiles: tuple[Profile, ...]
    preferred: Profile | None
    """The best stream for the detector; None if `vision` can read none of the streams."""


def find_devices(targets: Sequence[Target], timeout_s: float, account: Account | None) -> list[Device]:
    """Search for devices, and ask each of them for its profiles and streams. Return the devices.

    If a device does not answer completely, the reasons are in `Device.problems`.

    Args:
        targets: devices to ask. If the sequence is empty, all devices that respond to a multicast are asked.
        timeout_s: time in seconds to wait for responses to the search, and to wait for all responses of one device.
        account: account on the devices, or None if there is none.

    Raises:
        SourceError: a host in `targets` is neither a name that can be resolved nor an IPv4 address.
    """
    return asyncio.run(_find_devices(targets, timeout_s, account))


async def _find_devices(targets: Sequence[Target], timeout_s: float, account: Account | None) -> list[Device]:
    devices = await (_targeted(targets, timeout_s) if targets else _searched(timeout_s))
    slots = asyncio.Semaphore(_QUERIES)
    # Cameras sign their certificates themselves. The requests contain no password, only digests of it.
    context = httpx.create_ssl_context(verify=False)
    asked = [device for device in devices if device.address is not None]
    await asyncio.gather(*(_ask(device, account, timeout_s, context, slots) for device in asked))
    return devices


async def _ask(
    device: Device, account: Account | None, timeout_s: float, context: ssl.SSLContext, slots: asyncio.Semaphore
) -> None:
    """Query a device, and store its responses in `device`. Add reasons for missing responses to `device.problems`.

    `context` is the TLS context for the connection. `slots` limits how many devices are queried at the same time.
    """
    # Many devices close the connection after a response without announcing it. Another request over it would fail.
    limits = httpx.Limits(max_keepalive_connections=0)
    async with slots, httpx.AsyncClient(verify=context, trust_env=False, timeout=timeout_s, limits=limits) as http:
        try:
            await asyncio.wait_for(query(device, SoapClient(http, account)), timeout_s)
        except asyncio.TimeoutError:
            text = f"the answers of the device took more than {timeout_s:g} s"
            device.problems.append(SourceError(text, hint="increase --timeout", code="onvif-slow"))
        except SourceError as error:
            if error not in device.problems:
                device.problems.append(error)


async def _searched(timeout_s: float) -> list[Device]:
    devices = []
    found = await search(timeout_s)
    for answer in sorted(found, key=lambda answer: (socket.inet_aton(answer.host), answer.address or "")):
        device = Device(answer.host, answer.address, answer.name)
        if answer.address is None:
            text = f"the device names only addresses on other hosts: {' '.join(answer.elsewhere) or 'none'}"
            hint = "if you trust them: vision cameras find ADDRESS"
            device.problems.append(SourceError(text, hint=hint, code="onvif-elsewhere"))
        devices.append(device)
    return devices


async def _targeted(targets: Sequence[Target], timeout_s: float) -> list[Device]:
    hosts = {target.host: await _resolve(target.host) for target in targets}
    unknown_ports = [hosts[target.host] for target in targets if target.port is None]
    answers = await ask_hosts(unknown_ports, timeout_s) if unknown_ports else []
    devices: dict[tuple[str, str], Device] = {}
    for target in targets:
        host = hosts[target.host]
        own = [answer for answer in answers if answer.host == host and answer.address and target.port is None]
        default = f"http://{host}:{target.port or 80}{DEVICE_PATH}"
        for address, name in [(str(answer.address), answer.name) for answer in own] or [(default, "")]:
            devices.setdefault((host, address), Device(host, address, name))
    return list(devices.values())


async def _resolve(host: str) -> str:
    """Return the IPv4 address of a host. Raise `SourceError` if it has none."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, None, family=socket.AF_INET, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise SourceError(
            f"expected the name or IPv4 address of a host, got {host!r}: {error}", code="no-host"
        ) from error
    return str(found[0][4][0])


def cameras_of(devices: Iterable[Device], input_px: tuple[int, int]) -> list[tuple[Device, list[Camera]]]:
    """Return the cameras of each device, one for each video source.

    `input_px` is the width and height of the detector's input in px, for the choice of the preferred stream.
    """
    ids: set[str] = set()
    return [(device, list(_cameras(device, input_px, ids))) for device in devices]


def _cameras(device: Device, input_px: tuple[int, int], ids: set[str]) -> Iterator[Camera]:
    by_source: dict[str, list[Profile]] = {}
    for profile in device.profiles:
        by_source.setdefault(profile.source, []).append(profile)
    for profiles in by_source.values():
        name = _unused(_identifier(device.name) or _identifier(f"camera-{device.host}"), ids)
        ids.add(name)
        yield Camera(name, tuple(profiles), preferred_profile(profiles, input_px))


def preferred_profile(profiles: Iterable[Profile], input_px: tuple[int, int]) -> Profile | None:
    """Return the smallest stream that is at least as wide or at least as high as the detector's input.

    If all streams are narrower and lower, return the largest stream. Ignore streams that `vision` cannot read. If no
    stream is left, return None. `input_px` is the width and height of the input in px.

    It is enough that one side of the stream reaches the size of the input, because frames are scaled to fit into the
    input. A larger stream costs time for decoding, but adds no detail.
    """
    usable = [each for each in profiles if each.codec in CODECS and each.address]
    large = [each for each in usable if each.width >= input_px[0] or each.height >= input_px[1]]
    if large:
        return min(large, key=lambda each: each.width * each.height)
    return max(usable, key=lambda each: each.width * each.height, default=None)


def _identifier(text: str) -> str:
    """Convert a text to an id with at most 48 characters. The id is empty if the text has no ASCII letter or digit."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")[:48].strip("-")


def _unused(name: str, taken: set[str]) -> str:
    number = 1
    unused = name
    while unused in taken or unused == "node":
        number += 1
        unused = f"{name}-{number}"
    return unused


def camera_section(
    device: Device, camera: Camera, account: Account | None, variable: str
) -> tuple[Mapping[str, Any] | None, SourceError | None]:
    """Return the settings of a camera for camera.yaml and None, or None and the reason why there are no settings.

    If the camera has no preferred stream, return None and None. There are no settings if the stream is on a different
    host than the device, or if its address contains an account. In the settings, the password of `account` is a
    reference to the environment variable `variable`.
    """
    if camera.preferred is None:
        return None, None
    parts = split_address(camera.preferred.address)
    assert parts is not None  # `query` has checked the address
    if parts.hostname != device.host:
        text = f"profile {camera.preferred.name}: the stream is on a different host, {parts.hostname}"
        hint = "if you trust this host, write the address into camera.yaml"
        return None, SourceError(text, hint=hint, code="onvif-stream-elsewhere")
    # A device must not choose an environment variable whose value is then sent to it.
    host = parts.netloc.rpartition("@")[2]
    source = urlunsplit(parts._replace(netloc=host)).replace("$", "%24")
    if account is not None:
        for secret in {account.password, quote(account.password, safe="")}:
            source = re.sub(rf"(?<==){re.escape(secret)}(?=[&#;]|$)", lambda _: f"${{{variable}}}", source)
    if redact(source.replace(f"${{{variable}}}", "")) != source.replace(f"${{{variable}}}", ""):
        text = f"profile {camera.preferred.name}: the address of the stream contains an account"
        hint = "write the address into camera.yaml, with ${NAME} for the password"
        return None, SourceError(text, hint=hint, code="onvif-stream-account")
    section: dict[str, Any] = {"id": camera.id, "source": source}
    if account is not None:
        section |= {"user": account.user, "password": f"${{{variable}}}"}
    return section, None
