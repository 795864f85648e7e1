"""Parser of the address of a camera's source, with one type for each kind of source.

The parser opens no device, looks up no host, and reads no file. It registers the password of a URL as a secret. Readers
open `CameraConfig.address`, which in addition distinguishes folders from files, and contains the camera's user and
password.
"""

from __future__ import annotations

import ipaddress
import re
from base64 import b64encode
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import quote, unquote

from vision.config.wording import UNPRINTABLE, InvalidValue, did_you_mean
from vision.errors import register_secret


@dataclass(frozen=True, slots=True)
class Rtsp:
    """A network camera that uses RTSP. The URL can contain a user and a password."""

    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Http:
    """A network camera that uses HTTP, for a stream or snapshots. The URL can contain a user and a password."""

    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Csi:
    """A camera on a CSI connector, identified by the number of its sensor."""

    sensor: int


@dataclass(frozen=True, slots=True)
class Usb:
    """A USB camera, identified by its Video4Linux device file."""

    device: str


@dataclass(frozen=True, slots=True)
class File:
    """A video file or an image file."""

    path: Path


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of images."""

    path: Path


@dataclass(frozen=True, slots=True)
class Synthetic:
    """A synthetic camera. `text` is its whole address: ``synthetic:``, followed by options."""

    text: str


SourceAddress: TypeAlias = Rtsp | Http | Csi | Usb | File | Folder | Synthetic

NETWORK: Final = (Rtsp, Http)
"""Types of sources that can need a user and a password."""

RECORDED: Final = (File, Folder, Synthetic)
"""Types of sources that need neither a camera nor a network."""

SOURCE_FORMS: Final = (
    "an rtsp://, rtsps://, http:// or https:// address, a file, a folder, /dev/videoN, csi:N or synthetic:"
)

_SCHEMES: Final[dict[str, type[Rtsp | Http]]] = {"rtsp": Rtsp, "rtsps": Rtsp, "http": Http, "https": Http}
_URL_PREFIXES: Final = [f"{scheme}://" for scheme in _SCHEMES]
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_WORD = re.compile(r"(?P<word>[A-Za-z][A-Za-z0-9+.-]*):(?P<rest>.*)", re.DOTALL)
_DEVICE = re.compile(r"/dev/(?:video[0-9]{1,3}|v4l/by-(?:id|path)/[^/]+)")
_UNPRINTABLE_OR_SPACE = re.compile("[\x00-\x20\x7f-\xa0]")
_NO_SCHEME = re.compile(r"(?:[^/@]*@)?(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?::[0-9]*)?|[A-Za-z0-9.-]+:[0-9]{2,5})(?:/.*)?")

# The syntax of RFC 3986, section 3.2, which is stricter than FFmpeg and GStreamer. `vision.errors.redact` recognizes
# only this syntax: it would print the rest of a password that contains an unescaped '/', quote, or '<'.
_AUTHORITY = re.compile(
    r"(?:(?P<user>(?:[A-Za-z0-9._~!$&()*+,;=:-]|%[0-9A-Fa-f]{2})*)@)?(?P<host>\[[^\]@]*\]|[^:@\[\]]*)(?::(?P<port>[^@]*))?"
)
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")


def parse_source(text: str) -> SourceAddress:
    """Parse the text of a camera's source.

    A path below /dev/ is a `Usb` device. Any other path is a `Folder` if it ends in ``/``, otherwise a `File`.

    Raises:
        InvalidValue: the text has none of the forms in `SOURCE_FORMS`, or a part of it is invalid.
    """
    if not text or UNPRINTABLE.search(text):
        raise InvalidValue("one-line", f"{SOURCE_FORMS}, on one line")
    if url := _URL.fullmatch(text):
        return _parse_url(url["scheme"].lower(), url["rest"])
    word = _WORD.fullmatch(text)
    if word and word["word"].lower() in ("csi", "synthetic"):
        return _parse_csi(word["rest"]) if word["word"].lower() == "csi" else _parse_synthetic(word["rest"])
    if _NO_SCHEME.fullmatch(text):
        expected = "rtsp:// or http:// in front of a camera's address"
        raise InvalidValue("no-scheme", expected, "for a file of this name, write ./ in front of it")
    if word:
        near = did_you_mean(f"{word['word']}:", ["csi:", "synthetic:"])
        near = near or did_you_mean(f"{word['word']}://", _URL_PREFIXES)
        raise InvalidValue("source-form", SOURCE_FORMS, near or "for a path that contains ':', write ./ in front of it")
    return _parse_path(text)


def with_account(address: SourceAddress, user: str, password: str) -> SourceAddress:
    """Return the address of a network camera with `user` and `password` added to its URL, percent-encoded.

    Other addresses are returned unchanged. The URL must not contain a user yet. The password is registered as a secret.
    """
    if not isinstance(address, NETWORK):
        return address
    _register_account(user, password)
    scheme, _, rest = address.url.partition("://")
    return replace(address, url=f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{rest}")


def has_account(address: SourceAddress) -> bool:
    """Return True if `address` is a URL that contains a user or a password."""
    return isinstance(address, NETWORK) and "@" in address.url


def _is_host(text: str) -> bool:
    """Return True if `text` is a host name, an IPv4 address, or an IPv6 address in square brackets."""
    if text.startswith("[") or re.fullmatch(r"[0-9.]+", text):
        return is_ip_address(text)
    return bool(_HOST_NAME.fullmatch(text))


def is_ip_address(text: str) -> bool:
    """Return True if `text` is an IPv4 address, or an IPv6 address in square brackets."""
    with suppress(ValueError):
        ipaddress.IPv6Address(text[1:-1]) if text[:1] + text[-1:] == "[]" else ipaddress.IPv4Address(text)
        return True
    return False


def is_port(text: str) -> bool:
    """Return True if `text` is a port number from 1 to 65535."""
    return bool(re.fullmatch(r"[0-9]{1,5}", text)) and 1 <= int(text) <= 65535


def _parse_url(scheme: str, rest: str) -> Rtsp | Http:
    kind = _SCHEMES.get(scheme)
    if kind is None:
        if scheme == "file":
            raise InvalidValue("file-url", "the path of the file alone, without file://")
        raise InvalidValue("scheme", SOURCE_FORMS, did_you_mean(f"{scheme}://", _URL_PREFIXES))
    if _UNPRINTABLE_OR_SPACE.search(rest) or any(character in rest for character in "\"'<>\\"):
        expected = "an address without spaces, quotes, '<', '>' and '\\'"
        raise InvalidValue("url-characters", expected, "write them as %20, %22, %27 ...")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    match = _AUTHORITY.fullmatch(authority)
    if match is None or "@" in rest[len(authority) :]:
        advice = "in a user, password or path write / as %2F, ? as %3F, # as %23, @ as %40, % as %25; "
        advice += "or use the keys user and password"
        raise InvalidValue("authority", "user:password@host:port with one '@'", advice)
    if not _is_host(match["host"]):
        raise InvalidValue("host", "a host name or address after '//'", "write an IPv6 address in [ ]")
    if match["port"] is not None and not is_port(match["port"]):
        raise InvalidValue("port", "a port from 1 to 65535")
    user, _, password = (unquote(part) for part in (match["user"] or "").partition(":"))
    _register_account(user, password)
    return kind(f"{scheme}://{rest}")


def _register_account(user: str, password: str) -> None:
    """Register a password as a secret, alone and in the form of an HTTP header, which some libraries log."""
    if password:
        register_secret(password)
        register_secret(b64encode(f"{user}:{password}".encode()).decode())


def _parse_csi(rest: str) -> Csi:
    if not re.fullmatch(r"[0-9]{1,2}", rest):
        raise InvalidValue("csi", "csi: followed by the number of the sensor, such as csi:0")
    return Csi(int(rest))


def _parse_synthetic(rest: str) -> Synthetic:
    if not re.fullmatch(r"[A-Za-z0-9_.,;:&=+@?-]*", rest):
        raise InvalidValue("synthetic", "synthetic: followed by options without spaces")
    return Synthetic(f"synthetic:{rest}")


def _parse_path(text: str) -> Usb | File | Folder:
    if text.startswith("/dev/"):
        if not _DEVICE.fullmatch(text):
            raise InvalidValue("device", "/dev/videoN or /dev/v4l/by-id/NAME")
        return Usb(text)
    if text.isdigit():
        raise InvalidValue("device-number", SOURCE_FORMS, f"USB camera {text} is /dev/video{text}")
    if text.startswith("~"):
        raise InvalidValue("home", "the whole path", "'~' works only in a shell")
    return Folder(Path(text)) if text.endswith("/") else File(Path(text))
