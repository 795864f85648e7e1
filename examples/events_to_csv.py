"""Append each event to a CSV file exactly once.

python examples/events_to_csv.py events.csv [tcp://127.0.0.1:5555]

The configuration of the publisher must contain `state_dir` and `publish: {replay: ADDRESS}`. The publisher then stores
and numbers its events. This program requests all stored events after the last number in the file. Therefore, it also
adds the events that occurred while it was not running, if the publisher still stores them.
"""

import csv
import json
import sys
from pathlib import Path

from vision.client import EventMessage, subscribe

path = Path(sys.argv[1])
address = sys.argv[2] if len(sys.argv) > 2 else "tcp://127.0.0.1:5555"
number = 0
if path.exists():
    with path.open(newline="") as file:
        number = max((int(row[0]) for row in csv.reader(file) if row and row[0].isdigit()), default=0)

with path.open("a", newline="") as file:
    writer = csv.writer(file)
    for message in subscribe(address, kinds=["events"], since=number):
        if isinstance(message, EventMessage):
            row = [message.number or "", message.at, message.camera, message.kind, message.name, message.track_id]
            writer.writerow([*row, json.dumps(message.data)])
            file.flush()
