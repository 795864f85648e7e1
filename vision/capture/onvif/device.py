"""Requests to one ONVIF device, for its clock, its model, its profiles, and the addresses of its streams."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Final
from urllib.parse import urlunsplit
from xml.etree.ElementTree import Element
from xml.sax.saxutils import escape

from vision.capture.onvif.documents import NAMESPACES, find_text, split_address
from vision.capture.onvif.soap import SoapClient
from vision.errors import SourceError

DEVICE_PATH: Final = "/onvif/device_service"

_MOST_PROFILES: Final = 512  # a recorder has several profiles for each of its cameras
_DEVICE: Final = f'xmlns="{NAMESPACES["tds"]}"'
_MEDIA: Final = f'xmlns="{NAMESPACES["trt"]}" xmlns:tt="{NAMESPACES["tt"]}"'
_MEDIA_2: Final = f'xmlns="{NAMESPACES["tr2"]}"'
_MEDIA_URI: Final = "trt:MediaUri/tt:Uri"


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile of a device, which describes one stream of one camera."""

    token: str
    name: str
    source: str
    """Token of the video source, which is one sensor of the device."""
    codec: str
    """Name of the codec in upper case, such as ``H264``."""
    width: int
    height: int
    fps: float | None
    """Maximum frame rate; None if the device does not state it."""
    address: str = ""
    """Address of the stream; empty if the device does not return it."""


@dataclass(slots=True)
class Device:
    """Information about one device, which `query` completes."""

    host: str
    address: str | None
    """URL of the device service; None if the device names only other hosts."""
    name: str = ""
    manufacturer: str = ""
    model: str = ""
    firmware: str = ""
    serial: str = ""
    profiles: list[Profile] = field(default_factory=list)
    problems: list[SourceError] = field(default_factory=list)
    """Errors that show why information about the device is missing; empty if nothing is missing."""


async def query(device: Device, client: SoapClient) -> None:
    """Ask a device for its model, its profiles, and their streams. Store the responses in `device`.

    Raises:
        SourceError: the device does not answer, refuses a request, returns an invalid response, or has no profile with
            video. All responses received before the error are stored nevertheless.
    """
    assert device.address is not None
    try:
        response = await client.call(device.address, f"<GetSystemDateAndTime {_DEVICE}/>", anonymous=True)
        client.clock_offset = _device_time(response) - datetime.now(timezone.utc)
    except SourceError as error:
        if error.code == "onvif-unreachable":
            raise
    info = await client.call(device.address, f"<GetDeviceInformation {_DEVICE}/>")
    device.manufacturer = find_text(info, "tds:Manufacturer")
    device.model = find_text(info, "tds:Model")
    device.firmware = find_text(info, "tds:FirmwareVersion")
    device.serial = find_text(info, "tds:SerialNumber")
    media, media_2 = await _media_addresses(device.address, client)
    if media_2:
        with contextlib.suppress(SourceError):  # the older service has the same streams
            await _query_media_2(device, media_2, client)
    if media and not device.profiles:
        await _query_media(device, media, client)
    if not device.profiles:
        raise SourceError("the device has no profile with video", code="onvif-no-profile")


def _device_time(response: Element) -> datetime:
    """Return the time of the device's clock. Raise `SourceError` if the response contains no valid time."""
    path = "tds:SystemDateAndTime/tt:UTCDateTime/tt:"
    try:
        year, month, day = (int(find_text(response, f"{path}Date/tt:{name}")) for name in ("Year", "Month", "Day"))
        hour, minute, second = (
            int(find_text(response, f"{path}Time/tt:{name}")) for name in ("Hour", "Minute", "Second")
        )
        return datetime(year, month, day, hour, minute, min(second, 59), tzinfo=timezone.utc)
    except (ValueError, OverflowError) as error:
        raise SourceError(f"expected the time of the device: {error}", code="onvif-xml") from error


async def _media_addresses(address: str, client: SoapClient) -> tuple[str, str]:
    """Ask the device service at `address` for the addresses of the media services of versions 1 and 2. Return both.

    Return "" for a missing or invalid address.
    """
    try:
        response = await client.call(
            address, f"<GetServices {_DEVICE}><IncludeCapability>false</IncludeCapability></GetServices>"
        )
    except SourceError as error:
        if error.code not in ("onvif-fault", "onvif-http"):
            raise
        return await _media_from_capabilities(address, client), ""
    found = {
        find_text(service, "tds:Namespace"): find_text(service, "tds:XAddr")
        for service in response.iterfind("tds:Service", NAMESPACES)
    }
    media, media_2 = (found.get(NAMESPACES[name], "") for name in ("trt", "tr2"))
    return on_same_host(media, address), on_same_host(media_2, address)


