"""Errors of the counts of forty lines over the whole frame of a labelled clip.

    VISION_PETS_GT=gt.txt python -m tests.accuracy.lines RESULTS.jsonl [--every 2] [--rate 10]

The recording is made as `tests.accuracy.following` says. Prints for each line what the labels say and what was counted,
and the sum over all lines. Where people stand on a line, the labels themselves are a matter of a few pixels: moved by 3
pixels, they differ from themselves by 1 to 2 %.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Final, TypeAlias

import numpy as np

from tests.accuracy.following import Floats, Followed, follow, line_errors, read_arguments

Line: TypeAlias = tuple[tuple[float, float], tuple[float, float]]

WIDTH, HEIGHT = 768.0, 576.0
LEAST: Final = 8  # crossings of a line whose error is looked at by itself


def grid() -> dict[str, Line]:
    """Upright, level and slanting lines from edge to edge."""
    upright: dict[str, Line] = {f"x = {x}": ((x, 0.0), (x, HEIGHT)) for x in range(120, 721, 50)}
    level: dict[str, Line] = {f"y = {y}": ((0.0, y), (WIDTH, y)) for y in range(180, 421, 20)}
    falling: dict[str, Line] = {f"x - y = {c}": _slanting(c, 1) for c in range(-200, 401, 100)}
    rising: dict[str, Line] = {f"x + y = {c}": _slanting(c, -1) for c in range(400, 1001, 100)}
    return upright | level | falling | rising


def _slanting(offset: float, sign: int) -> Line:
    """Return the part of x - sign * y = offset that lies in the frame."""
    ends = sorted([offset, offset + sign * HEIGHT])
    low, high = max(0.0, ends[0]), min(WIDTH, ends[1])
    return (low, sign * (low - offset)), (high, sign * (high - offset))


def summary(errors: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Over all lines: the sum of differences as a share of the labelled crossings, and how many lines are far off."""
    labelled = sum(one["labelled"] for one in errors.values())
    wrong = sum(abs(one["counted"] - one["labelled"]) for one in errors.values())
    judged = [one["error"] for one in errors.values() if one["labelled"] >= LEAST]
    far = sum(error > 0.1 for error in judged)
    return {"labelled": labelled, "error": wrong / labelled, "judged": len(judged), "more than 10 % off": far}


def errors_of(truth: Floats, found: Floats, frames: range, rate: float) -> dict[str, dict[str, float]]:
    """Of each line of the grid, from detections."""
    lines = grid()
    followed: Followed = follow(found, frames, rate, lines)
    return line_errors(truth[np.isin(truth[:, 0], frames)], followed, rate, lines)


def main() -> int:
    errors = errors_of(*read_arguments("tests.accuracy.lines"))
    for name, one in errors.items():
        far = "  more than 10 % off" if one["labelled"] >= LEAST and one["error"] > 0.1 else ""
        sys.stdout.write(f"{name:>14}: {one['labelled']:3.0f} labelled, {one['counted']:3.0f} counted{far}\n")
    total = summary(errors)
    sys.stdout.write(
        f"all {len(errors)} lines: {total['labelled']:.0f} labelled, {100 * total['error']:.1f} % wrong; "
        f"{total['more than 10 % off']:.0f} of {total['judged']:.0f} are more than 10 % off\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
