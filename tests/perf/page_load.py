"""Measure how long headless Chromium needs to load the page of a program with 64 cameras.

python -m tests.perf.page_load [--cameras 64] [--repeats 10]

The measured time begins with the navigation, and ends when the document contains the tiles of all cameras with their
states and values. Each repeat opens a new context with an empty cache. The server runs in the measuring process.
"""

from __future__ import annotations

import argparse
import json

from playwright.sync_api import Browser, sync_playwright

from tests.page.harness import chromium, serve
from tests.page.samples import busy_state

_OBSERVE = """
    new MutationObserver((_, observer) => {
        if (document.querySelectorAll(".tile .figures dd:not(:empty)").length < COUNT) return;
        window.loadedMs = performance.now();
        observer.disconnect();
    }).observe(document, { childList: true, subtree: true });
"""


def measure(cameras: int, repeats: int) -> dict[str, float]:
    """Return the shortest and the median load time in ms, and the number of bytes that one load requests."""
    executable = chromium()
    assert executable is not None, "expected Chromium"
    state = busy_state(*(f"camera-{number:02}" for number in range(cameras)))
    with serve(state) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        loads = [_load(browser, url, cameras) for _ in range(repeats)]
        browser.close()
    times = sorted(time_ms for time_ms, _ in loads)
    return {"shortest_ms": times[0], "median_ms": times[len(times) // 2], "bytes": loads[0][1]}


def _load(browser: Browser, url: str, cameras: int) -> tuple[float, int]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.add_init_script(_OBSERVE.replace("COUNT", str(cameras * 4)))
    page = context.new_page()
    page.goto(url)
    while not (loaded_ms := page.evaluate("window.loadedMs")):
        page.wait_for_timeout(20)
    sizes = "performance.getEntriesByType('resource').reduce((sum, each) => sum + each.encodedBodySize, 0)"
    nbytes = page.evaluate(sizes)
    context.close()
    return round(float(loaded_ms), 1), int(nbytes)


def main() -> None:
    """Print the measured values as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cameras", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.cameras, arguments.repeats)))


if __name__ == "__main__":
    main()
