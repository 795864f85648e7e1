"""`Verdict`, the result of one check of a run of `vision chaos`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Result: TypeAlias = Literal["held", "broken", "not judged"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of one check of a run of `vision chaos`, and the evidence for this result."""

    name: str  # name of the check
    result: Result
    text: str  # the evidence
    problems: tuple[str, ...] = ()


def judge(name: str, problems: Iterable[str], text: str, *, is_judged: bool = True) -> Verdict:
    """Return the verdict of a check: "broken" if there are problems, otherwise "held" or "not judged".

    Args:
        name: name of the check.
        problems: descriptions of the problems that the check found.
        text: the evidence.
        is_judged: False if there is too little data for a verdict without problems.
    """
    found = tuple(problems)
    result: Result = "broken" if found else "held" if is_judged else "not judged"
    return Verdict(name, result, text, found)
