"""Generator of the page docs/cameras-zoo.md, which lists how GStreamer and FFmpeg handle each synthetic camera.

    python -m vision.capture.zoo.page > docs/cameras-zoo.md

`tests/zoo` checks that GStreamer and FFmpeg do what the page says, and that the page is up to date.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from textwrap import wrap
from typing import Final

from vision.capture.zoo.persona import FAULTS, PASSWORD, Limit, Persona, Reader, Verdict
from vision.capture.zoo.zoo import PERSONAS

PLAYS: Final = "plays"
_COLUMNS: Final = 120
_VARIABLE: Final = "${CAMERA_PASSWORD}"  # in place of the password

_TOP: Final = """\
# Camera zoo

`vision camera-zoo` serves synthetic cameras on 127.0.0.1. Most of them imitate one unusual behavior of real cameras.
Use the zoo to try a configuration without a real camera, or to test your own program.

```bash
vision camera-zoo                                 # all cameras, one line each; Ctrl-C stops them
vision camera-zoo --only b-frames --only digest   # two of them
vision camera-zoo --fault cut                     # with the fault `cut`: see below
vision camera-zoo --list                          # the list, without serving
```

[`vision chaos`](chaos.md) uses such cameras to check that the program survives faults.

* **Frame numbers.** Each frame shows its number as two rows of black and white blocks. The function `read_number` in
  `vision.capture.zoo.barcode` reads the number from a frame.

* **Passwords.** Cameras with a password expect the user `viewer` and the password `secret`. In the tables below,
  `${CAMERA_PASSWORD}` stands for this password.

* **Certificates.** The zoo creates a certificate for the cameras with TLS. To serve these cameras, install the command
  `openssl`.

The option `--fault` selects a fault. After the first frame of a camera, the faults `cut`, `stall`, and `restart` occur
every 10 s. The faults `loss` and `slow` act all the time.

| `--fault` | what happens |
|---|---|
"""

_TABLES: Final = """\

The tables of cameras show what each reader does with the camera:

* `plays` means that the reader plays the camera.
* A code such as `no-stream` means that the reader cannot play the camera. `vision check` and the log report this code
  and the reason.
* Keys after an arrow, such as `reader: ffmpeg`, are a remedy. With these keys in camera.yaml, the reader plays the
  camera.

`make camera-zoo` tests each camera that plays, and each camera with a remedy, under each fault. In these tests, the
camera delivers frames before and after the fault, and the program counts each frame as published or dropped. The [known
limits](#known-limits) are the exceptions.
"""

_LIMITS: Final = """\
The program plays these cameras with limits:
"""


def expectation(persona: Persona) -> str:
    """Return one line of text: the expected result of each reader (GStreamer, FFmpeg) for a synthetic camera."""
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
    """Yield the settings of camera.yaml with which a reader plays a camera that it otherwise refuses with `verdict`.

    A variable stands for the password, because camera.yaml refuses literal passwords.
    """
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


def _condition(limit: Limit) -> str:
    """Return, as text, the options (``--fault``) that select the faults during which a reader has a limitation.

    Return "" if the reader has the limitation during every fault.
    """
    if not limit.faults or len(limit.faults) == len(FAULTS):
        return ""
    return f" and {' or '.join(f'`--fault {fault}`' for fault in limit.faults)}"


def page() -> str:
    """Return the complete page docs/cameras-zoo.md as Markdown."""
    lines = [_TOP.rstrip("\n"), *(f"| `{fault}` | {text} |" for fault, text in FAULTS.items()), _TABLES]
    lines += ["## RTSP cameras", ""]
    lines += _table((persona for persona in PERSONAS if persona.is_rtsp), ("gstreamer", "ffmpeg"))
    lines += ["", "## HTTP cameras", ""]
    lines += _table((persona for persona in PERSONAS if not persona.is_rtsp), ("ffmpeg",))
    lines += ["", "## Known limits", "", *_LIMITS.splitlines(), ""]
    for persona in PERSONAS:
        for limit in persona.limits:
            text = f"* `{persona.name}` with `reader: {limit.reader}`{_condition(limit)}: the program {limit.text}."
            lines += wrap(text, _COLUMNS, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
