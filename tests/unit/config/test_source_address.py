"""Addresses of sources: their types, what is refused, and the account of a network camera."""

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
def test_source_has_the_type_of_its_syntax(source: str, address: SourceAddress) -> None:
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
def test_account_that_cannot_be_right_is_refused(source: str, account: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config_text(f"cameras: [{{id: a, source: '{source}', {account}}}]", {"X": "s3cr3t"})
    assert f"cameras[0].{key}: " in str(caught.value)
    assert not any(secret in str(caught.value) for secret in ("s3cr3t", "pw", "0815", "815"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "on one line"),
        ("a\nb", "on one line"),
        ("rstp://h/1", "did you mean 'rtsp://'?"),
        ("rtmp://h/1", "did you mean 'rtsp://'?"),
        ("gopher://h/1", "expected an rtsp://"),
        ("file:///a.mp4", "expected the path of the file alone, without file://"),
        ("rtsp:/h/1", "did you mean 'rtsp://'?"),
        ("rtsp://", "expected a host name"),
        ("rtsp:///stream", "expected a host name"),
        ("rtsp://user:pw@/stream", "expected a host name"),
        ("rtsp://-a-/stream", "expected a host name"),
        ("rtsp://höst/stream", "expected a host name"),
        ("rtsp://300.1.1.1/", "expected a host name"),
        ("rtsp://1.2.3/", "expected a host name"),
        ("rtsp://[::g]/", "expected a host name"),
        ("rtsp://fe80::1/", "expected a port from 1 to 65535"),
        ("rtsp://h:0/", "expected a port from 1 to 65535"),
        ("rtsp://h:65536/", "expected a port from 1 to 65535"),
        ("rtsp://h:/", "expected a port from 1 to 65535"),
        ("rtsp://h:x/", "expected a port from 1 to 65535"),
        ("rtsp://u:a/b@h/", "expected user:password@host:port with one '@'"),
        ("rtsp://u:a?b@h/", "expected user:password@host:port with one '@'"),
        ("rtsp://u:12/3@h/", "expected user:password@host:port with one '@'"),
        ("rtsp://u:a@b@h/", "expected user:password@host:port with one '@'"),
        ("rtsp://u:50%@h/", "expected user:password@host:port with one '@'"),
        ("rtsp://u:a b@h/", "expected an address without blanks"),
        ("rtsp://u:a'b@h/", "expected an address without blanks"),
        ('rtsp://h/" ! filesink location="x', "expected an address without blanks"),
        ("csi:", "such as csi:0"),
        ("csi:x", "such as csi:0"),
        ("cis:0", "did you mean 'csi:'?"),
        ("sythetic:", "did you mean 'synthetic:'?"),
        ("synthetic:a b", "options without blanks"),
        ("walk:1.mp4", "begins with ./"),
        ("/dev/vide0", "expected /dev/videoN"),
        ("/dev/video", "expected /dev/videoN"),
        ("0", "/dev/video0"),
        ("~/walk.mp4", "in a shell only"),
    ],
)
def test_source_that_cannot_be_right_is_refused(source: str, message: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse_source(source)
    assert message in str(caught.value)


@pytest.mark.parametrize("password", ["a/b", "a@b", "a?b", "a#b", "a'b", 'a"b', "a<b", "a b", "a\\b", "ü", "%", "12/3"])
def test_password_that_redaction_would_miss_is_refused(password: str) -> None:
    url = f"rtsp://user:{password}@host/1"
    with pytest.raises(InvalidValue) as caught:
        parse_source(url)
    assert password not in str(caught.value).partition(" (")[0]
    assert "user:pw" not in redact("rtsp://user:pw@host/1")
