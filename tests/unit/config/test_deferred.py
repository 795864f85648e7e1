"""Tests that no pydantic validators are built in a process that only receives a configuration."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import vision.runtime.capture_worker, vision.runtime.result_worker
from vision.config.fields import ConfigSection
from vision.config.schema import sections

print([section.__name__ for section in sections(ConfigSection) if section.__pydantic_complete__])
"""


@pytest.mark.integration
def test_import_of_the_workers_builds_no_validators() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
