"""Lists of the model outputs and video files that the tests read, for docs/models.md and docs/cameras.md.

python -m tests.tested_inputs    updates the lists in both documents
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from textwrap import wrap
from typing import Any, Final

from numpy.typing import NDArray

from tests.detector_outputs import EXPORTS, WITHOUT_BATCH
from tests.paths import ROOT
from tests.shape_outputs import SHAPED
from tests.unit.capture.test_file_matrix import CODECS_OF_CONTAINERS, CONTAINERS, ORIENTATIONS

MODELS: Final = ROOT / "docs" / "models.md"
CAMERAS: Final = ROOT / "docs" / "cameras.md"

_LISTED: Final = re.compile(r"(?<=<!-- tested -->\n).*?(?=<!-- end of tested -->)", re.DOTALL)
_SHOWN: Final = 3  # greatest number of outputs whose shapes are listed
_COLUMNS: Final = 120


def on_page(text: str) -> str:
    """Return the generated part of a document."""
    match = _LISTED.search(text)
    assert match is not None, "the page has no marks for the generated part"
    return match[0]


def _head(head: Mapping[str, Any]) -> str:
    """Return a head in the form that it has in model.yaml."""
    values = {key: f"[{', '.join(value)}]" if isinstance(value, list) else value for key, value in head.items()}
    return "`{" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}`"


def _outputs(outputs: Mapping[str, NDArray[Any]], batch: str) -> str:
    """Return the names and shapes of outputs. `batch` is the text for the batch axis, or an empty string."""
    if len(outputs) > _SHOWN:
        return f"{len(outputs)} outputs"
    shapes = {name: ", ".join(filter(None, (batch, *map(str, value.shape)))) for name, value in outputs.items()}
    return ", ".join(f"`{name}` ({shape})" for name, shape in shapes.items())


def layouts_expected() -> str:
    """Return the expected table of layouts in docs/models.md. Layouts with equal heads and outputs share a row."""
    rows = [(name, _head(one.head), _outputs(one.outputs, "batch")) for name, one in EXPORTS.items()]
    rows += [
        (f"{name}, without a batch axis", _head(one.head), _outputs(one.outputs, ""))
        for name, one in WITHOUT_BATCH.items()
    ]
    rows += [(name, _head(one.head), _outputs(one.outputs, "batch")) for name, one in SHAPED.items()]
    names: dict[tuple[str, str], list[str]] = {}
    for name, head, outputs in rows:
        names.setdefault((head, outputs), []).append(name)
    lines = ["", "| layouts | `head` in model.yaml | outputs |", "|---|---|---|"]
    lines += [f"| {'; '.join(every)} | {head} | {outputs} |" for (head, outputs), every in names.items()]
    return "\n".join([*lines, "", ""])


def files_expected() -> str:
    """Return the expected lists of containers, codecs, and orientations in docs/cameras.md."""
    lists = {"Containers": CONTAINERS, "Codecs in these containers": CODECS_OF_CONTAINERS}
    lines = ["", *_items({title: [f"`{name}`" for name in names] for title, names in lists.items()})]
    lines += _items({"Orientations": ORIENTATIONS})
    return "\n".join([*lines, "", ""])


def _items(lists: Mapping[str, Iterable[str]]) -> Iterator[str]:
    for title, names in lists.items():
        yield from wrap(f"* **{title}**: {', '.join(names)}.", _COLUMNS, subsequent_indent="  ", break_on_hyphens=False)


def write() -> None:
    """Update both documents."""
    for page, expected in ((MODELS, layouts_expected()), (CAMERAS, files_expected())):
        text = page.read_text(encoding="utf-8")
        page.write_text(_LISTED.sub(lambda _, new=expected: new, text), encoding="utf-8")  # type: ignore[misc]


if __name__ == "__main__":
    write()
