"""Tests of the editor of lines and zones in a real browser. The real program runs on while its lines change."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import cv2
import numpy as np
import pytest
import yaml
from playwright.sync_api import Page

from tests.page.conftest import OpenInBrowser
from tests.page.harness import PATIENCE_S, PROGRAM_AWAY, Program, until
from vision.client import Item, Subscription
from vision.messaging.control_protocol import (
    AddCameraRequest,
    AnalyticsReply,
    GetAnalyticsRequest,
    RemoveCameraRequest,
    SetAnalyticsRequest,
    ask,
    socket_name,
)
from vision.messaging.schema import DetectionsMessage, EventMessage

pytestmark = pytest.mark.timeout(300)

PASSWORD = "hunter2hunter2"
CONFIG = """\
detect: {{backend: fake}}
pipeline: count
processes: 1
cameras:
  - {{id: gate, source: "synthetic:320x240@20?objects=6&seed=1"}}   # at the door
  - {{id: yard, source: "rtsp://127.0.0.1:9/secret-path", user: viewer, password: "${{GATE_PASSWORD}}"}}
analytics:
  gate:
    units: percent        # of the frame
    lines:
      - name: left        # the first line
        points: [[30, 2], [30, 98]]
rules:
  - {{name: again, when: line_crossed left}}
archive: {{folder: archive}}
publish: {{bind: "ipc://{folder}/out"}}
page: {{bind: "127.0.0.1:0"}}
"""


class Site:
    """Program with a page, and the messages that a subscriber has received from the program."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environ = {"RUNTIME_DIRECTORY": str(folder), "GATE_PASSWORD": PASSWORD}
        self.program = Program(folder, CONFIG.format(folder=folder), environ)
        self.first_text = self.program.config.read_text()
        self.items: list[Item] = []
        self.ended = threading.Event()

    def receive(self) -> None:
        with Subscription(f"ipc://{self.folder}/out", kinds=("detections", "events"), queue=10**6) as messages:
            while not self.ended.is_set():
                if (item := messages.receive(0.1)) is not None:
                    self.items.append(item)

    def frames(self) -> list[DetectionsMessage]:
        return [item for item in self.items if isinstance(item, DetectionsMessage) and item.camera == "gate"]

    def crossings(self, name: str) -> list[EventMessage]:
        return [
            item
            for item in self.items
            if isinstance(item, EventMessage) and item.kind == "line_crossed" and item.name == name
        ]

    @property
    def text(self) -> str:
        return self.program.config.read_text()

    @property
    def socket(self) -> Path:
        return self.folder / socket_name(self.program.config)

    def running(self) -> Any:
        reply = ask(self.socket, GetAnalyticsRequest(camera="gate"))
        assert isinstance(reply, AnalyticsReply)
        return reply.analytics

    def call(self, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """Send a request to the API of the editor. Return the status and the content of the response."""
        data = None if body is None else json.dumps(body).encode()
        all_headers = {"content-type": "application/json", "origin": self.program.url, **headers}
        request = Request(f"{self.program.url}/api/editor/{path}", data, all_headers)
        try:
            with urlopen(request, timeout=PATIENCE_S) as response:
                status, content = response.status, response.read()
        except HTTPError as error:
            status, content = error.code, error.read()
        assert PASSWORD.encode() not in content and b"secret-path" not in content
        return status, json.loads(content)

    def restore(self) -> None:
        """Restore the original configuration file and the original lines."""
        self.program.config.write_text(self.first_text)
        section = yaml.safe_load(self.first_text)["analytics"]["gate"]
        ask(self.socket, SetAnalyticsRequest(camera="gate", analytics=section, privacy=None))


@pytest.fixture(scope="module")
def running_site() -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="ve-", dir="/tmp"))  # short, because the path of a socket is limited
    site = Site(folder)
    receiver = threading.Thread(target=site.receive)
    receiver.start()
    try:
        with site.program:
            until(lambda: len(site.frames()) > 5, "no frames")
            yield site
    finally:
        site.ended.set()
        receiver.join()
        shutil.rmtree(folder)


