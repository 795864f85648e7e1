"""`Verdict`, the result of one check."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Result: TypeAlias = Literal["held", "broken", "not judged"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one check, and the evidence for it."""

    name: str
    result: Result
    text: str
    problems: tuple[str, ...] = ()


def judge(name: str, problems: Iterable[str], text: str, *, is_judged: bool = True) -> Verdict:
    """Return the verdict: broken if there are problems, otherwise held if `is_judged` is True, otherwise not judged."""
    found = tuple(problems)
    result: Result = "broken" if found else "held" if is_judged else "not judged"
    return Verdict(name, result, text, found)
