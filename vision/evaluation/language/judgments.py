"""Judgments of one prompt about labeled events, and the curve of removed false alarms against lost true events."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

_Z: Final = 1.959964  # 97.5 % quantile of the normal distribution, for a 95 % interval


@dataclass(frozen=True, slots=True)
class Judgment:
    """Answer of the language model to the question about one event, or the error."""

    line: int  # line number of the event in the file of labels
    is_true: bool  # as labeled
    keeps: bool  # True if the event is published
    probability: float | None  # probability of a true event, from the confidence of the answer; None without an answer
    answer: str  # empty without an answer
    error: str  # code of the error; empty with an answer
    latency_ms: float | None  # None without an answer


class Point(NamedTuple):
    """Effect of a threshold: labeled events whose probability, according to the model, is lower are removed."""

    threshold: float
    removed: int  # number of removed false alarms
    lost: int  # number of removed true events


@dataclass(frozen=True, slots=True)
class Share:
    """Number of events as a share of `total` events, with its 95 % confidence interval."""

    count: int
    total: int

    @property
    def share(self) -> float:
        return self.count / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper limit of the Wilson score interval, which is also valid for shares near 0 and 1.

        The limits are 0 and 1 if there are no events.
        """
        if not self.total:
            return 0.0, 1.0
        square = _Z * _Z / self.total
        center = (self.share + square / 2) / (1 + square)
        half = _Z / (1 + square) * math.sqrt(self.share * (1 - self.share) / self.total + square / (4 * self.total))
        return max(0.0, center - half), min(1.0, center + half)


@dataclass(frozen=True, slots=True)
class Judgments:
    """All judgments of one prompt."""

    name: str  # name in the report
    prompt: str  # text of the prompt
    model: str  # names of the models that answered, separated by commas; empty if there was no answer
    judgments: tuple[Judgment, ...]

    @property
    def removed(self) -> Share:
        """Share of the false alarms that are not published, because of the model's answer or without an answer.

        The total includes false alarms without an answer.
        """
        return _share(judgment.keeps for judgment in self.judgments if not judgment.is_true)

    @property
    def lost(self) -> Share:
        """Share of the true events that are not published, because of the model's answer or without an answer.

        The total includes true events without an answer.
        """
        return _share(judgment.keeps for judgment in self.judgments if judgment.is_true)

    @property
    def errors(self) -> dict[str, int]:
        """Number of events without an answer, by error code."""
        return dict(Counter(judgment.error for judgment in self.judgments if judgment.error))

    def curve(self) -> tuple[Point, ...]:
        """Return the effect of each threshold, in ascending order: 0, each probability of an answer, and infinity.

        An event without an answer has the same effect at each threshold.
        """
        answered = [judgment for judgment in self.judgments if judgment.probability is not None]
        fixed = [judgment for judgment in self.judgments if judgment.probability is None and not judgment.keeps]
        thresholds = [0.0, *sorted({_probability(judgment) for judgment in answered}), math.inf]
        points = []
        for threshold in dict.fromkeys(thresholds):
            gone = [*fixed, *(judgment for judgment in answered if _probability(judgment) < threshold)]
            points.append(Point(threshold, sum(not each.is_true for each in gone), sum(each.is_true for each in gone)))
        return tuple(points)

    def best(self, most_lost: float) -> Point:
        """Return the point of the curve that removes the most false alarms.

        Consider only points that lose at most the share `most_lost` of the true events. If there is no such point,
        because events without an answer are lost, return the first point of the curve.
        """
        curve, true_events = self.curve(), self.lost.total
        allowed = [point for point in curve if point.lost <= most_lost * true_events]
        return max(allowed, key=lambda point: (point.removed, -point.lost), default=curve[0])

    def latencies_ms(self) -> Sequence[float]:
        """Return the latencies of the answers, in milliseconds, in ascending order."""
        return sorted(judgment.latency_ms for judgment in self.judgments if judgment.latency_ms is not None)


@dataclass(frozen=True, slots=True)
class PromptEvaluation:
    """Judgments of every prompt."""

    config: str  # name of the configuration, as the user has written it
    labels: str  # path of the file of labels
    results: tuple[Judgments, ...]  # one entry per prompt
    notes: tuple[str, ...]  # facts that limit the validity of the results


def _share(kept: Iterable[bool]) -> Share:
    """Return the share of the events that are not kept. `kept` contains True for each kept event."""
    outcomes = list(kept)
    return Share(outcomes.count(False), len(outcomes))


def _probability(judgment: Judgment) -> float:
    assert judgment.probability is not None
    return judgment.probability
