"""Repeatedly kill a process that records, and check the index after each kill.

    python -m tests.soak.recording_kills 1000 [--save]

After each kill, the index must be readable. After a repair of the index, every listed file must be playable, and no
file may be unlisted. Otherwise, the command fails. With `--save`, the command writes the result to the folder of
results.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

from tests.perf.__main__ import result
from tests.perf.results import save
from tests.unit.outputs.recording.killed_writer import record_forever
from tests.unit.outputs.recording.streams import coded
from vision.outputs.recording.index import RecordingIndex
from vision.outputs.recording.repair import find_differences, repair

TITLE = "Kills of a process that records, and the index of the recordings after each kill"
_SHORTEST_S, _LONGEST_S = 0.005, 0.4


def kill_once(folder: Path, delay_s: float) -> Counter[str]:
    """Record in a child process, kill this process, and repair the index. Return the number of differences by kind."""
    child = os.fork()
    if not child:
        record_forever(folder)
        os._exit(1)
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    recordings = folder / "recordings"
    with closing(RecordingIndex(folder)) as index:  # raises an error if the index is damaged
        found = find_differences(index, recordings, thorough=False)
        repair(index, recordings, found)
        left = find_differences(index, recordings, thorough=True)
        assert not left, left
    return Counter(str(each.fault) for each in found)


def main() -> int:
    """Kill the process as many times as the first argument states. Print the totals."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.recording_kills")
    parser.add_argument("kills", type=int)
    parser.add_argument("--save", action="store_true", help="write the result to the folder of results")
    options = parser.parse_args()
    kills, random_delay, faults = options.kills, random.Random(7), Counter[str]()
    coded(frames=100)
    with tempfile.TemporaryDirectory() as name:
        for number in range(1, kills + 1):
            faults += kill_once(Path(name), random_delay.uniform(_SHORTEST_S, _LONGEST_S))
            if number % 100 == 0:
                print(f"{number} kills: {dict(faults)}", flush=True)
        with closing(RecordingIndex(Path(name))) as index:
            listed = len(index.files())
    print(f"the index is readable after {kills} kills, and lists {listed} files")
    if options.save:
        figures = {
            "kills": kills,
            "unreadable_indexes": 0,
            "repaired_differences": dict(faults),
            "listed_files": listed,
        }
        print(save(result("recording_kills", figures, TITLE)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
