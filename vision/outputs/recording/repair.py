"""Functions that compare the index with the recorded files, and correct the index."""

from __future__ import annotations

import calendar
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, TypeAlias

import av

from vision.outputs.recording.index import Kind, RecordedFile, RecordingIndex

NAME: Final = re.compile(
    r"(?P<camera>[A-Za-z0-9][A-Za-z0-9_-]{0,63})-(?P<second>\d{8}T\d{6})\.(?P<ms>\d{3})Z-(?P<kind>clip|continuous)"
    r"-(?P<number>\d+)\.mp4"
)
"""Names of recorded files. `number` is 1 for the first file of a recording."""

_BOX_HEADER_BYTES: Final = 8

Fault: TypeAlias = Literal["unfinished", "missing", "unlisted", "unreadable", "size"]
"""Kinds of differences.

* unfinished: the file was not completed, for example because the program was killed.
* missing: the file does not exist, for example because a different program deleted it.
* unlisted: the index does not contain the file.
* unreadable: some or all frames of the file cannot be read.
* size: the size of the file differs from the size in the index.
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """A fault that a comparison of the index with the recorded files has found, and the name of the file."""

    name: str  # relative to the folder of the recordings
    fault: Fault


@dataclass(frozen=True, slots=True)
class Measured:
    """The number of frames in the readable part of a file, and the time from the first to the last of these frames."""

    frames: int
    duration_ns: int


def file_name(camera: str, utc_ns: int, kind: Kind, number: int) -> str:
    """Return the name of a file, relative to the folder of the recordings, from the time of its first frame."""
    seconds, ns = divmod(utc_ns, 1_000_000_000)
    moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(seconds))
    return f"{camera}/{camera}-{moment}.{ns // 1_000_000:03d}Z-{kind}-{number}.mp4"


def cut_torn_end(path: Path) -> None:
    """Remove an incomplete fragment from the end of a file, because some players report the fragment as an error."""
    size, at, complete = path.stat().st_size, 0, 0
    with path.open("rb") as file:
        while at + _BOX_HEADER_BYTES <= size:
            file.seek(at)
            header = file.read(_BOX_HEADER_BYTES)
            length, kind = int.from_bytes(header[:4], "big"), header[4:]
            if length < _BOX_HEADER_BYTES or at + length > size:  # FFmpeg writes no box of 4 GB in a fragment
                break
            at += length
            if kind != b"moof":  # a fragment consists of `moof` and `mdat`
                complete = at
    if 0 < complete < size:
        os.truncate(path, complete)


def measure(path: Path) -> Measured | None:
    """Read a file's video packets. Return the length of the readable part, or None if no frame is readable."""
    frames, first, last = 0, None, 0
    with suppress(av.FFmpegError, ValueError, IndexError), av.open(str(path)) as container:
        video = container.streams.video[0]
        for packet in container.demux(video):
            if packet.size and packet.pts is not None and packet.time_base is not None:
                at_ns = packet.pts * packet.time_base.numerator * 1_000_000_000 // packet.time_base.denominator
                first = at_ns if first is None else min(first, at_ns)
                last = max(last, at_ns)
                frames += 1
    return None if first is None else Measured(frames, last - first)


def find_differences(index: RecordingIndex, folder: Path, *, thorough: bool, live: bool = False) -> list[Difference]:
    """Compare the index with the files in `folder`, the folder of the recordings.

    If `thorough` is True, also read each file. If `live` is True, a program is recording at the same time. In this
    case, ignore the files that this program is writing.
    """
    listed = {file.name: file for file in index.files()}
    return [*_faults_of_listed(listed, folder, thorough=thorough, live=live), *_unlisted(index, folder)]


def _faults_of_listed(
    listed: dict[str, RecordedFile], folder: Path, *, thorough: bool, live: bool
) -> Iterator[Difference]:
    for name, file in listed.items():
        path = folder / name
        if file.state == "writing":
            if not live:
                yield Difference(name, "unfinished")
        elif not path.is_file():
            yield Difference(name, "missing")
        elif path.stat().st_size != file.nbytes:
            yield Difference(name, "size")
        elif thorough and ((found := measure(path)) is None or found.frames < file.frames):
            yield Difference(name, "unreadable")


def _unlisted(index: RecordingIndex, folder: Path) -> Iterator[Difference]:
    """Yield the recorded files that the index does not list. Ignore files whose names the program does not create."""
    paths = [path for path in sorted(folder.glob("*/*.mp4")) if NAME.fullmatch(path.name)]
    listed = {file.name for file in index.files()}  # after the folder, because files are listed before they exist
    for path in paths:
        name = f"{path.parent.name}/{path.name}"
        if name not in listed and path.exists():
            yield Difference(name, "unlisted")


def repair(index: RecordingIndex, folder: Path, differences: list[Difference]) -> None:
    """Correct the index to remove `differences`. Delete files without readable video, and entries without a file.

    Also remove incomplete fragments from the ends of the files.
    """
    listed = {file.name: file for file in index.files()}
    adopt = _Adopt(index)
    for difference in sorted(differences, key=lambda each: each.name):
        path = folder / difference.name
        file = listed.get(difference.name)
        if path.is_file():
            cut_torn_end(path)
        measured = measure(path) if path.is_file() else None
        if measured is None:
            path.unlink(missing_ok=True)
            index.remove_file(difference.name)
        elif file is None:
            adopt(difference.name, path, measured)
        else:
            end_utc_ns = file.start_utc_ns + measured.duration_ns
            nbytes, frames = path.stat().st_size, measured.frames
            complete = replace(file, end_utc_ns=end_utc_ns, nbytes=nbytes, frames=frames, state="complete")
            index.put_file(complete)
    index.remove_empty_recordings()


class _Adopt:
    """Callable object that adds recorded files to an index that does not list them.

    For example, a new index that replaces a damaged index lists no files.
    """

    def __init__(self, index: RecordingIndex) -> None:
        self._index = index
        self._last: dict[tuple[str, str], tuple[int, int]] = {}  # numbers of the file and its recording

    def __call__(self, name: str, path: Path, measured: Measured) -> None:
        """Add a file. The number in `name` shows whether the file belongs to the recording of the previous file."""
        parts = NAME.fullmatch(path.name)
        assert parts is not None
        kind: Kind = "clip" if parts["kind"] == "clip" else "continuous"
        camera, number = parts["camera"], int(parts["number"])
        last, recording = self._last.get((camera, kind), (0, 0))
        if number == 1 or number != last + 1:
            recording = self._index.add_recording(camera, kind)
        self._last[camera, kind] = number, recording
        second = calendar.timegm(time.strptime(parts["second"], "%Y%m%dT%H%M%S"))
        start_utc_ns = second * 1_000_000_000 + int(parts["ms"]) * 1_000_000
        end_utc_ns = start_utc_ns + measured.duration_ns
        size = path.stat().st_size
        self._index.put_file(RecordedFile(recording, name, start_utc_ns, end_utc_ns, size, measured.frames, 0))
