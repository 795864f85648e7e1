"""Tests of the page on a phone and a desktop, in light and dark mode, with a keyboard only, and with hostile names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from playwright.sync_api import Page

from tests.page.conftest import OpenInBrowser
from tests.page.harness import serve
from tests.page.samples import busy_state, event, node, status
from vision.outputs.page.history import LiveHistory
from vision.outputs.page.state import PageState

COLORS: tuple[Literal["light", "dark"], ...] = ("light", "dark")
CONTRAST = (Path(__file__).parent / "contrast.js").read_text()
HOSTILE = '<img src=x onerror="window.hacked = true">\'&\u202e\u0000/../?#é\U0001f600'
VIEWS = {
    "#/": ".tile >> nth=4",
    "#/camera/north": ".details dd >> nth=6",
    "#/events": ".event >> nth=5",
    "#/history": ".plot >> nth=2",
}


def show(page: Page, view: str) -> None:
    """Open a view, and unfold all its parts."""
    page.evaluate("hash => { location.hash = hash }", view)
    page.wait_for_selector(VIEWS[view])
    for summary in page.locator("main summary").all():
        summary.click()
    if view == "#/":
        page.wait_for_selector("dt:has-text('memory of the machine')")


def test_every_view_has_readable_colors_and_fits(open_page: OpenInBrowser) -> None:
    with serve(busy_state("north", "south", "east", "west", "yard")) as url:
        opened = open_page(url)
        page = opened.page
        for view in VIEWS:
            page.set_viewport_size({"width": 1280, "height": 740})
            show(page, view)
            for width in (1280, 360):
                page.set_viewport_size({"width": width, "height": 740})
                for colors in COLORS:
                    page.emulate_media(color_scheme=colors)
                    result = page.evaluate(CONTRAST)
                    assert result["found"] == [], (view, width, colors)
                    assert result["checked"] > 10
                assert page.evaluate("document.documentElement.scrollWidth") <= width, view


def test_contrast_check_finds_a_faint_text(open_page: OpenInBrowser) -> None:
    with serve(busy_state("north")) as url:
        opened = open_page(url)
        opened.page.wait_for_selector(".tile")
        opened.page.evaluate("document.documentElement.style.setProperty('--muted', '#999')")
        assert opened.page.evaluate(CONTRAST)["found"]


def focused(page: Page) -> dict[str, Any]:
    """Describe the focused element: its text, its tag, its outline, and whether it is inside the window."""
    found: dict[str, Any] = page.evaluate("""() => {
        const element = document.activeElement, style = getComputedStyle(element);
        const { top, bottom, left, right } = element.getBoundingClientRect();
        return {
            text: (element.getAttribute("aria-label") ?? element.textContent).trim(),
            tag: element.tagName,
            outline: style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth),
            inside: bottom > 0 && top < innerHeight && right > 0 && left < innerWidth,
        };
    }""")
    return found


def test_keyboard_reaches_everything_in_order_and_the_focus_is_visible(open_page: OpenInBrowser) -> None:
    with serve(busy_state("north", "south")) as url:
        opened = open_page(url)
        page = opened.page
        page.wait_for_selector(".tile >> nth=1")
        order = []
        for _ in range(8):
            page.keyboard.press("Tab")
            found = focused(page)
            assert found["outline"] >= 2, found
            assert found["inside"], found
            order.append(found["text"])
        assert order[:5] == ["Skip to the content", "vision", "Cameras", "Events", "History"]
        assert order[5].startswith("Program")
        assert order[6:] == ["Open north", "Open south"]
        page.keyboard.press("Enter")
        page.wait_for_selector("h1:has-text('south')")
        page.wait_for_selector(".details dd >> nth=6")
        page.keyboard.press("Escape")
        page.wait_for_selector(".tile >> nth=1")
        opened.wait_until("document.activeElement.getAttribute('aria-label') === 'Open south'")
        page.evaluate("location.hash = '#/events'")
        page.wait_for_selector(".event >> nth=5")
        page.locator(".event summary").first.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector(".event[open] .data dd")


def test_names_with_markup_are_shown_as_text(open_page: OpenInBrowser) -> None:
    state = PageState(3600.0, LiveHistory())
    state.add(node(node=HOSTILE, model=HOSTILE))
    state.add(status(HOSTILE, "backing-off", last_error=HOSTILE, hint=HOSTILE, decoder=HOSTILE, dropped={HOSTILE: 3}))
    state.add(
        event(1, HOSTILE, kind=HOSTILE, name=HOSTILE, data={"class": HOSTILE, HOSTILE: HOSTILE, "x": {HOSTILE: 1}})
    )
    with serve(state) as url:
        opened = open_page(url)
        page = opened.page
        page.wait_for_selector(".tile")
        assert page.locator(".tile h2").text_content() == HOSTILE
        page.locator(".health summary").click()
        page.wait_for_selector("dt:has-text('memory of the machine')")
        page.locator(".tile a").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector(".event")
        assert page.locator("h1").text_content() == HOSTILE
        page.locator(".event summary").first.click()
        page.wait_for_selector(".data dd")
        page.evaluate("hash => { location.hash = hash }", f"#/events?{quote(HOSTILE)}")
        page.wait_for_selector(".filter")
        for view in ("#/history", f"#/camera/{quote('%' + HOSTILE)}", "#/camera/%ff", "#/nothing"):
            page.evaluate("hash => { location.hash = hash }", view)
            opened.wait_until("document.querySelector('main h1') !== null")
        assert page.evaluate("window.hacked") is None
        assert page.locator("main img[src=x]").count() == 0


def test_login_form_opens_the_page(open_page: OpenInBrowser) -> None:
    with serve(busy_state("north"), token="0123456789abcdef") as url:
        opened = open_page(url)
        page = opened.page
        for typed in ("wrong", "0123456789abcdef"):
            page.wait_for_selector("#token")
            page.keyboard.type(typed)
            page.keyboard.press("Enter")
            page.wait_for_selector("#failed" if typed == "wrong" else ".tile")
        assert page.evaluate("document.cookie") == ""
