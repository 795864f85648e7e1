"""Update the performance values in README.md and docs/performance.md from the files in `results/`.

python -m tests.perf.tables [--check]

The command replaces the text between ``<!-- perf: NAME -->`` and ``<!-- perf: end -->``. With --check, the command
changes no file, and exits with code 1 if a page is out of date.
"""

from __future__ import annotations

import argparse
import re
import sys
from functools import cache, reduce
from pathlib import Path
from typing import Any, Final

from tests.perf import results

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = (ROOT / "README.md", ROOT / "docs" / "performance.md")
H100: Final = "nvidia-h100-80gb-hbm3"
H200: Final = "nvidia-h200"
XEON: Final = "intel-r-xeon-r-processor-2-cores"

_BLOCK: Final = re.compile(r"(<!-- perf: (\w+) -->\n)(.*?)(<!-- perf: end -->)", re.DOTALL)
_VALUE: Final = re.compile(r"\{([\w.]+)/([\w.]+)(?:\*(\w+))?(:[^}]*)?\}")

# {FILE/key.key:format} stands for a value of a result file; {FILE/key.key*1e-3:format} also converts its unit.
README: Final = """\
* **64 cameras on one NVIDIA H200 with 16 cores.** Each camera plays a file with an H.264 stream of 1920x1080 at 30
  frames/s, which the GPU decodes. The program detects with nanodet-g-416, tracks, and counts at a line and in a zone of
  each camera. For {real_streams_processes/worker_processes.1.seconds:.0f} s, it published \
{real_streams_processes/worker_processes.1.published_per_s:,.0f} frames/s, and dropped none. The p99 latency from the \
capture of a frame
  to the receipt of its message was {real_streams_processes/worker_processes.1.latency_p99_ms:.1f} ms, and the program \
used {real_streams_processes/worker_processes.1.cores:.1f} cores. With 32 cameras, the latency was \
{real_streams_processes/worker_processes.0.latency_p99_ms:.1f} ms,
  and the program used {real_streams_processes/worker_processes.0.cores:.1f} cores.
"""
README_XEON: Final = """\
* **The shipped video on two cores of an Intel Xeon, without a GPU.** The median throughput of `vision run --offline` is
  {pipeline/ratios.one_camera_straightforward_loop:.2f} times that of a simple loop in Python with OpenCV, \
ONNX Runtime, and ZeroMQ. Other jobs used the machine too, \
and
  the ratio varied from {pipeline/ratios_min_max.one_camera_straightforward_loop} in five rounds.
* **Tracking on one core of this Xeon** takes \
{tracking/10_objects_10_unsure_boxes.vision.p50_us*1e-3:.2f} ms per frame with 10 \
synthetic objects, and {tracking/100_objects_50_unsure_boxes.vision.p50_us*1e-3:.2f} ms \
with 100.
"""

_STREAM: Final = (
    "{real_streams_processes/ROW.published_per_s:,.0f} of {real_streams_processes/ROW.asked_per_s:,.0f}, "
    "p99 {real_streams_processes/ROW.latency_p99_ms:.1f} ms, {real_streams_processes/ROW.cores:.1f} cores"
)
_STREAMS: Final = {
    "worker_processes.0": "32 cameras, 1920x1080, NVDEC, worker processes",
    "worker_processes.1": "64 cameras, 1920x1080, NVDEC, worker processes",
    "worker_processes.2": "128 cameras, 1920x1080, NVDEC, worker processes, shared machine",
    "worker_processes.3": "128 cameras, 768x576, NVDEC, worker processes, shared machine",
    "worker_processes.4": "64 cameras, 768x576, decoded by FFmpeg on the CPU, worker processes",
    "worker_processes.5": (
        "32 cameras, 1920x1080, NVDEC, worker processes. Each stream ends, and is opened again, every 6.7 s"
    ),
    "worker_processes.6": "32 cameras, 1920x1080, NVDEC, worker processes. One worker process is killed every 5 s",
    "worker_processes.7": "32 cameras, 1920x1080, NVDEC, worker processes, shared machine",
    "worker_processes.8": "64 cameras, 1920x1080, NVDEC, worker processes, shared machine",
    "one_process.0": "8 cameras, 1920x1080, NVDEC, one process",
    "one_process.1": ("8 cameras, 1920x1080, NVDEC, one process. Each stream ends, and is opened again, every 6.7 s"),
    "one_process.2": "32 cameras, 1920x1080, NVDEC, one process",
}

