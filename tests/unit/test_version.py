"""Tests of the name of the distribution, and of the commands in hints."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from tests.paths import ROOT
from vision.version import DISTRIBUTION, install_hint, pip_hint


def test_distribution_name_equals_that_of_the_project_file() -> None:
    assert f'name = "{DISTRIBUTION}"' in (ROOT / "pyproject.toml").read_text()


def test_hint_installs_into_the_running_environment(tmp_path: Path) -> None:
    command = shlex.split(install_hint("eval", "onnx", checkout=tmp_path))
    assert command == [sys.executable, "-m", "pip", "install", f"{DISTRIBUTION}[eval,onnx]"]
    assert shlex.split(pip_hint("av>=12"))[-1] == "av>=12"


def test_hint_installs_a_checkout_in_place(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    assert shlex.split(install_hint("eval", checkout=tmp_path))[-2:] == ["-e", f"{tmp_path}[eval]"]
