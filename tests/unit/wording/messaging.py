"""Texts of messages and of reports to subscribers."""

from vision.client import Gap, NewJournal, Restart, Silence

ROWS = [
    (
        "a gap",
        lambda: str(Gap("detections/gate", 5, 9)),
        "detections/gate: lost 4 messages (expected 5, got 9)",
    ),
    ("a restart", lambda: str(Restart("n", "a", "b")), "n: the publisher was restarted"),
    (
        "silence of a publisher that is not there",
        lambda: str(Silence("tcp://x:1", 5.0, False)),
        "no messages from tcp://x:1 for 5 s: is `vision run` running, and is its publish.bind reachable from here?",
    ),
    (
        "silence of a connected publisher",
        lambda: str(Silence("tcp://x:1", 5.0, True)),
        "no messages from tcp://x:1 for 5 s: connected, but no subscribed message is published",
    ),
    (
        "a new journal",
        lambda: str(NewJournal("n", "one", "two")),
        "n: events are stored in a new journal; events that only the old one had are lost",
    ),
]
