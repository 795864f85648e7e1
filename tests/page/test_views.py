"""Tests of the views of the page in a real browser with a real program."""

from __future__ import annotations

from tests.page.conftest import OpenInBrowser, StartProgram
from tests.page.harness import PROGRAM_AWAY, TWO_CAMERAS, serve
from tests.page.samples import busy_state, counts
from tests.paths import ROOT

NO_BARS = """[...document.querySelectorAll(".view canvas")].slice(-1).every((canvas) =>
    Math.abs(canvas.clientWidth / canvas.clientHeight - 4 / 3) < 0.02 && canvas.style.objectFit === "fill")"""


def test_overview_shows_each_camera_and_opens_it(start_program: StartProgram, open_page: OpenInBrowser) -> None:
    away = '  - {id: away, source: "rtsp://127.0.0.1:9/x"}'
    program = start_program(TWO_CAMERAS.replace("cameras:", f"cameras:\n{away}"))
    opened = open_page(program.url)
    page = opened.page
    page.wait_for_selector(".tile[data-state=streaming] >> nth=1")
    assert page.locator(".tile h2").all_text_contents() == ["away", "north", "south"]
    opened.wait_until("/port 9/.test(document.querySelector('.reason').innerText)")
    opened.wait_until("document.querySelector('.tile').innerText.split('port 9').length === 2")  # shown once
    opened.wait_until(NO_BARS)
    page.click(".tile a.view-link >> nth=1")
    page.wait_for_selector("dl.details dd")
    opened.wait_until(NO_BARS)
    assert page.locator("h1").text_content() == "north"
    assert page.url.endswith("#/camera/north")
    page.keyboard.press("Escape")
    page.wait_for_selector(".tile")
    page.go_back()
    page.wait_for_selector("h1:text-is('north')")
    page.go_back()  # to the address without a view
    page.wait_for_selector(".tile")


def test_page_says_that_the_program_is_away_and_continues_when_it_is_back(
    start_program: StartProgram, open_page: OpenInBrowser
) -> None:
    program = start_program(TWO_CAMERAS)
    opened = open_page(program.url)
    opened.expected_errors = PROGRAM_AWAY
    page = opened.page
    page.wait_for_selector(".tile[data-state=streaming] >> nth=1")
    program.stop()
    page.wait_for_selector("#connection.bad")
    assert page.locator("main").evaluate("(element) => getComputedStyle(element).filter") == "grayscale(1)"
    page.click("nav a:text-is('History')")  # cannot be loaded yet
    program.restart()
    page.wait_for_selector("h1:text-is('History')")
    page.wait_for_selector("#connection:not(.bad) >> text=The program started")
    page.click("nav a:text-is('Cameras')")
    page.wait_for_selector(".tile[data-state=streaming] >> nth=1")


def test_events_are_loaded_again_after_the_server_was_away(open_page: OpenInBrowser) -> None:
    with serve(busy_state("north")) as url:
        opened = open_page(url)
        opened.expected_errors = "ERR_FAILED"
        page = opened.page
        page.wait_for_selector(".tile")
        page.route("**/api/**", lambda route: route.abort())
        page.evaluate("location.hash = '#/events'")
        page.wait_for_selector("main [role=status] >> text=does not answer")
        page.wait_for_selector("#connection.bad")
        page.unroute("**/api/**")
        page.wait_for_selector(".event >> nth=5")


def test_an_unknown_camera_cannot_be_edited(open_page: OpenInBrowser) -> None:
    with serve(busy_state("north")) as url:
        page = open_page(f"{url}/#/camera/north").page
        page.wait_for_selector("a:text-is('Edit lines and zones')")
        page.evaluate("location.hash = '#/camera/nothing'")
        page.wait_for_selector("h1:text-is('nothing')")
        assert page.locator("a:text-is('Edit lines and zones')").count() == 0


def test_a_refresh_of_the_history_keeps_unfolded_numbers(open_page: OpenInBrowser) -> None:
    state = busy_state("north")
    with serve(state) as url:
        opened = open_page(f"{url}/#/history")
        page = opened.page
        page.wait_for_selector(".plot >> nth=2")
        page.clock.install()
        page.locator(".plot summary").first.click()
        state.add(counts("north", 0.0, 1000))
        page.clock.fast_forward(61_000)
        opened.wait_until("/\\b70\\d\\b/.test(document.querySelector('.scroll table').innerText)")
        assert page.locator(".plot details[open]").count() == 1


COUNTING = """
model: nanodet-g-416
detect: {classes: [person]}
state_dir: state
snapshots: {folder: snapshots}
cameras:
  - {id: square, source: VIDEO, loop: true}
analytics:
  square:
    units: fraction
    lines: [{name: middle, points: [[0.5, 0.1], [0.5, 0.9]]}]
    zones: [{name: road, polygon: [[0.1, 0.3], [0.9, 0.3], [0.9, 0.9], [0.1, 0.9]]}]
publish: {bind: "tcp://127.0.0.1:*"}
page: {bind: "127.0.0.1:0"}
processes: 1
"""
ALL_OF_THE_ZONE = "[...document.querySelectorAll('.event strong')].every((each) => /zone road/.test(each.textContent))"


def test_events_of_a_running_program_appear_with_snapshots(
    start_program: StartProgram, open_page: OpenInBrowser
) -> None:
    program = start_program(COUNTING.replace("VIDEO", str(ROOT / "configs" / "vtest.mp4")))
    opened = open_page(f"{program.url}/#/history")
    page = opened.page
    page.wait_for_selector(".plot canvas >> nth=2")  # when the view opened, nothing was counted yet
    assert "archive" in (page.locator("main [role=status]").text_content() or "")
    page.evaluate("location.hash = '#/events'")
    page.wait_for_selector(".event .thumb img >> nth=1")
    opened.wait_until("[...document.querySelectorAll('.event .thumb img')].some((each) => each.naturalWidth > 0)")
    page.locator(".event:has(.thumb img) summary").first.click()
    opened.wait_until("document.querySelector('.event[open] img.shot')?.naturalWidth > 0")
    page.select_option("[name=kind]", "zone_entered")
    opened.wait_until(ALL_OF_THE_ZONE)
    page.select_option("[name=kind]", "camera_frozen")
    page.wait_for_selector("text=No events.")
