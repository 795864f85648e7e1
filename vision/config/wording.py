"""Functions for parts of messages: paths of keys, lists of choices, similar valid names, and values without secrets."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from vision.errors import redact

Loc: TypeAlias = tuple[int | str, ...]
"""Location of a value: the keys and list indexes that lead to it from the top of the document."""

UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

_SHOWN_CHARACTERS = 80
_BARE_KEY = re.compile(r"[A-Za-z0-9_<-]+")
_URL_USER = re.compile(r"://.*@", re.DOTALL)


class InvalidValue(ValueError):
    """A field does not accept a value. The message does not contain the value, because the value can be a secret."""

    def __init__(self, code: str, expected: str, advice: str = "") -> None:
        super().__init__(with_advice(f"expected {expected}", advice))
        self.code = code
        self.expected = expected
        self.advice = advice


def with_advice(text: str, advice: str) -> str:
    """Return ``text (advice)``, or only `text` if `advice` is empty."""
    return f"{text} ({advice})" if advice else text


def nearest(word: str, valid: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the valid name that is most similar to `word`, or None if no similarity reaches `cutoff` (from 0 to 1)."""
    folded = {name.lower(): name for name in valid}
    matches = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=cutoff)
    return folded[matches[0]] if matches else None


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """Return a question such as ``did you mean 'tcp'?``, or an empty string if no valid name is similar to `word`."""
    name = nearest(word, valid)
    return f"did you mean {quoted(name)}?" if name is not None else ""


def did_you_mean_file(path: Path) -> str:
    """Return a question such as ``did you mean 'walk.mp4'?`` for a missing file.

    Return an empty string if the file exists, its folder cannot be read, or no name in the folder is similar.
    """
    try:
        return "" if path.exists() else did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()])
    except OSError:
        return ""


_CLASS_SYNONYMS: Final = {
    "person": ("people", "persons", "human", "humans", "pedestrian", "pedestrians", "man", "woman"),
    "car": ("cars", "automobile", "vehicle", "vehicles"),
    "truck": ("lorry", "van"),
    "bicycle": ("bike", "bikes", "cyclist"),
    "motorcycle": ("motorbike", "moped", "scooter"),
    "airplane": ("plane", "aeroplane", "aircraft"),
}


def did_you_mean_class(word: str, class_names: Iterable[str]) -> str:
    """Return a question such as ``did you mean 'person'?``, or an empty string if the model has no similar class."""
    names = list(class_names)
    for name, synonyms in _CLASS_SYNONYMS.items():
        if word.lower() in synonyms:
            return f"did you mean {quoted(name)}?" if name in names else ""
    return did_you_mean(word, names)


def one_of(choices: Sequence[str]) -> str:
    """Return the choices as one text, such as ``a, b or c``."""
    *rest, last = choices
    return f"{', '.join(rest)} or {last}" if rest else last


def dotted(loc: Loc) -> str:
    """Return a location as text, such as ``cameras[1].transport``."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif _BARE_KEY.fullmatch(part):
            path += f".{part}" if path else part
        else:
            path += f"[{quoted(part)}]"
    return path


def quoted(text: str) -> str:
    """Return `text` in quotes on one line, shortened, escaped, and without the user and password of a URL.

    Everything from ``://`` to the last ``@`` is removed, because `vision.errors.redact` would take a ``/`` or a quote
    in a password for the end of the user part.
    """
    concealed = redact(_URL_USER.sub("://***@", text))
    short = concealed if len(concealed) <= _SHOWN_CHARACTERS else concealed[: _SHOWN_CHARACTERS - 1] + "…"
    return "'" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in short) + "'"
