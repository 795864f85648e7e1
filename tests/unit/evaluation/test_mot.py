"""MOTChallenge files: every fault is named with its line, and nothing that is right is refused."""

from __future__ import annotations

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
def test_what_is_read(lines: list[str], tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path, *lines))
    assert truth.boxes.frames.tolist() == [1]
    assert truth.boxes.ids.tolist() == [7]
    assert truth.boxes.boxes_xyxy.tolist() == [[10, 20, 40, 60]]


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    assert len(read_truth(write(tmp_path, ROW, encoding="utf-8-sig")).boxes) == 1


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (["1,7,10,20,30,40"], "gt.txt:1: expected the columns frame,id,left,top,width,height,valid,x,y,z, got 6"),
        ([ROW + ",5"], "gt.txt:1: expected the columns .*, got 11"),
        (["1 7 10 20 30 40 1 -1 -1 -1"], "separated by commas, got 1"),
        (["1;7;10;20;30;40;1"], "separated by commas, got 1"),
        ([ROW, "2,7,10,20,30,40,1"], "gt.txt:2: expected 10 columns as in line 1, got 7"),
        (["frame,id,left,top,width,height,valid,x,y,z", ROW], "gt.txt:1: frame: expected a number, got 'frame'"),
        (["1,seven,10,20,30,40,1"], "id: expected a number, got 'seven'"),
        (["1,7,10,20,30,,1"], "height: expected a number, got ''"),
        (["1,7,nan,20,30,40,1"], "left: expected a number, got 'nan'"),
        (["1,7,10,inf,30,40,1"], "top: expected a number, got 'inf'"),
        (["0,7,10,20,30,40,1"], "frame: expected a whole number from 1, got 0"),
        (["1.5,7,10,20,30,40,1"], "frame: expected a whole number from 1, got 1.5"),
        (["1,-1,10,20,30,40,1"], "id: expected a whole number from 0, got -1"),
        (["1,7,10,20,0,40,1"], "expected a width and a height above 0, got 0 and 40"),
        (["1,7,10,20,30,-4,1"], "expected a width and a height above 0, got 30 and -4"),
        ([ROW, "1,7,50,60,30,40,1,-1,-1,-1"], "gt.txt:2: object 7 is in frame 1 already, by line 1"),
        ([], "expected what is to be found, but it has no rows"),
        (["", "# nothing"], "it has no rows"),
        (["1,7,10,20,30,40,0"], "its 1 rows have all a 0 in column 7"),
    ],
)
def test_what_is_refused(lines: list[str], fault: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=fault):
        read_truth(write(tmp_path, *lines))


def test_all_faults_are_said_at_once_and_many_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        read_truth(write(tmp_path, *["x,7,10,20,30,40,1"] * 20, "1,1,1"))
    text = str(refused.value)
    assert "gt.txt:1:" in text and "gt.txt:8:" in text and "gt.txt:9:" not in text
    assert "and 13 more faults" in text


@pytest.mark.parametrize("path", ["gone.txt", "."])
def test_a_file_that_cannot_be_read(path: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--truth: cannot read"):
        read_truth(tmp_path / path)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "gt.txt").write_bytes(bytes(range(256)))
    with pytest.raises(ConfigError, match=r"gt\.txt:1: expected the columns"):
        read_truth(tmp_path / "gt.txt")


def test_rows_that_do_not_count_are_left_out_and_counted(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path, ROW, "1,7,10,20,30,40,0,-1,-1,-1", "3,8,1,1,1,1,0,-1,-1,-1"))
    assert len(truth.boxes) == 1
    assert truth.invalid == 2


def test_rows_may_come_in_any_order_and_frames_may_be_empty(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path, "5,1,1,1,1,1,1", "2,1,2,2,2,2,1", "2,0,3,3,3,3,1"))
    assert truth.boxes.frames.tolist() == [2, 2, 5]
    assert truth.lines.tolist() == [2, 3, 1]
    assert truth.boxes.slices(6) == [slice(0, 0), slice(0, 2), slice(2, 2), slice(2, 2), slice(2, 3), slice(3, 3)]
    assert truth.empty_frames(6) == 4


def test_frames_beyond_the_video_are_named(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path, "9,1,1,1,1,1,1", "5,1,2,2,2,2,1", "7,1,2,2,2,2,1"))
    truth.check_length(9, "walk.mp4")
    with pytest.raises(ConfigError, match=r"gt\.txt:1: 2 rows are of frames 7 to 9, but walk\.mp4 has 5 frames"):
        truth.check_length(5, "walk.mp4")


def test_what_is_written_is_what_was_found(tmp_path: Path) -> None:
    found = boxes((1, 3, 10.25, 20, 30, 40, 0.75), (2, -1, 1, 2, 3, 4, 0.5))
    write_boxes(tmp_path / "out.txt", found)
    rows = np.loadtxt(tmp_path / "out.txt", delimiter=",")
    assert rows.tolist() == [[1, 3, 10.25, 20, 30, 40, 0.75, -1, -1, -1], [2, -1, 1, 2, 3, 4, 0.5, -1, -1, -1]]
    with pytest.raises(VisionError, match="cannot write"):
        write_boxes(tmp_path / "gone" / "out.txt", found)


def test_overlaps() -> None:
    table = overlaps(
        np.array([[0, 0, 10, 10], [0, 0, 0, 0]], float),
        np.array([[0, 0, 10, 5], [5, 5, 15, 15], [20, 0, 30, 9]], float),
    )
    assert table[0] == pytest.approx([0.5, 25 / 175, 0])
    assert table[1].tolist() == [0, 0, 0]
