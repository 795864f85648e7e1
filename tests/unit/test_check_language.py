"""Tests that tools/check_language.py finds rejected words, and lines of Markdown prose that are too long."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.check_language import PROSE_COLUMNS, findings, long_lines

LONG = "word " * (PROSE_COLUMNS // 5) + "end"
"""A line of 123 columns."""


@pytest.mark.parametrize("prefix", ["", "> ", "* ", "  ", "1. ", "## ", "* item\n\n    "])
def test_long_prose_is_found(prefix: str) -> None:
    markdown = f"A short line.\n\n{prefix}{LONG}\n"
    number = markdown.count("\n")
    assert [found for found, _ in long_lines(markdown)] == [number]


@pytest.mark.parametrize(
    "markdown",
    [
        LONG[:PROSE_COLUMNS],
        f"| {LONG} |",
        f"* item\n\n  | {LONG} |",
        f"```text\n{LONG}\n```",
        f"Run:\n\n    {LONG}",
        f"[a page](https://example.org/{'x' * PROSE_COLUMNS})",
        f"<https://example.org/{'x' * PROSE_COLUMNS}>",
    ],
)
def test_tables_code_and_targets_of_links_can_be_long(markdown: str) -> None:
    assert list(long_lines(markdown)) == []


def test_prose_after_a_code_block_is_checked() -> None:
    assert [number for number, _ in long_lines(f"```\n{LONG}\n```\n{LONG}")] == [4]


def test_findings_name_file_and_line(tmp_path: Path) -> None:
    page, module = tmp_path / "page.md", tmp_path / "module.py"
    page.write_text(f"A picture.\n\n{LONG}\n")
    module.write_text(f"# {LONG}\n# an anew\n")
    places = [found.rsplit(": ", 2)[0] for found in findings([page, module])]
    assert sorted(places) == [f"{module}:2", f"{page}:1", f"{page}:3"]