@pytest.fixture
def site(running_site: Site) -> Site:
    running_site.restore()
    return running_site


def draft_of(state: dict[str, Any], **changes: object) -> dict[str, Any]:
    """Return the draft of an editor with `changes` as the only changes."""
    keys = ("units", "lines", "zones", "ground", "privacy")
    return {key: state[key] for key in keys} | changes


def to_apply(state: dict[str, Any], **changes: object) -> dict[str, Any]:
    return draft_of(state, **changes) | {"version": state["version"], "revision": state["revision"]}


LINE = {"name": "new", "points": [[50, 2], [50, 98]], "anchor": "center"}


def opened(site: Site, open_page: OpenInBrowser, **options: Any) -> Page:
    one = open_page(f"{site.program.url}/#/edit/gate", **options)
    one.expected_errors = f"status of (409|422|503)|{PROGRAM_AWAY}"
    one.page.wait_for_selector(".editor-list button")
    one.page.wait_for_selector("button:text-is('Count the last hour'):enabled")  # the first check has ended
    return one.page


def drag(page: Page, *places: tuple[float, float]) -> None:
    """Drag the mouse over the drawing from the first to the last place. Places are fractions of the drawing."""
    box = page.locator(".editor-view").bounding_box()
    assert box is not None
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=3)
    page.mouse.up()


# --- with a mouse -----------------------------------------------------------------------------------------------------


def test_line_is_drawn_checked_estimated_and_applied(site: Site, open_page: OpenInBrowser) -> None:
    page = opened(site, open_page)
    page.click("button:text-is('Add zone')")
    for place in ((0.6, 0.2), (0.9, 0.8), (0.9, 0.2), (0.6, 0.8)):
        drag(page, place)
    page.click("button:text-is('Done')")
    page.wait_for_selector(".editor-faults li")
    assert page.locator(".editor-view .zone.bad").count() == 1
    assert "analytics.gate.zones[0].polygon" in page.inner_text(".editor-faults")
    assert page.is_disabled("button:text-is('Apply')")
    page.click("button:text-is('Undo')")
    page.wait_for_selector(".editor-faults li", state="detached")

    page.click("button:text-is('Add line')")
    drag(page, (0.5, 0.02), (0.5, 0.98))
    page.fill(".editor-properties input", "middle")
    page.wait_for_selector("button:text-is('Apply'):enabled")
    until(lambda: len(site.crossings("left")) > 2, "no crossings")
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url.rpartition("/")[2]))
    with page.expect_response("**/estimate", timeout=300_000) as caught:
        page.dblclick("button:text-is('Count the last hour')")
    estimate = caught.value.json()
    page.wait_for_selector(".data dd")

    first = len(site.frames())
    page.dblclick("button:text-is('Apply')")
    page.wait_for_selector(".notice >> text=Applied and saved")
    assert (sent.count("estimate"), sent.count("apply")) == (1, 1)  # the second click of each has no effect
    until(lambda: site.crossings("middle"), "no crossing of the new line")
    numbers = [(message.epoch, message.seq) for message in site.frames()]
    assert numbers == [(numbers[0][0], number) for number in range(numbers[0][1], numbers[0][1] + len(numbers))]
    assert len(numbers) > first

    assert [line["name"] for line in site.running()["lines"]] == ["left", "middle"]
    (x1, y1), (x2, y2) = site.running()["lines"][1]["points"]
    assert (x1, y1, x2, y2) == pytest.approx((50, 2, 50, 98), abs=1)
    kept = [line for line in site.first_text.splitlines() if line not in site.text.splitlines()]
    assert kept == []
    check_estimate(site, estimate)


