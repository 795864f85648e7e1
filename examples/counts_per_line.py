"""Print the totals of each line and zone, each time a message with totals arrives.

python examples/counts_per_line.py [tcp://127.0.0.1:5555]

The configuration of the publisher must have lines or zones, as in `vision run counting`.
"""

import sys

from vision.client import CountsMessage, subscribe

address = sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5555"
for message in subscribe(address, kinds=["counts"]):
    if isinstance(message, CountsMessage):
        lines = [f"{name}: {line.in_} in, {line.out} out" for name, line in message.lines.items()]
        zones = [f"{name}: {zone.occupancy} now, {zone.entered} entered" for name, zone in message.zones.items()]
        print(message.at, message.camera, "; ".join([*lines, *zones]), flush=True)
