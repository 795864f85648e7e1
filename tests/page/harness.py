"""Real `vision run` that serves a page, and headless Chromium that opens it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page

from vision.messaging.http_server import http_server
from vision.outputs.page import live
from vision.outputs.page.live_hub import LiveHub
from vision.outputs.page.server import application
from vision.outputs.page.settings import PageSettings
from vision.outputs.page.state import PageState

PATIENCE_S = 60.0

# Errors that Chromium writes to the console while the program is away. Which error depends on when a connection ends.
PROGRAM_AWAY = "WebSocket|ERR_CONNECTION|ERR_EMPTY|ERR_INCOMPLETE"

TWO_CAMERAS = """
model: nanodet-g-416
detect: {backend: fake}
cameras:
  - {id: north, source: "synthetic:", width: 320, height: 240, fps: 10}
  - {id: south, source: "synthetic:", width: 320, height: 240, fps: 10}
publish: {bind: "tcp://127.0.0.1:*"}
page: {bind: "127.0.0.1:0"}
processes: 1
"""


def chromium() -> str | None:
    """Return the path of Chromium, or None if it is not installed."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def until(condition: Callable[[], Any], what: str) -> Any:
    """Poll until the value of `condition` is true, and return this value. Fail with the text `what` after a minute."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline_s, what
        time.sleep(0.05)
    return value


class Program:
    """Running `vision run`. `url` is the address of its page, and `log` contains its log messages so far."""

    def __init__(self, folder: Path, text: str, environ: Mapping[str, str]) -> None:
        self.config = folder / "camera.yaml"
        self.config.write_text(text)
        self.log = ""
        self._environ = {**os.environ, **environ}
        self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "vision", "run", str(self.config)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=self._environ)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        found = until(lambda: re.search(r"the page is at (\S+)/", self.log) or self._ended(), "no page")
        assert found is not True, self.log
        self.url = str(found[1])

    def _ended(self) -> bool:
        return self.process.poll() is not None and not self._reader.is_alive()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line

    def stop(self) -> int:
        """Stop the program, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE_S)
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code

    def restart(self) -> None:
        """Start the program again at the same address."""
        self.stop()
        port = str(urlsplit(self.url).port)
        self.config.write_text(self.config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        self.log = ""
        self._start()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()


@contextmanager
def serve(state: PageState, **settings: Any) -> Iterator[str]:
    """Serve a page without a program. The test passes the state that the page shows. Yield the address of the page."""
    chosen = PageSettings(address="tcp://127.0.0.1:1", **settings)
    app = application(chosen, state, live.routes(LiveHub(chosen.live, chosen.address, None)))
    server = http_server(app, connections=256, web_sockets=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def start(folder: Path, text: str = TWO_CAMERAS, environ: Mapping[str, str] | None = None) -> Program:
    """Start `vision run` with a configuration, and wait until its page is served."""
    return Program(folder, text, environ or {})


class OpenPage:
    """Page in the browser. `page` is the Playwright page. `errors` contains console messages and exceptions."""

    def __init__(self, browser: Browser, url: str, options: Mapping[str, Any]) -> None:
        self.errors: list[str] = []
        self.expected_errors = ""  # regular expression of errors that the test provokes
        self.foreign: list[str] = []
        self._host = urlsplit(url).netloc
        self._context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        self._context.set_default_timeout(PATIENCE_S * 1000)
        self.page: Page = self._context.new_page()
        self.page.on("console", self._add_message)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self._add_request(request.url))
        self.page.goto(url, wait_until="load")

    def _add_message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _add_request(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.netloc != self._host:
            self.foreign.append(url)

    def wait_until(self, expression: str) -> None:
        """Wait until a JavaScript expression is true. The page's security policy forbids `Page.wait_for_function`."""
        until(lambda: self.page.evaluate(expression), expression)

    def check(self) -> None:
        """Fail if the page had errors, or requested anything from a different host."""
        unexpected = [
            text for text in self.errors if not self.expected_errors or not re.search(self.expected_errors, text)
        ]
        assert unexpected == [], unexpected
        assert self.foreign == [], self.foreign

    def __enter__(self) -> OpenPage:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()
