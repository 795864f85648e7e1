"""Tests of source addresses: their types, rejected addresses, and the account of a network camera."""

from __future__ import annotations

from pathlib import Path

import pytest

from vision.config import CameraConfig, load_config_text
from vision.config.source_address import (
    Csi,
    File,
    Folder,
    Http,
    Rtsp,
    SourceAddress,
    Synthetic,
    Usb,
    has_account,
    parse_source,
    with_account,
)
from vision.config.wording import InvalidValue
from vision.errors import ConfigError, redact


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("rtsp://192.0.2.4/stream1", Rtsp("rtsp://192.0.2.4/stream1")),
        ("RTSP://camera.local:8554", Rtsp("rtsp://camera.local:8554")),
        ("rtsps://user:p%2Fa!$&()*+,;=.~_-@h:554/a?b=c#d", Rtsp("rtsps://user:p%2Fa!$&()*+,;=.~_-@h:554/a?b=c#d")),
        ("rtsp://user@[fe80::1%25eth0]:554/live", Rtsp("rtsp://user@[fe80::1%25eth0]:554/live")),
        ("rtsp://:@h/", Rtsp("rtsp://:@h/")),
        ("http://cam_1/mjpg/video.cgi?fps=5", Http("http://cam_1/mjpg/video.cgi?fps=5")),
        ("HTTP://cam/Video", Http("http://cam/Video")),
        ("https://example.net.", Http("https://example.net.")),
        ("csi:0", Csi(0)),
        ("csi:12", Csi(12)),
        ("/dev/video0", Usb("/dev/video0")),
        ("/dev/v4l/by-id/usb-Acme_Cam-index0", Usb("/dev/v4l/by-id/usb-Acme_Cam-index0")),
        ("synthetic:", Synthetic("synthetic:")),
        ("synthetic:640x480,fps=30", Synthetic("synthetic:640x480,fps=30")),
        ("videos/walk.mp4", File(Path("videos/walk.mp4"))),
        ("/data/a b.mp4", File(Path("/data/a b.mp4"))),
        ("./12:30.mp4", File(Path("12:30.mp4"))),
        ("./192.0.2.4/stream1", File(Path("192.0.2.4/stream1"))),
        ("1.2.3.mp4", File(Path("1.2.3.mp4"))),
        ("../frames/", Folder(Path("../frames"))),
        ("höf.mkv", File(Path("höf.mkv"))),
    ],
)
def test_source_is_parsed(source: str, address: SourceAddress) -> None:
    assert parse_source(source) == address


