"""Tests of `plugins` in model.yaml: names of built-in plugins, and libraries with their hashes."""

from __future__ import annotations

import pytest

from tests.unit.engine_models import spec
from vision.config import PluginSpec, load_model_spec_text
from vision.errors import ModelError

SHA256 = "0123456789abcdef" * 4
CARD = """
name: tiny
file: tiny.onnx
input: {width: 16, height: 16}
head: {kind: yolov8}
classes: [person]
licence: none
"""


def test_names_and_libraries_are_accepted() -> None:
    text = f"{CARD}plugins:\n  - VisionNMS\n  - {{file: libstar_relu.so.1, sha256: {SHA256}}}\n"
    loaded = load_model_spec_text(text, "model.yaml")
    assert loaded.plugins == ("VisionNMS", PluginSpec(file="libstar_relu.so.1", sha256=SHA256))
    assert [library.file for library in loaded.plugin_libraries] == ["libstar_relu.so.1"]
    assert spec().plugins == ()


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        ("VisionNMs", "plugins[0]"),
        ("libstar_relu.so", "plugins[0]"),  # without its hash
        ("{file: libstar_relu.so}", "plugins[0].sha256"),
        (f"{{file: ../libstar_relu.so, sha256: {SHA256}}}", "plugins[0].file"),
        (f"{{file: star_relu.dll, sha256: {SHA256}}}", "plugins[0].file"),
        ("{file: libstar_relu.so, sha256: 12}", "plugins[0].sha256"),
        (f"{{file: libstar_relu.so, sha256: {SHA256}, more: 1}}", "plugins[0].more"),
    ],
)
def test_invalid_plugin_is_refused(entry: str, key: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model_spec_text(f"{CARD}plugins:\n  - {entry}\n", "model.yaml")
    (fault,) = caught.value.faults
    assert (fault.key, fault.line) == (key, 9)
