"""Tests of the command `vision whatif`: its arguments, table, JSON, and page."""

from __future__ import annotations

import json
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path

import cv2
import pytest
import typer
import yaml

from tests.archive_simulation import START_UTC_NS, record, site
from vision.capture.frame_reader import read_frames
from vision.cli.main import main
from vision.cli.whatif import parse_moment
from vision.config import CameraConfig
from vision.errors import EXIT_CONFIG
from vision.outputs.archive.compaction import compact

SINCE, UNTIL = "2023-11-14T00:00:00Z", "2023-11-16T00:00:00Z"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that contains a configuration and an archive of a scene with people."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "archive").mkdir()
    one = site("gate", "waiting", 1)
    record(folder / "archive", one)
    section = one.section.model_dump(mode="json", exclude_unset=True)
    config = {
        "model": "nanodet-g-416",
        "cameras": [{"id": "gate", "source": "synthetic:"}, {"id": "other", "source": "synthetic:"}],
        "analytics": {"gate": section},
        "archive": {"folder": "archive"},
    }
    (folder / "camera.yaml").write_text(yaml.safe_dump(config))
    return folder


def whatif(folder: Path, *arguments: str, config: str = "camera.yaml") -> int:
    return main(["whatif", str(folder / config), "--since", SINCE, "--until", UNTIL, *arguments])


