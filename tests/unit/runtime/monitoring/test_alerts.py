"""Tests in which Prometheus evaluates the alert rules: each rule fires only for its problem."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.paths import ROOT

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian package prometheus)"),
]

RULES = ROOT / "examples" / "monitoring" / "alerts.yaml"
CAMERA = '{instance="box", camera="gate"}'
FAULT = '{instance="box", camera="gate", kind="covered"}'
SINK = '{instance="box", sink="hub", protocol="mqtt"}'
DISK = '{instance="box", folder="/state"}'
BOX = '{instance="box"}'


@dataclass(frozen=True)
class Case:
    """Values of series in promtool notation: `5x3` means four values of 5, and `0+2x3` means 0, 2, 4, and 6.

    There is one value per minute, and the rule is evaluated after `minutes`.
    """

    minutes: int
    fires: Mapping[str, str]
    quiet: Mapping[str, str]


LATENCY = 'vision_stage_seconds_bucket{{instance="box", camera="gate", stage="total", le="{}"}}'

CASES = {
    "VisionDown": Case(2, {'up{job="vision"}': "0x9"}, {'up{job="vision"}': "1x9"}),
    "VisionHangs": Case(4, {"vision_status_age_seconds": "0+60x9"}, {"vision_status_age_seconds": "1x9"}),
    "VisionRestarted": Case(2, {"vision_uptime_seconds": "0+60x9"}, {"vision_uptime_seconds": "900+60x9"}),
    "VisionRestartsOften": Case(
        20,
        {f"vision_start_time_seconds{BOX}": "100x4 400x4 700x4 1000x4"},
        {f"vision_start_time_seconds{BOX}": "100x4 400x4 700x14"},
    ),
    "DiskLow": Case(
        9,
        {f"vision_disk_free_bytes{DISK}": "499x9", f"vision_disk_min_free_bytes{DISK}": "500x9"},
        {f"vision_disk_free_bytes{DISK}": "501x9", f"vision_disk_min_free_bytes{DISK}": "500x9"},
    ),
    "CameraDown": Case(
        9,
        {
            'vision_camera_state{camera="gate", state="streaming"}': "0x9",
            'vision_camera_state{camera="gate", state="ended"}': "0x9",
        },
        {
            'vision_camera_state{camera="gate", state="streaming"}': "0x9",
            'vision_camera_state{camera="gate", state="ended"}': "1x9",
        },
    ),
    "CameraReconnects": Case(
        60,
        {f"vision_camera_reconnects_total{CAMERA}": "0+1x60"},
        {f"vision_camera_reconnects_total{CAMERA}": "0x30 1x30"},
    ),
    "CameraMovedOrCovered": Case(
        1, {f"vision_camera_view_fault{FAULT}": "1x9"}, {f"vision_camera_view_fault{FAULT}": "1 0"}
    ),
    "LatencyHigh": Case(
        20,
        {LATENCY.format("0.2"): "0+50x20", LATENCY.format("1.0"): "0+100x20", LATENCY.format("+Inf"): "0+100x20"},
        {LATENCY.format("0.2"): "0+100x20", LATENCY.format("1.0"): "0+100x20", LATENCY.format("+Inf"): "0+100x20"},
    ),
    "FramesTooOld": Case(
        20,
        {'vision_frames_dropped_total{camera="gate", reason="stale"}': "0+120x20"},
        {'vision_frames_dropped_total{camera="gate", reason="stale"}': "0+6x20"},
    ),
    "EventsLost": Case(
        9, {'vision_counter{name="journal.lost"}': "0x4 7x4"}, {'vision_counter{name="journal.lost"}': "7x9"}
    ),
    "StorageStopped": Case(
        9, {'vision_counter{name="archive.stopped"}': "0x4 1x9"}, {'vision_counter{name="archive.stopped"}': "1 0x9"}
    ),
    "SinkDown": Case(20, {f"vision_sink_connected{SINK}": "0x20"}, {f"vision_sink_connected{SINK}": "0x9 1 0x9"}),
    "SinkLosesMessages": Case(
        9, {f"vision_sink_lost_total{SINK}": "0x4 3x4"}, {f"vision_sink_lost_total{SINK}": "3x9"}
    ),
    "GpuThrottled": Case(
        20,
        {'vision_gpu_throttled{gpu="0", reason="thermal"}': "1x20"},
        {'vision_gpu_throttled{gpu="0", reason="thermal"}': "1x9 0 1x9"},
    ),
    "GpuUnused": Case(9, {f"vision_gpu_unused{BOX}": "1x9"}, {f"vision_gpu_unused{BOX}": "0x9"}),
}


def promtool(*arguments: str | Path) -> str:
    """Run promtool. Return the output of promtool."""
    command = ["promtool", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def evaluation(alert: str, case: Case, *, fires: bool) -> dict[str, object]:
    """Return a promtool test that checks whether the rule `alert` fires."""
    series = case.fires if fires else case.quiet
    expression = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)'
    check = {
        "expr": expression,
        "eval_time": f"{case.minutes}m",
        "exp_samples": [{"labels": "{}", "value": int(fires)}],
    }
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [check],
    }


def test_rules_are_valid() -> None:
    promtool("check", "rules", "--lint-fatal", RULES)


def test_each_rule_fires_for_its_problem_only(tmp_path: Path) -> None:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    assert {rule["alert"] for group in groups for rule in group["rules"]} == set(CASES)
    tests = [evaluation(alert, case, fires=fires) for alert, case in CASES.items() for fires in (True, False)]
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", file)
