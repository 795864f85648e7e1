"""Registration of secrets: the values that ``${NAME}`` adds to a configuration, so that no output shows them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

from vision.errors import register_secret

Span: TypeAlias = tuple[int, int]
"""A part of a text: the index of its first character, and the index after its last character."""

_PUBLIC_KEYS: Final = frozenset({"id", "node", "name", "bind", "replay", "model", "pipeline", "classes"})
"""Keys whose values are published, or name a part of this machine."""

SECRET_KEYS: Final = frozenset({"password", "token", "api_key", "secret"})
"""Keys whose values are always secrets, even if they look like paths."""

_QUERY_VALUE: Final = re.compile(r"=([^&;#]+)")
_HIDDEN: Final = "***"


def register_values(key: str, text: str, spans: Sequence[Span]) -> None:
    """Register the parts `spans` of `text`, which is the value of `key`, as secrets.

    Paths, values of `_PUBLIC_KEYS`, and the scheme, host, and port of a URL are not secrets, except in values of
    `SECRET_KEYS`.
    """
    is_secret = key in SECRET_KEYS
    if key in _PUBLIC_KEYS or (text.startswith(("/", "./", "../")) and not is_secret):
        return
    if "://" not in text or is_secret:
        for start, end in spans:
            register_secret(text[start:end])
        return
    user_start = text.index("://") + len("://")
    host_start = text.rfind("@") + 1  # a URL with a second '@' is refused later
    for part in _parts(text, spans, user_start, host_start - 1):
        for secret in (part, *part.split(":")):
            register_secret(secret)
    host = re.split("[/?#]", text[host_start or user_start :], maxsplit=1)[0]
    path_start = (host_start or user_start) + len(host)
    shown = text[path_start:]
    for part in _parts(text, spans, path_start, len(text)):
        for secret in (part, part.strip("/?#&"), *re.split("[?#]", part), *_QUERY_VALUE.findall(part)):
            register_secret(secret)
        shown = shown.replace(part, _HIDDEN)
    if shown != text[path_start:]:
        register_secret(text[path_start:], shown=shown)  # hides values that are too short to be hidden alone


def _parts(text: str, spans: Sequence[Span], start: int, end: int) -> Iterator[str]:
    """Yield the part of each span (a range of indices) of `text` between `start` and `end`, unless it is empty."""
    for first, last in spans:
        part = text[max(first, start) : max(0, min(last, end))]
        if part:
            yield part
