"""Measure the live view: exactness of the overlay, time to the first frame, CPU per viewer, and latency.

    python -m tests.perf.live_view [--frames 10000] [--only exact,first,tiles,viewers]

The measurement needs Chromium. `exact` compares the numbers that simulated cameras paint into their frames with the
numbers in the overlay of the browser. These cameras also lose packets, reconnect, and change the frame size. `viewers`
alternates between 0, 1, and 20 viewers, which discard the data that they receive. The command writes
results/MACHINE/live_view.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import msgspec
import numpy as np
import psutil
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console

from tests.page.harness import Program, chromium, start
from tests.page.live_site import Site, show
from tests.perf.__main__ import result
from tests.perf.results import save
from vision.capture.zoo.camera import Camera
from vision.capture.zoo.persona import Fault, RtspStream
from vision.capture.zoo.zoo import PERSONAS, running_zoo
from vision.client import DetectionsMessage, subscribe
from vision.config import CameraConfig

TITLE: Final = "Live view: exactness of the overlay, first frame, CPU per viewer, and latency with viewers"
EXACT: Final[dict[str, tuple[str, Fault]]] = {
    "plain": ("plain", "none"),
    "b-frames": ("b-frames", "none"),
    "resize": ("resize", "none"),
    "cut": ("plain", "cut"),
    "loss": ("plain", "loss"),
    "b-loss": ("b-frames", "loss"),
}
TILES: Final = 16
VIEWERS: Final = (0, 1, 20)
ROUNDS: Final = 5
ROUND_S: Final = 8.0
SETTLE_S: Final = 2.0


@contextmanager
def open_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


def exact(browser: Browser, frames: int) -> dict[str, Any]:
    """Show cameras with unusual streams and faults. For each, count the frames with the overlay of another frame."""
    shown = {name: {"frames": 0, "without_result": 0, "wrong": 0, "images": 0} for name in EXACT}
    with ExitStack() as stack:
        zoo, site = stack.enter_context(running_zoo()), Site(stack)
        for name, (persona_name, fault) in EXACT.items():
            persona = next(each for each in PERSONAS if each.name == persona_name)
            assert isinstance(persona.stream, RtspStream)
            fast = replace(persona, stream=replace(persona.stream, fps=25.0))
            camera = Camera(fast, fault, fault_after_s=10, repeats=True)
            zoo.start([camera])
            keys = {"source": camera.address, "reader": "ffmpeg", "open_timeout_s": 60, "read_timeout_s": 20}
            site.add_camera(CameraConfig.model_validate({"id": name, **keys}))
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        show(page, site.url, list(EXACT))
        while sum(each["frames"] for each in shown.values()) < frames:
            page.wait_for_timeout(1000)
            for frame in page.evaluate("window.shown.splice(0)"):
                each = shown[frame["camera"]]
                each["frames"] += 1
                each["images"] += frame["stream"] == 0
                each["without_result"] += frame["result"] is None
                each["wrong"] += frame["result"] is not None and frame["number"] != frame["result"]
        page.close()
    return {"frames": sum(each["frames"] for each in shown.values()), "by_camera": shown}


@dataclass(frozen=True)
class Video:
    """Video of 8 s that shows moving noise."""

    width: int
    height: int
    fps: int
    key_every_s: int

    def write(self, folder: Path) -> Path:
        """Write the video into `folder`, unless the file exists. Return the path of the file."""
        path = folder / f"{self.width}-{self.fps}-{self.key_every_s}.mp4"
        if path.exists():
            return path
        width, height = self.width, self.height
        noise = np.random.default_rng(1).integers(60, 190, (height + 8 * self.fps, width), np.uint8)
        with av.open(str(path), "w") as output:
            stream = output.add_stream("libx264", rate=self.fps)
            stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 2_000_000
            keys = str(self.key_every_s * self.fps)
            stream.options = {"preset": "ultrafast", "g": keys, "sc_threshold": "0"}
            planes = np.full((height * 3 // 2, width), 128, np.uint8)
            for number in range(8 * self.fps):
                planes[: height // 2] = noise[number : number + height // 2]
                frame = av.VideoFrame.from_ndarray(planes, "yuv420p")
                frame.pts, frame.time_base = number, Fraction(1, self.fps)
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
        return path


def site_of(folder: Path, cameras: int, video: Video) -> Program:
    """Start `vision run` with `cameras` cameras that read the same video, and with the detector `fake`."""
    path = video.write(folder)
    listed = "".join(f"  - {{id: camera-{n}, source: {path}, loop: true}}\n" for n in range(cameras))
    text = f"model: nanodet-g-416\ndetect: {{backend: fake}}\ncameras:\n{listed}"
    text += 'publish: {bind: "tcp://127.0.0.1:*"}\npage: {bind: "127.0.0.1:0"}\nprocesses: 1\n'
    return start(folder, text)


def first(browser: Browser, folder: Path) -> dict[str, Any]:
    """Measure the time from the start of a view to its first frame, with key frame intervals of 1 s and 8 s."""
    measured: dict[str, Any] = {}
    for key_every_s in (1, 8):
        with site_of(folder, 1, Video(640, 360, 25, key_every_s)) as program:
            page = browser.new_page(viewport={"width": 1000, "height": 800})
            page.goto(f"{program.url}/#/camera/camera-0")
            page.wait_for_selector("canvas")
            script = page.evaluate(
                "performance.getEntriesByType('resource').find((e) => /live\\.js/.test(e.name)).name"
            )
            times: list[float] = page.evaluate(
                """async (script) => {
                  const { LiveView } = await import(script);
                  const { html, render } = await import(script.replace("live.js", "ui.js"));
                  const { drawImage } = CanvasRenderingContext2D.prototype;
                  let shown;
                  CanvasRenderingContext2D.prototype.drawImage = function (...values) {
                    drawImage.apply(this, values);
                    shown?.();
                  };
                  const times = [];
                  for (let each = 0; each < 20; each += 1) {
                    document.querySelector("main").replaceChildren();
                    const element = document.createElement("div");
                    element.style = "width: 800px; height: 450px; position: relative";
                    document.querySelector("main").append(element);
                    const began = performance.now();
                    const first = new Promise((done) => { shown = done; });
                    render(html`<${LiveView} camera=${{ camera: "camera-0" }} />`, element);
                    await first;
                    times.push(performance.now() - began);
                    render(null, element);
                    await new Promise((done) => setTimeout(done, 300 + 50 * each));
                  }
                  return times;
                }""",
                script,
            )
            page.close()
        seconds = [each / 1000 for each in times]
        measured[f"key_frame_every_{key_every_s}_s"] = {
            "clicks": len(seconds),
            "min_s": min(seconds),
            "median_s": statistics.median(seconds),
            "max_s": max(seconds),
        }
    return measured


def tiles(browser: Browser, folder: Path) -> dict[str, Any]:
    """Show 16 cameras, and count the frames that the browser draws."""
    with site_of(folder, TILES, Video(320, 180, 10, 1)) as program:
        page = browser.new_page(viewport={"width": 1400, "height": 1600})
        page.add_init_script(
            """window.drawn = {};
            const { drawImage } = CanvasRenderingContext2D.prototype;
            CanvasRenderingContext2D.prototype.drawImage = function (...values) {
              drawImage.apply(this, values);
              const name = this.canvas.closest("article").querySelector("h2").textContent;
              window.drawn[name] = (window.drawn[name] ?? 0) + 1;
            };"""
        )
        began_s = time.monotonic()
        page.goto(program.url)
        while len(page.evaluate("window.drawn")) < TILES and time.monotonic() - began_s < 120:
            page.wait_for_timeout(100)
        all_s = time.monotonic() - began_s
        before = page.evaluate("window.drawn")
        page.wait_for_timeout(10_000)
        after = page.evaluate("window.drawn")
        page.close()
    rates = [(after[name] - before.get(name, 0)) / 10 for name in after]
    return {"tiles": len(after), "all_shown_s": all_s, "frames_per_s_min": min(rates), "frames_per_s_max": max(rates)}


RECEIVER: Final = """
import os, sys
from contextlib import ExitStack
from websockets.sync.client import connect
os.nice(5)
with ExitStack() as stack:
    clients = [stack.enter_context(connect(sys.argv[1], max_size=None)) for _ in range(int(sys.argv[2]))]
    for client in clients:
        client.send('{"watch": "camera-0", "codecs": ["h264"]}')
        client.recv(60)
    print("ready", flush=True)
    while clients:
        for client in clients:
            client.recv(60)
    sys.stdin.read()
