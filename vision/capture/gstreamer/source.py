"""Cameras through GStreamer: RTSP, CSI and USB, with a Jetson's decoders where there are any.

FFmpeg through OpenCV plays RTSP too, but does not tell which frames were damaged by lost packets, nor when they were
taken; and it does not know a Jetson's hardware. The price is Debian's ``python3-gi``, which no registry has as a wheel.

One thread calls `open`, `grab`, `retrieve` and `close`. GStreamer's threads call the probes. Waiting is cut into short
slices, so that `interrupt` and a fault are noticed without changing the pipeline's state from a second thread.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from vision.capture.clock import CaptureClock, utc_minus_running_time
from vision.capture.gstreamer import errors, pipeline
from vision.capture.gstreamer.bindings import Installed, library, mapped, yuv_encoding
from vision.capture.packet_info import KeyFrameGate, PacketInfo, Timeline
from vision.capture.planes import Plane, copy_planes, planes_of
from vision.capture.source import Grab, StreamInfo, not_open
from vision.config import CameraConfig
from vision.errors import SizeChanged, SourceError, redact
from vision.types import FrameBuffer, PixelFormat, YuvEncoding, frame_shape

log = logging.getLogger(__name__)

_SLICE_S = 0.05  # how late an interrupt or a fault is noticed
_KEY_REQUEST_NS = 1_000_000_000  # cameras answer each request with a large frame
_OLDEST_NS = 30_000_000_000  # a frame that seems older when it comes has a wrong time
_NO_TIME = 2**64 - 1  # GST_CLOCK_TIME_NONE, and the jitter buffer's "unknown"

_FORMATS: dict[str, PixelFormat] = {name: pixel_format for pixel_format, name in pipeline.NAMES.items()}
_CODECS: dict[str, pipeline.Codec] = {"H264": "H264", "H265": "H265", "JPEG": "JPEG"}


def available(camera: CameraConfig) -> str | None:
    """None if GStreamer can open this camera here, else what is missing and which package has it."""
    kind = pipeline.kind_of(camera.address)
    if kind is None:
        return "GStreamer opens rtsp://, rtsps://, csi:N and /dev/videoN only"
    try:
        return pipeline.missing(pipeline.needed(kind, Installed()), Installed())
    except SourceError as error:
        return str(error)


class GStreamerSource:
    """One camera through GStreamer.

    `pixel_formats`: what the detector takes. The decoder's own format is delivered where it is among them.
    """

    def __init__(
        self,
        camera: CameraConfig,
        pixel_formats: tuple[PixelFormat, ...],
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        utc: Callable[[], int] = time.time_ns,
    ) -> None:
        self._camera = camera
        self._pixel_formats = pixel_formats
        self._clock = clock
        self._interrupted = threading.Event()
        self._stamps = CaptureClock(round(camera.max_frame_age_s * 1e9), self._warn, clock=clock, utc=utc)
        self._pipeline: Any = None
        self._reset()

    def _reset(self) -> None:
        self._bus: Any = None
        self._sink: Any = None
        self._sample: Any = None  # the frame grabbed last
        self._first: Any = None  # the frame that `open` waited for
        self._info: StreamInfo | None = None  # of the first frame
        self._frame: StreamInfo | None = None  # of the one grabbed last
        self._undo: list[Callable[[], None]] = []
        self._base_ns = 0
        self._decoder = ""
        self._coded_count = 0
        self._selected = False
        self._linked = threading.Event()
        self._fault: SourceError | None = None
        self._gate = KeyFrameGate()
        self._timeline = Timeline()
        self._key_requested_ns = 0
        self._utc_offset_ns: int | None = None  # what makes UTC of a running time, by the camera's sender reports

    @property
    def live(self) -> bool:
        return True

    def open(self) -> StreamInfo:
        """Connect, and wait for the first key frame: only a decoded frame tells its format."""
        self.close()
        reason = available(self._camera)
        if reason is not None:
            raise self._error(reason, hint="or open the camera with `reader: opencv`")
        try:
            self._start()
            self._first = self._pull(self._camera.open_timeout_s)
            if self._first is None:
                raise self._nothing_came()
            self._info = self._describe(self._first)
        except BaseException:
            self.close()
            raise
        return self._info

    def grab(self, timeout_s: float) -> Grab | None:
        if self._pipeline is None:
            raise not_open(redact(self._camera.source), "grab")
        sample, self._first = self._first, None
        if sample is None:
            sample = self._pull(timeout_s)
        if sample is None:
            return None
        self._sample, self._frame = sample, self._describe(sample)
        return self._stamp(sample.get_buffer(), self._frame.yuv)

    def retrieve(self, out: FrameBuffer) -> None:
        info = self._frame
        if info is None or self._info is None:
            raise not_open(redact(self._camera.source), "retrieve")
        if info.pixel_format != self._info.pixel_format:
            raise self._error(f"frames were {self._info.pixel_format}, now {info.pixel_format}")
        pixels = out.require_host()
        if pixels.shape != frame_shape(info.height_px, info.width_px, info.pixel_format):
            raise SizeChanged(info.height_px, info.width_px)
        buffer = self._sample.get_buffer()
        planes = self._planes(info, buffer)
        try:
            with mapped(buffer) as frame:
                copy_planes(frame, planes, pixels)
        except ValueError as error:
            raise self._error(str(error)) from None

    def interrupt(self) -> None:
        """Final: from now on `open` fails and `grab` finds nothing."""
        self._interrupted.set()

    def close(self) -> None:
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is None:
            return
        self._sample = self._first = None
        pipeline.set_state(library().Gst.State.NULL)
        for undo in self._undo:  # closures of ours would keep the pipeline alive until a garbage collection
            undo()
        self._reset()

    def __del__(self) -> None:
        if getattr(self, "_pipeline", None) is not None:
            warnings.warn(f"{type(self).__name__} was not closed", ResourceWarning, stacklevel=2)

    # Building

    def _start(self) -> None:
        gst = library().Gst
        registry = Installed()
        self._pipeline = gst.Pipeline.new(None)
        # The system's clock is CLOCK_MONOTONIC, as Python's: presentation times can be compared with ours.
        self._pipeline.use_clock(gst.SystemClock.obtain())
        self._bus = self._pipeline.get_bus()
        kind = pipeline.kind_of(self._camera.address)
        if kind == "rtsp":
            self._add_rtsp_source(registry)
        elif kind == "csi":
            self._add_chain(pipeline.csi_chain(self._camera, self._pixel_formats, registry))
        else:
            self._add_usb(registry)
        if self._pipeline.set_state(gst.State.PLAYING) == gst.StateChangeReturn.FAILURE:
            self._check()
            raise self._error("GStreamer cannot start it")
        self._base_ns = self._pipeline.get_base_time()

    def _add_rtsp_source(self, registry: pipeline.Registry) -> None:
        source = self._make(pipeline.rtsp_source(self._camera, registry))
        self._pipeline.add(source)
        self._connect(source, "new-manager", self._on_manager)
        self._connect(source, "select-stream", self._on_stream)
        self._connect(source, "pad-added", self._on_pad)

    def _add_usb(self, registry: pipeline.Registry) -> None:
        gst = library().Gst
        probe = self._make(pipeline.Element("v4l2src", {"device": self._camera.source}))
        try:
            if probe.set_state(gst.State.READY) == gst.StateChangeReturn.FAILURE:
                raise self._error(
                    "it cannot be opened",
                    hint="is it there (v4l2-ctl --list-devices), in use, or closed to this user (group video)?",
                )
            offered = probe.get_static_pad("src").query_caps(None)
            request = pipeline.usb_request(self._camera, "video/x-raw")
            offers_raw = offered.can_intersect(gst.Caps.from_string(request.text))
        finally:
            probe.set_state(gst.State.NULL)
        self._add_chain(pipeline.usb_chain(self._camera, self._pixel_formats, registry, offers_raw=offers_raw))

    def _make(self, element: pipeline.Element) -> Any:
        gst = library().Gst
        made = gst.ElementFactory.make(element.factory, None)
        if made is None:
            raise self._error(f"GStreamer cannot make {element.factory}")
        for name, value in element.properties.items():
            if isinstance(value, pipeline.Caps):
                made.set_property(name, gst.Caps.from_string(value.text))
            elif isinstance(value, pipeline.Nick):
                gst.util_set_object_arg(made, name, value.text)
            else:
                made.set_property(name, value)
        return made

    def _add_chain(self, chain: Sequence[pipeline.Element]) -> Any:
        """Make, add, link and start elements that end in an appsink; the first one is returned."""
        made = [self._make(element) for element in chain]
        for element in made:
            self._pipeline.add(element)
        for left, right in itertools.pairwise(made):
            if not left.link(right):
                raise self._error(f"cannot link {left.get_name()} to {right.get_name()}")
        named = [element.factory for element in chain]
        self._decoder = next((name for name in named if name.startswith(("avdec", "nv", "jpegdec"))), named[0])
        self._sink = made[-1]
        for element in reversed(made):
            element.sync_state_with_parent()
        self._linked.set()
        return made[0]

    def _connect(self, element: Any, signal: str, callback: Callable[..., Any]) -> None:
        handler = element.connect(signal, callback)
        self._undo.append(functools.partial(element.disconnect, handler))

    def _probe(self, pad: Any, kind: Any, callback: Callable[..., Any]) -> None:
        probe = pad.add_probe(kind, callback)
        self._undo.append(functools.partial(pad.remove_probe, probe))

    # Called by GStreamer's threads

    def _on_manager(self, _source: Any, manager: Any) -> None:
        manager.set_property("do-lost", True)
        self._connect(manager, "new-jitterbuffer", self._on_jitter_buffer)

    def _on_jitter_buffer(self, _manager: Any, jitter_buffer: Any, _session: int, _ssrc: int) -> None:
        self._connect(jitter_buffer, "handle-sync", self._on_sender_report)

    def _on_sender_report(self, _jitter_buffer: Any, sync: Any) -> None:
        """Taken from here and not from ``add-reference-timestamp-meta``, which JetPack 6's GStreamer 1.20 has not."""
        names = ("sr-ext-rtptime", "base-rtptime", "base-time", "clock-rate")
        if not all(sync.has_field(name) for name in (*names, "sr-buffer")):
            return  # newer versions report times in RTP header extensions here too
        rtp_time, base_rtp_time, base_running_ns, clock_rate_hz = (int(sync.get_value(name)) for name in names)
        if rtp_time == _NO_TIME:
            return
        report = sync.get_value("sr-buffer")
        self._utc_offset_ns = utc_minus_running_time(
            report.extract_dup(0, report.get_size()),
            rtp_time=rtp_time,
            base_rtp_time=base_rtp_time,
            base_running_ns=base_running_ns,
            clock_rate_hz=clock_rate_hz,
        )

    def _on_stream(self, _source: Any, _number: int, caps: Any) -> bool:
        """Whether to ask the camera for this stream: the first with video; sound and metadata only cost bandwidth."""
        wanted = not self._selected and caps.get_structure(0).get_string("media") == "video"
        self._selected = self._selected or wanted
        return wanted

    def _on_pad(self, _source: Any, pad: Any) -> None:
        caps = pad.get_current_caps() or pad.query_caps(None)
        structure = caps.get_structure(0)
        if structure.get_string("media") != "video" or self._linked.is_set():
            return
        try:
            self._decode(pad, str(structure.get_string("encoding-name")))
        except SourceError as error:
            self._fault = error

    def _decode(self, pad: Any, encoding: str) -> None:
        gst = library().Gst
        registry = Installed()
        codec = _CODECS.get(encoding)
        if codec is None:
            raise self._error(
                f"expected H.264, H.265 or motion JPEG, the camera sends {encoding}",
                hint="choose another codec in the camera's settings",
            )
        chain = pipeline.decode_chain(codec, self._pixel_formats, registry)
        reason = pipeline.missing([element.factory for element in chain], registry)
        if reason is not None:
            raise self._error(f"the camera sends {encoding}, and {reason}")
        depayloader = self._add_chain(chain)
        entry = depayloader.get_static_pad("sink")
        parser = depayloader.get_static_pad("src").get_peer().get_parent_element()
        self._probe(entry, gst.PadProbeType.EVENT_DOWNSTREAM, self._on_event)
        self._probe(parser.get_static_pad("src"), gst.PadProbeType.BUFFER, self._on_coded)
        if pad.link(entry) != gst.PadLinkReturn.OK:
            raise self._error(f"cannot link {encoding} to its depayloader")

    def _on_event(self, _pad: Any, probe: Any) -> Any:
        gst = library().Gst
        event = probe.get_event()
        if event.type == gst.EventType.CUSTOM_DOWNSTREAM and event.get_structure().has_name("GstRTPPacketLost"):
            self._gate.lost()
        return gst.PadProbeReturn.OK

    def _on_coded(self, pad: Any, probe: Any) -> Any:
        gst = library().Gst
        buffer = probe.get_buffer()
        now_ns = self._clock()
        arrived_ns = self._arrived_ns(buffer.pts, now_ns)
        key = not buffer.has_flags(gst.BufferFlags.DELTA_UNIT)
        self._coded_count += 1
        passed = self._gate.passes(key=key, now_ns=now_ns, lag_ns=now_ns - arrived_ns)
        if not passed or self._gate.damaged:
            self._request_key_frame(pad, now_ns)
        if not passed:
            return gst.PadProbeReturn.DROP
        offset_ns = self._utc_offset_ns
        utc_ns = None if offset_ns is None or buffer.pts == _NO_TIME else buffer.pts + offset_ns
        self._timeline.put(buffer.pts, PacketInfo(arrived_ns, utc_ns, self._gate.damaged))
        return gst.PadProbeReturn.OK

    def _request_key_frame(self, pad: Any, now_ns: int) -> None:
        """Ask the camera, through RTCP, where it said that it listens; others ignore it."""
        if now_ns - self._key_requested_ns < _KEY_REQUEST_NS:
            return
        self._key_requested_ns = now_ns
        video = library().GstVideo
        pad.send_event(video.video_event_new_upstream_force_key_unit(_NO_TIME, True, 0))

    # Waiting

    def _pull(self, timeout_s: float) -> Any:
        """The next decoded frame, or None if none came in time or `interrupt` was called.

        Raises:
            SourceError: the pipeline failed or came to its end.
        """
        deadline = time.monotonic() + timeout_s
        while not self._interrupted.is_set():
            self._check()
            slice_s = min(_SLICE_S, max(0.0, deadline - time.monotonic()))
            if self._linked.wait(0.0 if self._sink is not None else slice_s):
                sample = self._sink.try_pull_sample(round(slice_s * 1e9))
                if sample is not None:
                    return sample
            if time.monotonic() >= deadline:
                self._check()
                return None
        return None

    def _check(self) -> None:
        gst = library().Gst
        if self._fault is not None:
            raise self._fault
        message = self._bus.pop_filtered(gst.MessageType.ERROR | gst.MessageType.EOS)  # throws all others away
        if message is None:
            return
        if message.type == gst.MessageType.EOS:
            raise self._error("the camera ended the stream")
        error, debug = message.parse_error()
        raise errors.explain(self._camera, error.domain, error.code, error.message, debug or "")

    def _nothing_came(self) -> SourceError:
        return errors.silence(
            self._camera,
            interrupted=self._interrupted.is_set(),
            connected=self._linked.is_set(),
            coded_frames=self._coded_count,
        )

    # Frames

    def _arrived_ns(self, pts_ns: int, now_ns: int) -> int:
        """When the frame came to this machine. The presentation time is that, smoothed, and before any waiting."""
        arrived_ns = self._base_ns + pts_ns
        return arrived_ns if 0 <= now_ns - arrived_ns < _OLDEST_NS else now_ns

    def _stamp(self, buffer: Any, yuv: YuvEncoding) -> Grab:
        gst = library().Gst
        pts_ns = None if buffer.pts == _NO_TIME else int(buffer.pts)
        coded = None if pts_ns is None else self._timeline.take(pts_ns)
        if coded is None:  # a camera that sends raw frames, or a decoder that made up a time
            now_ns = self._clock()
            arrived_ns = now_ns if pts_ns is None else self._arrived_ns(pts_ns, now_ns)
            coded = PacketInfo(arrived_ns, None, self._gate.damaged)
        stamp = self._stamps.stamp(coded.arrived_ns, coded.ntp_utc_ns)
        corrupt = coded.corrupt or buffer.has_flags(gst.BufferFlags.CORRUPTED)
        return Grab(stamp.captured_ns, stamp.captured_utc_ns, stamp.clock, pts_ns, corrupt, yuv)

    def _describe(self, sample: Any) -> StreamInfo:
        caps = sample.get_caps()
        structure = caps.get_structure(0)
        width_px, height_px = structure.get_value("width"), structure.get_value("height")
        _, numerator, denominator = structure.get_fraction("framerate")
        return StreamInfo(
            width_px,
            height_px,
            _FORMATS[structure.get_string("format")],
            numerator / denominator if numerator and denominator else None,
            self._decoder,
            yuv_encoding(structure.get_string("colorimetry"), height_px),
        )

    def _planes(self, info: StreamInfo, buffer: Any) -> tuple[Plane, ...]:
        video = library().GstVideo
        meta = video.buffer_get_video_meta(buffer)
        if meta is None:  # then the layout is the default of these caps
            meta = video.VideoInfo.new_from_caps(self._sample.get_caps())
        return planes_of(info.pixel_format, info.height_px, info.width_px, meta.stride, meta.offset)

    def _error(self, text: str, hint: str = "") -> SourceError:
        return SourceError(f"{redact(self._camera.source)}: {text}", hint=hint)

    def _warn(self, text: str) -> None:
        log.warning("camera %s: %s", self._camera.id, text)
