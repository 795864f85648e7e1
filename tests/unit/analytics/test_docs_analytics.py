"""Test that the configurations in docs/analytics.md are valid."""

from __future__ import annotations

import re
from pathlib import Path

from tests.paths import ROOT
from vision.config import load_config

DOCS = (ROOT / "docs" / "analytics.md").read_text(encoding="utf-8")


def test_example_of_line_zone_and_rule_is_a_complete_configuration(tmp_path: Path) -> None:
    example, *_ = re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)
    file = tmp_path / "camera.yaml"
    file.write_text(example)
    config = load_config(file, {})
    section = config.analytics["gate"]
    assert [line.name for line in section.lines] == ["door"]
    assert [zone.name for zone in section.zones] == ["queue"]
    assert [rule.name for rule in config.rules] == ["too-full"]
