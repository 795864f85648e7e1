"""`LiveHub` receives packets, images, and messages for all viewers, but only of cameras that are being watched.

One thread receives packets, images, and messages, and combines them for each camera. A second thread hides parts of
images, for cameras with masks or hidden classes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import zmq

from vision.errors import MessageError
from vision.messaging import codec
from vision.messaging.curve import KeyPair
from vision.messaging.packets import CodedPacket, FrameTime, Image, LiveReceiver
from vision.messaging.schema import CameraStatusMessage, CountsMessage, DetectionsMessage
from vision.messaging.sockets import set_common_options
from vision.outputs.page.live_feed import CameraFeed, Receiver
from vision.outputs.page.live_format import split_record
from vision.outputs.page.live_privacy import ImageFilter
from vision.outputs.page.live_scene import LiveSettings, scene

log = logging.getLogger(__name__)

_KINDS: Final = ("detections", "status", "counts")
_WAITING_MESSAGES: Final = 1000
_KEEPALIVE_S: Final = 5
_PACKETS_WAIT_MS: Final = 100
"""Maximum time in ms that packets wait for a result."""

_MOST_AT_ONCE: Final = 200  # items of one socket that are handled before the other


class LiveHub:
    """The live views of all cameras. Any thread can call the methods."""

    def __init__(self, settings: LiveSettings, address: str, keys: KeyPair | None = None) -> None:
        """Connect to the program, and start the thread of the hub.

        Packets and images are requested only when a viewer needs them.

        Args:
            settings: settings of the live view.
            address: address to subscribe to.
            keys: keys for CURVE, or None if messages are not encrypted.
        """
        self._settings = settings
        self._hidden = settings.privacy_sections()
        self._feeds: dict[str, CameraFeed] = {}
        self._changed: set[CameraFeed] = set()  # since the thread was waiting
        self._has_more_packets = False
        self._receiver = LiveReceiver(settings.packets)
        self._messages = _Messages(address, keys)
        self._filter = ImageFilter(self._hidden)
        self._hiding = ThreadPoolExecutor(1, "hide")
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)
        self._thread.start()

    def watch(self, viewer: Receiver, camera_id: str, codecs: Collection[str]) -> None:
        """Send the live view of a camera to a viewer, from the next key frame on.

        `codecs` are the codecs that the viewer decodes. If the viewer already watches the camera, it restarts with a
        key frame.
        """
        self._do(lambda: self._add(viewer, camera_id, codecs))

    def leave(self, viewer: Receiver, camera_id: str | None = None) -> None:
        """Stop sending a viewer the live view of a camera. If `camera_id` is None, stop all views of the viewer."""
        self._do(lambda: self._remove(viewer, camera_id))

    def reconfigure(self, settings: LiveSettings) -> None:
        """Apply new settings of lines, zones, and privacy. The addresses of the packet sockets must be the same."""

        def change() -> None:
            self._settings = settings
            self._hidden = settings.privacy_sections()
            self._filter = ImageFilter(self._hidden)
            for camera_id, feed in self._feeds.items():
                if feed.is_private != (camera_id in self._hidden):
                    feed.hide(is_private=camera_id in self._hidden)
                feed.show_scene()

        self._do(change)

    async def still(self, camera_id: str, timeout_s: float) -> bytes | None:
        """Return a JPEG of a camera, with private parts hidden. Return None if no frame arrives within `timeout_s`."""
        one = _OneImage()
        self.watch(one, camera_id, ())
        try:
            return await asyncio.wait_for(one.jpeg, timeout_s)
        except asyncio.TimeoutError:
            return None
        finally:
            self.leave(one)

    def close(self) -> None:
        """End the threads, and close the sockets. Idempotent."""
        if not self._closed:
            self._closed = True
            self._do(lambda: None)
            self._thread.join()
            self._hiding.shutdown()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _do(self, work: Callable[[], None]) -> None:
        """Run `work` in the thread of the hub, without waiting until it ends."""
        self._work.put(work)
        with contextlib.suppress(OSError):  # the hub is closed
            self._wake.send(b"\0")

    def _run(self) -> None:
        for_results, for_all = zmq.Poller(), zmq.Poller()
        for poller in (for_results, for_all):
            poller.register(self._messages.socket, zmq.POLLIN)
            poller.register(self._woken.fileno(), zmq.POLLIN)
        for_all.register(self._receiver.socket, zmq.POLLIN)
        try:
            while not self._closed:
                ready = dict(self._poll(for_results, for_all))
                if self._woken.fileno() in ready:
                    self._do_waiting()
                self._receive_packets()  # before the results of the same frames
                if self._messages.socket in ready:
                    self._receive_messages()
                for feed in self._changed:
                    self._update(feed)
                    feed.flush()
                self._changed.clear()
        except Exception:
            log.exception("the live view failed")
            os._exit(1)  # the program starts this process again
        finally:
            self._receiver.close()
            self._messages.close()
            self._wake.close()
            self._woken.close()

    def _poll(self, for_results: zmq.Poller, for_all: zmq.Poller) -> list[tuple[Any, int]]:
        """Wait for messages, images, packets, or work for this thread. Return the sockets that can be read.

        `for_all` waits for all sockets, and `for_results` for all except the socket of the packets. A browser shows a
        frame only when it has the result. Therefore, if no viewer waits for an image, packets wait for the next result.
        The thread then does not wake up for each packet, which would take more CPU time than the work itself.
        """
        if self._has_more_packets:
            return for_all.poll(0)
        if not self._feeds or any(feed.has_images for feed in self._feeds.values()):
            return for_all.poll()
        return for_results.poll(_PACKETS_WAIT_MS)

    def _do_waiting(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)
        with contextlib.suppress(queue.Empty):
            while True:
                self._work.get_nowait()()
        self._changed.update(self._feeds.values())

    def _receive_packets(self) -> None:
        self._has_more_packets = False
        for _ in range(_MOST_AT_ONCE):
            item = self._receiver.receive()
            if item is None:
                return
            feed = self._feeds.get(item.camera)
            if feed is None:
                continue
            if isinstance(item, CodedPacket):
                if feed.wants_packets:
                    feed.packet(item)
            elif isinstance(item, FrameTime):
                feed.frame_time(item)
            else:
                self._receive_image(feed, item)
            self._changed.add(feed)
        self._has_more_packets = True

    def _receive_image(self, feed: CameraFeed, image: Image) -> None:
        result = feed.result_of(image)
        if result is None or not feed.is_private or not image.jpeg:
            feed.image(image)
            return

        def hide() -> None:
            jpeg = self._filter.hide(image.jpeg, result)
            if jpeg is not None:
                self._do(lambda: feed.image(Image(image.camera, image.captured_ns, jpeg)))

        self._hiding.submit(hide)

    def _receive_messages(self) -> None:
        for _ in range(_MOST_AT_ONCE):
            message = self._messages.receive()
            if message is None:
                return
            feed = self._feeds.get(message.camera)
            if feed is None:
                continue
            if isinstance(message, DetectionsMessage):
                feed.detections(message)
            else:
                feed.report(message)
            self._changed.add(feed)

    def _add(self, viewer: Receiver, camera_id: str, codecs: Collection[str]) -> None:
        feed = self._feeds.get(camera_id)
        if feed is None:
            feed = self._feeds[camera_id] = CameraFeed(
                camera_id,
                request=self._receiver.request,
                scene=lambda: self._scene(camera_id),
                is_private=camera_id in self._hidden,
            )
            self._messages.want(camera_id, wanted=True)
        feed.add(viewer, codecs)

    def _remove(self, viewer: Receiver, camera_id: str | None) -> None:
        for feed in list(self._feeds.values()):
            if camera_id in (None, feed.camera_id):
                feed.remove(viewer)
                self._update(feed)
                if not feed.watches:
                    self._messages.want(feed.camera_id, wanted=False)
                    del self._feeds[feed.camera_id]

    def _update(self, feed: CameraFeed) -> None:
        """Request a camera's packets and images if a viewer needs them. End the requests that no viewer needs."""
        if feed.has_packets != feed.wants_packets:
            feed.has_packets = feed.wants_packets
            self._receiver.want_packets(feed.camera_id, wanted=feed.has_packets)
        if feed.has_images != feed.wants_images:
            feed.has_images = feed.wants_images
            self._receiver.want_images(feed.camera_id, wanted=feed.has_images)

    def _scene(self, camera_id: str) -> dict[str, Any]:
        return scene(self._settings.analytics.get(camera_id), self._settings.privacy.get(camera_id))


