"""Expected texts of errors about evaluations."""

from __future__ import annotations

import tempfile
from pathlib import Path

from vision.config import AppConfig
from vision.errors import ConfigError
from vision.evaluation.mot import read_truth
from vision.evaluation.passes import select_camera


def _truth(row: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gt.txt"
        path.write_text(row)
        try:
            read_truth(path)
        except ConfigError as error:
            return str(error).replace(folder, "FOLDER")
    return "no error"


def _camera(source: str, camera: str | None) -> str:
    try:
        select_camera(AppConfig.model_validate({"cameras": [{"id": "gate", "source": source}]}), camera)
    except ConfigError as error:
        return str(error)
    return "no error"


_HINT = "\n  hint: docs/evaluation.md describes the format of a ground-truth file"

ROWS = [
    (
        "a truth with too few columns",
        lambda: _truth("1,7,10,20,30,40"),
        f"FOLDER/gt.txt:1: expected the columns frame,id,left,top,width,height,valid,x,y,z, got 6 columns{_HINT}",
    ),
    (
        "a truth with text",
        lambda: _truth("1,7,10,x,30,40,1"),
        f"FOLDER/gt.txt:1: top: expected a number, got 'x'{_HINT}",
    ),
    (
        "a truth without rows",
        lambda: _truth("1,7,10,20,30,40,0"),
        "FOLDER/gt.txt: expected the objects of the video, but all of its 1 rows have 0 in column 7",
    ),
    (
        "a live camera",
        lambda: _camera("rtsp://me:secret@192.0.2.1/live", None),
        (
            "camera gate: expected a video file or a folder of images, got rtsp://***@192.0.2.1/live: "
            "a live camera has no ground truth\n"
            "  hint: record the camera, label the recording, and use the file as its source"
        ),
    ),
    (
        "a misspelt camera",
        lambda: _camera("synthetic:160x120?frames=9", "gat"),
        "--camera: no camera 'gat'\n  hint: did you mean gate?",
    ),
]
