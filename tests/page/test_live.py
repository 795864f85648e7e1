"""Tests that the number in the pixels of each frame shown in a browser equals the number in its overlay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final

import msgspec
import psutil
import pytest
from playwright.sync_api import Browser, Page

from tests.page.conftest import OpenInBrowser, StartProgram
from tests.page.harness import until
from tests.page.live_site import Sink, Site, message_of, show, shown
from tests.paths import ROOT
from vision.capture.zoo.camera import Camera
from vision.capture.zoo.persona import Fault, RtspStream
from vision.capture.zoo.zoo import PERSONAS, Zoo, running_zoo
from vision.config import CameraConfig
from vision.messaging.message_fields import MaskOfObject
from vision.outputs.page.live_scene import drawing
from vision.runtime.worker_process import worker_name
from vision.types import FrameMeta

pytestmark = pytest.mark.integration

FAST: Final = 25.0

MODULE: Final = """performance.getEntriesByType("resource").find(({ name }) => name.endsWith("/live.js")).name"""
"""An expression with the address of the module of the live view."""


@pytest.fixture(scope="module")
def zoo() -> Iterator[Zoo]:
    with running_zoo() as started:
        yield started


@pytest.fixture
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    yield page
    page.close()


def add(
    site: Site, zoo: Zoo, name: str, *, fault: Fault = "none", as_id: str = "", skip: int = 0, tapped: bool = True
) -> tuple[Camera, Sink]:
    """Add the camera `name` of the zoo to the site. The camera sends 25 frames/s."""
    persona = next(each for each in PERSONAS if each.name == name)
    assert isinstance(persona.stream, RtspStream)
    camera = Camera(replace(persona, stream=replace(persona.stream, fps=FAST)), fault, fault_after_s=2, repeats=True)
    zoo.start([camera])
    keys = {"source": camera.address, "reader": "ffmpeg", "open_timeout_s": 30, "read_timeout_s": 10}
    config = CameraConfig.model_validate({"id": as_id or name, **keys})
    return camera, site.add_camera(config, skip=skip, tapped=tapped)


def frames_of(page: Page, camera: str) -> list[dict[str, Any]]:
    return [frame for frame in shown(page) if frame["camera"] == camera]


def wrong(page: Page) -> list[dict[str, Any]]:
    """Return the shown frames that are damaged, or that have the overlay of another frame."""
    return [each for each in shown(page) if each["result"] is not None and each["number"] != each["result"]]


def test_each_frame_is_shown_with_its_own_overlay(site: Site, zoo: Zoo, page: Page) -> None:
    for name in ("plain", "b-frames", "resize", "sprop-only"):
        add(site, zoo, name)
    add(site, zoo, "plain", as_id="skipping", skip=3)
    cameras = ["plain", "b-frames", "resize", "sprop-only", "skipping"]
    show(page, site.url, cameras)
    until(lambda: all(len(frames_of(page, camera)) > 60 for camera in cameras), "too few frames")
    assert wrong(page) == []
    assert all(frame["stream"] > 0 for camera in cameras for frame in frames_of(page, camera)[-20:])
    assert {frame["width"] for frame in frames_of(page, "resize")} == {160, 240}


def test_frames_after_faults_are_shown_with_their_own_overlay(site: Site, zoo: Zoo, page: Page) -> None:
    add(site, zoo, "plain", fault="cut", as_id="cut")
    add(site, zoo, "plain", fault="loss", as_id="loss")
    add(site, zoo, "b-frames", fault="loss", as_id="b-loss")
    cameras = ["cut", "loss", "b-loss"]
    show(page, site.url, cameras)
    until(lambda: any(frame["stream"] > 1 for frame in frames_of(page, "cut")), "no new connection")
    until(lambda: all(len(frames_of(page, camera)) > 30 for camera in cameras), "too few frames")
    assert wrong(page) == []


def test_images_replace_packets_that_a_browser_cannot_decode_or_match(site: Site, zoo: Zoo, page: Page) -> None:
    add(site, zoo, "mjpeg")
    add(site, zoo, "time-stopped")
    add(site, zoo, "plain", as_id="untapped", tapped=False)
    cameras = ["mjpeg", "time-stopped", "untapped"]
    show(page, site.url, cameras)
    until(lambda: all(len(frames_of(page, camera)) > 10 for camera in cameras), "too few frames")
    assert wrong(page) == []
    assert {frame["stream"] for frame in frames_of(page, "mjpeg") + frames_of(page, "untapped")} == {0}


H265: Final = "VideoDecoder.isConfigSupported({codec: 'hev1.1.6.L120.B0'}).then((answer) => answer.supported)"
CLAIM_SUPPORT: Final = "VideoDecoder.isConfigSupported = async () => ({ supported: true })"


@pytest.mark.parametrize("claims", [False, True], ids=["reported", "claimed"])
def test_h265_is_shown_as_images_by_a_browser_that_cannot_decode_it(
    site: Site, zoo: Zoo, page: Page, claims: bool
) -> None:
    add(site, zoo, "h265")
    page.goto(site.url)
    decodes = page.evaluate(H265)
    if claims:
        page.add_init_script(CLAIM_SUPPORT)
    show(page, site.url, ["h265"])
    until(lambda: len(frames_of(page, "h265")) > 10, "too few frames")
    assert wrong(page) == []
    assert all(frame["result"] is not None for frame in frames_of(page, "h265"))
    assert {frame["stream"] > 0 for frame in frames_of(page, "h265")[-3:]} == {decodes or claims}  # packets arrived
    assert page.evaluate("window.views[0].decodes") is (decodes or not claims)


SITE: Final = f"""
model: nanodet-g-416
detect: {{backend: fake}}
cameras:
  - {{id: file, source: {ROOT}/configs/vtest.mp4, loop: true}}
  - {{id: painted, source: "synthetic:", width: 320, height: 240, fps: 10}}