def check_estimate(site: Site, estimate: dict[str, Any]) -> None:
    """Check that an estimate equals the result of `vision whatif` for the saved file and the same time range."""
    found = site.folder / "whatif.json"
    command = [sys.executable, "-m", "vision", "whatif", site.program.config, "--camera", "gate", "--json", found]
    command += ["--since", estimate["since"], "--until", estimate["until"]]
    environ = {**site.program._environ}
    subprocess.run(list(map(str, command)), check=True, env=environ, stdout=subprocess.DEVNULL)
    report = json.loads(found.read_text())
    same = report["cameras"]["gate"]
    keys = ("published", "now", "same", "gained", "lost", "moved", "changed")
    assert {key: estimate[key] for key in keys} == {key: same[key] for key in keys}
    rows = {(row["kind"], row["name"], row["direction"]): row["now"] for row in estimate["rows"] if row["now"]}
    assert rows == {(each["kind"], each["name"], each["direction"] or ""): each["events"] for each in same["tallies"]}
    assert sum(row["published"] for row in estimate["rows"]) == same["published"]
    assert any(name == "middle" for _, name, _ in rows)


def test_sides_that_cross_are_marked_while_a_point_is_dragged(site: Site, open_page: OpenInBrowser) -> None:
    page = opened(site, open_page)
    page.click("button:text-is('Add zone')")
    for place in ((0.6, 0.2), (0.8, 0.2), (0.8, 0.8), (0.6, 0.8)):
        drag(page, place)
    page.click("button:text-is('Done')")
    page.hover(".dot[data-point='0']")
    page.mouse.down()
    box = page.locator(".editor-view").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.95 * box["width"], box["y"] + 0.5 * box["height"], steps=3)
    page.wait_for_selector(".editor-view .zone.bad")
    page.mouse.up()
    page.click("button:text-is('Undo')")
    page.wait_for_selector(".editor-view .zone.bad", state="detached")


def test_points_of_a_zoomed_frame_are_where_they_were_clicked(site: Site, open_page: OpenInBrowser) -> None:
    page = opened(site, open_page)
    page.click("button:text-is('Zoom in')")
    until(lambda: page.evaluate("document.querySelector('.editor-frame').scrollLeft > 0"), "no zoom")
    page.click("button:text-is('Add line')")
    page.hover("h1")
    page.mouse.down()
    page.hover(".editor-frame")
    page.mouse.up()  # was pressed elsewhere
    drag(page, (0.5, 0.5), (0.6, 0.5))
    labels = [each.get_attribute("aria-label") or "" for each in page.locator(".dot[role=button]").all()]
    assert labels[0].endswith("point 1 of 2: 50.0 %, 50.0 %") and "point 2 of 2: 60" in labels[1]


# --- with the keyboard ------------------------------------------------------------------------------------------------


