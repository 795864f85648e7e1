"""How near `vision plan` comes: sites that are planned, run, and put beside their plans, all in one run.

Other programs on the machine change from second to second what it can do, so each plan is made right before its run,
and the plan with the cores that the run could really have had stands beside the first.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tests.perf.site import CLIP
from vision.benchmark.plan import Check, make_plan, verify
from vision.config import AppConfig

SITES: Final[Mapping[str, Sequence[Mapping[str, Any]]]] = {
    "one clip, 10 frames/s": [{"source": str(CLIP), "loop": True}],
    "clip and two made-up cameras, 10 frames/s each": [
        {"source": str(CLIP), "loop": True},
        {"source": "synthetic:768x576@10?seed=1"},
        {"source": "synthetic:768x576@10?seed=2"},
    ],
    "four made-up cameras, 30 frames/s each": [{"source": f"synthetic:768x576@30?seed={n}"} for n in range(4)],
    "four clips with max_fps 4": [{"source": str(CLIP), "loop": True, "max_fps": 4} for _ in range(4)],
    "two made-up cameras of 1920x1080, 15 frames/s": [{"source": f"synthetic:1920x1080@15?seed={n}"} for n in range(2)],
}
_FIGURES: Final = ("frames/s", "drops/s", "p50 ms", "p99 ms")


def measure(quick: bool) -> Mapping[str, Any]:
    """Of each site, figures and errors (planned over measured, less 1): the median of the rounds."""
    rounds = 1 if quick else 3
    return {name: _site(cameras, rounds, 4.0 if quick else 12.0) for name, cameras in SITES.items()}


def _site(cameras: Sequence[Mapping[str, Any]], rounds: int, seconds: float) -> Mapping[str, Any]:
    site = AppConfig.model_validate(
        {
            "cameras": [{"id": f"camera-{number}", **camera} for number, camera in enumerate(cameras)],
            "detect": {"backend": "onnxruntime"},
        }
    )
    found = []
    for _ in range(rounds):
        plan = make_plan(site, None, seconds=1.5)
        found.append((plan.limit, _figures(verify(site, plan, seconds))))
    return {
        "limit": found[-1][0],
        **{
            figure: {
                "planned": _median([one[figure].planned for _, one in found]),
                "planned, with the cores of the run": _median([one[figure].then for _, one in found]),
                "measured": _median([one[figure].measured for _, one in found]),
                "error": _median_error([one[figure].error for _, one in found]),
                "error, with the cores of the run": _median_error([one[figure].error_then for _, one in found]),
            }
            for figure in _FIGURES
        },
    }


def _figures(checks: Sequence[Check]) -> Mapping[str, Check]:
    """Those of all cameras together."""
    return {check.what: check for check in checks if check.what in _FIGURES}


def _median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def _median_error(errors: Sequence[float | None]) -> float | None:
    """None where there is none of some round."""
    known = [error for error in errors if error is not None]
    return _median(known) if len(known) == len(errors) else None
