"""Tests of MOTChallenge files: valid variants, and faults that are reported with their lines."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.unit.evaluation_tables import boxes
from vision.errors import ConfigError, VisionError
from vision.evaluation.mot import overlaps, read_truth, write_boxes

ROW = "1,7,10,20,30,40,1,-1,-1,-1"


def write(folder: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path = folder / "gt.txt"
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


@pytest.mark.parametrize(
    "lines",
    [
        [ROW],
        ["", "# labelled by hand", f"  {ROW}  ", ""],
        ["1, 7, 10, 20, 30, 40, 1, -1, -1, -1"],
        ["1,7,10,20,30,40,1"],
        ["1,7,10,20,30,40,1,1,0.8"],  # MOT16 and later: class and visibility
        ["1.0,7.0,1e1,20.0,30,40,0.5,x,y,z"],
        [ROW + "\r"],
    ],
)
def test_valid_rows_are_read(lines: list[str], tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path, *lines))
    assert truth.boxes.frames.tolist() == [1]
    assert truth.boxes.ids.tolist() == [7]
    assert truth.boxes.boxes_xyxy.tolist() == [[10, 20, 40, 60]]


def test_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    assert len(read_truth(write(tmp_path, ROW, encoding="utf-8-sig")).boxes) == 1


@pytest.mark.parametrize(
    ("lines", "line", "value"),
    [
        (["1,7,10,20,30,40"], 1, "6"),
        ([ROW + ",5"], 1, "11"),
        (["1 7 10 20 30 40 1 -1 -1 -1"], 1, "commas"),
        (["1;7;10;20;30;40;1"], 1, "commas"),
        ([ROW, "2,7,10,20,30,40,1"], 2, "10"),
        (["frame,id,left,top,width,height,valid,x,y,z", ROW], 1, "'frame'"),
        (["1,seven,10,20,30,40,1"], 1, "id"),
        (["1,7,10,20,30,,1"], 1, "height"),
        (["1,7,nan,20,30,40,1"], 1, "left"),
        (["1,7,10,inf,30,40,1"], 1, "top"),
        (["0,7,10,20,30,40,1"], 1, "frame"),
        (["1.5,7,10,20,30,40,1"], 1, "1.5"),
        (["1,-1,10,20,30,40,1"], 1, "-1"),
        (["1,7,10,20,0,40,1"], 1, "width"),
        (["1,7,10,20,30,-4,1"], 1, "-4"),
        ([ROW, "1,7,50,60,30,40,1,-1,-1,-1"], 2, "line 1"),
    ],
)
def test_faulty_row_is_refused_with_its_line(lines: list[str], line: int, value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_truth(write(tmp_path, *lines))
    assert caught.value.code == "faulty-truth"
    assert f"gt.txt:{line}: " in str(caught.value)
    assert value in str(caught.value)


@pytest.mark.parametrize("lines", [[], ["", "# nothing"], ["1,7,10,20,30,40,0"]])
def test_truth_without_valid_rows_is_refused(lines: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_truth(write(tmp_path, *lines))
    assert caught.value.code == "empty-truth"


def test_all_faults_are_reported_and_many_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        read_truth(write(tmp_path, *["x,7,10,20,30,40,1"] * 20, "1,1,1"))
    text = str(refused.value)
    assert "gt.txt:1:" in text and "gt.txt:8:" in text and "gt.txt:9:" not in text
    assert re.search(r"\b13\b", text.partition("gt.txt:8:")[2]), "the number of the other faults"


@pytest.mark.parametrize("path", ["gone.txt", "."])
def test_unreadable_file_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        read_truth(tmp_path / path)


def test_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gt.txt").write_bytes(bytes(range(256)))
    with pytest.raises(ConfigError) as caught:
        read_truth(tmp_path / "gt.txt")
    assert caught.value.code == "faulty-truth"


def test_invalid_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path, ROW, "1,7,10,20,30,40,0,-1,-1,-1", "3,8,1,1,1,1,0,-1,-1,-1"))
    assert len(truth.boxes) == 1
    assert truth.invalid == 2


def test_rows_can_be_in_any_order(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path, "5,1,1,1,1,1,1", "2,1,2,2,2,2,1", "2,0,3,3,3,3,1"))
    assert truth.boxes.frames.tolist() == [2, 2, 5]
    assert truth.lines.tolist() == [2, 3, 1]
    assert truth.boxes.slices(6) == [slice(0, 0), slice(0, 2), slice(2, 2), slice(2, 2), slice(2, 3), slice(3, 3)]


def test_frames_beyond_the_video_are_refused(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path, "9,1,1,1,1,1,1", "5,1,2,2,2,2,1", "7,1,2,2,2,2,1"))
    truth.check_length(9, "walk.mp4")
    with pytest.raises(ConfigError) as caught:
        truth.check_length(5, "walk.mp4")
    assert caught.value.code == "truth-too-long"
    assert re.search(r"gt\.txt:1: .*\b2\b", str(caught.value)), "the first line, and the number of rows"


def test_results_are_written_as_rows(tmp_path: Path) -> None:
    found = boxes((1, 3, 10.25, 20, 30, 40, 0.75), (2, -1, 1, 2, 3, 4, 0.5))
    write_boxes(tmp_path / "out.txt", found)
    rows = np.loadtxt(tmp_path / "out.txt", delimiter=",")
    assert rows.tolist() == [[1, 3, 10.25, 20, 30, 40, 0.75, -1, -1, -1], [2, -1, 1, 2, 3, 4, 0.5, -1, -1, -1]]
    with pytest.raises(VisionError):
        write_boxes(tmp_path / "gone" / "out.txt", found)


def test_overlaps_are_intersection_over_union() -> None:
    table = overlaps(
        np.array([[0, 0, 10, 10], [0, 0, 0, 0]], float),
        np.array([[0, 0, 10, 5], [5, 5, 15, 15], [20, 0, 30, 9]], float),
    )
    assert table[0] == pytest.approx([0.5, 25 / 175, 0])
    assert table[1].tolist() == [0, 0, 0]
