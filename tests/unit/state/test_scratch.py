"""Tests of temporary folders: their removal, and errors while their disk is full."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.small_disk import small_disk
from vision.errors import EXIT_TEMPORARY, Closed, ConfigError, ModelError, Unavailable
from vision.state.scratch import scratch_folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


@pytest.fixture
def full(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with small_disk(temporary / "disk") as folder:
        monkeypatch.setenv("TMPDIR", str(folder))
        yield folder


@pytest.mark.parametrize("error", [None, Closed("stopped"), ModelError("bad"), RuntimeError("bug")])
def test_folder_is_removed_and_errors_of_other_kinds_are_passed_on(temporary: Path, error: Exception | None) -> None:
    try:
        with scratch_folder("vision-test-") as folder:
            assert folder.parent == temporary
            (folder / "file").touch()
            if error is not None:
                raise error
    except Exception as caught:  # noqa: BLE001 - of any kind
        assert caught is error
    assert not list(temporary.iterdir())


@pytest.mark.integration
@pytest.mark.parametrize("kind", [OSError, ModelError, RuntimeError])
def test_any_error_on_a_full_disk_names_the_folder(full: Path, kind: type[Exception]) -> None:
    def fill(folder: Path) -> None:
        with (folder / "file").open("wb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, 1 << 20)
            except OSError as error:
                if kind is OSError:
                    raise
                raise kind("a library does not say why it fails") from error

    with pytest.raises(Unavailable) as caught, scratch_folder("vision-test-") as folder:
        fill(folder)
    assert (caught.value.code, caught.value.exit_code) == ("temporary-full", EXIT_TEMPORARY)
    assert str(full) in caught.value.args[0]
    assert "TMPDIR" in caught.value.hint
    assert not list(full.iterdir())


@pytest.mark.integration
def test_stop_on_a_full_disk_stays_a_stop(full: Path) -> None:
    with pytest.raises(Closed), scratch_folder("vision-test-"):
        raise Closed("stopped")


def test_missing_folder_is_reported(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(temporary / "missing"))
    with pytest.raises(ConfigError) as caught, scratch_folder("vision-test-"):
        pass
    assert caught.value.code == "no-temporary-folder"
