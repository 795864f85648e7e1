"""Check the words of code, documentation, and configuration, and the line length of documentation.

    python tools/check_language.py [FILE ...]

The command lists each line that breaks a rule, and exits with code 1 if there is such a line. Without arguments, the
command reads every text file that Git tracks. Each thing has one name: a *frame* is part of a video, and an *image* is
a file. docs/glossary.md explains the words that the project uses. The prose of Markdown files must be wrapped, but
tables, code blocks, and the targets of links can be longer.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

SUFFIXES = {".py", ".md", ".yaml", ".toml", ".cu", ".cuh", ".sh", ".service", ".cpp", ".h"}

REFUSED = {
    r"pictures?": "frame (of a video) or image (a file)",
    r"made-up": "synthetic",
    r"mend(s|ed|ing)?": "fix",
    r"anew": "again, new",
    r"for ever": "forever, without limit",
    r"whoever": "the caller, the reader, ...",
    r"so many": "too many, that number of",
    r"is told of": "is notified of",
    r"hand-overs?": "transfer, queueing delay",
    r"come to (?=on this machine)": "perform",
    r"rehearsals?": "trial run",
    r'"""(?:what|whether|how (?:much|well|many))': "a noun phrase, or True if",
}
"""Replacement for each refused word. The keys are regular expressions."""

PROSE_COLUMNS = 120
"""Maximum length of a line of prose in a Markdown file."""

_FENCE = re.compile(r"\s*(```|~~~)")
_LIST_ITEM = re.compile(r"([-*+]|\d+[.)]) ")
_LINK_TARGET = re.compile(r"(?<=\])\([^)\s]*\)|<https?://[^>\s]*>")

ALLOWED = {
    "tools/check_language.py",  # contains the list of refused words
    "tests/unit/test_check_language.py",  # contains examples of refused words
}


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True, text=True).stdout
    return [Path(name) for name in listed.split("\0") if name]


def _is_table_or_code(line: str, *, in_list: bool) -> bool:
    return line.lstrip().startswith("|") or (line.startswith(("    ", "\t")) and not in_list)


def long_lines(markdown: str) -> Iterator[tuple[int, int]]:
    """Yield the line number and the length of each line of prose with more than `PROSE_COLUMNS` characters."""
    in_fence = False
    in_list = False
    for number, line in enumerate(markdown.splitlines(), 1):
        if _FENCE.match(line):
            in_fence = not in_fence
        elif line and not in_fence:
            if not line[0].isspace():
                in_list = _LIST_ITEM.match(line) is not None
            length = len(_LINK_TARGET.sub("", line))
            if length > PROSE_COLUMNS and not _is_table_or_code(line, in_list=in_list):
                yield number, length


def findings(paths: Iterable[Path]) -> Iterator[str]:
    """Yield ``file:line: fault: remedy`` for each refused word and for each line of prose that is too long."""
    words = [
        (re.compile(rf"(?<![\w-]){pattern}(?![\w-])", re.IGNORECASE), better) for pattern, better in REFUSED.items()
    ]
    for path in paths:
        if path.suffix not in SUFFIXES or path.as_posix() in ALLOWED or path.is_symlink() or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".md":
            for number, length in long_lines(text):
                yield f"{path}:{number}: {length} columns: wrap the line at {PROSE_COLUMNS}"
        for number, line in enumerate(text.splitlines(), 1):
            for pattern, better in words:
                if match := pattern.search(line):
                    yield f"{path}:{number}: {match.group(0)}: write {better}"


def main() -> int:
    """Print all findings. Return the exit code, which is 1 if there are findings and 0 otherwise."""
    found = list(findings([Path(name) for name in sys.argv[1:]] or _tracked()))
    for line in found:
        print(line)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
