"""Errors of the counts of forty lines that are distributed over the frame of a labeled clip.

    VISION_PETS_GT=gt.txt python -m tests.accuracy.lines RESULTS.jsonl [--every 2] [--rate 10] [--repeats 20]

`tests.accuracy.following` describes how to make the recording. The program prints the labeled and the counted crossings
of each line, and the sum over all lines. If people stand on a line, the labels are exact only to a few pixels: labels
that are moved by 3 pixels differ from the original labels by 1 to 2 %.

With `--repeats`, the program also moves the edges of all detected boxes by random distances (standard deviation 0.3
pixels), and repeats the counting. Two trackers can be compared only by the mean error of such repeats, because the
errors of two runs differ by 0.2 to 0.4 percentage points.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Final, TypeAlias

import numpy as np

from tests.accuracy.following import Floats, Followed, argument_parser, follow, line_errors, read

Line: TypeAlias = tuple[tuple[float, float], tuple[float, float]]

WIDTH, HEIGHT = 768.0, 576.0
LEAST: Final = 8  # least number of labeled crossings of a line whose own error is judged
MOVED_PX: Final = 0.3  # standard deviation of the distance by which an edge is moved


def grid() -> dict[str, Line]:
    """Return vertical, horizontal, and diagonal lines from edge to edge of the frame, by name."""
    upright: dict[str, Line] = {f"x = {x}": ((x, 0.0), (x, HEIGHT)) for x in range(120, 721, 50)}
    level: dict[str, Line] = {f"y = {y}": ((0.0, y), (WIDTH, y)) for y in range(180, 421, 20)}
    falling: dict[str, Line] = {f"x - y = {c}": _slanting(c, 1) for c in range(-200, 401, 100)}
    rising: dict[str, Line] = {f"x + y = {c}": _slanting(c, -1) for c in range(400, 1001, 100)}
    return upright | level | falling | rising


def _slanting(offset: float, sign: int) -> Line:
    """Return the part of the line ``x - sign * y = offset`` that lies in the frame."""
    ends = sorted([offset, offset + sign * HEIGHT])
    low, high = max(0.0, ends[0]), min(WIDTH, ends[1])
    return (low, sign * (low - offset)), (high, sign * (high - offset))


def summary(errors: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the sum of all errors as a share of the labeled crossings, and the number of lines with large errors."""
    labelled = sum(one["labelled"] for one in errors.values())
    wrong = sum(abs(one["counted"] - one["labelled"]) for one in errors.values())
    judged = [one["error"] for one in errors.values() if one["labelled"] >= LEAST]
    far = sum(error > 0.1 for error in judged)
    return {"labelled": labelled, "error": wrong / labelled, "judged": len(judged), "more than 10 % off": far}


def errors_of(truth: Floats, found: Floats, frames: range, rate: float) -> dict[str, dict[str, float]]:
    """Track the detections `found`, and count crossings. Return the errors of each line of the grid."""
    lines = grid()
    followed: Followed = follow(found, frames, rate, lines)
    return line_errors(truth[np.isin(truth[:, 0], frames)], followed, rate, lines)


def moved(found: Floats, seed: int) -> Floats:
    """Return the detections with the edges of all boxes moved by random distances."""
    boxes = np.concatenate([found[:, 2:4], found[:, 2:4] + found[:, 4:6]], axis=1)
    boxes += np.random.default_rng(seed).normal(0.0, MOVED_PX, boxes.shape)
    result: Floats = found.copy()
    result[:, 2:4], result[:, 4:6] = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    return result


def main() -> int:
    parser = argument_parser("tests.accuracy.lines")
    parser.add_argument("--repeats", type=int, default=0, help="number of runs with moved boxes")
    arguments = parser.parse_args()
    truth, found, frames, rate = read(arguments)
    errors = errors_of(truth, found, frames, rate)
    for name, one in errors.items():
        far = "  more than 10 % off" if one["labelled"] >= LEAST and one["error"] > 0.1 else ""
        sys.stdout.write(f"{name:>14}: {one['labelled']:3.0f} labelled, {one['counted']:3.0f} counted{far}\n")
    total = summary(errors)
    sys.stdout.write(
        f"all {len(errors)} lines: {total['labelled']:.0f} labelled, {100 * total['error']:.1f} % wrong; "
        f"{total['more than 10 % off']:.0f} of {total['judged']:.0f} are more than 10 % off\n"
    )
    if arguments.repeats > 1:
        repeats = [errors_of(truth, moved(found, seed), frames, rate) for seed in range(arguments.repeats)]
        shares = 100 * np.array([summary(one)["error"] for one in repeats])
        standard_error = shares.std(ddof=1) / len(shares) ** 0.5
        sys.stdout.write(f"{len(shares)} repeats: {shares.mean():.2f} % wrong, standard error {standard_error:.2f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
