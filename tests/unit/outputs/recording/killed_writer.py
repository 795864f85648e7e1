"""Program that records as fast as possible until it is killed."""

from __future__ import annotations

import sys
import time
from itertools import count
from pathlib import Path

from tests.unit.outputs.recording.streams import coded, packets
from tests.unit.outputs.recording.test_camera_recorder import Desk
from vision.outputs.recording.index import RecordingIndex


def main() -> None:
    """Record in the folder that the first argument names. Print a line when recording starts."""
    coded(frames=100)
    print("started", flush=True)
    record_forever(Path(sys.argv[1]))


def record_forever(folder: Path) -> None:
    """Record clips and continuous files in an endless loop."""
    desk = Desk(folder / "recordings", RecordingIndex(folder), mode="both", file_s=10, max_gb=3e-4)
    for connection in count(1):
        start_s = connection * 12.0 + time.time() % 1e6
        arriving = packets(coded(frames=100), connection=connection, start_s=start_s)
        desk.play(arriving, [start_s + 3, start_s + 8])
