"""Descriptions (personas) of the synthetic RTSP cameras that `vision.capture.zoo.zoo` can run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vision.capture.zoo.persona import (
    FAULTS,
    METADATA,
    PASSWORD,
    SECOND_VIDEO,
    SOUND,
    USER,
    Limit,
    Persona,
    Reader,
    RtspServer,
    RtspStream,
    Verdict,
)


def _both(code: str, remedy: Mapping[str, object] | None = None) -> Mapping[Reader, Verdict]:
    return {"gstreamer": Verdict(code, remedy), "ffmpeg": Verdict(code, remedy)}


_NO_KEEP_ALIVE: Final = "reconnects every 9 s, because it sends no requests while it plays over TCP"
_NO_TIMES: Final = "does not count all lost frames, because it identifies frames by their times"
_CONCEALED: Final = "publishes a B-frame that has lost a packet, because the decoder conceals the loss"
_KEY_LOST: Final = "does not count the frames after a lost key frame"

_VIDEO: Final = (
    Persona("plain", "nothing: the camera is a reference for the others"),
    Persona("slices", "each frame consists of four slices", RtspStream(slices=4)),
    Persona("mid-gop", "the stream starts with the fourth frame after a key frame", RtspStream(first_frame=4)),
    Persona(
        "mid-gop-slow",
        "the camera sends 2 frames/s, with a key frame every 5 s, and starts just after a key frame",
        RtspStream(fps=2, first_frame=1),
    ),
    Persona(
        "b-frames",
        "the stream contains B-frames, so presentation times are not in order",
        RtspStream(b_frames=True),
        limits=(Limit("ffmpeg", _CONCEALED, ("loss",)),),
    ),
    Persona("one-per-second", "the camera sends 1 frame/s", RtspStream(fps=1)),
    Persona("fast", "the camera sends 30 frames/s", RtspStream(fps=30)),
    Persona("no-sprop", "the SDP document contains no parameter sets", RtspStream(fmtp="no-sprop")),
    Persona("no-fmtp", "the SDP document contains no `fmtp` line", RtspStream(fmtp="none")),
    Persona("sprop-only", "only the SDP document contains the parameter sets", RtspStream(in_band=False)),
    Persona(
        "wrong-sprop", "the SDP document contains the parameter sets of a larger stream", RtspStream(fmtp="wrong-sprop")
    ),
    Persona("aggregated", "one packet contains all parameter sets (STAP-A)", RtspStream(aggregated=True)),
    Persona("resize", "the parameter sets and the frame size change every 2 s", RtspStream(resize_every=20)),
    Persona(
        "no-key-frame",
        "the camera never sends a key frame",
        RtspStream(key_frames=False, first_frame=1),
        verdicts={"gstreamer": Verdict("no-key-frame"), "ffmpeg": Verdict("no-frame")},
    ),
    Persona("h265", "the codec is H.265", RtspStream(codec="h265")),
    Persona(
        "h265-no-sprop",
        "the codec is H.265, and the SDP document contains no `fmtp` line",
        RtspStream(codec="h265", fmtp="none"),
    ),
    Persona(
        "h265-aggregated",
        "the codec is H.265, and one packet contains all parameter sets",
        RtspStream(codec="h265", aggregated=True),
    ),
    Persona("mjpeg", "the codec is motion JPEG", RtspStream(codec="mjpeg")),
    Persona(
        "mjpeg-rare-tables",
        "the codec is motion JPEG, and only every tenth frame contains the quantization tables",
        RtspStream(codec="mjpeg", tables="rarely"),
        limits=(
            Limit(
                "gstreamer",
                "plays only the frames with quantization tables, and does not count the others",
                tuple(FAULTS),
            ),
        ),
    ),
    Persona(
        "mjpeg-no-tables",
        "the codec is motion JPEG, and no frame contains the quantization tables",
        RtspStream(codec="mjpeg", tables="never"),
        verdicts=_both("no-frame"),
    ),
    Persona(
        "mpeg4",
        "the codec is MPEG-4 Part 2",
        RtspStream(codec="mpeg4"),
        verdicts={"gstreamer": Verdict("codec", {"reader": "ffmpeg"})},
    ),
    Persona(
        "vp8",
        "the codec is VP8",
        RtspStream(codec="vp8"),
        verdicts={"gstreamer": Verdict("codec", {"reader": "ffmpeg"})},
        limits=(Limit("ffmpeg", _KEY_LOST, ("loss",)), Limit("gstreamer", _KEY_LOST, ("loss",))),
    ),
)

_RTP: Final = (
    Persona("sequence-wrap", "the sequence number wraps within the first frames", RtspStream(first_sequence=65530)),
    Persona("time-wrap", "the RTP time wraps after 1 s", RtspStream(first_timestamp=2**32 - 90_000)),
    Persona("time-jump", "the RTP time jumps ahead by an hour", RtspStream(jump_at=17)),
    Persona("time-slow", "the RTP time runs at half speed", RtspStream(pace=0.5)),
    Persona("time-fast", "the RTP time runs at double speed", RtspStream(pace=2.0)),
    Persona(
        "time-stopped",
        "all frames have the same RTP time",
        RtspStream(pace=0.0),
        limits=(Limit("gstreamer", _NO_TIMES, tuple(FAULTS)),),
    ),
    Persona("new-ssrc", "the SSRC changes during the stream", RtspStream(new_ssrc_at=17)),
    Persona("no-marker", "the last packet of a frame has no marker bit", RtspStream(markers=False)),
    Persona("extension", "each packet has an RTP header extension (ONVIF)", RtspStream(extension=True)),
    Persona("padding", "each packet contains padding", RtspStream(padding=True)),
    Persona(
        "duplicates",
        "the camera sends each packet twice, over UDP",
        RtspStream(duplicates=True),
        settings={"transport": "udp"},
        verdicts={"ffmpeg": Verdict("corrupt", {"reader": "gstreamer"})},
    ),
    Persona(
        "other-payload-type",
        "the SDP document announces payload type 97, but the packets have type 96",
        RtspStream(sdp_payload_type=97),
        verdicts=_both("no-frame"),
    ),
    Persona("no-reports", "the camera sends no RTCP sender reports", RtspStream(clock="missing")),
    Persona("clock-unset", "the time in the sender reports is in the year 1900", RtspStream(clock="unset")),
    Persona("clock-future", "the time in the sender reports is a year ahead", RtspStream(clock="future")),
    Persona(
        "clock-unrelated",
        "the RTP time of the sender reports is unrelated to that of the frames",
        RtspStream(clock="unrelated"),
    ),
)

_SDP: Final = (
    Persona(
        "sound-first", "a sound track precedes the video track, but never delivers data", RtspStream(tracks=(SOUND,))
    ),
    Persona("metadata-first", "an ONVIF metadata track precedes the video track", RtspStream(tracks=(METADATA,))),
    Persona("two-videos", "a second video track follows the first one", RtspStream(tracks=(SECOND_VIDEO,))),
    Persona(
        "no-video",
        "the camera offers only sound",
        RtspStream(tracks=(SOUND,), has_video=False),
        verdicts=_both("no-video"),
    ),
    Persona("base-missing", "the response to DESCRIBE contains no `Content-Base`", RtspStream(content_base="missing")),
    Persona(
        "base-wrong-host", "`Content-Base` contains an address behind a router", RtspStream(content_base="wrong-host")
    ),
    Persona("base-no-slash", "`Content-Base` has no slash at the end", RtspStream(content_base="no-slash")),
    Persona("control-absolute", "the control URLs in the SDP document are absolute", RtspStream(control="absolute")),
    Persona(
        "control-wrong-host", "the control URLs contain an address behind a router", RtspStream(control="wrong-host")
    ),
    Persona(
        "control-missing",
        "the SDP document contains no control URLs",
        RtspStream(control="missing"),
        verdicts={"gstreamer": Verdict("unsupported-stream", {"reader": "ffmpeg"})},
    ),
    Persona("query", "the address of the camera contains a query", path="/stream?channel=1&subtype=0"),
)

_SESSION: Final = (
    Persona("udp", "the transport is UDP", settings={"transport": "udp"}),
    Persona(
        "udp-refused",
        "the camera refuses UDP, which is configured",
        server=RtspServer(transports=("tcp",)),
        settings={"transport": "udp"},
        verdicts=_both("transport", {"transport": "tcp"}),
    ),
    Persona(
        "tcp-refused",
        "the camera refuses TCP",
        server=RtspServer(transports=("udp",)),
        verdicts=_both("transport", {"transport": "udp"}),
    ),
    Persona(
        "other-channels",
        "the camera uses different interleaved channels from those that the client requests",
        server=RtspServer(channels=4),
    ),
    Persona(
        "short-session",
        "the camera ends a session after 9 s without a request or an RTCP report",
        server=RtspServer(session_timeout_s=6),
    ),
    Persona(
        "options-only",
        "the camera does not offer GET_PARAMETER, and ends a session after 9 s without a request",
        server=RtspServer(
            session_timeout_s=6, offers_get_parameter=False, get_parameter="refused", reports_keep_alive=False
        ),
        limits=(Limit("gstreamer", _NO_KEEP_ALIVE),),
    ),
    Persona(
        "get-parameter-refused",
        "the camera offers GET_PARAMETER, but refuses it",
        server=RtspServer(session_timeout_s=6, get_parameter="refused"),
    ),
    Persona(
        "no-options",
        "the camera refuses OPTIONS",
        server=RtspServer(options=False),
        verdicts={"ffmpeg": Verdict("refused-request", {"reader": "gstreamer"})},
    ),
    Persona("slow-answers", "each response of the camera takes 1 s", server=RtspServer(delay_s=1.0)),
    Persona("early-frames", "the first frames precede the response to PLAY", server=RtspServer(early=True)),
    Persona("asks", "the camera sends requests to the client", server=RtspServer(asks=True)),
    Persona(
        "lower-case",
        "the header names are in lower case, without a blank after the colon",
        server=RtspServer(style="lower-case"),
    ),
    Persona("line-feeds", "the lines of a response end with only a line feed", server=RtspServer(style="line-feeds")),
    Persona(
        "session-suffix",
        "the header `Session` contains further fields after the timeout",
        server=RtspServer(session_suffix=";x=1"),
    ),
    Persona("redirect", "the camera redirects to a different path (302)", server=RtspServer(redirect=True)),
    Persona("capitals", "the address starts with RTSP:// in capitals", scheme="RTSP"),
    Persona("basic", "the camera requires Basic authentication", auth="basic", account=True),
    Persona("digest", "the camera requires Digest authentication with `qop`", auth="digest", account=True),
    Persona(
        "digest-plain",
        "the camera requires Digest authentication without `qop` (RFC 2069)",
        auth="digest-plain",
        account=True,
    ),
    Persona(
        "digest-stale",
        "the first nonce of the Digest authentication expires immediately",
        auth="digest-stale",
        account=True,
    ),
    Persona(
        "digest-quotes",
        "the realm of the Digest authentication contains quotes and a comma",
        auth="digest-quotes",
        account=True,
    ),
    Persona(
        "digest-sha256",
        "the camera requires Digest authentication with SHA-256",
        auth="digest-sha256",
        account=True,
        verdicts=_both("digest-algorithm"),
    ),
    Persona("digest-and-basic", "the camera offers Digest and Basic authentication", auth="both", account=True),
    Persona(
        "no-account",
        "the camera requires a user and a password, which are not configured",
        auth="digest",
        verdicts=_both("unauthorized", {"user": USER, "password": PASSWORD}),
    ),
)

_DEAD: Final = (
    Persona(
        "not-found", "the camera has no stream at this path", server=RtspServer(status=404), verdicts=_both("no-stream")
    ),
    Persona(
        "forbidden",
        "the camera does not permit this user to watch",
        server=RtspServer(status=403),
        verdicts=_both("forbidden"),
    ),
    Persona(
        "no-bandwidth",
        "the camera has no bandwidth for another client",
        server=RtspServer(status=453),
        verdicts=_both("busy"),
    ),
    Persona("busy", "the camera accepts no further clients", server=RtspServer(status=503), verdicts=_both("busy")),
    Persona(
        "plays-nothing",
        "the camera accepts PLAY, but sends no frame",
        server=RtspServer(plays=False),
        verdicts=_both("no-frame"),
    ),
    Persona("silent", "the camera accepts connections, but never responds", port="silent", verdicts=_both("no-answer")),
    Persona("closed", "the camera refuses connections", port="closed", verdicts=_both("refused")),
    Persona(
        "self-signed",
        "the camera uses TLS with a self-signed certificate",
        scheme="rtsps",
        verdicts=_both("certificate", {"tls": "accept-any"}),
    ),
    Persona(
        "no-tls",
        "the address starts with rtsps://, but the camera does not use TLS",
        scheme="rtsps",
        port="plain",
        verdicts=_both("tls"),
    ),
)

RTSP_PERSONAS: Final = (*_VIDEO, *_RTP, *_SDP, *_SESSION, *_DEAD)
