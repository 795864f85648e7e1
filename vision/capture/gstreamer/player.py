"""A running GStreamer pipeline of one camera: builds it, and pulls decoded samples from it.

GStreamer's threads call the ``_on_`` methods; the camera's thread calls the others. Waiting is cut into short slices,
so that an interrupt or a fault is noticed without changing the pipeline's state from a second thread.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from vision.capture.gstreamer import errors, pipeline
from vision.capture.gstreamer.bindings import Installed, library
from vision.capture.gstreamer.packets import PacketMonitor
from vision.config import CameraConfig
from vision.config.source_address import Csi, Rtsp
from vision.errors import SourceError
from vision.types import PixelFormat

_SLICE_S = 0.05  # longest delay until an interrupt or a fault is noticed

_CODECS: dict[str, pipeline.Codec] = {"H264": "H264", "H265": "H265", "JPEG": "JPEG"}


class Player:
    """One pipeline, from `start` to `stop`."""

    def __init__(
        self, camera: CameraConfig, pixel_formats: tuple[PixelFormat, ...], interrupted: threading.Event
    ) -> None:
        """Create the pipeline, not yet started. `interrupted` ends every wait."""
        self._camera = camera
        self._pixel_formats = pixel_formats
        self.packets = PacketMonitor()
        self._interrupted = interrupted
        self._pipeline = library().Gst.Pipeline.new(None)
        self._bus = self._pipeline.get_bus()
        self._sink: Any = None
        self._undo: list[Callable[[], None]] = []
        self._selected = False
        self._linked = threading.Event()
        self._fault: SourceError | None = None
        self.decoder = ""

    def start(self) -> None:
        """Build the pipeline and start it.

        Raises:
            SourceError: an element is missing, or GStreamer cannot start the pipeline.
        """
        gst = library().Gst
        registry = Installed()
        # The system's clock is CLOCK_MONOTONIC, as Python's: presentation times are comparable with ours.
        self._pipeline.use_clock(gst.SystemClock.obtain())
        match self._camera.address:
            case Rtsp():
                self._add_rtsp_source(registry)
            case Csi():
                self._add_chain(pipeline.csi_chain(self._camera, self._pixel_formats, registry))
            case _:
                self._add_usb(registry)
        if self._pipeline.set_state(gst.State.PLAYING) == gst.StateChangeReturn.FAILURE:
            self._check()
            raise self._error("GStreamer cannot start it")
        self.packets.started(self._pipeline.get_base_time())

    def stop(self) -> None:
        """Stop the pipeline and release it."""
        self._pipeline.set_state(library().Gst.State.NULL)
        for undo in self._undo:  # the callbacks would keep the pipeline alive until a garbage collection
            undo()
        self._undo.clear()

    def pull(self, timeout_s: float) -> Any:
        """Return the next decoded sample, or None after the timeout or an interrupt.

        Raises:
            SourceError: the pipeline failed or ended.
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

    def no_frame_error(self) -> SourceError:
        """Return the error for a pipeline that delivered no frame within the open timeout."""
        return errors.no_frame(
            self._camera,
            interrupted=self._interrupted.is_set(),
            connected=self._linked.is_set(),
            coded_frames=self.packets.coded_frames,
        )

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

    # Building

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
            supported = probe.get_static_pad("src").query_caps(None)
            request = pipeline.usb_request(self._camera, "video/x-raw")
            offers_raw = supported.can_intersect(gst.Caps.from_string(request.text))
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
        """Make, add, link and start elements that end in an appsink. Return the first one."""
        made = [self._make(element) for element in chain]
        for element in made:
            self._pipeline.add(element)
        for left, right in itertools.pairwise(made):
            if not left.link(right):
                raise self._error(f"cannot link {left.get_name()} to {right.get_name()}")
        factories = [element.factory for element in chain]
        self.decoder = next((name for name in factories if name.startswith(("avdec", "nv", "jpegdec"))), factories[0])
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
        self._connect(jitter_buffer, "handle-sync", self.packets.on_sender_report)

    def _on_stream(self, _source: Any, _number: int, caps: Any) -> bool:
        """Return True for the first video stream only: sound and metadata cost bandwidth."""
        select = not self._selected and caps.get_structure(0).get_string("media") == "video"
        self._selected = self._selected or select
        return select

    def _on_pad(self, _source: Any, pad: Any) -> None:
        caps = pad.get_current_caps() or pad.query_caps(None)
        structure = caps.get_structure(0)
        if structure.get_string("media") != "video" or self._linked.is_set():
            return
        try:
            self._add_decoder(pad, str(structure.get_string("encoding-name")))
        except SourceError as error:
            self._fault = error

    def _add_decoder(self, pad: Any, encoding: str) -> None:
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
        self._probe(entry, gst.PadProbeType.EVENT_DOWNSTREAM, self.packets.on_event)
        self._probe(parser.get_static_pad("src"), gst.PadProbeType.BUFFER, self.packets.on_coded_frame)
        if pad.link(entry) != gst.PadLinkReturn.OK:
            raise self._error(f"cannot link {encoding} to its depayloader")

    def _error(self, text: str, hint: str = "", *, code: str = "gstreamer") -> SourceError:
        return errors.source_error(self._camera, text, hint, code=code)
