"""Test that the results of the whole program for the shipped clip equal the stored results.

`pytest tests/replay --update-golden` rewrites the golden file. The test ignores the times, the names, and the numbers
of the run. For boxes and scores, it allows the differences between processors and between versions of ONNX Runtime.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden" / "vtest.jsonl"
EVERY = 10  # of the 200 frames, so that the file stays small enough to be read

COMPARED = ("schema", "camera", "epoch", "frame", "width", "height", "dropped_before")


def replayed(folder: Path) -> list[dict[str, Any]]:
    config = folder / "camera.yaml"
    config.write_text(
        json.dumps(
            {
                "detect": {"backend": "onnxruntime"},
                "cameras": [{"id": "clip", "source": str(ROOT / "configs" / "vtest.mp4")}],
                "publish": {"bind": f"ipc://{folder}/out"},
            }
        )
    )
    record = folder / "results.jsonl"
    command = [sys.executable, "-m", "vision.cli.main", "run", str(config), "--offline", "--record", str(record)]
    subprocess.run(command, check=True, timeout=110)
    results = [json.loads(line) for line in record.read_text().splitlines()]
    assert [result["frame"] for result in results] == list(range(200))
    return results[::EVERY]


def kept(result: dict[str, Any]) -> dict[str, Any]:
    objects = [{"class": one["class"], "score": one["score"], "box": one["box"]} for one in result["objects"]]
    return {key: result[key] for key in COMPARED} | {"objects": objects}


def test_replay_of_the_clip_matches_the_golden_file(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    results = [kept(result) for result in replayed(tmp_path)]
    if request.config.getoption("--update-golden"):
        GOLDEN.write_text("".join(json.dumps(result) + "\n" for result in results))
    golden = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    assert len(results) == len(golden)
    for result, before in zip(results, golden, strict=True):
        assert {key: result[key] for key in COMPARED} == {key: before[key] for key in COMPARED}
        compare_objects(result["objects"], before["objects"])


def compare_objects(objects: list[dict[str, Any]], before: list[dict[str, Any]]) -> None:
    """Check that each object is also in the list `before`, unless its score is too low for a reliable detection."""
    for some, others in ((before, objects), (objects, before)):
        for one in some:
            if one["score"] > 0.37:
                alike = [other for other in others if is_like(one, other)]
                assert len(alike) == 1, f"{one} is like {alike} of {others}"


def is_like(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(
        one["class"] == other["class"]
        and np.abs(np.subtract(one["box"], other["box"])).max() <= 1.0
        and abs(one["score"] - other["score"]) <= 0.01
    )


@pytest.mark.parametrize("fault", ["moved", "weaker", "missing", "more"])
def test_comparison_detects_each_kind_of_difference(fault: str) -> None:
    before = json.loads(GOLDEN.read_text().splitlines()[0])["objects"]
    objects = [dict(one) for one in before]
    if fault == "moved":
        objects[0]["box"] = [side + 2 for side in objects[0]["box"]]
    elif fault == "weaker":
        objects[0]["score"] -= 0.02
    elif fault == "missing":
        objects.pop(0)
    else:
        objects.append({"class": "person", "score": 0.9, "box": [0, 0, 5, 5]})
    with pytest.raises(AssertionError):
        compare_objects(objects, before)
    compare_objects(before, before)
