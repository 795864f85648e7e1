"""Generator of the page docs/cameras-zoo.md, which lists what each reader does with each camera.

    python -m vision.capture.zoo.page > docs/cameras-zoo.md

`tests/zoo` checks that the readers do what the page says, and that the page is up to date.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from textwrap import wrap
from typing import Final

from vision.capture.zoo.persona import FAULTS, PASSWORD, Persona, Reader, Verdict
from vision.capture.zoo.zoo import PERSONAS

PLAYS: Final = "plays"
_COLUMNS: Final = 120
_VARIABLE: Final = "${CAMERA_PASSWORD}"  # in place of the password

_TOP: Final = """\
# Camera zoo

`vision camera-zoo` serves synthetic cameras on 127.0.0.1. Most of them show one oddity that real cameras can have. Use
them to try a configuration without a real camera, or to test your own program.

```bash
vision camera-zoo                                 # all cameras, one line each; Ctrl-C stops them
vision camera-zoo --only b-frames --only digest   # two of them
vision camera-zoo --fault cut                     # every 10 s while a camera streams, its connections are reset
vision camera-zoo --list                          # the list, without serving
```

[`vision chaos`](chaos.md) uses such cameras to check that the program survives faults.

Each frame shows its number as two rows of black and white blocks. `vision.capture.zoo.barcode.read_number` reads the
number. Cameras with a password expect the user `viewer` and the password `secret`, for which `${CAMERA_PASSWORD}` in
the tables stands. The cameras with TLS need the command `openssl`, which creates their certificate.

`make camera-zoo` reads each camera for which the tables below list `plays` or keys of camera.yaml, with each fault. The
camera must deliver frames, also after the fault, and its frames must be counted as published or dropped, apart from the
[known limits](#known-limits). `./test` reads these cameras without a fault, and some of them with each fault. It also
checks the listed codes.

| `--fault` | what happens |
|---|---|
"""

_TABLES: Final = """\

In the tables of cameras, a code such as `no-stream` means that the reader cannot play the camera. `vision check` and
the log report this code and the reason. With the keys after an arrow, the camera plays.
"""


def expectation(persona: Persona) -> str:
    """Return the expected result of each reader with a camera, as one line of text."""
    texts = {reader: _expected(persona.verdicts.get(reader)) for reader in persona.readers}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{reader}: {text}" for reader, text in texts.items())


def _expected(verdict: Verdict | None) -> str:
    if verdict is None:
        return PLAYS
    keys = ", ".join(_shown_keys(verdict))
    return f"{verdict.code} -> {keys}" if keys else verdict.code


def _shown_keys(verdict: Verdict) -> Iterator[str]:
    """Yield the keys of camera.yaml, which refuses literal passwords, with which the camera plays."""
    for key, value in (verdict.remedy or {}).items():
        yield f"{key}: {_VARIABLE if value == PASSWORD else value}"


def _cell(verdict: Verdict | None) -> str:
    if verdict is None:
        return PLAYS
    keys = ", ".join(f"`{key}`" for key in _shown_keys(verdict))
    return f"`{verdict.code}` → {keys}" if keys else f"`{verdict.code}`"


def _table(personas: Iterable[Persona], readers: tuple[Reader, ...]) -> Iterator[str]:
    titles = {"gstreamer": "GStreamer", "ffmpeg": "FFmpeg"}
    yield f"| camera | what is odd | {' | '.join(titles[reader] for reader in readers)} |"
    yield "|---" * (2 + len(readers)) + "|"
    for persona in personas:
        cells = [_cell(persona.verdicts.get(reader)) for reader in readers]
        yield f"| `{persona.name}` | {persona.odd} | {' | '.join(cells)} |"


def page() -> str:
    """Return the page as Markdown."""
    lines = [_TOP.rstrip("\n"), *(f"| `{fault}` | {text} |" for fault, text in FAULTS.items()), _TABLES]
    lines += ["## RTSP cameras", ""]
    lines += _table((persona for persona in PERSONAS if persona.is_rtsp), ("gstreamer", "ffmpeg"))
    lines += ["", "## HTTP cameras", ""]
    lines += _table((persona for persona in PERSONAS if not persona.is_rtsp), ("ffmpeg",))
    lines += ["", "## Known limits", ""]
    for persona in PERSONAS:
        for limit in persona.limits:
            text = f"* `{persona.name}` with `reader: {limit.reader}`: the program {limit.text}."
            lines += wrap(text, _COLUMNS, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
