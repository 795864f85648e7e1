"""Descriptions (personas) of the synthetic HTTP cameras that `vision.capture.zoo.zoo` can run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

from vision.capture.zoo.persona import PASSWORD, USER, HttpStream, Persona, Reader, Verdict

_http = partial(Persona, scheme="http", path="/video")


def _refused(code: str, remedy: Mapping[str, object] | None = None) -> Mapping[Reader, Verdict]:
    return {"ffmpeg": Verdict(code, remedy)}


_MOTION_JPEG: Final = (
    _http("http-plain", "nothing: the camera sends motion JPEG, as a reference for the others", HttpStream()),
    _http("http-one-per-second", "the camera sends 1 frame/s", HttpStream(fps=1)),
    _http("http-fast", "the camera sends 30 frames/s", HttpStream(fps=30)),
    _http(
        "http-jpg-parts", "the parts have the type image/jpg instead of image/jpeg", HttpStream(part_type="image/jpg")
    ),
    _http("http-untyped-parts", "the parts have no type", HttpStream(part_type=None)),
    _http("http-no-lengths", "the parts have no length", HttpStream(part_length=False)),
    _http("http-bare-parts", "the parts have no header", HttpStream(part_type=None, part_length=False)),
    _http(
        "http-no-boundary",
        "the header does not name the boundary",
        HttpStream(content_type="multipart/x-mixed-replace"),
    ),
    _http(
        "http-quoted-boundary",
        "the header contains the boundary in quotes",
        HttpStream(content_type='multipart/x-mixed-replace; boundary="frame"'),
    ),
    _http(
        "http-dashed-boundary",
        "the header names the boundary with its dashes",
        HttpStream(content_type="multipart/x-mixed-replace; boundary=--frame"),
    ),
    _http(
        "http-other-boundary", "the boundary differs from the one that the header names", HttpStream(boundary="--else")
    ),
    _http("http-line-feeds", "the lines of a response end with only a line feed", HttpStream(line_end="\n")),
    _http("http-preamble", "text precedes the first part", HttpStream(preamble=b"welcome\r\n")),
    _http("http-text-parts", "a part with text precedes each frame", HttpStream(text_parts=True)),
    _http("http-chunked", "the camera uses chunked transfer encoding", HttpStream(chunked=True)),
    _http("http-untyped", "the response has no content type", HttpStream(content_type=None)),
    _http(
        "http-octets",
        "the response has the content type application/octet-stream",
        HttpStream(content_type="application/octet-stream"),
    ),
    _http(
        "http-bare",
        "the response contains several JPEGs without parts, and has the content type image/jpeg",
        HttpStream(kind="bare", content_type="image/jpeg"),
    ),
    _http(
        "http-bare-slow",
        "the response contains 2 JPEGs per second, without parts",
        HttpStream(kind="bare", fps=2, content_type="video/x-motion-jpeg"),
    ),
    _http("http-no-huffman", "the JPEGs have no Huffman tables", HttpStream(huffman_tables=False)),
    _http(
        "http-marker-comment",
        "the JPEGs have comments that contain the markers of a JPEG",
        HttpStream(comment=b"\xff\xd9\xff\xd8 zoo \xff\xd8\xff\xe0"),
    ),
)

_OTHERS: Final = (
    _http(
        "snapshot",
        "the camera sends one JPEG per request",
        HttpStream(kind="snapshot", content_type="image/jpeg"),
        settings={"fps": 5},
    ),
    _http(
        "snapshot-closes",
        "the camera sends one JPEG per connection, without a length",
        HttpStream(kind="snapshot", content_type="image/jpeg", length=False),
        settings={"fps": 5},
    ),
    _http("hls", "the camera sends live HLS with segments of 1 s", HttpStream(kind="hls"), path="/live.m3u8"),
    _http(
        "hls-long",
        "the camera sends live HLS with segments of 2 s",
        HttpStream(kind="hls", segment_s=2),
        path="/live.m3u8",
    ),
    _http("http-mp4", "the camera sends an MP4 file", HttpStream(kind="mp4")),
    _http("http-ts", "the camera sends MPEG-TS", HttpStream(kind="ts", content_type="video/mp2t")),
    _http(
        "http-ts-sound",
        "the camera sends MPEG-TS, and announces sound, which never arrives",
        HttpStream(kind="ts", content_type="video/mp2t", announced_sound=True),
    ),
    _http("http-flv", "the camera sends FLV", HttpStream(kind="flv", content_type="video/x-flv")),
    _http(
        "http-flv-sound",
        "the camera sends FLV, and announces sound, which never arrives",
        HttpStream(kind="flv", content_type="video/x-flv", announced_sound=True),
    ),
)

_ACCESS: Final = (
    _http("http-redirect", "the camera redirects to a different path (302)", HttpStream(redirect=True)),
    _http("http-capitals", "the address starts with HTTP:// in capitals", HttpStream(), scheme="HTTP"),
    _http("http-basic", "the camera requires Basic authentication", HttpStream(), auth="basic", account=True),
    _http(
        "http-digest", "the camera requires Digest authentication with `qop`", HttpStream(), auth="digest", account=True
    ),
    _http(
        "http-digest-plain",
        "the camera requires Digest authentication without `qop`",
        HttpStream(),
        auth="digest-plain",
        account=True,
    ),
    _http(
        "http-digest-sha256",
        "the camera requires Digest authentication with SHA-256",
        HttpStream(),
        auth="digest-sha256",
        account=True,
    ),
    _http(
        "http-digest-stale",
        "the first nonce of the Digest authentication expires immediately",
        HttpStream(),
        auth="digest-stale",
        account=True,
    ),
    _http(
        "http-digest-and-basic",
        "the camera offers Digest and Basic authentication",
        HttpStream(),
        auth="both",
        account=True,
    ),
    _http(
        "http-digest-ts",
        "the camera sends MPEG-TS, and requires Digest authentication",
        HttpStream(kind="ts", content_type="video/mp2t"),
        auth="digest",
        account=True,
    ),
    _http(
        "http-no-account",
        "the camera requires a user and a password, which are not configured",
        HttpStream(),
        auth="digest",
        verdicts=_refused("unauthorized", {"user": USER, "password": PASSWORD}),
    ),
    _http(
        "http-not-found",
        "the camera has no stream at this path",
        HttpStream(status=404),
        verdicts=_refused("no-stream"),
    ),
    _http(
        "http-forbidden",
        "the camera does not permit this user to watch",
        HttpStream(status=403),
        verdicts=_refused("forbidden"),
    ),
    _http("http-busy", "the camera accepts no further clients", HttpStream(status=503), verdicts=_refused("busy")),
    _http(
        "http-page",
        "the camera sends a login page instead of a stream",
        HttpStream(kind="page"),
        verdicts=_refused("no-video"),
    ),
    _http("http-empty", "the camera sends an empty response", HttpStream(kind="empty"), verdicts=_refused("no-video")),
    _http(
        "http-plays-nothing",
        "the camera sends a header, but no frame",
        HttpStream(plays=False),
        verdicts=_refused("no-answer"),
    ),
    _http(
        "http-silent",
        "the camera accepts connections, but never responds",
        HttpStream(),
        port="silent",
        verdicts=_refused("no-answer"),
    ),
    _http("http-closed", "the camera refuses connections", HttpStream(), port="closed", verdicts=_refused("refused")),
    _http(
        "https-self-signed",
        "the camera uses TLS with a self-signed certificate",
        HttpStream(),
        scheme="https",
        verdicts=_refused("certificate", {"tls": "accept-any"}),
    ),
    _http(
        "https-no-tls",
        "the address starts with https://, but the camera does not use TLS",
        HttpStream(),
        scheme="https",
        port="plain",
        verdicts=_refused("tls"),
    ),
)

HTTP_PERSONAS: Final = (*_MOTION_JPEG, *_OTHERS, *_ACCESS)
