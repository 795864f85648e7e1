"""Tests of the ledger: its entries, its size limit, and full disks."""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from pathlib import Path

import pytest

from tests.unit.state.faults import file_size_limit
from vision.errors import ConfigError
from vision.language.ledger import Ledger

pytestmark = pytest.mark.unit


def entries(folder: Path, name: str = "ledger.jsonl") -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_entries_contain_the_hashes_of_the_images(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path / "made", max_bytes=10_000)) as ledger:
        ledger.write({"answer": "yes"}, [b"one", b"two"])
    with closing(Ledger(tmp_path / "made", max_bytes=10_000)) as ledger:
        ledger.write({"answer": "no"}, [])
    hashes = [hashlib.sha256(image).hexdigest() for image in (b"one", b"two")]
    assert entries(tmp_path / "made") == [
        {"answer": "yes", "images_sha256": hashes}, {"answer": "no", "images_sha256": []},
    ]  # fmt: skip
    assert (tmp_path / "made" / "ledger.jsonl").stat().st_mode & 0o007 == 0


def test_the_size_is_limited_and_the_newest_entries_stay(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path, max_bytes=2000)) as ledger:
        for number in range(200):
            ledger.write({"number": number}, [])
    kept = [entry["number"] for name in ("ledger-older.jsonl", "ledger.jsonl") for entry in entries(tmp_path, name)]
    assert kept == list(range(200 - len(kept), 200))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2000
    assert ledger.lost == 0


def test_two_writers_share_the_files(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path, max_bytes=2000)) as first, closing(Ledger(tmp_path, max_bytes=2000)) as second:
        for number in range(200):
            (first if number % 3 else second).write({"number": number}, [])
    kept = [entry["number"] for name in ("ledger-older.jsonl", "ledger.jsonl") for entry in entries(tmp_path, name)]
    assert len(kept) > 20
    assert kept == list(range(200 - len(kept), 200))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2000
    assert first.lost + second.lost == 0


def test_a_full_disk_loses_whole_entries(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path, max_bytes=10**6)) as ledger, file_size_limit(100):
        for number in range(10):
            ledger.write({"number": number}, [])
    assert entries(tmp_path) == [{"number": number, "images_sha256": []} for number in range(10 - ledger.lost)]
    assert ledger.lost > 0


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        Ledger(tmp_path / "file", max_bytes=1000)
    assert caught.value.code == "ledger"