def test_keyboard_alone_draws_moves_and_applies(site: Site, open_page: OpenInBrowser) -> None:
    page = opened(site, open_page, viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.focus("button:text-is('Add line')")
    keys = page.keyboard
    keys.press("Enter")
    for key in [*["Shift+ArrowUp"] * 3, "Enter", *["Shift+ArrowDown"] * 6, "Enter"]:
        keys.press(key)
    assert page.locator(".editor-list button").all_text_contents() == ["line left", "line line-1"]
    keys.press("Tab")  # from the line to its first point
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label.startswith("line line-1, point 1 of 2: 50.0 %")
    keys.press("ArrowLeft")
    page.wait_for_selector("button:text-is('Apply'):enabled")
    keys.press("Control+z")
    keys.press("Control+y")
    keys.press("Tab")
    keys.press("Delete")  # a line needs two points
    assert page.locator(".editor-list button").count() == 1
    keys.press("Control+z")
    page.wait_for_selector("button:text-is('Apply'):enabled")
    page.focus("button:text-is('Apply')")
    keys.press("Enter")
    page.wait_for_selector(".notice >> text=Applied and saved")
    line = site.running()["lines"][1]
    assert line["name"] == "line-1" and line["points"][0][0] < 50 == line["points"][1][0]
    assert yaml.safe_load(site.text)["analytics"]["gate"]["lines"][1]["points"] == line["points"]


# --- while something else changes -------------------------------------------------------------------------------------


def test_second_editor_is_refused_and_can_load_the_present_state(site: Site, open_page: OpenInBrowser) -> None:
    page = opened(site, open_page)
    _, state = site.call("gate")
    assert site.call("gate/apply", to_apply(state, lines=[*state["lines"], LINE]))[0] == 200
    assert site.call("gate/apply", to_apply(state, zones=[]))[1]["code"] == "file-changed"
    page.click(".editor-list button")
    page.keyboard.press("Shift+ArrowRight")
    page.wait_for_selector("button:text-is('Apply'):enabled")
    page.click("button:text-is('Apply')")
    page.click("button:text-is('Show the present state')")
    page.wait_for_selector(".editor-list button >> text=line new")

    # The file is as it was read, but a different program has changed the lines.
    _, state = site.call("gate")
    left = state["lines"][0]
    ask(site.socket, SetAnalyticsRequest(camera="gate", analytics={"units": "percent", "lines": [left]}))
    status, answer = site.call(
        "gate/apply", to_apply(state, zones=[{"name": "hall", "polygon": [[1, 2], [9, 2], [5, 9]]}])
    )
    assert (status, answer["code"]) == (409, "changed-meanwhile")
    assert site.running()["lines"] == [left] and "hall" not in site.text
    assert site.call("gate")[1]["differs_from_file"]


def test_file_that_cannot_be_written_is_not_saved_but_applied(site: Site) -> None:
    config = site.program.config
    target = config.with_name("n" * 245 + ".yaml")  # the name of the new file would be too long
    config.rename(target)
    config.symlink_to(target)
    try:
        _, state = site.call("gate")
        status, answer = site.call("gate/apply", to_apply(state, lines=[*state["lines"], LINE]))
        assert (status, answer["unsaved"], answer["changed"]) == (200, "not-writable", ["analytics.gate"])
        assert len(site.running()["lines"]) == 2 and target.read_text() == site.first_text
        masks = {"units": "fraction", "masks": [[[0, 0], [0.5, 0], [0, 0.5]]]}
        _, state = site.call("gate")
        status, answer = site.call("gate/apply", to_apply(state, privacy=masks))
        assert (status, answer["unsaved"], answer["changed"]) == (200, "not-writable", ["privacy.gate"])
        assert site.call("gate")[1]["privacy"] == masks and target.read_text() == site.first_text
    finally:
        config.unlink()
        target.rename(config)


def still(site: Site) -> int:
    """Return the largest pixel value in the upper half of the next image of the camera `gate`."""
    with urlopen(f"{site.program.url}/api/still/gate", timeout=PATIENCE_S) as response:
        image = cv2.imdecode(np.frombuffer(response.read(), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return int(image[:112].max())


def test_masks_are_saved_and_apply_without_a_gap(site: Site) -> None:
    assert still(site) > 80
    _, state = site.call("gate")
    masks = {"units": "percent", "masks": [[[0, 0], [100, 0], [100, 50], [0, 50]]]}
    status, answer = site.call("gate/apply", to_apply(state, privacy=masks))
    assert (status, answer["unsaved"], answer["changed"]) == (200, "", ["privacy.gate"])
    assert yaml.safe_load(site.text)["privacy"] == {"gate": masks}
    until(lambda: still(site) < 24, "the mask is not filled")  # the page learns of the change a little later
    assert not site.call("gate")[1]["differs_from_file"]
    numbers = [(message.epoch, message.seq) for message in site.frames()]
    assert numbers == [(numbers[0][0], number) for number in range(numbers[0][1], numbers[0][1] + len(numbers))]
    crossed = {"units": "percent", "masks": [[[0, 0], [50, 50], [50, 0], [0, 50]]]}
    _, answer = site.call("gate/check", draft_of(state, privacy=crossed))
    (fault,) = answer["faults"]
    assert (fault["code"], fault["key"]) == ("crossing-sides", "privacy.gate.masks[0]")
    assert "masks" in site.text.splitlines()[fault["line"] - 1]


def test_camera_that_only_runs_is_changed_until_the_end(site: Site) -> None:
    camera = {"id": "later", "source": "synthetic:160x120@5"}
    ask(site.socket, AddCameraRequest(camera=camera))
    _, state = site.call("later")
    assert (state["unsaved"], state["units"]) == ("camera-not-in-file", "fraction")
    line = {"name": "new", "points": [[0.5, 0], [0.5, 1]]}
    status, answer = site.call("later/check", draft_of(state, lines=[{**line, "name": "?"}]))
    assert status == 200 and [fault["key"] for fault in answer["faults"]] == ["analytics.later.lines[0].name"]
    status, answer = site.call("later/apply", to_apply(state, lines=[line]))
    assert (status, answer["changed"], answer["unsaved"]) == (200, ["analytics.later"], "camera-not-in-file")
    _, state = site.call("later")
    ask(site.socket, RemoveCameraRequest(id="later"))
    status, answer = site.call("later/apply", to_apply(state, lines=[]))
    assert (status, answer["code"]) == (404, "unknown-camera")
    assert site.text == site.first_text


def test_draft_with_faults_is_refused_with_keys_and_lines(site: Site) -> None:
    _, state = site.call("gate")
    draft = draft_of(state, lines=[{"name": "left", "points": [[9, 9], [9, 9]]}, {**LINE, "classes": ["elephants"]}])
    _, answer = site.call("gate/check", draft)
    assert {(fault["key"], fault["code"]) for fault in answer["faults"]} == {
        ("analytics.gate.lines[0].points", "no-length")
    }
    assert all(fault["line"] > 0 for fault in answer["faults"])
    _, answer = site.call("gate/check", draft_of(state, lines=[]))  # a rule needs the line
    assert [fault["key"] for fault in answer["faults"]] == ["rules[0].when"]
    _, answer = site.call("gate/check", draft_of(state, lines=[*state["lines"], {**LINE, "classes": ["elephants"]}]))
    assert [(fault["key"], fault["code"]) for fault in answer["faults"]] == [
        ("analytics.gate.lines[1].classes[0]", "unknown-class")
    ]
    invalid: list[object] = [{}, {"units": 1}, [], {**draft, "more": 1}, {**draft, "lines": "x"}]
    for broken in invalid:
        assert site.call("gate/check", broken)[0] == 422
    assert site.call("gate/apply", to_apply(state, lines=draft["lines"]))[1]["code"] == "draft-invalid"
    assert site.call("gate/check", draft | {"lines": [{"name": "x" * 300_000}]})[0] == 413
    assert site.call("nowhere")[0] == 404
    assert site.text == site.first_text


def test_request_of_a_different_website_is_refused(site: Site) -> None:
    _, state = site.call("gate")
    for headers in ({"origin": "http://example.com"}, {"host": "example.com"}):
        assert site.call("gate/apply", to_apply(state, lines=[]), **headers)[0] in {403, 421}
    status, _ = site.call("gate/apply", to_apply(state), **{"content-type": "text/plain"})
    assert status == 415
    assert site.running()["lines"][0]["name"] == "left"


def test_program_that_ends_keeps_the_draft_in_the_browser(site: Site, open_page: OpenInBrowser) -> None:
    page = opened(site, open_page)
    page.click(".editor-list button")
    page.keyboard.press("Shift+ArrowRight")
    page.click("nav a:text-is('Cameras')")
    page.wait_for_selector(".tile")
    page.go_back()
    page.wait_for_selector(".notice >> text=Your draft was kept")
    page.wait_for_selector("button:text-is('Apply'):enabled")
    site.program.stop()
    page.click("button:text-is('Apply')")
    page.wait_for_selector(".notice >> text=does not answer")
    assert page.locator(".editor-list button").count() == 1
    site.program.restart()
    page.click("button:text-is('Apply')")  # the restart has written a port to the file
    page.click("button:text-is('Show the present state')")
    page.wait_for_selector("button:text-is('Apply'):disabled")