TABLES: Final[dict[str, tuple[str, tuple[tuple[str, str], ...]]]] = {
    "gpu": (
        H100,
        (
            (
                (
                    "32 synthetic cameras at 30 frames/s for 60 s. The frames are generated, so no video is decoded. "
                    "Latency from the scheduled time of a frame until the program publishes its detections"
                ),
                (
                    "p50 {program_32_cameras/ms.total.p50:.1f} ms, p99 {program_32_cameras/ms.total.p99:.1f} ms, "
                    "0 of {program_32_cameras/results:,} frames dropped, {program_32_cameras/cores_busy:.2f} CPU cores"
                ),
            ),
            (
                (
                    "32 synthetic cameras at 30 frames/s for 60 s, on each of two freshly started machines, on which "
                    "frames occasionally waited for up to 0.3 s"
                ),
                (
                    "{program_32_cameras_new_machines/runs.0.dropped.superseded} of "
                    "{program_32_cameras_new_machines/runs.0.results:,} and "
                    "{program_32_cameras_new_machines/runs.1.dropped.superseded} of "
                    "{program_32_cameras_new_machines/runs.1.results:,} frames dropped"
                ),
            ),
            (
                (
                    "Throughput of the detection stage (frames in, boxes out) divided by that of its slowest part "
                    "(network or copy). Batches of 1, 4, 8, 16, and 32, with the best number of batches in flight"
                ),
                (
                    "{stage/goals.limit_over_stage_batch_1:.2f}, {stage/goals.limit_over_stage_batch_4:.2f}, "
                    "{stage/goals.limit_over_stage_batch_8:.2f}, {stage/goals.limit_over_stage_batch_16:.2f}, "
                    "{stage/goals.limit_over_stage_batch_32:.2f}"
                ),
            ),
            (
                (
                    "Throughput of the detection stage with NV12, and with I420, divided by its throughput with BGR. "
                    "Batches of 32"
                ),
                "{stage/goals.nv12_over_bgr_batch_32:.2f}, {stage/goals.i420_over_bgr_batch_32:.2f}",
            ),
            (
                (
                    "Throughput of the detection stage with NV12 divided by its throughput with BGR. Frames of "
                    "1920x1080, batches of 8 and 32"
                ),
                "{stage/goals.nv12_over_bgr_8_1920x1080:.2f}, {stage/goals.nv12_over_bgr_32_1920x1080:.2f}",
            ),
            (
                (
                    "Throughput of the detection stage with batches of 8, divided by that of a simple loop on the same "
                    "GPU, which prepares one frame at a time on the CPU and waits for each result"
                ),
                "{stage/goals.batch_8_over_naive:.0f}",
            ),
            (
                (
                    "Throughput of the network alone as a CUDA graph, divided by its throughput with separate "
                    "launches. Batches of 1 and 2"
                ),
                "{stage/goals.graph_over_eager_batch_1:.2f}, {stage/goals.graph_over_eager_batch_2:.2f}",
            ),
            (
                (
                    "Time per batch of the network alone, with two CUDA streams that run in parallel. Batches of 1, 8, "
                    "and 32"
                ),
                "{stage/engine_1:.2f} ms, {stage/engine_8:.2f} ms, {stage/engine_32:.2f} ms",
            ),
            (
                "Time to open the detector with a cached engine, and at the first start, which builds the engine",
                (
                    "{stage/start_as_configured_by_default_second_time_s.together:.1f} s, "
                    "{stage/start_as_configured_by_default_first_time_s.together:.1f} s"
                ),
            ),
            (
                (
                    "Memory of the program 30 s after the start and again 55 s later, with more cameras than it can "
                    "serve (64 synthetic cameras at 60 frames/s)"
                ),
                (
                    "host {program_64_cameras_75_s/memory_mib.resident.last:,.0f} MiB, "
                    "GPU {program_64_cameras_75_s/memory_mib.device.last:,.0f} MiB, both unchanged"
                ),
            ),
        ),
    ),
    "streams": (H200, tuple((label, _STREAM.replace("ROW", row)) for row, label in _STREAMS.items())),
    "cpu": (
        XEON,
        (
            (
                (
                    "Throughput of `vision run --offline` divided by that of a simple loop "
                    "(read, resize, ONNX Runtime, NMS, JSON, ZeroMQ)"
                ),
                (
                    "{pipeline/ratios.one_camera_straightforward_loop:.2f} "
                    "({pipeline/ratios_min_max.one_camera_straightforward_loop} in five rounds on a shared machine)"
                ),
            ),
            (
                (
                    "Throughput of `vision run --offline` divided by that of ONNX Runtime alone, while another thread "
                    "decodes the same video"
                ),
                (
                    "{pipeline/ratios.one_camera_onnxruntime_with_decoding_beside_it:.2f} "
                    "({pipeline/ratios_min_max.one_camera_onnxruntime_with_decoding_beside_it})"
                ),
            ),
            (
                "Throughput of `vision run --offline` divided by that of ONNX Runtime alone, without decoding",
                (
                    "{pipeline/ratios.one_camera_onnxruntime_alone:.2f} "
                    "({pipeline/ratios_min_max.one_camera_onnxruntime_alone})"
                ),
            ),
            (
                (
                    "CPU time per frame of one camera that plays the shipped video, in an offline run: detector, video "
                    "decoder, conversion to BGR in the camera thread, results thread, inference thread"
                ),
                (
                    "{cpu_ms_per_frame/one_camera.detect:.1f} ms, {cpu_ms_per_frame/one_camera.decoders:.1f} ms, "
                    "{cpu_ms_per_frame/one_camera.camera:.1f} ms, {cpu_ms_per_frame/one_camera.results:.1f} ms, "
                    "{cpu_ms_per_frame/one_camera.inference:.1f} ms"
                ),
            ),
            (
                (
                    "p99 latency from capture to subscriber, minus the p99 latency of the detector, with one camera "
                    "that plays the shipped video at 10 frames/s"
                ),
                "{latency/one_camera_10_frames_s.p99_less_detector_p99:.1f} ms",
            ),
            (
                (
                    "Age of a frame when it enters a batch, with more cameras than the CPU can serve (four synthetic "
                    "cameras at 30 frames/s)"
                ),
                (
                    "p99 {latency/four_cameras_30_frames_s_each.age_when_bound_p99:.0f} ms, at a frame interval of "
                    "{latency/four_cameras_30_frames_s_each.camera_interval:.0f} ms"
                ),
            ),
            (
                (
                    "p99 latency from the publisher to 100 subscribers, without and with one more subscriber that is "
                    "suspended"
                ),
                (
                    "{publishing/100_subscribers.latency_p99_ms:.1f} ms, "
                    "{publishing/100_subscribers_and_a_stopped_one.latency_p99_ms:.1f} ms"
                ),
            ),
            (
                (
                    "Memory of `vision run` 10 s after the start, with four cameras that play the shipped video, and "
                    "its growth over the next 5 minutes"
                ),
                "{memory/resident_mib_first:.0f} MiB, +{memory/slope_kib_per_minute:.0f} KiB per minute",
            ),
            (
                (
                    "Time to track 10 synthetic objects (with 10 more boxes that have low scores) and 100 synthetic "
                    "objects (with 50 more such boxes) on one core"
                ),
                (
                    "{tracking/10_objects_10_unsure_boxes.vision.p50_us*1e-3:.2f} ms, "
                    "{tracking/100_objects_50_unsure_boxes.vision.p50_us*1e-3:.2f} ms per frame"
                ),
            ),
            (
                "Time to track the same objects with ByteTrack in the package `trackers`",
                (
                    "{tracking/10_objects_10_unsure_boxes.trackers_bytetracktracker.p50_us*1e-3:.2f} ms, "
                    "{tracking/100_objects_50_unsure_boxes.trackers_bytetracktracker.p50_us*1e-3:.2f} ms per frame"
                ),
            ),
            (
                "Time to evaluate 20 zones for 100 synthetic objects that move at 10 and at 60 pixels/s",
                (
                    "{tracking/analytics.100_tracks_at_10_px_s_20_zones_0_lines.p50_us*1e-3:.2f} ms, "
                    "{tracking/analytics.100_tracks_at_60_px_s_20_zones_0_lines.p50_us*1e-3:.2f} ms per frame"
                ),
            ),
            (
                "Time to evaluate 20 zones and 4 lines for the same 100 objects",
                (
                    "{tracking/analytics.100_tracks_at_10_px_s_20_zones_4_lines.p50_us*1e-3:.2f} ms, "
                    "{tracking/analytics.100_tracks_at_60_px_s_20_zones_4_lines.p50_us*1e-3:.2f} ms per frame"
                ),
            ),
        ),
    ),
}


