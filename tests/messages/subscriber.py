"""A subscriber in a process of its own: prints the sequence number of each message, and each report.

python -m tests.messages.subscriber ADDRESS QUEUE
"""

from __future__ import annotations

import sys

from vision.client import DetectionsMessage, Gap, subscribe


def main() -> None:
    address, queue = sys.argv[1:]
    for item in subscribe(address, queue=int(queue), silence_s=60):
        if isinstance(item, DetectionsMessage):
            print("got", item.seq, flush=True)
        elif isinstance(item, Gap):
            print("gap", item.lost, flush=True)
        else:
            print(item, flush=True)


if __name__ == "__main__":
    main()
