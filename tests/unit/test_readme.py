"""Tests that the configuration in README.md is valid, and that its links lead to files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.paths import ROOT
from vision.config import load_config

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [README, *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))]


def test_configuration_is_valid_and_counts(tmp_path: Path) -> None:
    (yaml,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "camera.yaml"
    path.write_text(yaml, encoding="utf-8")
    config = load_config(path, {"GATE_PASSWORD": "secret"})
    assert config.pipeline == "count"
    assert [rule.name for rule in config.rules] == ["long-queue"]


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)", README))))
def test_link_leads_to_a_file(link: str) -> None:
    assert (ROOT / link).exists()
