"""`CameraFeed` joins the packets, results, and images of one camera, and chooses what each viewer receives.

A viewer that decodes the camera's codec receives packets from a key frame on. Until then, after a lost packet, and if
the viewer cannot decode the packets or `privacy` hides something, it receives images: frames with results, as JPEGs.

A message identifies its frame by the capture time. `FrameTime` contains the packet of each capture time. Therefore, the
feed joins a result with exactly its packet, and not with a packet of about the same time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from vision.messaging.packets import CodedPacket, FrameTime, Image, ImageRequest
from vision.messaging.schema import CameraStatusMessage, CountsMessage, DetectionsMessage
from vision.outputs.page.live_format import WebFormat, record
from vision.outputs.page.live_scene import drawing

IMAGE_INTERVAL_NS: Final = 100_000_000
_IMAGE_TIMEOUT_NS: Final = 1_000_000_000  # then the process that reads the camera has ended
_SILENCE_NS: Final = 3_000_000_000  # time without packets, although results arrive, after which viewers get images
_KNOWN_FRAMES: Final = 256
_MAX_WIDTH_PX: Final = 1280
_ANY_WIDTH_PX: Final = 16384
_STATES: Final = {
    "streaming": "",
    "connecting": "Connecting to the camera.",
    "frozen": "The camera repeats the same frame.",
    "backing-off": "No connection to the camera.",
    "ended": "The source has ended.",
    "removed": "The camera was removed.",
}


class Receiver(Protocol):
    """A receiver of the records of the live view, such as `Viewer`, the queue of a browser."""

    def push(self, record: bytes) -> bool:
        """Queue a record. Return False if the record was discarded."""

    def flush(self) -> None:
        """Send the queued records, as one message."""


@dataclass(slots=True)
class Watch:
    """One viewer of a camera, with the codecs that the viewer decodes. `waits` is True while it needs a key frame."""

    viewer: Receiver
    codecs: Collection[str]  # that the viewer decodes, by FFmpeg's names
    waits: bool = True  # for a key frame

    def push(self, text: bytes) -> None:
        """Send a record to the viewer. If the record is lost, the viewer needs a new key frame."""
        if not self.viewer.push(text):
            self.waits = True


@dataclass(slots=True)
class _Stream:
    """The packets of one connection to the camera: their codec, their sequence numbers, and their times."""

    number: int
    connection: int
    codec: str
    web: WebFormat | None = None  # None before the first key frame
    next_seq: int = 0
    time_us: int = 0  # of the last packet
    recent_us: dict[int, None] = field(default_factory=dict)
    has_unique_times: bool = True

    def time_of(self, pts_ns: int | None) -> int:
        """Return the time in µs by which a browser finds the result for the next packet.

        If a recent packet has the same time, set `has_unique_times` to False.
        """
        self.time_us = self.time_us + 1 if pts_ns is None else pts_ns // 1000
        if pts_ns is not None and self.time_us in self.recent_us:
            self.has_unique_times = False
        self.recent_us[self.time_us] = None
        if len(self.recent_us) > _KNOWN_FRAMES:
            del self.recent_us[next(iter(self.recent_us))]
        return self.time_us


class _ImageRequests:
    """The requests for images of one camera. At most one request is pending, and at most ten are sent per second."""

    def __init__(self, request: Callable[[ImageRequest], None], max_width_px: int) -> None:
        self._request = request
        self._max_width_px = max_width_px
        self._asked: DetectionsMessage | None = None  # the result whose image was requested
        self._asked_ns = 0

    def add(self, message: DetectionsMessage, now_ns: int) -> None:
        """Request the frame of a result as a JPEG, unless a request is pending or the previous one was too recent."""
        pause_ns = IMAGE_INTERVAL_NS if self._asked is None else _IMAGE_TIMEOUT_NS
        if now_ns - self._asked_ns >= pause_ns:
            self._asked, self._asked_ns = message, now_ns
            self._request(ImageRequest(message.camera, message.captured_monotonic_ns, self._max_width_px))

    def result_of(self, image: Image) -> DetectionsMessage | None:
        """Return the result that belongs to `image`. Return None if this image was not requested."""
        asked = self._asked
        return asked if asked is not None and asked.captured_monotonic_ns == image.captured_ns else None

    def done(self, *, failed: bool = False) -> None:
        """Permit the next request. If the previous request has `failed`, permit the next one without a pause."""
        self._asked = None
        if failed:
            self._asked_ns = 0


class CameraFeed:
    """The live view of one camera. Call all methods from one thread."""

    def __init__(
        self,
        camera_id: str,
        *,
        request: Callable[[ImageRequest], None],
        scene: Callable[[], dict[str, Any]],
        is_private: bool,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Create the feed.

        Args:
            camera_id: id of the camera.
            request: function that requests an image.
            scene: function that returns the lines, zones, and masks of the camera.
            is_private: True if parts of the images are hidden; see `hide`.
            clock: function that returns the monotonic time in ns.
        """
        self.camera_id = camera_id
        self._request = request
        self.has_packets = self.has_images = False  # what is received at present
        self.watches: list[Watch] = []
        self._scene = scene
        self._clock = clock
        self._stream: _Stream | None = None
        self._streams = 0
        self._packet_ns = 0  # arrival of the last packet
        self._frames: dict[int, tuple[int, int]] = {}  # stream and time of a frame by its capture time
        self._early: dict[int, DetectionsMessage] = {}  # results whose `FrameTime` has not arrived
        self._texts: dict[str, bytes] = {}  # the last state and counts
        self.hide(is_private=is_private)

    def hide(self, *, is_private: bool) -> None:
        """Make all viewers restart with images.

        If `is_private` is True, parts of the images are hidden before they are sent. In this case, the images have the
        size of the frame, and `packet` must not be called.
        """
        self.is_private = is_private
        self._images = _ImageRequests(self._request, _ANY_WIDTH_PX if is_private else _MAX_WIDTH_PX)
        self._stream = None
        self._frames.clear()
        self._early.clear()
        self._restart()

    @property
    def wants_packets(self) -> bool:
        """True if a viewer can decode packets, and the camera hides nothing."""
        return not self.is_private and any(watch.codecs for watch in self.watches)

    @property
    def wants_images(self) -> bool:
        """True if a viewer waits for a key frame or cannot decode the packets, so that it needs images."""
        return any(watch.waits for watch in self.watches)

    def add(self, viewer: Receiver, codecs: Collection[str]) -> None:
        """Add a viewer that decodes `codecs`. If the viewer was already added, it restarts with a key frame."""
        self.remove(viewer)
        watch = Watch(viewer, codecs)
        self.watches.append(watch)
        watch.push(self._scene_record())
        for text in self._texts.values():
            watch.push(text)

    def show_scene(self) -> None:
        """Send the changed lines, zones, and masks to all viewers."""
        text = self._scene_record()
        for watch in self.watches:
            watch.push(text)

    def _scene_record(self) -> bytes:
        return record({"kind": "scene", "camera": self.camera_id, **self._scene()})

    def remove(self, viewer: Receiver) -> None:
        """Remove a viewer, if it was added."""
        self.watches = [watch for watch in self.watches if watch.viewer is not viewer]

    def flush(self) -> None:
        """Send each viewer the records that were queued for it."""
        for watch in self.watches:
            watch.viewer.flush()

    def packet(self, packet: CodedPacket) -> None:
        """Send a packet to the viewers that decode it, each from a key frame on."""
        assert not self.is_private
        header, self._packet_ns = packet.header, self._clock()
        stream = self._stream_of(packet)
        if header.seq != stream.next_seq:
            self._restart()
        stream.next_seq = header.seq + 1
        if header.key:
            stream.web = WebFormat(header)
        time_us = stream.time_of(header.pts_ns)
        if stream.web is None or not stream.has_unique_times:
            self._restart()
            return
        data = stream.web.convert(packet.data)
        start = stream.web.start(data) if header.key else None
        fields = {"kind": "packet", "camera": self.camera_id, "stream": stream.number, "time": time_us}
        if start is not None:
            codec, data = start
            text = record({**fields, "key": True, "codec": codec}, data)
        else:
            text = record({**fields, "key": False}, data)
        for watch in self.watches:
            if header.codec in watch.codecs and (start is not None or not watch.waits):
                watch.waits = False
                watch.push(text)

    def _stream_of(self, packet: CodedPacket) -> _Stream:
        header, stream = packet.header, self._stream
        if stream is None or stream.connection != header.connection:
            self._restart()
            self._streams += 1
            stream = self._stream = _Stream(self._streams, header.connection, header.codec, next_seq=header.seq)
        return stream

    def _restart(self) -> None:
        """Make every viewer wait for a key frame."""
        for watch in self.watches:
            watch.waits = True

    def frame_time(self, frame: FrameTime) -> None:
        """Store which packet has the capture time of a frame. If the frame's result has arrived, send the result."""
        stream = self._stream
        if stream is None or stream.connection != frame.connection:
            return
        self._frames[frame.captured_ns] = stream.number, frame.pts_ns // 1000
        if len(self._frames) > _KNOWN_FRAMES:
            del self._frames[next(iter(self._frames))]
        early = self._early.pop(frame.captured_ns, None)
        if early is not None:
            self._send_result(early)

    def detections(self, message: DetectionsMessage) -> None:
        """Send a result to the viewers that received its packet. If other viewers wait for an image, request the image.

        If packets no longer arrive, make every viewer wait for a key frame.
        """
        if self._clock() - self._packet_ns > _SILENCE_NS:
            self._restart()
        if any(not watch.waits for watch in self.watches):
            self._send_result(message)
        if self.wants_images:
            self._images.add(message, self._clock())

    def _send_result(self, message: DetectionsMessage) -> None:
        frame = self._frames.pop(message.captured_monotonic_ns, None)
        if frame is None:
            self._early[message.captured_monotonic_ns] = message
            if len(self._early) > _KNOWN_FRAMES:
                del self._early[next(iter(self._early))]
            return
        fields = {"kind": "result", "camera": self.camera_id, "stream": frame[0], "time": frame[1]}
        text = record({**fields, "result": drawing(message)})
        for watch in self.watches:
            if not watch.waits:
                watch.push(text)

    def result_of(self, image: Image) -> DetectionsMessage | None:
        """Return the result that belongs to `image`. Return None if this image was not requested."""
        return self._images.result_of(image)

    def image(self, image: Image) -> None:
        """Send the requested image to the viewers that wait. If the image is empty, permit the next request.

        An image is empty if the requested frame is no longer, or was never, in the memory of the camera's process.
        """
        message = self._images.result_of(image)
        if message is None:
            return
        self._images.done(failed=not image.jpeg)
        if not image.jpeg:
            return
        text = record({"kind": "image", "camera": self.camera_id, "result": drawing(message)}, image.jpeg)
        for watch in self.watches:
            if watch.waits:
                watch.push(text)

    def report(self, message: CameraStatusMessage | CountsMessage) -> None:
        """Send the state or the counts of the camera to all viewers, if the text that viewers show has changed."""
        fields: dict[str, Any]
        if isinstance(message, CountsMessage):
            texts = {f"line {name}": f"{line.in_} in {line.out} out" for name, line in message.lines.items()}
            texts |= {f"zone {name}": str(zone.occupancy) for name, zone in message.zones.items()}
            kind, fields = "counts", {"texts": texts}
            if message.view is not None:
                xx, xy, dx, yx, yy, dy = message.view
                fields["view"] = xx, yx, xy, yy, dx, dy  # in the order of a matrix in CSS
        else:
            kind, fields = "status", {"text": _STATES.get(message.state, message.state)}
        text = record({"kind": kind, "camera": self.camera_id, **fields})
        if self._texts.get(kind) != text:
            self._texts[kind] = text
            for watch in self.watches:
                watch.push(text)
