"""Subscriber in a separate process. It prints the sequence number of each message, and each report.

python -m tests.messages.subscriber ADDRESS QUEUE [--pause S] [--keepalive S]    pause: after the first message
"""

from __future__ import annotations

import argparse
import time

from vision.client import DetectionsMessage, Gap, Subscription


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("queue", type=int)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--keepalive", type=int, default=5)
    arguments = parser.parse_args()
    subscription = Subscription(arguments.address, queue=arguments.queue, silence_s=60, keepalive_s=arguments.keepalive)
    for item in subscription.items():
        if isinstance(item, DetectionsMessage):
            print("got", item.seq, flush=True)
            time.sleep(arguments.pause)
            arguments.pause = 0.0
        elif isinstance(item, Gap):
            print("gap", item.lost, flush=True)
        else:
            print(item, flush=True)


if __name__ == "__main__":
    main()
