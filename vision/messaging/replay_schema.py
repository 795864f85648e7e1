"""The request for missed events, and the first part of the reply. The rules of `vision.messaging.schema` apply."""

from __future__ import annotations

from typing import Annotated

from vision.messaging.message_fields import Compact, doc


class ReplayRequest(Compact, frozen=True, kw_only=True, tag_field="schema", tag="vision.replay-request/1"):
    """A request for missed events. Send it to the address in the field `replay` of `status/node`."""

    since: Annotated[int, doc("number of the last event that your program has; 0 means all stored events")] = 0
    journal: Annotated[
        str | None,
        doc("journal of that event; if it is no longer in use, `since` counts as 0. Absent means the current journal"),
    ] = None
    limit: Annotated[int, doc("maximum number of events in the reply, up to 1000; by default 500")] = 500


class ReplayReply(Compact, frozen=True, kw_only=True, tag_field="schema", tag="vision.replay-reply/1"):
    """The first part of the reply. Each further part is an event as it was published, oldest first."""

    node: Annotated[str, doc("name of the publishing machine")]
    journal: Annotated[str, doc("journal in use")]
    oldest: Annotated[int, doc("number of the oldest stored event")]
    newest: Annotated[int, doc("highest number of an event in this journal")]
    more: Annotated[bool, doc("true if there are more events: request them with the last number of this reply")]
    error: Annotated[str | None, doc("why the request failed; absent if it did not")] = None
