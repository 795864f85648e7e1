"""Tests that drafts of the editor are merged with the file, and that invalid drafts cause faults or a `ConfigError`."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vision.config import shipped_configs
from vision.errors import ConfigError
from vision.outputs.page.editor_draft import Draft, DraftFile, Masks, drawn_of, masks_of, section, with_drawn, yaml_of
from vision.state.private_files import Unwritable

FILE = """\
cameras:
  - {id: gate, source: "rtsp://192.0.2.1/1", user: viewer, password: "${GATE}"}
analytics:
  gate:
    reset_at: ["00:00"]   # kept
    lines: [{name: door, points: [[100, 50], [100, 90]]}]
privacy:
  gate: {blur: [person]}
rules:
  - {name: again, when: line_crossed door}
"""
ENVIRON = {"GATE": "hunter2hunter2"}
OTHER_USER = 65534


def draft(**changes: Any) -> Draft:
    content: dict[str, Any] = {"units": "pixels", "lines": [], "zones": [], "ground": None}
    return Draft(**{**content, "privacy": Masks("fraction", []), **changes})


@pytest.fixture
def file(tmp_path: Path) -> DraftFile:
    path = tmp_path / "camera.yaml"
    path.write_text(FILE)
    return DraftFile(path, ("person", "car"), ENVIRON)


LINE = {"name": "door", "points": [[100, 50], [120, 90]]}


def test_draft_replaces_what_is_drawn_and_nothing_else(file: DraftFile) -> None:
    document = file.read()
    masks = Masks("percent", [[[0, 0], [10, 0], [0, 10]]])
    checked = file.check(document, "gate", draft(lines=[LINE], privacy=masks))
    assert checked.faults == () and checked.config is not None
    content = yaml.safe_load(checked.text)
    assert content["analytics"]["gate"] == {"reset_at": ["00:00"], "lines": [LINE], "units": "pixels"}
    assert content["privacy"]["gate"] == {"blur": ["person"], "units": "percent", "masks": masks.masks}
    assert "# kept" in checked.text and "${GATE}" in checked.text
    shown = yaml.safe_load(yaml_of(document, "gate", draft(lines=[LINE])))
    assert shown == {"analytics": {"gate": content["analytics"]["gate"]}}


def test_draft_without_shapes_adds_no_section(file: DraftFile) -> None:
    assert with_drawn(None, draft()) == {}
    assert drawn_of(None) == {"units": "fraction", "lines": [], "zones": [], "ground": None}
    assert masks_of({"blur": ["person"]}) == {"units": "pixels", "masks": []}
    document = file.read()
    shown = Draft(**drawn_of(section(document, "analytics", "gate")), privacy=Masks("pixels", []))
    assert yaml.safe_load(file.check(document, "gate", shown).text)["analytics"]["gate"]["lines"] == [
        {"name": "door", "points": [[100, 50], [100, 90]]}
    ]


def test_written_file_keeps_its_mode_and_its_link(file: DraftFile, tmp_path: Path) -> None:
    target = tmp_path / "target.yaml"
    file.path.rename(target)
    file.path.symlink_to(target)
    target.chmod(0o640)
    target.write_bytes(b"\xef\xbb\xbf" + FILE.encode())
    file.write(file.read().text + "# more\n")
    assert file.path.is_symlink() and target.stat().st_mode & 0o777 == 0o640
    assert target.read_bytes() == b"\xef\xbb\xbf" + FILE.encode() + b"# more\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["camera.yaml", "target.yaml"]


@contextmanager
def without_rights() -> Iterator[None]:
    """If the tests run as root, run as a user who cannot write all files."""
    if os.getuid() != 0:
        yield
        return
    os.setresuid(OTHER_USER, OTHER_USER, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_reasons_why_a_file_cannot_be_saved(file: DraftFile) -> None:
    document = file.read()
    assert file.unsaved(document, "gate") == ""
    assert file.unsaved(document, "yard") == "camera-not-in-file"
    demo = DraftFile(shipped_configs()["demo"], ())
    assert demo.unsaved(demo.read(), "gate") == "shipped"
    for parent in itertools.takewhile(lambda folder: folder != Path(tempfile.gettempdir()), file.path.parents):
        parent.chmod(0o755)
    file.path.parent.chmod(0o555)
    file.path.chmod(0o444)
    with without_rights():
        assert file.unsaved(document, "gate") == "not-writable"
        with pytest.raises(Unwritable):
            file.write("cameras: []\n")
    file.path.parent.chmod(0o755)
    assert file.path.read_text() == FILE


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["name", "points", "polygon", "holes", "classes"])
SHAPES = st.lists(st.dictionaries(KEYS, ANYTHING, max_size=4), max_size=3)
DRAFTS = st.builds(
    Draft,
    units=st.text(max_size=9),
    lines=SHAPES,
    zones=SHAPES,
    ground=st.none() | st.just({"points": 1}),
    privacy=st.builds(Masks, st.text(max_size=9), st.lists(ANYTHING, max_size=2)),
)


@settings(max_examples=30)
@given(drawn=DRAFTS)
def test_no_draft_causes_an_unexpected_error(drawn: Draft, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(FILE)
    file = DraftFile(path, ("person",), ENVIRON)
    document = file.read()
    yaml_of(document, "gate", drawn)
    try:
        checked = file.check(document, "gate", drawn)
    except ConfigError as error:
        assert error.code == "not-editable"
    else:
        assert checked.faults and ENVIRON["GATE"] not in repr(checked.faults)