class Elements(HTMLParser):
    """Parser that counts the elements of an HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)


def changed_config(folder: Path) -> str:
    config = yaml.safe_load((folder / "camera.yaml").read_text())
    for line in config["analytics"]["gate"]["lines"]:
        line["direction"] = "in"
    (folder / "changed.yaml").write_text(yaml.safe_dump(config))
    return "changed.yaml"


def test_table_json_and_page_contain_the_difference(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = folder / "out.json", folder / "out.html"
    config = changed_config(folder)
    assert whatif(folder, "--json", str(files[0]), "--page", str(files[1]), config=config) == 0
    found = json.loads(files[0].read_text())
    gate, changes = found["cameras"]["gate"], found["changes"]
    assert found["schema"] == "vision.whatif/1" and list(found["cameras"]) == ["gate"]
    assert gate["lost"] == len(changes) > 0 and not gate["equal"]
    assert {each["change"] for each in changes} == {"lost"}
    assert {each["before"]["data"]["direction"] for each in changes} == {"out"}
    assert all(each["after"] is None for each in changes)
    assert gate["same"] + gate["lost"] == gate["published"]
    tags = Elements(files[1].read_text()).tags
    assert 0 < tags.count("circle") <= len(changes) and "script" not in tags and "link" not in tags
    assert capsys.readouterr().out.count("lost") >= 1


def test_unchanged_configuration_has_no_difference(folder: Path) -> None:
    assert whatif(folder, "--json", str(folder / "same.json"), "--camera", "gate") == 0
    gate = json.loads((folder / "same.json").read_text())["cameras"]["gate"]
    assert gate["equal"] and gate["published"] > 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--camera", "gte"], EXIT_CONFIG),
        (["--camera", "other"], EXIT_CONFIG),
        (["--archive", "/nonexistent"], EXIT_CONFIG),
        (["--until", "yesterday"], 2),
        (["--since", "2030-01-01"], 2),
        (["--json", "/nonexistent/out.json"], EXIT_CONFIG),
        (["--video", "clip.mp4"], 2),
    ],
)
def test_wrong_arguments_are_refused(folder: Path, arguments: list[str], code: int) -> None:
    assert whatif(folder, *arguments) == code


def test_archive_of_a_model_with_different_classes_is_refused(folder: Path) -> None:
    config = yaml.safe_load((folder / "camera.yaml").read_text())
    config |= {"detect": {"backend": "fake"}}
    config["analytics"] = {}
    (folder / "fake.yaml").write_text(yaml.safe_dump({**config, "pipeline": "count"}))
    assert whatif(folder, config="fake.yaml") == EXIT_CONFIG


def test_camera_that_only_one_side_has_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "not-judged.json"
    assert whatif(folder, "--json", str(out)) == 0
    assert list(json.loads(out.read_text())["not_judged"]) == ["other"]
    assert "other: not judged" in capsys.readouterr().out
    assert whatif(folder, "--json", str(out), "--camera", "gate") == 0
    assert not json.loads(out.read_text())["not_judged"]


def test_times_without_frames_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "missing.json"
    assert whatif(folder, "--json", str(out)) == 0
    before, after = json.loads(out.read_text())["cameras"]["gate"]["missing"]
    assert before["since"].startswith("2023-11-14T00:00:00") and before["until"].startswith("2023-11-14T22:13:20")
    assert after["until"].startswith("2023-11-16T00:00:00")
    assert "no frames from 2023-11-14 00:00:00" in capsys.readouterr().out


@pytest.fixture
def files(folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the archive whose rows are in Parquet files."""
    archive = tmp_path / "archive"
    shutil.copytree(folder / "archive", archive)
    compact(archive, START_UTC_NS // 1000 + 10**12, keep_days=10_000, max_mb=100)
    return archive


@pytest.mark.parametrize("table", ["frames", "tracks", "events", "counts"])
@pytest.mark.parametrize("damage", ["truncated", "overwritten"])
def test_damaged_file_is_named(
    folder: Path, files: Path, table: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert whatif(folder, "--archive", str(files)) == 0
    (path,) = files.glob(f"{table}/camera=gate/*.parquet")
    content = path.read_bytes()
    middle = content[: len(content) // 2]
    path.write_bytes(middle if damage == "truncated" else content[:4] + bytes(100) + content[104:])
    assert whatif(folder, "--archive", str(files)) == EXIT_CONFIG
    assert path.name in capsys.readouterr().err


def test_frames_whose_tracks_are_missing_are_an_error(folder: Path, files: Path) -> None:
    (path,) = files.glob("tracks/camera=gate/*.parquet")
    path.unlink()
    assert whatif(folder, "--archive", str(files)) == EXIT_CONFIG


@pytest.mark.parametrize(("text", "ago_s"), [("7d", 7 * 86400), ("90s", 90), ("2h", 7200)])
def test_durations_are_before_now(text: str, ago_s: float) -> None:
    before_us = time.time_ns() // 1000
    found_us = parse_moment(text) + round(ago_s * 1e6)
    assert before_us <= found_us <= time.time_ns() // 1000


def test_times_with_and_without_a_zone() -> None:
    assert parse_moment("2023-11-14T22:13:20Z") == parse_moment("2023-11-14T23:13:20+01:00") == 1_700_000_000_000_000
    with pytest.raises(ValueError, match="expected"):
        parse_moment("soon")
    with pytest.raises(typer.BadParameter):
        from vision.cli.options import parse_duration

        parse_duration("soon")


def test_two_configurations_on_one_video(tmp_path: Path) -> None:
    folder = tmp_path / "video"
    folder.mkdir()
    synthetic = CameraConfig(id="gate", source="synthetic:320x240@10?objects=4&frames=80")
    for number, frame in enumerate(read_frames(synthetic, offline=True)):
        cv2.imwrite(str(folder / f"{number:03d}.png"), frame.pixels)
    line = {"name": "door", "points": [[0.5, 0], [0.5, 1]], "anchor": "center"}
    zone = {"name": "area", "polygon": [[0.2, 0.2], [0.8, 0.2], [0.8, 0.8], [0.2, 0.8]], "anchor": "center"}
    config = {
        "detect": {"backend": "fake"},
        "track": {"low_score": 0.1, "high_score": 0.2, "new_score": 0.2},
        "cameras": [{"id": "gate", "source": str(folder), "fps": 10}],
        "analytics": {"gate": {"units": "fraction", "lines": [line], "zones": [zone]}},
    }
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(config))
    config["analytics"]["gate"]["lines"] = []  # type: ignore[index]
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(config))
    out = tmp_path / "out.json"
    options = ["--video", str(folder), "--against", str(tmp_path / "old.yaml")]
    assert main(["whatif", str(tmp_path / "new.yaml"), *options, "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    gate = found["cameras"]["gate"]
    assert gate["frames"] == 80 and gate["same"] > 0
    assert found["changes"] and {each["change"] for each in found["changes"]} == {"lost"}
    assert {each["before"]["kind"] for each in found["changes"]} == {"line_crossed"}
    assert gate["same"] + gate["lost"] == gate["published"]