@cache
def _result(machine: str, name: str) -> results.PerfResult:
    return results.load(results.FOLDER / machine / f"{name}.json")


def fill(template: str, machine: str) -> tuple[str, list[str]]:
    """Insert values into a template. Return the text, and the names of the files that contain the values."""
    files: dict[str, None] = {}

    def value(match: re.Match[str]) -> str:
        name, path, factor, style = match.groups()
        files[name] = None
        found: Any = reduce(
            lambda inner, key: inner[int(key)] if isinstance(inner, list) else inner[key],
            path.split("."),
            _result(machine, name).figures,
        )
        return format(found * float(factor) if factor else found, (style or ":")[1:])

    # Factors such as 1e-3 contain `-`, which is not a word character.
    text = re.sub(_VALUE.pattern.replace(r"\*(\w+)", r"\*([\w-]+)"), value, template)
    return text, list(files)


def render(name: str) -> str:
    """Return the Markdown text of the block `name`."""
    if name == "readme":
        return fill(README, H200)[0] + fill(README_XEON, XEON)[0]
    machine, rows = TABLES[name]
    lines = ["| measurement | value | date |", "|---|---|---|"]
    for label, template in rows:
        text, files = fill(template, machine)
        sources = ", ".join(
            f"[{_result(machine, file).date}](../tests/perf/results/{machine}/{file}.json)" for file in files
        )
        lines.append(f"| {label} | {text} | {sources} |")
    return "\n".join(lines) + "\n"


def updated(page: str) -> str:
    """Return the text of a page with the current content of all its blocks."""
    return _BLOCK.sub(lambda block: block[1] + render(block[2]) + block[4], page)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.perf.tables", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change no file; exit with code 1 if a page is out of date"
    )
    arguments = parser.parse_args()
    stale = [page for page in PAGES if updated(page.read_text()) != page.read_text()]
    for page in stale:
        print(f"{page.relative_to(ROOT)}: {'out of date' if arguments.check else 'updated'}")
        if not arguments.check:
            page.write_text(updated(page.read_text()))
    return 1 if stale and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
