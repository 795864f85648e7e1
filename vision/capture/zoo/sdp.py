"""Functions that build the SDP document of an RTSP camera."""

from __future__ import annotations

import base64

from vision.capture.zoo.clips import LARGE, Clip, clip
from vision.capture.zoo.persona import RtspStream
from vision.capture.zoo.rtp import CLOCK_HZ, clip_of

_ENCODINGS = {"h264": "H264", "h265": "H265", "mjpeg": "JPEG", "mpeg4": "MP4V-ES", "vp8": "VP8"}
_INNER = "rtsp://192.168.1.10:554/stream"  # the address of a camera behind a router, as the camera knows it


def describe(stream: RtspStream, url: str, line_end: str) -> bytes:
    """Return the SDP document. `url` is the address that the client requested; each line ends with `line_end`."""
    lines = ["v=0", "o=- 1 1 IN IP4 127.0.0.1", "s=camera zoo", "c=IN IP4 0.0.0.0", "t=0 0", "a=control:*"]
    video = _video(stream) if stream.has_video else []
    before = [track.media for track in stream.tracks if track.before_video]
    after = [track.media for track in stream.tracks if not track.before_video]
    media = [*(_lines(text) for text in before), *([video] if video else []), *(_lines(text) for text in after)]
    for index, description in enumerate(media):
        lines += [*description, *_control(stream, url, index)]
    return (line_end.join(lines) + line_end).encode()


def base_of(stream: RtspStream, url: str) -> str | None:
    """Return the value of the header `Content-Base`, or None if the camera sends no such header."""
    return {"right": f"{url}/", "missing": None, "wrong-host": f"{_INNER}/", "no-slash": url}[stream.content_base]


def video_index(stream: RtspStream) -> int:
    """Return the 0-based index of the first video track."""
    return sum(track.before_video for track in stream.tracks)


def _lines(text: str) -> list[str]:
    return text.strip().split("\r\n")


def _control(stream: RtspStream, url: str, index: int) -> list[str]:
    track = f"trackID={index}"
    match stream.control:
        case "relative":
            return [f"a=control:{track}"]
        case "absolute":
            return [f"a=control:{url}/{track}"]
        case "wrong-host":
            return [f"a=control:{_INNER}/{track}"]
        case "missing":
            return []


def _video(stream: RtspStream) -> list[str]:
    kind = stream.sdp_payload_type
    lines = [f"m=video 0 RTP/AVP {kind}", f"a=rtpmap:{kind} {_ENCODINGS[stream.codec]}/{CLOCK_HZ}"]
    return lines + (_fmtp(stream, kind) if stream.fmtp != "none" else [])


def _fmtp(stream: RtspStream, kind: int) -> list[str]:
    sets = clip(stream.codec, LARGE) if stream.fmtp == "wrong-sprop" else clip_of(stream)
    text = [base64.b64encode(unit).decode() for unit in sets.parameter_sets]
    with_sets = stream.fmtp != "no-sprop"
    match stream.codec:
        case "h264":
            sprop = f";sprop-parameter-sets={','.join(text)}" if with_sets else ""
            return [f"a=fmtp:{kind} packetization-mode=1;profile-level-id={_profile(sets)}{sprop}"]
        case "h265" if with_sets:
            return [f"a=fmtp:{kind} sprop-vps={text[0]};sprop-sps={text[1]};sprop-pps={text[2]}"]
        case "mpeg4":
            return [f"a=fmtp:{kind} profile-level-id=1;config={_mpeg4_config(sets).hex()}"]
        case _:
            return []


def _profile(sets: Clip) -> str:
    return sets.parameter_sets[0][1:4].hex()


def _mpeg4_config(sets: Clip) -> bytes:
    """Return the headers at the start of an MPEG-4 clip, for the field `config` of the SDP document."""
    first = sets.frames[0].units[0]
    return first[: first.index(b"\0\0\1\xb6")]
