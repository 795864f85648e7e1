"""Fixtures that start a real `vision run` with a page, and open the page in headless Chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.page.harness import OpenPage, Program, chromium, start

StartProgram = Callable[[str], Program]
OpenInBrowser = Callable[..., OpenPage]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start headless Chromium once for the tests of a module.

    While the browser runs, the thread of the tests has an event loop, so `asyncio.run` fails. The fixture stops the
    browser at the end of the module, because tests of other modules need `asyncio.run`.
    """
    executable = chromium()
    if executable is None:
        pytest.skip("needs Chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def start_program(tmp_path: Path) -> Iterator[StartProgram]:
    """Return a function that starts `vision run` with a configuration, and waits for its page."""
    with ExitStack() as programs:
        yield lambda text: programs.enter_context(start(tmp_path, text))


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenInBrowser]:
    """Return a function that opens a URL in a new context of the browser.

    The function accepts the keyword arguments of `Browser.new_context`. The test fails if a page has errors, or
    requested anything from a different host.
    """
    with ExitStack() as pages:
        opened: list[OpenPage] = []

        def open_url(url: str, **options: object) -> OpenPage:
            opened.append(pages.enter_context(OpenPage(browser, url, options)))
            return opened[-1]

        yield open_url
        for each in opened:
            each.check()
