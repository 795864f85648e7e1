"""Parts of a site for tests of the live view: cameras, the live view, and a browser.

Each camera paints a number into each frame. The site publishes a track with this number as its id. A test can therefore
compare the pixels in the browser with the overlay of the same frame.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import uvicorn
import zmq
from playwright.sync_api import Page
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from vision.capture.frame_tap import FrameTaps
from vision.capture.open import open_source
from vision.capture.packet_tap import PacketTap
from vision.capture.supervisor import CameraSupervisor, SupervisorPolicy
from vision.capture.zoo.barcode import read_number
from vision.config import CameraConfig
from vision.messaging import codec
from vision.messaging.packets import PacketSocket, packet_address_prefix
from vision.messaging.schema import AnyMessage, CameraStatusMessage, DetectedObject, DetectionsMessage, StageTimes
from vision.outputs.page import live
from vision.outputs.page.live_hub import LiveHub
from vision.outputs.page.live_scene import LiveSettings
from vision.types import DropReason, FrameBuffer, FrameMeta, PixelFormat

STATIC: Final = Path(live.__file__).parent / "static"
_HEADER: Final = {"node": "test", "instance": "1", "boot": "", "seq": 1}
_TIMES: Final = StageTimes(wait=0, submit=0, infer=0, publish=0, total=0)

PAGE: Final = """<!doctype html><link rel="icon" href="data:,">
<style>body { display: flex; flex-wrap: wrap } .tile { width: 300px; height: 240px } canvas { width: 100% }</style>"""

READER: Final = """
async (cameras) => {
  const { LiveView, Overlay } = await import("/static/live.js");
  const { html, render } = await import("/static/ui.js");
  window.shown = [];
  window.views = [];
  const { draw } = Overlay.prototype;
  Overlay.prototype.draw = function (image, result) {
    draw.call(this, image, result);
    const { canvas } = this;
    const view = window.views.find((each) => each.canvas === canvas);
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height / 4);
    let code = 0;
    for (let bit = 0; bit < 16; bit += 1) {
      const y = Math.floor((canvas.height * (2 * (bit >> 3) + 1)) / 16);
      const x = Math.floor((canvas.width * (2 * (bit & 7) + 1)) / 16);
      code = code * 2 + (pixels.data[4 * (y * pixels.width + x)] > 128);
    }
    const number = code >> 4;
    const intact = ((number ^ (number >> 4) ^ (number >> 8) ^ 10) & 15) === (code & 15);
    window.shown.push({
      camera: view.id, at: performance.now(), number: intact ? number : null,
      result: result && result.objects[0]?.id, width: result?.width, stream: view.stream,
    });
  };
  class View extends LiveView {
    componentDidMount() {
      super.componentDidMount();
      window.views.push(this);
    }
  }
  const tile = (camera) => html`<div class="tile"><${View} camera=${{ camera }} /></div>`;
  render(html`${cameras.map(tile)}`, document.body);
}
"""
"""JavaScript that shows cameras. It appends the numbers in the pixels and result of each frame to `window.shown`."""


class Publisher:
    """Publisher that sends each message after a delay, which simulates the time that a detector takes."""

    def __init__(self, delay_s: float) -> None:
        self.address = f"ipc://@test-live-{id(self)}-{time.monotonic_ns()}"
        self._delay_s = delay_s
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.bind(self.address)
        self._waiting: list[tuple[float, AnyMessage]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def publish(self, message: AnyMessage) -> None:
        with self._changed:
            self._waiting.append((time.monotonic() + self._delay_s, message))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                due_s, message = self._waiting.pop(0)
            time.sleep(max(0.0, due_s - time.monotonic()))
            self._socket.send_multipart([message.topic.encode(), codec.encode(message)])

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._context.destroy(linger=0)


class Sink:
    """`FrameSink` that publishes the number in the pixels of each frame, except for every `skip`-th frame."""

    def __init__(self, publisher: Publisher, skip: int, box: tuple[float, float, float, float] | None) -> None:
        self.published = 0
        self._publisher = publisher
        self._skip = skip
        self._box = box
        self._format: PixelFormat = "bgr"
        self._buffer = FrameBuffer.allocate(2, 2, "bgr")

    def configure(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> None:
        self._buffer = FrameBuffer.allocate(height_px, width_px, pixel_format)
        self._format = pixel_format

    def write_buffer(self, timeout_s: float) -> FrameBuffer | None:
        return self._buffer

    def commit(self, meta: FrameMeta) -> None:
        pixels = self._buffer.require_host()
        number = read_number(pixels[: meta.height_px] if self._format in ("i420", "nv12") else pixels[..., 1])
        self.published += 1
        if number is None or (self._skip and self.published % self._skip == 0):
            return
        self._publisher.publish(message_of(meta, number, self._box))

    def drop(self, reason: DropReason) -> None:
        pass

    def flush(self, reason: DropReason) -> None:
        pass

    def end(self) -> None:
        pass


def message_of(meta: FrameMeta, number: int, box: tuple[float, float, float, float] | None = None) -> DetectionsMessage:
    """Return a message about a frame that contains one object with the track id `number`."""
    box = box or (meta.width_px * 0.4, meta.height_px * 0.5, meta.width_px * 0.6, meta.height_px * 0.9)
    detected = DetectedObject(track_id=number, class_name="person", class_id=0, score=0.9, box=box)
    return DetectionsMessage(
        **_HEADER,  # type: ignore[arg-type]
        camera=meta.camera_id,
        epoch=meta.epoch,
        frame=meta.index,
        captured_at="2026-01-01T00:00:00.000000Z",
        captured_monotonic_ns=meta.captured_ns,
        clock=meta.clock,
        timing_ms=_TIMES,
        dropped_before={},
        width=meta.width_px,
        height=meta.height_px,
        objects=[detected],
    )


class Site:
    """Parts of the program that the live view needs, in this process."""

    def __init__(
        self,
        stack: ExitStack,
        *,
        delay_s: float = 0.03,
        settings: dict[str, Any] | None = None,
        box: tuple[float, float, float, float] | None = None,
    ) -> None:
        """Open the parts of the site.

        Args:
            stack: exit stack that closes the parts.
            delay_s: simulated time, in seconds, that the detector takes.
            settings: settings of the live view besides the addresses.
            box: box, in pixels, of the only object in each frame, or None for a box in the middle.
        """
        self._stack = stack
        self._box = box
        address = packet_address_prefix()
        self.publisher = stack.enter_context(closing(Publisher(delay_s)))
        self._packets = stack.enter_context(closing(PacketSocket(address)))
        self._taps = stack.enter_context(closing(FrameTaps(self._packets)))
        self._settings = LiveSettings(packets=(address,), **(settings or {}))
        self.hub = LiveHub(self._settings, self.publisher.address)
        stack.callback(self.hub.close)
        self.url = stack.enter_context(_serving(self.hub))

    def add_camera(self, camera: CameraConfig, *, skip: int = 0, tapped: bool = True) -> Sink:
        """Read a camera in a thread.

        If `tapped` is False, the live view receives no packets of the camera, as for a USB camera.
        """
        sink = Sink(self.publisher, skip, self._box)
        tap = PacketTap(camera.id, self._packets, recorded=False) if tapped else None
        factory = partial(open_source, camera, offline=False, pixel_formats=("i420", "bgr"), tap=tap)
        policy = SupervisorPolicy(camera.read_timeout_s, None, first_retry_s=0.1, longest_retry_s=0.3)
        supervisor = CameraSupervisor(camera.id, factory, sink, policy, frame_tap=self._taps.tap(camera.id))
        thread = threading.Thread(target=supervisor.run, daemon=True)
        thread.start()

        def stop() -> None:
            supervisor.stop()
            thread.join()

        self._stack.callback(stop)
        return sink

    def is_wanted(self, camera: str) -> bool:
        """Return True if the live view requests the packets or the images of the camera."""
        return self._packets.is_wanted(camera) or self._packets.wants_images(camera)

    def change(self, **settings: Any) -> None:
        """Change the given settings of the live view."""
        self.hub.reconfigure(msgspec.structs.replace(self._settings, **settings))

    def report(self, camera: str, state: str) -> None:
        """Publish a status message with the state of a camera."""
        message = CameraStatusMessage(
            **_HEADER,  # type: ignore[arg-type]
            camera=camera,
            at="2026-01-01T00:00:00.000000Z",
            at_monotonic_ns=1,
            state=state,
            state_for_s=1,
            epoch=0,
            reconnects=0,
            grabbed=0,
            published=0,
            dropped={},
            fps=0,
            published_fps=0,
            objects=0,
        )
        self.publisher.publish(message)


@contextmanager
def _serving(hub: LiveHub) -> Iterator[str]:
    async def index(_request: object) -> HTMLResponse:
        return HTMLResponse(PAGE)

    app = Starlette(routes=[Route("/", index), Mount("/static", StaticFiles(directory=STATIC)), *live.routes(hub)])
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, log_level="error", lifespan="off", ws="websockets-sansio", ws_per_message_deflate=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join()
        listener.close()


def show(page: Page, url: str, cameras: list[str]) -> None:
    """Open the page of the live view, and start to record the frames of these cameras."""
    page.goto(url)
    page.evaluate(READER, cameras)


def shown(page: Page) -> list[dict[str, Any]]:
    """Return a record of each frame that the page has shown."""
    frames: list[dict[str, Any]] = page.evaluate("window.shown")
    return frames
