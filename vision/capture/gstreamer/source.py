"""Cameras that GStreamer reads: RTSP, CSI, and USB, with a Jetson's decoders if available.

GStreamer reports every lost packet and the capture times of a camera, and uses a Jetson's hardware. It needs Debian's
package ``python3-gi``, which is not available as a wheel.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vision.capture.clock import CaptureClock
from vision.capture.diagnosis import explain_open
from vision.capture.gstreamer import errors, pipeline
from vision.capture.gstreamer.bindings import copy_sample, describe, installed, library, tls_database
from vision.capture.gstreamer.packets import NO_TIME, DecodedFrame, DecodedFrames, PacketMonitor
from vision.capture.planes import UPRIGHT, has_shape, split_planes
from vision.capture.source import Grab, SkippedFrames, StreamInfo, not_open
from vision.config import CameraConfig
from vision.config.source_address import Csi, Rtsp
from vision.errors import SizeChanged, SourceError
from vision.types import FrameBuffer, PixelFormat, frame_shape

_LATE: Final = frozenset({"no-answer", "no-frame"})
_UNCLEAR: Final = _LATE | {"refused", "read", "gstreamer", "unauthorized", "no-stream"}
"""Codes of GStreamer's errors whose real cause can differ from the cause that the error names."""

_NO_CAUSE: Final = frozenset(
    {"codec", "no-frame", "refused-request"}
)  # no request that GStreamer depends on was refused

_Sample: TypeAlias = tuple[Any, StreamInfo]
"""A decoded frame in GStreamer's memory, and its properties."""


def available(camera: CameraConfig) -> str | None:
    """Return a text with the reason why GStreamer cannot open this camera, and the package to install.

    Return None if GStreamer can open the camera.
    """
    try:
        return pipeline.unavailable(camera.address, installed)
    except SourceError as error:
        return str(error)