async def _media_from_capabilities(address: str, client: SoapClient) -> str:
    response = await client.call(address, f"<GetCapabilities {_DEVICE}><Category>Media</Category></GetCapabilities>")
    return on_same_host(find_text(response, "tds:Capabilities/tt:Media/tt:XAddr"), address)


def on_same_host(service: str, device: str) -> str:
    """Return the address `service`. If it contains a different host or a user, use the host and port of `device`.

    Both arguments are URLs. If either URL is invalid, return an empty string.

    A device behind a router names its address in the network behind the router, which this machine cannot reach. A
    hostile device can name a host that only this machine can reach.
    """
    parts, own = split_address(service), split_address(device)
    if parts is None or own is None or parts.scheme not in ("http", "https"):
        return ""
    if parts.hostname == own.hostname and parts.username is None:
        return service
    return urlunsplit((own.scheme, own.netloc, parts.path, parts.query, ""))


async def _query_media_2(device: Device, address: str, client: SoapClient) -> None:
    wanted = "<Type>VideoSource</Type><Type>VideoEncoder</Type>"
    response = await client.call(address, f"<GetProfiles {_MEDIA_2}>{wanted}</GetProfiles>")
    for profile in _profiles(response, "tr2:Profiles", "tr2:Name", "tr2:Configurations/tr2:{}"):
        request = (
            f"<GetStreamUri {_MEDIA_2}><Protocol>RTSP</Protocol>"
            f"<ProfileToken>{escape(profile.token)}</ProfileToken></GetStreamUri>"
        )
        await _add(device, profile, client.call(address, request))


async def _query_media(device: Device, address: str, client: SoapClient) -> None:
    response = await client.call(address, f"<GetProfiles {_MEDIA}/>")
    for profile in _profiles(response, "trt:Profiles", "tt:Name", "tt:{}Configuration"):
        request = (
            f"<GetStreamUri {_MEDIA}><StreamSetup><tt:Stream>RTP-Unicast</tt:Stream>"
            "<tt:Transport><tt:Protocol>RTSP</tt:Protocol></tt:Transport></StreamSetup>"
            f"<ProfileToken>{escape(profile.token)}</ProfileToken></GetStreamUri>"
        )
        await _add(device, profile, client.call(address, request))


async def _add(device: Device, profile: Profile, response: Awaitable[Element]) -> None:
    """Add `profile` to `device.profiles`, with the address of its stream from `response`.

    If `response` contains no valid address, add the profile without an address, and the reason to `device.problems`.

    Raises:
        SourceError: the device does not answer or refuses the account, or the response is an HTTP error, too large, or
            hostile. The profile and the reason are stored.
    """
    try:
        document = await response
        uri = document.findtext("tr2:Uri", "", NAMESPACES) or document.findtext(_MEDIA_URI, "", NAMESPACES)
        parts = split_address(uri.strip())
        if parts is None or parts.scheme not in ("rtsp", "rtsps", "http", "https"):
            raise SourceError(f"profile {profile.name}: expected the address of a stream", code="onvif-xml")
        device.profiles.append(replace(profile, address=uri.strip()))
    except SourceError as error:
        device.profiles.append(profile)
        device.problems.append(error)
        if error.code not in ("onvif-fault", "onvif-xml"):
            raise


def _profiles(response: Element, path: str, name: str, configuration: str) -> Iterator[Profile]:
    """Yield those profiles in the response of a media service that have a video encoder.

    `path`, `name`, and `configuration` are paths of XML elements. These paths depend on the version of the media
    service.
    """
    for element in response.findall(path, NAMESPACES)[:_MOST_PROFILES]:
        encoder = element.find(configuration.format("VideoEncoder"), NAMESPACES)
        source = element.find(configuration.format("VideoSource"), NAMESPACES)
        if encoder is None:
            continue
        yield Profile(
            element.get("token", ""),
            find_text(element, name),
            "" if source is None else find_text(source, "tt:SourceToken"),
            find_text(encoder, "tt:Encoding").upper(),
            int(_number(find_text(encoder, "tt:Resolution/tt:Width")) or 0),
            int(_number(find_text(encoder, "tt:Resolution/tt:Height")) or 0),
            _number(find_text(encoder, "tt:RateControl/tt:FrameRateLimit")),
        )


def _number(text: str) -> float | None:
    """Return the number in a text, or None if the text is not a number from 0 to 100,000."""
    with contextlib.suppress(ValueError):
        value = float(text)
        return value if 0 <= value <= 100_000 else None
    return None
