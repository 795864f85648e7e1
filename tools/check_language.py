"""Check the words of code, documentation and configuration against the project's glossary.

    python tools/check_language.py [FILE ...]    exits with 1 and lists each line that uses a refused word

Without arguments it reads every tracked text file. The glossary keeps one word for one thing: a *frame* is a frame of
a video, an *image* is a file. docs/glossary.md explains the words that the project uses.
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
}
"""Regular expression of each refused word, and what to write."""

ALLOWED = {
    "tools/check_language.py",  # names them
    "docs/glossary.md",  # explains them
}


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True, text=True).stdout
    return [Path(name) for name in listed.split("\0") if name]


def findings(paths: Iterable[Path]) -> Iterator[str]:
    """Yield ``file:line: word: replacement`` for each refused word."""
    words = [
        (re.compile(rf"(?<![\w-]){pattern}(?![\w-])", re.IGNORECASE), better) for pattern, better in REFUSED.items()
    ]
    for path in paths:
        if path.suffix not in SUFFIXES or path.as_posix() in ALLOWED or path.is_symlink() or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for pattern, better in words:
                if match := pattern.search(line):
                    yield f"{path}:{number}: {match.group(0)}: write {better}"


def main() -> int:
    """Print the findings; return 1 if there are any."""
    found = list(findings([Path(name) for name in sys.argv[1:]] or _tracked()))
    for line in found:
        print(line)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