class GStreamerSource:
    """One camera, read through GStreamer. It implements `vision.capture.source.Source`.

    `pixel_formats` are the formats that the detector accepts. If the format of the decoder is one of them, the frames
    are not converted.
    """

    live = True

    def __init__(self, camera: CameraConfig, pixel_formats: tuple[PixelFormat, ...]) -> None:
        self._camera = camera
        self._pixel_formats = pixel_formats
        self.skipped = SkippedFrames()
        self._interrupted = threading.Event()
        self._capture_clock = CaptureClock(camera.id, round(camera.max_frame_age_s * 1e9))
        self._player: Player | None = None
        self._waiting: list[tuple[DecodedFrame, StreamInfo]] = []  # the frame that `open` waited for
        self._sample: _Sample | None = None  # the last grabbed frame
        self._orientation = UPRIGHT  # of the frames of this connection

    def _new_player(self) -> Player:
        return Player(self._camera, self._pixel_formats, self._interrupted, self.skipped)

    def open(self) -> StreamInfo:
        """Connect, wait for the first decoded frame, and return the properties of the stream.

        Raises:
            SourceError: GStreamer or a package is missing, the camera cannot be reached, refuses the connection, or
                sends no frame that can be decoded, or `interrupt` was called.
        """
        self.close()
        reason = available(self._camera)
        if reason is not None:
            raise errors.source_error(self._camera, reason, "`vision doctor` lists the missing packages")
        player = self._player = self._new_player()
        try:
            player.start()
            frame = player.pull(self._camera.open_timeout_s)
            if frame is None:
                raise errors.no_frame(
                    self._camera,
                    interrupted=self._interrupted.is_set(),
                    connected=player.linked.is_set(),
                    coded_frames=player.packets.coded_frames,
                )
            info = describe(frame.sample, player.decoder)
        except SourceError as error:
            self.close()
            raise self._diagnosed(error) from None  # a cause would keep the pipeline alive
        except BaseException:
            self.close()
            raise
        self._waiting.append((frame, info))
        self._orientation = player.packets.orientation or UPRIGHT
        height_px, width_px = self._orientation.shown_size(info.height_px, info.width_px)
        return replace(info, height_px=height_px, width_px=width_px)

    def _diagnosed(self, error: SourceError) -> SourceError:
        """Return the error to raise for a failed connection.

        If the camera uses RTSP and GStreamer's error does not show the cause, send requests to the camera to find it.
        """
        if error.code not in _UNCLEAR or not isinstance(self._camera.address, Rtsp):
            return error
        cause = explain_open(self._camera, late=error.code in _LATE)
        if error.code in _LATE or cause.code not in _NO_CAUSE:
            return cause
        hint = error.hint or "set `reader: ffmpeg`, or choose a different codec in the camera's settings"
        code = "unsupported-stream" if error.code == "gstreamer" else error.code
        return SourceError(error.args[0], hint=hint, code=code)

    def grab(self, timeout_s: float) -> Grab | None:
        player = self._player
        if player is None:
            raise not_open(self._camera.source, "grab")
        if self._waiting:
            frame, info = self._waiting.pop()
        else:
            pulled = player.pull(timeout_s)
            if pulled is None:
                return None
            frame, info = pulled, describe(pulled.sample, player.decoder)
        self._sample = frame.sample, info
        return self._stamp(frame, info)

    def retrieve(self, out: FrameBuffer) -> None:
        if self._sample is None:
            raise not_open(self._camera.source, "retrieve")
        sample, info = self._sample
        if info.pixel_format != out.pixel_format:
            raise errors.source_error(
                self._camera, f"the pixel format changed from {out.pixel_format} to {info.pixel_format}"
            )
        pixels = out.require_host()
        height_px, width_px = self._orientation.shown_size(info.height_px, info.width_px)
        if not has_shape(pixels, height_px, width_px, info.pixel_format):
            raise SizeChanged(height_px, width_px)
        try:
            if self._orientation.is_upright:
                copy_sample(sample, info, pixels)
            else:
                self._copy_turned(sample, info, pixels)
        except ValueError as error:
            raise errors.source_error(self._camera, str(error)) from None

    def _copy_turned(self, sample: Any, info: StreamInfo, out: NDArray[np.uint8]) -> None:
        """Copy a sample to `out`, rotated and mirrored as the stream specifies."""
        decoded = np.empty(frame_shape(info.height_px, info.width_px, info.pixel_format), np.uint8)
        copy_sample(sample, info, decoded)
        size = self._orientation.shown_size(info.height_px, info.width_px)
        planes = split_planes(decoded, info.height_px, info.width_px, info.pixel_format)
        for shown, plane in zip(split_planes(out, *size, info.pixel_format), planes, strict=True):
            shown[...] = self._orientation.apply(plane)

    def interrupt(self) -> None:
        """Make current and future calls to `open` raise `SourceError`, and make calls to `grab` return None."""
        self._interrupted.set()

    def close(self) -> None:
        self._waiting.clear()
        self._sample = None
        player, self._player = self._player, None
        if player is not None:
            player.stop()

    def __del__(self) -> None:
        if getattr(self, "_player", None) is not None:
            warnings.warn(f"{type(self).__name__} was not closed", ResourceWarning, stacklevel=2)

    def _stamp(self, frame: DecodedFrame, info: StreamInfo) -> Grab:
        buffer, packet = frame.sample.get_buffer(), frame.packet
        pts_ns = None if buffer.pts == NO_TIME else int(buffer.pts)
        corrupt = packet.corrupt or buffer.has_flags(library().Gst.BufferFlags.CORRUPTED)
        return self._capture_clock.stamp(
            packet.arrived_ns, packet.ntp_utc_ns, pts_ns=pts_ns, corrupt=corrupt, yuv=info.yuv
        )


_CODECS: dict[str, pipeline.Codec] = {"H264": "H264", "H265": "H265", "JPEG": "JPEG"}
_SLICE_S = 0.05  # longest delay until an interrupt or an error is detected


