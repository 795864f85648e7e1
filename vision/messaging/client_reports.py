"""Reports that a subscription returns between the messages. `vision.client` also exports these classes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Restart:
    """A report that the publisher has restarted.

    Sequence numbers restart at 1, so a subscription does not detect messages that were lost during the restart.
    """

    node: str
    old_instance: str
    new_instance: str

    def __str__(self) -> str:
        return f"{self.node}: the publisher was restarted"


@dataclass(frozen=True, slots=True)
class Silence:
    """A report that no subscribed message arrived for `for_s` seconds. The report repeats while the silence lasts."""

    address: str
    for_s: float
    connected: bool  # True if the subscription is connected to the publisher

    def __str__(self) -> str:
        text = f"no messages from {self.address} for {self.for_s:.0f} s"
        if self.connected:
            return f"{text}: connected, but no subscribed message is published"
        return f"{text}: check that `vision run` is running, and that this machine can reach its publish.bind"


@dataclass(frozen=True, slots=True)
class Problem:
    """A report that messages were unreadable or invalid, or that missed events cannot be requested at present.

    The subscription continues, and yields at most one such report per second.
    """

    address: str
    reason: str
    code: str  # code of the `MessageError`, such as ``message-unreadable``
    count: int  # number of problems since the previous report

    def __str__(self) -> str:
        return f"{self.count} unusable messages from {self.address}, the last because: {self.reason}"
