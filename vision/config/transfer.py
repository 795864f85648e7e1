"""Transfer of sections of a configuration to other processes of the program, as plain data.

Values are not validated again, because they come from a valid configuration. Validation would also refuse the copies of
cameras in `vision plan`, which have ids that no file can contain.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from vision.config.fields import ConfigSection

_CLASS: Final = ""  # key of the class, because no key of a section or of a mapping in it is empty


def plain_section(section: ConfigSection) -> dict[str, object]:
    """Return the name of a section's class, and the values that were set. The values can contain other sections."""
    return {_CLASS: type(section).__name__} | {name: getattr(section, name) for name in section.model_fields_set}


def section_of(kind: type[Any], data: object) -> Any:
    """Return the section that `plain_section` converted to `data`. This function can be the `dec_hook` of msgspec.

    Raises:
        TypeError: the data is not a section of the class `kind`.
    """
    section = _restored(data)
    if not isinstance(section, kind) or not isinstance(section, ConfigSection):
        raise TypeError(f"expected {kind.__name__}, got {type(section).__name__}")
    return section


def _restored(data: object) -> object:
    if isinstance(data, (list, tuple)):
        return tuple(map(_restored, data))
    if not isinstance(data, dict):
        return data
    values = {name: _restored(value) for name, value in data.items() if name != _CLASS}
    if _CLASS not in data:
        return values
    kind = _classes().get(data[_CLASS])
    if kind is None:
        raise TypeError(f"expected the name of a section, got {data[_CLASS]!r}")
    return kind.model_construct(set(values), **values)


@cache
def _classes() -> dict[str, type[ConfigSection]]:
    """Return all subclasses of `ConfigSection`, by name."""
    found: dict[str, type[ConfigSection]] = {}
    waiting = [ConfigSection]
    while waiting:
        below = waiting.pop().__subclasses__()
        found |= {kind.__name__: kind for kind in below}
        waiting += below
    return found
