"""Processes that the tests kill: a publisher of events, and a subscriber that requests all of them.

python -m tests.messages.eventful publish FOLDER BIND REPLAY     an event every few milliseconds; prints each number
python -m tests.messages.eventful subscribe BIND FILE            writes each number; begins after the last one in FILE
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tests.messages.samples import CLASSES, node_status, result
from vision.client import EventMessage, Subscription
from vision.messaging.codec import boot_id
from vision.messaging.publisher import Publisher
from vision.state.database import StateDatabase
from vision.types import Event


def publish(folder: str, bind: str, replay: str) -> None:
    events = StateDatabase(Path(folder), boot=boot_id(), max_events=100_000).events
    with Publisher(bind, node="n", class_names=CLASSES, event_log=events, replay=replay) as publisher:
        publisher.publish_status(node_status())
        while True:
            event = Event("line_crossed", "door", "gate", 1, 0, {"count": events.newest + 1})
            publisher.publish(result(events=(event,)))
            os.write(1, b"%d\n" % events.newest)
            time.sleep(0.002)


def subscribe(bind: str, file: str) -> None:
    """Write a line ``journal number count`` per event to `file`. An incomplete line at the end does not count."""
    path = Path(file)
    done = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
    journal, number = done[-1].split()[:2] if done else ("", "0")
    since = (journal, int(number)) if done else 0
    with path.open("ab", buffering=0) as out:
        out.truncate(sum(len(line) + 1 for line in done))
        for item in Subscription(bind, kinds=("events",), since=since, silence_s=60).items():
            if isinstance(item, EventMessage):
                out.write(f"{item.journal} {item.number} {item.data['count']}\n".encode())
            else:
                out.write(f"? ? {item}\n".encode())


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    publish(*arguments) if verb == "publish" else subscribe(*arguments)