class Player:
    """One pipeline of GStreamer, from `start` to `stop`.

    GStreamer's threads call the ``_on_`` methods and the methods that these call. The camera's thread calls `start`,
    `pull`, and `stop`. `pull` waits in short slices, so that it detects an interrupt or an error, and no second thread
    needs to change the state of the pipeline.
    """

    def __init__(
        self,
        camera: CameraConfig,
        pixel_formats: tuple[PixelFormat, ...],
        interrupted: threading.Event,
        skipped: SkippedFrames,
    ) -> None:
        """Create the pipeline, but do not start it.

        If `interrupted` is set, `pull` returns None. `skipped` counts the frames that the pipeline skips.
        """
        self._camera = camera
        self._pixel_formats = pixel_formats
        self._interrupted = interrupted
        self._error = functools.partial(errors.source_error, camera)
        self._pipeline = library().Gst.Pipeline.new(None)
        self._bus = self._pipeline.get_bus()
        self._decoded = DecodedFrames(skipped)
        self.packets = PacketMonitor(self._decoded.skip)
        self._entry: Any = None  # the sink pad of the depayloader
        self._undo: list[Callable[[], None]] = []
        self._selected = False
        self.linked = threading.Event()
        self._fault: SourceError | None = None
        self.decoder = ""

    def start(self) -> None:
        """Build the pipeline and start it.

        Raises:
            SourceError: an element is missing, the device or the PEM file in the setting `tls` cannot be opened, or
                GStreamer cannot start the pipeline.
        """
        gst = library().Gst
        # GStreamer's system clock is CLOCK_MONOTONIC, like Python's monotonic clock, so their times can be compared.
        self._pipeline.use_clock(gst.SystemClock.obtain())
        match self._camera.address:
            case Rtsp():
                self._add_rtsp_source()
            case Csi():
                self._add_chain(pipeline.csi_chain(self._camera, self._pixel_formats, installed))
            case _:
                self._add_usb()
        if self._pipeline.set_state(gst.State.PLAYING) == gst.StateChangeReturn.FAILURE:
            self._check()
            raise self._error("GStreamer cannot start the pipeline")
        self.packets.started(self._pipeline.get_base_time())

    def stop(self) -> None:
        """Stop the pipeline and release it."""
        self._pipeline.set_state(library().Gst.State.NULL)
        for undo in self._undo:  # the callbacks would keep the pipeline alive until a garbage collection
            undo()
        self._undo.clear()

    def pull(self, timeout_s: float) -> DecodedFrame | None:
        """Return the next decoded frame, or None if `timeout_s` passed or the source was interrupted.

        Raises:
            SourceError: the pipeline failed, or the camera ended the stream, and no decoded frame is left.
        """
        deadline = time.monotonic() + timeout_s
        while not self._interrupted.is_set():
            frame = self._decoded.get(0.0)
            if frame is None:  # an error or the end comes after the frames that wait
                self._check()
                frame = self._decoded.get(min(_SLICE_S, max(0.0, deadline - time.monotonic())))
            if frame is not None:
                return frame
            if time.monotonic() >= deadline:
                self._check()
                return None
        return None

    def _check(self) -> None:
        gst = library().Gst
        if self._fault is not None:
            raise self._fault
        message = self._bus.pop_filtered(gst.MessageType.ERROR | gst.MessageType.EOS)  # discards all others
        if message is None:
            return
        if message.type == gst.MessageType.EOS:
            raise self._error("the camera ended the stream", code="stream-ended")
        error, debug = message.parse_error()
        raise errors.explain(self._camera, error.domain, error.code, error.message, debug or "")

    # Building the pipeline

    def _add_rtsp_source(self) -> None:
        source = self._make(pipeline.rtsp_source(self._camera, installed))
        self._pipeline.add(source)
        self._connect(source, "new-manager", self._on_manager)
        self._connect(source, "select-stream", self._on_stream)
        self._connect(source, "pad-added", self._on_pad)

    def _add_usb(self) -> None:
        gst = library().Gst
        probe = self._make(pipeline.Element("v4l2src", {"device": self._camera.source}))
        try:
            if probe.set_state(gst.State.READY) == gst.StateChangeReturn.FAILURE:
                raise self._error(
                    "the device cannot be opened",
                    hint="check that it exists (v4l2-ctl --list-devices), is free, and that you are in group video",
                )
            supported = probe.get_static_pad("src").query_caps(None)
            request = pipeline.usb_request(self._camera, "video/x-raw")
            offers_raw = supported.can_intersect(gst.Caps.from_string(request.text))
        finally:
            probe.set_state(gst.State.NULL)
        self._add_chain(pipeline.usb_chain(self._camera, self._pixel_formats, installed, offers_raw=offers_raw))

    def _make(self, element: pipeline.Element) -> Any:
        gst = library().Gst
        made = gst.ElementFactory.make(element.factory, None)
        if made is None:
            raise self._error(f"GStreamer cannot create {element.factory}")
        for name, value in element.properties.items():
            if isinstance(value, pipeline.TrustedCertificates):
                made.set_property(name, tls_database(value.path))
            elif isinstance(value, pipeline.Serialized):
                gst.util_set_object_arg(made, name, value.text)
            else:
                made.set_property(name, value)
        return made

    def _add_chain(self, chain: Sequence[pipeline.Element]) -> Any:
        """Create, add, link, and start the elements in `chain`, which ends in an appsink. Return the first element."""
        made = [self._make(element) for element in chain]
        for element in made:
            self._pipeline.add(element)
        for left, right in itertools.pairwise(made):
            if not left.link(right):
                raise self._error(f"cannot link {left.get_name()} to {right.get_name()}")
        factories = [element.factory for element in chain]
        self.decoder = next((name for name in factories if name.startswith(("avdec", "nv", "jpegdec"))), factories[0])
        self._connect(made[-1], "new-sample", self._on_sample)
        for element in reversed(made):
            element.sync_state_with_parent()
        self.linked.set()
        return made[0]

    def _connect(self, element: Any, signal: str, callback: Callable[..., Any]) -> None:
        handler = element.connect(signal, callback)
        self._undo.append(functools.partial(element.disconnect, handler))

    def _probe(self, pad: Any, kind: Any, callback: Callable[..., Any]) -> None:
        probe = pad.add_probe(kind, callback)
        self._undo.append(functools.partial(pad.remove_probe, probe))

    # Called by GStreamer's threads

    def _on_sample(self, sink: Any) -> Any:
        sample = sink.pull_sample()
        if sample is not None:
            self._decoded.put(self.packets.on_decoded_frame(sample))
        return library().Gst.FlowReturn.OK

    def _on_manager(self, _source: Any, manager: Any) -> None:
        manager.set_property("do-lost", True)
        self._connect(manager, "new-jitterbuffer", self._on_jitter_buffer)

    def _on_jitter_buffer(self, _manager: Any, jitter_buffer: Any, _session: int, _ssrc: int) -> None:
        self._connect(jitter_buffer, "handle-sync", self.packets.on_sender_report)

    def _on_stream(self, _source: Any, _number: int, caps: Any) -> bool:
        """Select the streams of a camera to receive: return True for the first video stream, and False for all others.

        GStreamer calls this method for each stream. The other streams would only use bandwidth.
        """
        select = not self._selected and caps.get_structure(0).get_string("media") == "video"
        self._selected = self._selected or select
        return select

    def _on_pad(self, _source: Any, pad: Any) -> None:
        caps = pad.get_current_caps() or pad.query_caps(None)
        structure = caps.get_structure(0)
        if structure.get_string("media") != "video":
            return
        if self._entry is not None:
            self._relink(pad)
            return
        try:
            self._add_decoder(pad, structure)
        except SourceError as error:
            self._fault = error

    def _relink(self, pad: Any) -> None:
        """Connect `pad` to the decoder, in place of the pad that is connected.

        Some cameras continue their stream with a different SSRC (identifier of an RTP stream), for which GStreamer
        creates the new pad `pad`.
        """
        previous = self._entry.get_peer()
        if previous is not None:
            previous.unlink(self._entry)
        self.packets.replaced()
        pad.link(self._entry)  # if the codec has changed, the pipeline posts an error

    def _add_decoder(self, pad: Any, structure: Any) -> None:
        gst = library().Gst
        encoding = str(structure.get_string("encoding-name"))
        codec = _CODECS.get(encoding)
        if codec is None:
            raise self._error(
                f"expected H.264, H.265, or Motion JPEG from the camera, got {encoding}",
                hint="choose a different codec in the camera's settings, or set `reader: ffmpeg`",
                code="codec",
            )
        in_order = pipeline.known_order(codec, structure.get_string)
        chain = pipeline.decode_chain(codec, self._pixel_formats, installed, in_order=in_order)
        reason = pipeline.missing([element.factory for element in chain], installed)
        if reason is not None:
            raise self._error(f"the camera sends {encoding}, but {reason}")
        depayloader = self._add_chain(chain)
        self._entry = entry = depayloader.get_static_pad("sink")
        parser = depayloader.get_static_pad("src").get_peer().get_parent_element()
        self.packets.codec = None if codec == "JPEG" else codec
        self._probe(entry, gst.PadProbeType.EVENT_DOWNSTREAM, self.packets.on_event)
        self._probe(parser.get_static_pad("src"), gst.PadProbeType.BUFFER, self.packets.on_coded_frame)
        if pad.link(entry) != gst.PadLinkReturn.OK:
            raise self._error(f"cannot link {encoding} to its depayloader")