"""
"""A program that receives and discards the live view of a camera in a number of connections."""


@contextmanager
def receiving(url: str, viewers: int) -> Iterator[None]:
    command = [sys.executable, "-c", RECEIVER, f"ws{url.removeprefix('http')}/api/live", str(viewers)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield
    process.kill()
    process.communicate()


def viewers(folder: Path) -> dict[str, Any]:
    """Measure the CPU time of the page and of the whole program, and the latency of results, with 0, 1, and 20 viewers.

    The CPU time of a viewer is the difference between the medians of all rounds.
    """
    cpu: dict[str, dict[int, list[float]]] = {name: {count: [] for count in VIEWERS} for name in ("page", "program")}
    rates: list[float] = []
    p99: dict[int, list[float]] = {count: [] for count in VIEWERS}
    with site_of(folder, 1, Video(640, 360, 25, 1)) as program:
        main = psutil.Process(program.process.pid)
        processes = [main, *main.children(recursive=True)]
        page = [each for each in processes if any("outputs.page.server" in part for part in each.cmdline())]
        address = next(line.split()[-1] for line in program.log.splitlines() if "publishing on" in line)
        for _ in range(ROUNDS):
            for count in VIEWERS:
                with receiving(program.url, count):
                    time.sleep(SETTLE_S)
                    before, began_s = [cpu_s(page), cpu_s(processes)], time.monotonic()
                    totals = []
                    for item in subscribe(address):
                        if isinstance(item, DetectionsMessage):
                            totals.append(item.timing_ms.total)
                        if time.monotonic() - began_s > ROUND_S:
                            break
                    spent_s = time.monotonic() - began_s
                    for name, used_s, earlier_s in zip(cpu, [cpu_s(page), cpu_s(processes)], before, strict=True):
                        cpu[name][count].append((used_s - earlier_s) / spent_s)
                rates.append(len(totals) / spent_s)
                p99[count].append(float(np.percentile(totals, 99)))
    medians = {name: [statistics.median(values) for values in each.values()] for name, each in cpu.items()}
    return {
        "frames_per_s": spread(rates),
        "cpu_cores": {name: {f"viewers_{n}": spread(each[n]) for n in VIEWERS} for name, each in cpu.items()},
        "cpu_cores_of_first_viewer": {name: one - none for name, (none, one, _) in medians.items()},
        "cpu_cores_per_further_viewer": {
            name: (many - one) / (VIEWERS[2] - VIEWERS[1]) for name, (_, one, many) in medians.items()
        },
        "latency_p99_ms": {f"viewers_{count}": values for count, values in p99.items()},
        "latency_p99_ratio_of_minima": min(p99[VIEWERS[-1]]) / min(p99[0]),
    }


def cpu_s(processes: list[psutil.Process]) -> float:
    """Return the CPU time of the threads of processes in seconds. The kernel counts it in ns, not in clock ticks."""
    total_ns = 0
    for process in processes:
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            with suppress(OSError):  # the thread has just ended
                total_ns += int((thread / "schedstat").read_text().split()[0])
    return total_ns / 1e9


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.perf.live_view")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--only", default="exact,first,tiles,viewers")
    chosen = parser.parse_args()
    parts, console = chosen.only.split(","), Console()
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, open_browser() as browser:
        folder = Path(name)
        for part in parts:
            if part == "exact":
                measured[part] = exact(browser, chosen.frames)
            elif part == "first":
                measured[part] = first(browser, folder)
            elif part == "tiles":
                measured[part] = tiles(browser, folder)
            else:
                measured[part] = viewers(folder)
            console.print(part, measured[part])
    version = subprocess.run([str(chromium()), "--version"], capture_output=True, text=True, check=True).stdout.split()[
        1
    ]
    entry = result("live_view", measured, TITLE)
    note = f"load average at the end: {os.getloadavg()[0]:.0f}"
    print(save(msgspec.structs.replace(entry, versions={**entry.versions, "chromium": version}, note=note)))


if __name__ == "__main__":
    main()