publish: {{bind: "tcp://127.0.0.1:*"}}
page: {{bind: "127.0.0.1:0"}}
processes: 2
"""


def test_a_program_with_workers_shows_files_and_cameras_without_packets(
    start_program: StartProgram, open_page: OpenInBrowser
) -> None:
    program = start_program(SITE)
    page = open_page(program.url).page
    page.evaluate(
        """async () => {
      window.frames = {};
      window.decoded = 0;
      const { decode } = VideoDecoder.prototype;
      VideoDecoder.prototype.decode = function (chunk) {
        window.decoded += 1;
        return decode.call(this, chunk);
      };
      const { Overlay } = await import(LIVE);
      const { draw } = Overlay.prototype;
      Overlay.prototype.draw = function (image, result) {
        draw.call(this, image, result);
        const name = this.canvas.closest("article").querySelector("h2").textContent;
        if (result) window.frames[name] = (window.frames[name] ?? 0) + 1;
      };
    }""".replace("LIVE", MODULE)
    )
    until(lambda: all((page.evaluate(f"window.frames.{name}") or 0) > 10 for name in ("file", "painted")), program.log)
    until(lambda: page.evaluate("window.decoded") > 10, "no packets")
    assert page.locator(".live-note:visible").count() == 0
    names = [worker_name(child.cmdline()) for child in psutil.Process(program.process.pid).children()]
    assert sum(name.startswith("capture worker") for name in names) == 2


def test_a_view_says_why_there_is_no_image(site: Site, page: Page) -> None:
    show(page, site.url, ["gate"])
    note = page.locator(".live-note")
    assert note.is_visible()

    def says(text: str, state: str) -> bool:
        site.report("gate", state)
        return text in note.inner_text() if text else not note.is_visible()

    until(lambda: says("No connection to the camera", "backing-off"), "no reason")
    until(lambda: says("", "streaming"), "the reason stays")


DRAWN: Final = """async (view) => {
  const { Overlay } = await import("/static/live.js");
  const overlay = new Overlay(document.body.appendChild(document.createElement("canvas")));
  const style = { stroke: "#ffe13c", width: 2 };
  overlay.shapes = [{ moves: true, relative: true, path: "M0.25 0L0.25 1Z", at: [0.25, 0], style }];
  overlay.counts = { texts: {}, ...view };
  const frame = new OffscreenCanvas(160, 120);
  frame.getContext("2d").fillRect(0, 0, 160, 120);
  overlay.draw(frame.transferToImageBitmap(), { width: 160, height: 120, objects: [] });
  const { width, height } = overlay.canvas;
  const { data } = overlay.context.getImageData(0, Math.floor(height * 0.75), width, 1);
  const lit = [...Array(width).keys()].filter((x) => data[4 * x] > 200);
  return lit.reduce((sum, x) => sum + x, 0) / lit.length / width * 160;
}"""


DRAWN_OBJECTS: Final = """async (drawn) => {
  const { Overlay } = await import("/static/live.js");
  const canvas = document.body.appendChild(document.createElement("canvas"));
  canvas.style.width = "160px";
  const overlay = new Overlay(canvas);
  const frame = new OffscreenCanvas(160, 120);
  frame.getContext("2d").fillRect(0, 0, 160, 120);
  overlay.draw(frame.transferToImageBitmap(), drawn);
  const { data } = overlay.context.getImageData(0, 0, 160, 120);
  const places = [...Array(160 * 120).keys()].filter((at) => data[4 * at] + data[4 * at + 1] + data[4 * at + 2] > 90);
  return places.map((at) => [at % 160, Math.floor(at / 160)]);
}"""
"""JavaScript that draws a result on a black frame. It returns the places of the pixels that are no longer black."""


def test_lines_are_drawn_where_a_moved_camera_counts(site: Site, page: Page) -> None:
    page.goto(site.url)
    assert page.evaluate(DRAWN) == pytest.approx(40, abs=2)
    assert page.evaluate(DRAWN, {"view": [1.0, 0.0, 0.0, 1.0, 50.0, 0.0]}) == pytest.approx(90, abs=2)


def test_keypoints_limbs_masks_and_oriented_boxes_are_drawn(site: Site, page: Page) -> None:
    points = [(20.0 + 5 * index, 60.0, 0.0) for index in range(17)]
    points[5], points[7], points[9] = (20.0, 20.0, 0.9), (60.0, 20.0, 0.9), (100.0, 20.0, 0.1)
    counts = [120 * 100 + 70, 30, *[90, 30] * 19, 120 * 41 - 70 - 30]
    message = message_of(FrameMeta("gate", 0, 0, 0, 0, 160, 120), 5, (0.0, 118.0, 2.0, 119.0))
    (plain,) = message.objects
    corners = [(40.0, 60.0), (60.0, 80.0), (40.0, 100.0), (20.0, 80.0)]
    shaped = [
        msgspec.structs.replace(plain, keypoints=points),
        msgspec.structs.replace(plain, class_id=1, mask=MaskOfObject(size=(120, 160), counts=counts)),
        msgspec.structs.replace(plain, class_id=2, corners=corners),
    ]
    drawn = drawing(msgspec.structs.replace(message, objects=shaped))
    page.goto(site.url)
    colored = set(map(tuple, page.evaluate(DRAWN_OBJECTS, msgspec.to_builtins(drawn))))
    assert {(20, 20), (40, 20), (60, 20)} <= colored  # two keypoints, and the limb between them
    assert (100, 20) not in colored  # a keypoint with a low score
    assert (20, 23) in colored and (40, 23) not in colored  # a dot is larger than the line
    assert {(102, 72), (118, 98)} <= colored and not {(98, 85), (110, 67), (110, 103), (122, 85)} & colored
    assert {(50, 70), (30, 90)} <= colored and (20, 60) not in colored
