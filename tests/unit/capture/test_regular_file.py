"""Tests that paths of special files are rejected without opening them, because opening a FIFO waits for its writer."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from vision.capture.ffmpeg.decoder import FFmpegDecoder
from vision.capture.ffmpeg.file import VideoFile
from vision.capture.opencv.file import ImageFolder
from vision.capture.regular_file import require_file
from vision.errors import SourceError


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link_to_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to(path.with_name("pipe"))


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def device(path: Path) -> None:
    path.symlink_to("/dev/null")


def folder(path: Path) -> None:
    path.mkdir()


def broken_link(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def loop_of_links(path: Path) -> None:
    path.symlink_to(path)


def empty(path: Path) -> None:
    path.touch()


def nothing(_path: Path) -> None:
    """Create no file at the path."""


KINDS: dict[Callable[[Path], None], str] = {
    fifo: "file-kind",
    link_to_fifo: "file-kind",
    unix_socket: "file-kind",
    device: "file-kind",
    folder: "file-kind",
    broken_link: "file",
    loop_of_links: "file",
    empty: "file",
    nothing: "file",
}


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("suffix", [".ts", ".mp4", ".jpg"])
def test_path_without_a_file_is_refused_at_once(make: Callable[[Path], None], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"source{suffix}"
    make(path)
    with pytest.raises(SourceError) as raised:
        require_file(path)
    assert raised.value.code == KINDS[make]
    if suffix == ".jpg" and make is folder:  # a folder is a valid source of images
        return
    source = ImageFolder(path) if suffix == ".jpg" else VideoFile(path, ("bgr",), FFmpegDecoder)
    with pytest.raises(SourceError) as raised:
        source.open()
    assert raised.value.code == KINDS[make]
    source.close()


def test_file_passes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    require_file(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    require_file(tmp_path / "link")