class _Messages:
    """The messages of the cameras that are being watched.

    Lost messages do not matter, because newer messages follow.
    """

    def __init__(self, address: str, keys: KeyPair | None) -> None:
        self._context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.SUB)
        set_common_options(self.socket, address, _KEEPALIVE_S)
        if keys is not None:
            keys.use_as_client(self.socket)
        self.socket.setsockopt(zmq.RCVHWM, _WAITING_MESSAGES)
        self.socket.connect(address)

    def want(self, camera_id: str, *, wanted: bool) -> None:
        change = self.socket.subscribe if wanted else self.socket.unsubscribe
        for kind in _KINDS:
            change(f"{kind}/{camera_id}")

    def receive(self) -> DetectionsMessage | CameraStatusMessage | CountsMessage | None:
        """Return the next message without waiting. Return None if no message has arrived. Skip invalid messages."""
        while zmq.zmq_poll([(self.socket, zmq.POLLIN)], 0):  # cheaper than the error of a call that does not wait
            try:
                topic, payload = self.socket.recv_multipart()
                message = codec.decode(topic.decode(errors="replace"), payload)
            except (MessageError, ValueError):
                continue
            if isinstance(message, DetectionsMessage | CameraStatusMessage | CountsMessage):
                return message
        return None

    def close(self) -> None:
        self._context.destroy(linger=0)


class _OneImage:
    """Receiver that takes a single image from the live view, for `LiveHub.still`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.jpeg: asyncio.Future[bytes] = self._loop.create_future()

    def push(self, record: bytes) -> bool:
        kind, data = split_record(record)
        if kind == "image":
            self._loop.call_soon_threadsafe(self._set, data)
        return True

    def flush(self) -> None:
        pass

    def _set(self, data: bytes) -> None:
        if not self.jpeg.done():
            self.jpeg.set_result(data)
