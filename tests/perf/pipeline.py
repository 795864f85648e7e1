"""Throughput of the whole pipeline, compared with ONNX Runtime alone and with a simple loop."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from tests.perf import deployment

_WARM = 10  # number of first results to ignore, while files are opened and buffers are allocated


def measure(quick: bool) -> Mapping[str, Any]:
    """Measure the throughput in several rounds. Return the medians of the rates and of their ratios."""
    beside = "onnxruntime with decoding beside it, best"
    rounds = [_round(40 if quick else 150) for _ in range(1 if quick else 5)]
    rates = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    ratios = {
        "one camera / onnxruntime alone": [one["one camera"] / one["onnxruntime alone, best"] for one in rounds],
        "four cameras / onnxruntime alone": [one["four cameras"] / one["onnxruntime alone, best"] for one in rounds],
        "one camera / onnxruntime with decoding beside it": [one["one camera"] / one[beside] for one in rounds],
        "four cameras / onnxruntime with decoding beside it": [one["four cameras"] / one[beside] for one in rounds],
        "one camera / straightforward loop": [one["one camera"] / one["straightforward loop"] for one in rounds],
    }
    return {
        "frames_per_s": rates,
        "ratios": {name: statistics.median(values) for name, values in ratios.items()},
        "ratios_min_max": {name: f"{min(values):.3f} to {max(values):.3f}" for name, values in ratios.items()},
        "rounds": len(rounds),
    }


def _round(runs: int) -> dict[str, float]:
    alone = _json("tests.perf.onnxruntime_alone", str(deployment.MODEL), str(runs))
    beside = _json("tests.perf.onnxruntime_alone", str(deployment.MODEL), str(runs), str(deployment.CLIP))
    one = _frames_per_s(deployment.offline_results([str(deployment.CLIP)]))
    loop = _json("tests.perf.straightforward_loop", str(deployment.MODEL), str(deployment.CLIP))
    four = _frames_per_s(deployment.offline_results([str(deployment.CLIP)] * 4))
    return {
        **{f"onnxruntime alone, {name}": float(rate) for name, rate in alone.items()},
        "onnxruntime alone, best": max(alone.values()),
        **{f"onnxruntime with decoding beside it, {name}": float(rate) for name, rate in beside.items()},
        "onnxruntime with decoding beside it, best": max(beside.values()),
        "one camera": one,
        "four cameras": four,
        "straightforward loop": loop["frames"] / loop["seconds"],
    }


def _json(module: str, *arguments: str) -> Any:
    command = [sys.executable, "-m", module, *arguments]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _frames_per_s(results: list[dict[str, Any]]) -> float:
    published_ns = sorted(
        result["captured_monotonic_ns"] + int(result["timing_ms"]["total"] * 1e6) for result in results
    )[_WARM:]
    return float((len(published_ns) - 1) / ((published_ns[-1] - published_ns[0]) / 1e9))
