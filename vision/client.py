"""Receive messages from a `vision` publisher: the public import for subscribers.

Example::

    from vision.client import subscribe

    for message in subscribe("tcp://127.0.0.1:5555"):
        print(message)
"""

from vision.messaging.client import (
    Item,
    Latency,
    Restart,
    Silence,
    Subscription,
    latency,
    read_recording,
    subscribe,
)
from vision.messaging.gap_recovery import Gap, NewJournal
from vision.messaging.schema import (
    CameraStatusMessage,
    CountsMessage,
    DetectedObject,
    DetectionsMessage,
    EventMessage,
    NodeStatusMessage,
)

__all__ = [
    "CameraStatusMessage",
    "CountsMessage",
    "DetectedObject",
    "DetectionsMessage",
    "EventMessage",
    "Gap",
    "Item",
    "Latency",
    "NewJournal",
    "NodeStatusMessage",
    "Restart",
    "Silence",
    "Subscription",
    "latency",
    "read_recording",
    "subscribe",
]
