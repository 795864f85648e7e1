#!/usr/bin/python3
"""RTSP server of GStreamer for the tests. It plays a clip in an endless loop, at a constant frame rate.

The system's Python, which has ``gi``, runs the server in a separate process. Tests can therefore kill or suspend the
server, because real cameras can also fail and freeze. Each line on stdout is an event for which tests wait::

    ready 8554
    play /clip tcp          a client started to play, over this transport

Mounts:

=========  ========================================================================== /clip      the clip as it is,
H.264, not encoded again: decoded frames are comparable /other     the same scene in 384x288, with sound /switch
changes between both sizes every ``--switch-s`` seconds /lossy     the clip, with one RTP packet missing in frame 25,
65, 105, ... and in the key frames 120, 240, ... /private   the clip, for ``--user`` and ``--password`` only /unset
the clip, from a camera whose clock was never set: its sender reports say 1900 /h265      384x288, H.265 /mjpeg
384x288, motion JPEG =========  ==========================================================================
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

PACKAGES = {
    "gi": "python3-gi",
    "Gst": "gir1.2-gstreamer-1.0",
    "GstApp": "gir1.2-gst-plugins-base-1.0",
    "GstRtsp": "gir1.2-gst-plugins-base-1.0",
    "GstRtspServer": "gir1.2-gst-rtsp-server-1.0",
    "appsrc": "gstreamer1.0-plugins-base",
    "videoscale": "gstreamer1.0-plugins-base",
    "rtph264pay": "gstreamer1.0-plugins-good",
    "qtdemux": "gstreamer1.0-plugins-good",
    "h264parse": "gstreamer1.0-plugins-bad",
    "x265enc": "gstreamer1.0-plugins-bad",
    "x264enc": "gstreamer1.0-plugins-ugly",
    "avdec_h264": "gstreamer1.0-libav",
}


def absent(*names: str) -> NoReturn:
    """Print the names of the missing Debian packages, and exit."""
    sys.exit(f"missing Debian packages: {' '.join(sorted({PACKAGES[name] for name in names}))}")


try:
    import gi
except ImportError:
    absent("gi")
for name in ("Gst", "GstApp", "GstRtsp", "GstRtspServer"):
    try:
        gi.require_version(name, "1.0")
    except ValueError:
        absent(name)
from gi.repository import GLib, Gst, GstApp, GstRtsp, GstRtspServer  # noqa: E402, F401

CLIP = Path(__file__).parents[2] / "configs" / "vtest.mp4"
FPS = 10
ENCODERS = {
    # One slice per frame, because rtph264pay repeats the parameter sets before each slice of a key frame, and FFmpeg
    # takes the data after them for a different frame.
    "h264": "x264enc tune=zerolatency sliced-threads=false speed-preset=ultrafast key-int-max=20"
    " ! h264parse config-interval=-1",
    "h265": "x265enc tune=zerolatency speed-preset=ultrafast key-int-max=20 ! h265parse config-interval=-1",
    "mjpeg": "jpegenc",
}
CAPS = {
    "h264": "video/x-h264,stream-format=byte-stream,alignment=au",
    "h265": "video/x-h265,stream-format=byte-stream,alignment=au",
    "mjpeg": "image/jpeg,width=384,height=288,framerate=10/1",
}
PAYLOADERS = {"h264": "rtph264pay config-interval=-1", "h265": "rtph265pay config-interval=-1", "mjpeg": "rtpjpegpay"}
GOP = 20  # frames from key frame to key frame, in the clip and in the streams that are encoded here


@dataclass(frozen=True)
class PacketInfo:
    """Coded frames of one stream. Each key frame contains its parameter sets."""

    codec: str
    frames: tuple[bytes, ...]


def coded_frames(description: str) -> tuple[bytes, ...]:
    """Run a pipeline that ends in an appsink called ``sink``. Return the data of each buffer that arrives there."""
    pipeline = Gst.parse_launch(description + " ! appsink name=sink sync=false")
    sink = pipeline.get_by_name("sink")
    pipeline.set_state(Gst.State.PLAYING)
    frames = []
    while (sample := sink.try_pull_sample(20 * Gst.SECOND)) is not None:
        buffer = sample.get_buffer()
        frames.append(buffer.extract_dup(0, buffer.get_size()))
    pipeline.set_state(Gst.State.NULL)
    if not frames:
        raise SystemExit(f"nothing came out of: {description}")
    return tuple(frames)


@cache
def whole(clip: Path) -> PacketInfo:
    """Return the coded frames of the clip without a new encoding."""
    return PacketInfo(
        "h264", coded_frames(f'filesrc location="{clip}" ! qtdemux ! h264parse config-interval=-1 ! {CAPS["h264"]}')
    )


@cache
def small(clip: Path, codec: str) -> PacketInfo:
    """Return the first 4 s of the clip in 384x288. The function encodes them on the first request."""
    return PacketInfo(
        codec,
        coded_frames(
            f'filesrc location="{clip}" ! qtdemux ! h264parse ! avdec_h264 ! identity eos-after=40 ! videoconvert'
            f" ! videoscale ! video/x-raw,format=I420,width=384,height=288 ! {ENCODERS[codec]} ! {CAPS[codec]}"
        ),
    )


class Feeder:
    """Timer that feeds a frame to an appsrc every 1/FPS s, with continuous timestamps, until the media is removed."""

    def __init__(self, appsrc: Any, frame: Callable[[int], bytes]) -> None:
        self._appsrc = appsrc
        self._frame = frame
        self._started_s = time.monotonic()
        self._index = 0
        GLib.timeout_add(10, self._feed)

    def _feed(self) -> bool:
        while self._index / FPS <= time.monotonic() - self._started_s:
            buffer = Gst.Buffer.new_wrapped(self._frame(self._index))
            buffer.pts = buffer.dts = self._index * Gst.SECOND // FPS
            buffer.duration = Gst.SECOND // FPS
            if self._appsrc.emit("push-buffer", buffer) != Gst.FlowReturn.OK:
                return False
            self._index += 1
        return True


class Loss:
    """GStreamer pad probe that drops the second RTP packet of some frames."""

    def __init__(self) -> None:
        self._index = -1
        self._packet = 0

    def __call__(self, _pad: Any, probe: Any) -> Any:
        index = probe.get_buffer().pts * FPS // Gst.SECOND
        self._packet = self._packet + 1 if index == self._index else 0
        self._index = index
        spoiled = index % 40 == 25 or (index > 0 and index % 120 == 0)
        return Gst.PadProbeReturn.DROP if spoiled and self._packet == 1 else Gst.PadProbeReturn.OK


class Mount(GstRtspServer.RTSPMediaFactory):  # type: ignore[misc]
    """One stream that all its clients share, as with a real camera."""

    def __init__(self, codec: str, frame: Callable[[int], bytes], **oddities: bool) -> None:
        super().__init__()
        self._codec = codec
        self._frame = frame
        self._lossy = oddities.get("lossy", False)
        self._unset = oddities.get("unset", False)
        self._sound = oddities.get("sound", False)
        self.set_shared(True)
        self.set_protocols(GstRtsp.RTSPLowerTrans.TCP | GstRtsp.RTSPLowerTrans.UDP)
        self.connect("media-configure", self._configure)

    def do_create_element(self, _url: Any) -> Any:
        appsrc = Gst.ElementFactory.make("appsrc", "feed")
        appsrc.set_property("is-live", True)
        appsrc.set_property("format", Gst.Format.TIME)
        appsrc.set_property("caps", Gst.Caps.from_string(CAPS[self._codec]))
        # The payloader sends lists of packets. After `identity`, the packets arrive one by one.
        payloader = Gst.parse_bin_from_description(f"{PAYLOADERS[self._codec]} pt=96 ! identity", True)
        payloader.set_name("pay0")
        if self._lossy:
            payloader.get_static_pad("src").add_probe(Gst.PadProbeType.BUFFER, Loss())
        media = Gst.Bin.new(None)
        media.add(appsrc)
        media.add(payloader)
        appsrc.link(payloader)
        if self._sound:
            sound = Gst.parse_bin_from_description("audiotestsrc is-live=true ! alawenc ! rtppcmapay", True)
            sound.set_name("pay1")
            media.add(sound)
        return media

    def _configure(self, _factory: Any, media: Any) -> None:
        Feeder(media.get_element().get_by_name("feed"), self._frame)
        media.connect("prepared", self._prepared)

    def _prepared(self, media: Any) -> None:
        # Cameras send their reports every few seconds; a test should not wait that long.
        media.get_stream(0).get_rtpsession().set_property("rtcp-min-interval", 300 * Gst.MSECOND)
        if self._unset:
            children = media.get_element().get_parent().children
            rtpbin = next(child for child in children if child.get_factory().get_name() == "rtpbin")
            rtpbin.set_property("ntp-time-source", 2)  # running time


def mounts(clip: Path, switch_s: int) -> dict[str, Mount]:
    """Return the streams by path. Streams are read and encoded only on request."""

    def clip_frame(index: int) -> bytes:
        frames = whole(clip).frames
        return frames[index % len(frames)]

    def small_frame(codec: str) -> Callable[[int], bytes]:
        return lambda index: small(clip, codec).frames[index % (2 * GOP)]

    def switching_frame(index: int) -> bytes:
        turn, place = divmod(index, switch_s * FPS)
        return small_frame("h264")(place) if turn % 2 else clip_frame(place)

    return {
        "/clip": Mount("h264", clip_frame),
        "/other": Mount("h264", small_frame("h264"), sound=True),
        "/switch": Mount("h264", switching_frame),
        "/lossy": Mount("h264", clip_frame, lossy=True),
        "/private": Mount("h264", clip_frame),
        "/unset": Mount("h264", clip_frame, unset=True),
        "/h265": Mount("h265", small_frame("h265")),
        "/mjpeg": Mount("mjpeg", small_frame("mjpeg")),
    }


def protect(server: Any, private: Mount, everybody: list[Mount], *, user: str, password: str, scheme: str) -> None:
    """Require a user name and a password for `private`, but not for the other mounts."""
    auth = GstRtspServer.RTSPAuth()
    known, anonymous = GstRtspServer.RTSPToken(), GstRtspServer.RTSPToken()
    known.set_string(GstRtspServer.RTSP_TOKEN_MEDIA_FACTORY_ROLE, "known")
    anonymous.set_string(GstRtspServer.RTSP_TOKEN_MEDIA_FACTORY_ROLE, "anonymous")
    if scheme == "basic":
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.BASIC)
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), known)
    else:
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        auth.add_digest(user, password, known)
    auth.set_default_token(anonymous)
    server.set_auth(auth)
    for mount in (private, *everybody):
        permissions = GstRtspServer.RTSPPermissions()
        for role in ("known", "anonymous"):
            # Without "access" the answer would be 404, without "construct" it is 401 and the client may try again.
            allowed = mount is not private or role == "known"
            permissions.add_permission_for_role(role, GstRtspServer.RTSP_PERM_MEDIA_FACTORY_ACCESS, True)
            permissions.add_permission_for_role(role, GstRtspServer.RTSP_PERM_MEDIA_FACTORY_CONSTRUCT, allowed)
        mount.set_permissions(permissions)


def say(line: str) -> None:
    print(line, flush=True)


def report_play(_client: Any, context: Any) -> None:
    """Print the transport that a client uses, as determined by the server."""
    transport = context.sessmedia.get_transport(0).get_transport().lower_transport
    say(f"play {context.uri.abspath} {'tcp' if transport & GstRtsp.RTSPLowerTrans.TCP else 'udp'}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a clip over RTSP, forever, in real time.")
    parser.add_argument("--check", action="store_true", help="say what is missing to run this, and end")
    parser.add_argument(
        "--clip", type=Path, default=CLIP, help="MP4 file with H.264, 10 frames/s, a key frame every 20"
    )
    parser.add_argument("--port", type=int, default=0, help="0: any free one, printed")
    parser.add_argument("--user", default="viewer")
    parser.add_argument("--password", default="secret")
    parser.add_argument("--auth", choices=("basic", "digest"), default="digest")
    parser.add_argument("--switch-s", type=int, default=2, help="time between two changes of size at /switch")
    options = parser.parse_args()

    Gst.init(None)
    missing = [name for name in PACKAGES if name.islower() and name != "gi" and not Gst.ElementFactory.find(name)]
    if missing:
        absent(*missing)
    if options.check:
        return
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(str(options.port))
    served = mounts(options.clip, options.switch_s)
    for path, mount in served.items():
        server.get_mount_points().add_factory(path, mount)
    others = [mount for path, mount in served.items() if path != "/private"]
    protect(server, served["/private"], others, user=options.user, password=options.password, scheme=options.auth)
    server.connect("client-connected", lambda _server, client: client.connect("play-request", report_play))
    if not server.attach(None):
        sys.exit(f"cannot listen on port {options.port}")
    say(f"ready {server.get_bound_port()}")
    loop = GLib.MainLoop()
    # The tests hold the other end of stdin: however they end, this process does not outlive them.
    GLib.io_add_watch(sys.stdin.fileno(), GLib.PRIORITY_DEFAULT, GLib.IOCondition.HUP, lambda *_: loop.quit())
    loop.run()


if __name__ == "__main__":
    main()
