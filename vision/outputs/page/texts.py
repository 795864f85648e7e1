"""Functions that format values of messages as texts. The page shows rows, each with a title and a text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

Rows: TypeAlias = list[tuple[str, str]]

NO_VALUE: Final = "–"
_TITLES: Final = {
    "rates": "frames/s",
    "fps": "frames/s of the camera",
    "published_fps": "frames/s",
    "latency_ms": "latency in ms",
    "dropped": "dropped frames",
    "rss_bytes": "memory of the main process",
    "memory_bytes": "memory of all processes",
    "memory": "memory of the machine",
}
_UNIT: Final = re.compile(r"_(s|bytes|celsius|hertz|ratio)$")


def words(name: str) -> str:
    """Return the name of a field as words, without its unit, such as "free memory" for ``free_memory_bytes``."""
    return _UNIT.sub("", name).replace("_", " ")


def number(value: float | None, digits: int = 0) -> str:
    """Format a number with `digits` digits after the decimal point. Return a dash for None."""
    return NO_VALUE if value is None else f"{value:,.{digits}f}"


def duration(seconds: float) -> str:
    """Format a duration in its two largest units. Below one minute, use two significant digits."""
    minutes, hours, days = (int(seconds // length) for length in (60, 3600, 86400))
    if not minutes:
        return f"{_rounded(seconds, 2)} s"
    if not hours:
        return f"{minutes} min"
    return f"{days} d {hours % 24} h" if days else f"{hours} h {minutes % 60} min"


def rows_of(values: Mapping[str, Any], prefix: str = "") -> Rows:
    """Return one row, a title and a text, for each value. Leave out values without a text, such as None.

    `values` contains numbers, texts, booleans, None, lists, and dictionaries with such values. The title is the name of
    the value, preceded by `prefix`, unless the name has a title of its own.
    """
    rows = [(_TITLES.get(name, prefix + words(name)), text_of(name, value)) for name, value in values.items()]
    return [(title, text) for title, text in rows if text]


def text_of(name: str, value: Any) -> str:
    """Return a value as text. Return an empty string for None.

    The unit of a number follows from `name`, which is the path of its field, such as ``memory_bytes.main``.
    """
    if isinstance(value, Mapping):
        return _text_of_mapping(name, value)
    if isinstance(value, list | tuple):
        return (" to " if name.endswith("_interval") else ", ").join(text_of(name, each) for each in value)
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    for pattern, text in _FORMATS.items():
        if re.search(pattern, name):
            return text(value)
    return number(value, 0 if isinstance(value, int) else 1)


def _text_of_mapping(name: str, values: Mapping[str, Any]) -> str:
    if total := values.get("total_bytes"):
        used = values["used_bytes"]
        return f"{_bytes(used)} of {_bytes(total)} ({_percent(used / total)})"
    texts = []
    for key, value in values.items():
        if key.endswith("_by_class") and len(value) < 2:  # the total says the same
            continue
        is_mapping = isinstance(value, Mapping)
        text = text_of(key if is_mapping else f"{name}.{key}", value)
        if text:
            texts.append(f"{words(key)} ({text})" if is_mapping else f"{words(key)} {text}")
    return ", ".join(texts)


def _rounded(value: float, digits: int) -> str:
    """Return a number with at most `digits` significant digits, without an exponent."""
    return f"{float(f'{value:.{digits}g}'):.6f}".rstrip("0").rstrip(".")


def _percent(ratio: float) -> str:
    return f"{number(100 * ratio)} %"


def _bytes(value: float) -> str:
    power = 0
    while power < 4 and value >= 1000:
        value, power = value / 1000, power + 1
    return f"{_rounded(value, 3)} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


_FORMATS: Final[Mapping[str, Callable[[float], str]]] = {
    r"_bytes\b": _bytes,
    r"_s$": duration,
    r"_ratio$": _percent,
    r"_celsius$|^temperatures": lambda value: f"{number(value)} °C",
    r"_hertz$": lambda value: f"{number(value / 1e6)} MHz",
}
