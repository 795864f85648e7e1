"""Function that applies a configuration to the frames of a short archive and returns all resulting events."""

from __future__ import annotations

from dataclasses import dataclass

from vision.evaluation.whatif.judge import Judge
from vision.evaluation.whatif.rejudge import Rejudgment
from vision.outputs.archive.reader import Archive, ArchivedEvent
from vision.types import Counts


@dataclass(frozen=True)
class Rejudged:
    published: list[ArchivedEvent]
    events: list[ArchivedEvent]
    counts: Counts | None
    frames: int


def rejudge(archive: Archive, judge: Judge, camera: str, since_us: int, until_us: int) -> Rejudged:
    rejudgment = Rejudgment(archive, judge, camera, since_us, until_us)
    published, events = list[ArchivedEvent](), list[ArchivedEvent]()
    for part in rejudgment.parts(rejudgment.search.found()):
        published += part.published
        events += part.events
    return Rejudged(published, events, rejudgment.judgment.counts, rejudgment.judgment.frames)
