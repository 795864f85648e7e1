"""Expected texts about ONVIF."""

from __future__ import annotations

from collections.abc import Callable

from vision.capture.onvif.device import Device, Profile
from vision.capture.onvif.documents import parse_document
from vision.capture.onvif.find import Camera, camera_section
from vision.config.load import load_config_text
from vision.errors import ConfigError, SourceError

_PROFILE = Profile("t", "sub", "s", "H264", 640, 360, 15, "rtsp://10.0.0.9/a?token=5eCret")


def _problem(host: str) -> str:
    _, problem = camera_section(Device(host, f"http://{host}/"), Camera("gate", (_PROFILE,), _PROFILE), None, "NAME")
    return str(problem)


def _refusal(data: bytes) -> str:
    try:
        parse_document(data)
    except SourceError as error:
        return str(error)
    return "no error"


def _config_error(onvif: str) -> str:
    try:
        load_config_text(f"cameras: [{{id: a, source: csi:0}}]\nonvif: {{{onvif}}}\n", {})
    except ConfigError as error:
        return error.faults[0].message
    return "no error"


ROWS: list[tuple[str, Callable[[], str], str]] = [
    (
        "a stream on a different host",
        lambda: _problem("192.0.2.4"),
        (
            "profile sub: the stream is on a different host, 10.0.0.9\n"
            "  hint: if you trust this host, write the address into camera.yaml"
        ),
    ),
    (
        "a stream address with an account",
        lambda: _problem("10.0.0.9"),
        (
            "profile sub: the address of the stream contains an account\n"
            "  hint: write the address into camera.yaml, with ${NAME} for the password"
        ),
    ),
    (
        "a response with entities",
        lambda: _refusal(b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'),
        "expected XML without a document type, got one, which can contain entities",
    ),
    (
        "metadata for other machines without an account",
        lambda: _config_error('bind: "*:8554"'),
        "expected `user` and `password` too, because other machines can reach this address",
    ),
    (
        "a response that is not XML",
        lambda: _refusal(b"hello"),
        "expected an XML document, got 5 bytes: syntax error: line 1, column 0",
    ),
]