@pytest.mark.parametrize(
    "source",
    [
        "192.0.2.4/stream1",
        "192.0.2.4",
        "192.0.2.4:554/stream1",
        "viewer:pw@192.0.2.4/stream1",
        "camera.example:554/live",
        "camera.example:554",
    ],
)
def test_address_without_scheme_is_refused_with_a_hint(source: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse_source(source)
    assert caught.value.expected.startswith("rtsp://")


def test_path_of_a_folder_is_a_folder(tmp_path: Path) -> None:
    assert CameraConfig(id="a", source=str(tmp_path)).address == Folder(tmp_path)
    assert CameraConfig(id="a", source=str(tmp_path / "a.mp4")).address == File(tmp_path / "a.mp4")


CAMERAS = "cameras: [{id: a, source: 'rtsp://192.0.2.4:554/s', user: me@home, password: '${PASSWORD}'}]"


def test_user_and_password_are_joined_into_the_url() -> None:
    (camera,) = load_config_text(CAMERAS, {"PASSWORD": "a/b:c@d%"}).cameras
    assert camera.address == Rtsp("rtsp://me%40home:a%2Fb%3Ac%40d%25@192.0.2.4:554/s")


def test_password_is_not_printed() -> None:
    config = load_config_text(CAMERAS, {"PASSWORD": "s3cr3t"})
    (camera,) = config.cameras
    for printed in (repr(config), str(config), repr(camera.address)):
        assert "s3cr3t" not in printed


def test_accounts_are_for_network_cameras() -> None:
    assert with_account(Csi(0), "me", "pw") == Csi(0)
    assert has_account(Rtsp("rtsp://me@h/"))
    assert not has_account(Http("http://h/"))
    assert not has_account(Csi(0))


@pytest.mark.parametrize(
    ("source", "account", "key"),
    [
        ("rtsp://h/s", "password: pw", "password"),
        ("rtsp://h/s", "password: 'pw${X}'", "password"),
        ("rtsp://h/s", "password: '$${X}'", "password"),
        ("rtsp://h/s", "password: 0815", "password"),
        ("rtsp://h/s", "password: [0815]", "password"),
        ("rtsp://h/s", "password: '${X}'", "password"),
        ("rtsp://h/s", "user: me", "user"),
        ("rtsp://h/s", "user: me, password: '${MISSING}'", "password"),
        ("rtsp://h/s", "user: '', password: '${X}'", "user"),
        ("rtsp://me@h/s", "user: me, password: '${X}'", "source"),
        ("/dev/video0", "user: me, password: '${X}'", "password"),
    ],
)
def test_invalid_account_is_refused(source: str, account: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config_text(f"cameras: [{{id: a, source: '{source}', {account}}}]", {"X": "s3cr3t"})
    assert f"cameras[0].{key}: " in str(caught.value)
    assert not any(secret in str(caught.value) for secret in ("s3cr3t", "pw", "0815", "815"))


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("", "one-line"),
        ("a\nb", "one-line"),
        ("rstp://h/1", "scheme"),
        ("rtmp://h/1", "scheme"),
        ("gopher://h/1", "scheme"),
        ("file:///a.mp4", "file-url"),
        ("rtsp:/h/1", "source-form"),
        ("rtsp://", "host"),
        ("rtsp:///stream", "host"),
        ("rtsp://user:pw@/stream", "host"),
        ("rtsp://-a-/stream", "host"),
        ("rtsp://höst/stream", "host"),
        ("rtsp://300.1.1.1/", "host"),
        ("rtsp://1.2.3/", "host"),
        ("rtsp://[::g]/", "host"),
        ("rtsp://fe80::1/", "port"),
        ("rtsp://h:0/", "port"),
        ("rtsp://h:65536/", "port"),
        ("rtsp://h:/", "port"),
        ("rtsp://h:x/", "port"),
        ("rtsp://u:a/b@h/", "authority"),
        ("rtsp://u:a?b@h/", "authority"),
        ("rtsp://u:12/3@h/", "authority"),
        ("rtsp://u:a@b@h/", "authority"),
        ("rtsp://u:50%@h/", "authority"),
        ("rtsp://u:a b@h/", "url-characters"),
        ("rtsp://u:a'b@h/", "url-characters"),
        ('rtsp://h/" ! filesink location="x', "url-characters"),
        ("csi:", "csi"),
        ("csi:x", "csi"),
        ("cis:0", "source-form"),
        ("sythetic:", "source-form"),
        ("synthetic:a b", "synthetic"),
        ("walk:1.mp4", "source-form"),
        ("/dev/vide0", "device"),
        ("/dev/video", "device"),
        ("0", "device-number"),
        ("~/walk.mp4", "home"),
    ],
)
def test_invalid_source_is_refused(source: str, code: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse_source(source)
    assert caught.value.code == code


@pytest.mark.parametrize("password", ["a/b", "a@b", "a?b", "a#b", "a'b", 'a"b', "a<b", "a b", "a\\b", "ü", "%", "12/3"])
def test_password_that_redaction_cannot_find_is_refused(password: str) -> None:
    url = f"rtsp://user:{password}@host/1"
    with pytest.raises(InvalidValue) as caught:
        parse_source(url)
    assert password not in str(caught.value).partition(" (")[0]
    assert "user:pw" not in redact("rtsp://user:pw@host/1")


@pytest.mark.parametrize(
    ("source", "suggestion"),
    [
        ("rstp://h/1", "'rtsp://'"),
        ("cis:0", "'csi:'"),
        ("sythetic:", "'synthetic:'"),
        ("walk:1.mp4", "./"),
        ("0", "/dev/video0"),
        ("rtsp://u:a/b@h/", "%2F"),
    ],
)
def test_refused_source_has_a_suggestion(source: str, suggestion: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse_source(source)
    assert suggestion in caught.value.advice
