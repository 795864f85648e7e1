"""Classes that describe a synthetic camera: what it serves, what is odd about it, and the expected results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from vision.capture.zoo.clips import NORMAL, Codec
from vision.capture.zoo.payloads import JpegTables
from vision.capture.zoo.scenes import Scene, Size

Fault = Literal["none", "cut", "stall", "restart", "loss", "slow"]
"""Faults of the network or the camera that occur while the camera streams."""

FAULTS: Final[Mapping[Fault, str]] = MappingProxyType(
    {
        "none": "nothing",
        "cut": "the camera resets all connections",
        "stall": "the camera stops sending, and keeps its connections open",
        "restart": "the camera resets all connections, and closes its port for 1.5 s",
        "loss": "some frames lack one RTP packet, one TS packet, or half of a JPEG",
        "slow": "the camera sends data in small pieces, and each response 0.3 s late",
    }
)

Reader = Literal["gstreamer", "ffmpeg"]
Auth = Literal["basic", "digest", "digest-plain", "digest-sha256", "digest-stale", "digest-quotes", "both"]
Clock = Literal["right", "missing", "unset", "future", "unrelated"]
Port = Literal["open", "closed", "silent", "plain"]
"""`closed` refuses connections, `silent` accepts them and never answers, `plain` speaks no TLS."""

USER: Final = "viewer"
PASSWORD: Final = "secret"


@dataclass(frozen=True, slots=True)
class Track:
    """An additional track of a camera, described by its lines in the SDP document (`media`)."""

    media: str
    before_video: bool = True


SOUND: Final = Track("m=audio 0 RTP/AVP 8\r\na=rtpmap:8 PCMA/8000\r\n")
METADATA: Final = Track("m=application 0 RTP/AVP 107\r\na=rtpmap:107 vnd.onvif.metadata/90000\r\n")
SECOND_VIDEO: Final = Track("m=video 0 RTP/AVP 26\r\na=rtpmap:26 JPEG/90000\r\n", before_video=False)


@dataclass(frozen=True, slots=True)
class RtspStream:
    """The stream of an RTSP camera. The defaults describe a camera without oddities."""

    codec: Codec = "h264"
    fps: float = 10.0
    scene: Scene = "numbers"
    size: Size = NORMAL
    b_frames: bool = False
    slices: int = 1
    first_frame: int = 0  # frame of the clip with which the stream starts; key frames are the multiples of 10
    key_frames: bool = True  # False: key frames are not sent
    resize_every: int = 0  # frames; 0 means never
    # SDP
    fmtp: Literal["full", "no-sprop", "wrong-sprop", "none"] = "full"
    in_band: bool = True  # parameter sets are sent before each key frame
    tracks: tuple[Track, ...] = ()
    has_video: bool = True
    content_base: Literal["right", "missing", "wrong-host", "no-slash"] = "right"
    control: Literal["relative", "absolute", "wrong-host", "missing"] = "relative"
    sdp_payload_type: int = 96
    # RTP
    aggregated: bool = False
    tables: JpegTables = "always"
    first_sequence: int = 1000
    first_timestamp: int = 5000
    pace: float = 1.0  # RTP seconds per second
    jump_at: int = 0  # frame from which the RTP time is an hour ahead; 0 means never
    new_ssrc_at: int = 0  # frame from which the SSRC and the sequence numbers are different; 0 means never
    markers: bool = True
    extension: bool = False  # packets have an RTP header extension
    padding: bool = False
    duplicates: bool = False  # each packet is sent twice
    clock: Clock = "right"  # of the RTCP sender reports


@dataclass(frozen=True, slots=True)
class RtspServer:
    """The RTSP server of a camera. The defaults describe a camera without oddities."""

    transports: tuple[Literal["tcp", "udp"], ...] = ("tcp", "udp")
    channels: int = 0  # added to the interleaved channel numbers that the client requests
    status: int = 200  # status of the response to DESCRIBE
    redirect: bool = False  # DESCRIBE is answered with 302 and a different path
    options: bool = True  # OPTIONS is answered with 200, otherwise with 501
    get_parameter: Literal["yes", "refused", "closes"] = "yes"
    offers_get_parameter: bool = True
    session_timeout_s: int = 60  # without a request or RTCP report, the session ends after 1.5 times this duration
    reports_keep_alive: bool = True  # False: only requests count
    delay_s: float = 0.0  # delay of each response
    plays: bool = True  # frames follow PLAY
    early: bool = False  # frames precede the answer to PLAY
    asks: bool = False  # the camera sends requests to the client
    style: Literal["usual", "lower-case", "line-feeds"] = "usual"
    session_suffix: str = ""


HttpKind = Literal["multipart", "bare", "snapshot", "hls", "mp4", "ts", "flv", "page", "empty"]


@dataclass(frozen=True, slots=True)
class HttpStream:
    """The stream of an HTTP camera. The defaults describe a motion JPEG camera without oddities."""

    kind: HttpKind = "multipart"
    fps: float = 10.0
    part_type: str | None = "image/jpeg"  # Content-Type of each part; None: the line is missing
    part_length: bool = True
    content_type: str | None = "multipart/x-mixed-replace; boundary=frame"
    boundary: str = "--frame"  # as it is sent between two parts
    line_end: str = "\r\n"
    preamble: bytes = b""
    text_parts: bool = False  # a part of text before each JPEG
    huffman_tables: bool = True
    comment: bytes = b""  # of each JPEG
    chunked: bool = False
    length: bool = True  # Content-Length of a snapshot
    announced_sound: bool = False  # ts and flv announce sound, which never arrives
    segment_s: int = 1  # duration of a segment of hls
    status: int = 200
    redirect: bool = False
    plays: bool = True  # data follows the header


Stream: TypeAlias = RtspStream | HttpStream


@dataclass(frozen=True, slots=True)
class Verdict:
    """The error with which a reader (GStreamer or FFmpeg) refuses a synthetic camera, and settings that prevent it."""

    code: str  # `SourceError.code`
    remedy: Mapping[str, object] | None = None  # keys of camera.yaml with which it plays; None: change the camera


@dataclass(frozen=True, slots=True)
class Limit:
    """A limitation of a reader (GStreamer or FFmpeg) that plays a synthetic camera. `text` describes it.

    During the faults in `faults`, the reader does not count all missing frames.
    """

    reader: Reader
    text: str
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class Persona:
    """The description of one synthetic camera: its stream, its server, its oddities, and the expected results.

    `verdicts` names the readers (GStreamer, FFmpeg) that cannot play the stream of this camera, each with the reason.
    """

    name: str
    odd: str  # what is odd about it
    stream: Stream = field(default_factory=RtspStream)
    server: RtspServer = field(default_factory=RtspServer)
    scheme: str = "rtsp"  # as it is written in the address
    path: str = "/stream"
    account: bool = False  # the address contains the user and password
    auth: Auth | None = None
    port: Port = "open"
    settings: Mapping[str, object] = field(default_factory=dict)  # further keys of the camera
    verdicts: Mapping[Reader, Verdict] = field(default_factory=dict)
    limits: tuple[Limit, ...] = ()

    def counts_all(self, reader: Reader, fault: Fault) -> bool:
        """Return True if the reader counts all missing frames during this fault, according to `limits`."""
        return not any(limit.reader == reader and fault in limit.faults for limit in self.limits)

    @property
    def readers(self) -> tuple[Reader, ...]:
        """Names of the readers (GStreamer, FFmpeg) that support the protocol of this camera."""
        return ("gstreamer", "ffmpeg") if self.is_rtsp else ("ffmpeg",)

    @property
    def is_rtsp(self) -> bool:
        return isinstance(self.stream, RtspStream)

    @property
    def is_encrypted(self) -> bool:
        return self.scheme.lower() in ("rtsps", "https")

    def address(self, port: int) -> str:
        """Return the address of the camera on this port of the loopback interface."""
        account = f"{USER}:{PASSWORD}@" if self.account else ""
        return f"{self.scheme}://{account}127.0.0.1:{port}{self.path}"
