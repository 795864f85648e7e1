"""The forms of a camera's source and of the publisher's address, told apart by their text alone."""

from __future__ import annotations

import ipaddress
import re
from typing import Final, Literal, TypeAlias

from vision.config.wording import Refused, did_you_mean

SourceKind: TypeAlias = Literal["rtsp", "http", "csi", "v4l2", "synthetic", "path"]

SOURCE_FORMS: Final = (
    "an rtsp://, rtsps://, http:// or https:// address, a file, a folder, /dev/videoN, csi:N or synthetic:"
)
BIND_FORMS: Final = "tcp://ADDRESS:PORT or ipc:///PATH"
MODEL_FORMS: Final = "the name of a model, or the path of a folder that holds model.yaml"
PIPELINE_FORMS: Final = "the name of a pipeline, such as detect, or the path of a Python file (.py)"
FOLDER_FORMS: Final = "the path of a folder"
FILE_FORMS: Final = "the name of an .onnx file that stands beside model.yaml"

_URL_KINDS: Final[dict[str, SourceKind]] = {"rtsp": "rtsp", "rtsps": "rtsp", "http": "http", "https": "http"}
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_WORD = re.compile(r"(?P<word>[A-Za-z][A-Za-z0-9+.-]*):(?P<rest>.*)", re.DOTALL)
_DEVICE = re.compile(r"/dev/(?:video[0-9]{1,3}|v4l/by-(?:id|path)/[^/]+)")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f]")
_UNPRINTABLE_OR_SPACE = re.compile("[\x00-\x20\x7f-\xa0]")

# RFC 3986, section 3.2. Stricter than FFmpeg and GStreamer are, and what `vision.errors.redact` recognises: a password
# with a bare '/', quote or '<' in it would be printed.
_AUTHORITY = re.compile(
    r"(?:(?P<user>(?:[A-Za-z0-9._~!$&()*+,;=:-]|%[0-9A-Fa-f]{2})*)@)?(?P<host>\[[^\]@]*\]|[^:@\[\]]*)(?::(?P<port>[^@]*))?"
)
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
_INTERFACE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,14}")
_IPC_PATH_BYTES: Final = 107  # sun_path of Linux's unix(7), less its closing NUL


def source_kind(source: str) -> SourceKind:
    """What `source` is, by its syntax: nothing is opened or looked up. A file and a folder are both a ``path``.

    Raises:
        Refused: none of the forms, or one with a part that cannot be right.
    """
    if not source or _UNPRINTABLE.search(source):
        raise Refused(f"{SOURCE_FORMS}, on one line")
    url = _URL.fullmatch(source)
    if url:
        return _url_kind(url["scheme"], url["rest"])
    word = _WORD.fullmatch(source)
    if word:
        return _word_kind(word["word"], word["rest"])
    return _path_kind(source)


def check_source(source: str) -> str:
    """Validator of `source_kind`'s argument."""
    source_kind(source)
    return source


def _url_kind(scheme: str, rest: str) -> SourceKind:
    kind = _URL_KINDS.get(scheme.lower())
    if kind is None:
        if scheme.lower() == "file":
            raise Refused("the path of the file alone, without file://")
        known = [f"{name}://" for name in _URL_KINDS]
        raise Refused(SOURCE_FORMS, advice=did_you_mean(f"{scheme}://", known))
    if _UNPRINTABLE_OR_SPACE.search(rest) or any(c in rest for c in "\"'<>\\"):
        raise Refused("an address without blanks, quotes, '<', '>' and '\\'", advice="write them as %20, %22, %27 ...")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    match = _AUTHORITY.fullmatch(authority)
    if match is None or "@" in rest[len(authority) :]:
        advice = "in a user, password or path write / as %2F, ? as %3F, # as %23, @ as %40, % as %25"
        raise Refused("user:password@host:port with one '@'", advice=advice)
    if not _is_host(match["host"]):
        raise Refused("a host name or address after '//'", advice="an IPv6 address goes in [ ]")
    if match["port"] is not None and not _is_port(match["port"]):
        raise Refused("a port from 1 to 65535")
    return kind


