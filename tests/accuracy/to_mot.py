"""Convert a recording of `vision run --record` to a text file in the format of MOTChallenge, which scorers read.

    python -m tests.accuracy.to_mot RESULTS.jsonl RESULT.txt [CLASS]

Rows: frame (from 1), track id (-1: none), left, top, width, height (pixels), score.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from vision.client import read_recording

Row = tuple[int, int, float, float, float, float, float]


def mot_rows(recording: Path, class_name: str = "person") -> Iterator[Row]:
    """Yield one MOTChallenge row for each object of the class `class_name`."""
    for message in read_recording(recording):
        for found in message.objects:
            if found.class_name == class_name:
                x1, y1, x2, y2 = found.box
                track_id = -1 if found.track_id is None else found.track_id
                yield message.frame + 1, track_id, x1, y1, x2 - x1, y2 - y1, found.score


if __name__ == "__main__":
    rows = mot_rows(Path(sys.argv[1]), *sys.argv[3:])
    Path(sys.argv[2]).write_text("".join(",".join(f"{value:g}" for value in row) + "\n" for row in rows))
