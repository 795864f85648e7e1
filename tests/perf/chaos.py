"""Summary of a report of `vision chaos --json`, as a file of results.

python -m tests.perf.chaos REPORT.json [--commit COMMIT] [--note NOTE]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tests.perf.__main__ import result
from tests.perf.results import save


def summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a report: for the whole run, for the checks, and for each kind of fault."""
    return {
        "arguments": report["arguments"],
        "faults": sum(not fault["left_out"] for fault in report["faults"]),
        "frames": report["frames"],
        "events": report["events"],
        "program_starts": report["starts"],
        "first_start_s": report["start_s"],
        "latency_ms": report["latency_ms"],
        "checks": report["checks"],
        "kinds": _kinds(report["faults"]),
    }


def _kinds(faults: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for kind in sorted({fault["kind"] for fault in faults}):
        own = [fault for fault in faults if fault["kind"] == kind]
        done = [fault for fault in own if not fault["left_out"]]
        longest_s = max((fault["recovered_s"] for fault in done if fault["recovered_s"] is not None), default=None)
        rows.append(
            {"kind": kind, "count": len(done), "left_out": len(own) - len(done), "longest_recovery_s": longest_s}
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--commit")
    parser.add_argument("--note", default="")
    arguments = parser.parse_args()
    report = json.loads(arguments.report.read_text(encoding="utf-8"))
    minutes = f"{report['arguments']['minutes']:g}"
    measured = result(f"chaos_{minutes}_min", summary(report), f"vision chaos for {minutes} minutes")
    print(save(msgspec.structs.replace(measured, commit=arguments.commit, note=arguments.note)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
