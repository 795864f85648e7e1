"""Subscribe, and print one line per detected object.

python examples/print_objects.py [tcp://127.0.0.1:5555]
"""

import sys

from vision.client import DetectionsMessage, subscribe

address = sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5555"
for message in subscribe(address, kinds=["detections"]):
    if isinstance(message, DetectionsMessage):
        for item in message.objects:
            x1, y1, x2, y2 = item.box
            place = f"({x1:.0f}, {y1:.0f}) to ({x2:.0f}, {y2:.0f})"
            print(message.captured_at, message.camera, item.class_name, f"{item.score:.2f}", place, flush=True)
