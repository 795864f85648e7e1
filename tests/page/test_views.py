"""The views of the page in a real browser, with a real program."""

from __future__ import annotations

from tests.page.conftest import OpenInBrowser, StartProgram
from tests.page.harness import TWO_CAMERAS


def test_overview_shows_each_camera_and_opens_it(start_program: StartProgram, open_page: OpenInBrowser) -> None:
    program = start_program(TWO_CAMERAS)
    opened = open_page(program.url)
    page = opened.page
    opened.expected_errors = "404"  # live.js
    page.wait_for_selector(".tile[data-state=streaming] >> nth=1")
    assert page.locator(".tile h2").all_text_contents() == ["north", "south"]
    page.click(".tile a.view-link >> nth=0")
    page.wait_for_selector("dl.details dd")
    assert page.locator("h1").text_content() == "north"
    assert page.url.endswith("#/camera/north")
    page.keyboard.press("Escape")
    page.wait_for_selector(".tile")
