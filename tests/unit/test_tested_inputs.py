"""Tests that the lists of tested layouts and files in docs/models.md and docs/cameras.md match the tests."""

from __future__ import annotations

from tests import tested_inputs
from tests.detector_outputs import EXPORTS, WITHOUT_BATCH
from tests.shape_outputs import SHAPED
from vision.detect.reference.heads import HEADS

UPDATE = "run: python -m tests.tested_inputs"


def test_page_lists_the_tested_layouts() -> None:
    page = tested_inputs.MODELS.read_text(encoding="utf-8")
    assert tested_inputs.on_page(page) == tested_inputs.layouts_expected(), UPDATE


def test_page_lists_the_tested_files() -> None:
    page = tested_inputs.CAMERAS.read_text(encoding="utf-8")
    assert tested_inputs.on_page(page) == tested_inputs.files_expected(), UPDATE


def test_every_head_has_a_tested_layout() -> None:
    tested = {one.head["kind"] for one in [*EXPORTS.values(), *WITHOUT_BATCH.values()]}
    assert tested | {one.head["kind"] for one in SHAPED.values()} == set(HEADS)
