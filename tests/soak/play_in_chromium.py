"""Play MP4 files in Chromium, and check that each plays to its end: python -m tests.soak.play_in_chromium FILE...

Chromium must be installed, for example with `apt-get install chromium`.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av

_TIMEOUT_S = 120.0
_PAGE = """<!doctype html><video id=v muted></video><script>
const v = document.getElementById("v"), started = performance.now();
function tell(result) {
  const quality = v.getVideoPlaybackQuality();
  fetch("/result", {method: "POST", body: JSON.stringify({result, duration: v.duration, time: v.currentTime,
    seconds: (performance.now() - started) / 1000, width: v.videoWidth, frames: quality.totalVideoFrames})});
}
v.onended = () => tell("ended");
v.onerror = () => tell("error " + v.error.code + " " + v.error.message);
v.src = "/video.mp4";
v.play().catch(error => tell("error " + error));
</script>"""


class _Handler(BaseHTTPRequestHandler):
    """Handler that serves the page and one video, supports range requests, and receives the result."""

    def __init__(self, video: bytes, results: queue.SimpleQueue[dict[str, Any]], *arguments: Any) -> None:
        self._video = video
        self._results = results
        super().__init__(*arguments)

    def do_GET(self) -> None:
        if self.path != "/video.mp4":
            self._answer(200, "text/html", _PAGE.encode())
            return
        start, end = 0, len(self._video)
        wanted = self.headers.get("Range", "")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) + 1 if last else end
        self._answer(206 if wanted else 200, "video/mp4", self._video[start:end], start)

    def do_POST(self) -> None:
        self._results.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer(200, "text/plain", b"")

    def _answer(self, status: int, kind: str, body: bytes, start: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(self._video)}")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def play(path: Path) -> dict[str, Any]:
    """Play a file in Chromium. Return the report of the page."""
    results: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, path.read_bytes(), results)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with tempfile.TemporaryDirectory() as profile:
            line = ["chromium", "--headless", "--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
            line += [f"--user-data-dir={profile}", f"http://127.0.0.1:{server.server_address[1]}/"]
            with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as chromium:
                try:
                    return results.get(timeout=_TIMEOUT_S)
                except queue.Empty:
                    return {"result": f"did not end within {_TIMEOUT_S:.0f} s"}
                finally:
                    chromium.kill()
                    server.shutdown()


def main() -> int:
    """Play all files, and print one line for each. Return 1 if a file did not play to its end."""
    failed = False
    for name in sys.argv[1:]:
        with av.open(name) as container:
            stream = container.streams.video[0]
            codec, frames = stream.codec_context.name, sum(1 for packet in container.demux(stream) if packet.size)
        result = play(Path(name))
        failed |= result["result"] != "ended"
        print(f"{Path(name).name}: {codec}, {frames} frames: {result}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