def _word_kind(word: str, rest: str) -> SourceKind:
    if word == "csi":
        if not re.fullmatch(r"[0-9]{1,2}", rest):
            raise Refused("csi: and the number of the sensor, such as csi:0")
        return "csi"
    if word == "synthetic":
        if not re.fullmatch(r"[A-Za-z0-9_.,;:&=+@?-]*", rest):
            raise Refused("synthetic: and options without blanks")
        return "synthetic"
    known = [f"{name}://" for name in _URL_KINDS]
    advice = did_you_mean(f"{word}:", ["csi:", "synthetic:"]) or did_you_mean(f"{word}://", known)
    raise Refused(SOURCE_FORMS, advice=advice or "a path with ':' in it begins with ./")


def _path_kind(source: str) -> SourceKind:
    if source.startswith("/dev/"):
        if not _DEVICE.fullmatch(source):
            raise Refused("/dev/videoN or /dev/v4l/by-id/NAME")
        return "v4l2"
    if source.isdigit():
        raise Refused(SOURCE_FORMS, advice="the first USB camera is /dev/video0")
    if source.startswith("~"):
        raise Refused("the whole path", advice="'~' is the shell's")
    return "path"


def check_bind(bind: str) -> str:
    """Validator of a ZeroMQ address to bind to.

    Raises:
        Refused: not tcp://ADDRESS:PORT or ipc:///PATH.
    """
    if bind.startswith("ipc://"):
        _check_ipc(bind[len("ipc://") :])
        return bind
    if not bind.startswith("tcp://"):
        raise Refused(BIND_FORMS, advice="such as tcp://127.0.0.1:5555")
    host, colon, port = bind[len("tcp://") :].rpartition(":")
    if not colon or not (port in ("*", "0") or _is_port(port)):
        raise Refused("tcp://ADDRESS:PORT with a port from 1 to 65535, or * for any that is free")
    if host == "localhost":
        raise Refused("an address of this machine, an interface such as eth0, or *", advice="did you mean '127.0.0.1'?")
    if host != "*" and not _is_address(host) and not _INTERFACE.fullmatch(host):
        raise Refused("an address of this machine, an interface such as eth0, or * for all of them")
    return bind


def _check_ipc(path: str) -> None:
    if not path.startswith(("/", "@")) or len(path) < 2 or _UNPRINTABLE.search(path):
        raise Refused("ipc:// and a whole path, such as ipc:///run/vision/node.sock")
    if len(path.encode()) > _IPC_PATH_BYTES:
        raise Refused(f"ipc:// and a path of at most {_IPC_PATH_BYTES} bytes")


def check_model_name(name: str) -> str:
    """Validator of a model: a name or the path of a folder.

    Raises:
        Refused: empty, unprintable, or an address.
    """
    if not name or _UNPRINTABLE.search(name) or "://" in name or name.startswith("~"):
        raise Refused(MODEL_FORMS)
    return name


def check_pipeline(name: str) -> str:
    """Validator of a pipeline: a name or the path of a Python file.

    Raises:
        Refused: neither of them.
    """
    is_path = name.endswith(".py") and not _UNPRINTABLE.search(name) and not name.startswith("~")
    if not is_path and not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name):
        raise Refused(PIPELINE_FORMS)
    return name


def check_folder(name: str) -> str:
    """Validator of a folder to write to.

    Raises:
        Refused: empty, unprintable, an address, or with the shell's ``~``.
    """
    if not name or _UNPRINTABLE.search(name) or "://" in name:
        raise Refused(FOLDER_FORMS)
    if name.startswith("~"):
        raise Refused("the whole path", advice="'~' is the shell's")
    return name


def check_file_name(name: str) -> str:
    """Validator of a file that stands beside model.yaml.

    Raises:
        Refused: it stands elsewhere, or is no ONNX file by its name.
    """
    if "/" in name or "\\" in name or _UNPRINTABLE.search(name) or not name.endswith(".onnx") or name == ".onnx":
        raise Refused(FILE_FORMS)
    return name


def _is_port(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9]{1,5}", text)) and 1 <= int(text) <= 65535


def _is_address(host: str) -> bool:
    bracketed = re.fullmatch(r"\[(.*)\]", host)
    try:
        if bracketed:
            ipaddress.IPv6Address(bracketed[1])
        else:
            ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def _is_host(host: str) -> bool:
    if host.startswith("[") or re.fullmatch(r"[0-9.]+", host):
        return _is_address(host)
    return bool(_HOST_NAME.fullmatch(host))
