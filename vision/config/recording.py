"""The `recording:` section: clips of events, and continuous recording."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

from pydantic import Field

from vision.config.fields import ConfigSection, Conflict, FolderPath, Identifiers
from vision.config.source_address import Http, Rtsp, parse_source
from vision.config.wording import InvalidValue

_MIN_RING_MB: Final = 1


class RecordingConfig(ConfigSection):
    """Recording of the coded video of network cameras, without decoding it."""

    folder: FolderPath
    """Folder for the MP4 files, relative to this file; created if missing."""
    cameras: Identifiers | None = None
    """Ids of the cameras to record; all if absent."""
    mode: Literal["events", "continuous", "both"] = "events"
    """Recording mode; events: a clip of each event; continuous: everything; both: clips, and also everything."""
    kinds: Identifiers | None = None
    """Kinds of events that start a clip; all if absent."""
    names: Identifiers | None = None
    """Names of the rules, lines, and zones whose events start a clip; all if absent."""
    pre_s: float = Field(default=5.0, ge=0, le=60)
    """Minimum number of seconds before an event that its clip shows; a clip starts with a key frame."""
    post_s: float = Field(default=10.0, ge=0, le=600)
    """Number of seconds after an event that its clip shows; a further event extends the clip."""
    max_clip_s: float = Field(default=300.0, ge=10, le=3600)
    """Maximum length of a clip in seconds; later events start a new clip."""
    file_s: float = Field(default=300.0, ge=10, le=3600)
    """Length in seconds of the files of a continuous recording; each ends before a key frame."""
    ring_mb: int = Field(default=32, ge=_MIN_RING_MB, le=1024)
    """Memory of each camera in megabytes for the packets before an event, and for those that wait for the disk."""
    max_days: float = Field(default=30.0, gt=0, le=3650)
    """Maximum age of a file in days; older files are deleted."""
    max_gb: float = Field(default=50.0, gt=0, le=1_000_000)
    """Maximum total size in gigabytes; the oldest files are deleted first."""

    @property
    def has_clips(self) -> bool:
        return self.mode != "continuous"

    @property
    def is_continuous(self) -> bool:
        return self.mode != "events"


def recorded_cameras(recording: RecordingConfig | None, camera_ids: Sequence[str]) -> list[str]:
    """Return the ids in `camera_ids` whose cameras are recorded. If `recording` is None, no camera is recorded."""
    if recording is None:
        return []
    return [name for name in camera_ids if recording.cameras is None or name in recording.cameras]


def recording_conflicts(config: Mapping[str, object]) -> Iterator[Conflict]:
    """Yield the conflicts of the section `recording:` with the cameras and the rest of a camera.yaml."""
    recording = config.get("recording")
    if not isinstance(recording, Mapping):
        return
    cameras = config.get("cameras")
    by_id = {
        str(camera.get("id")): (index, camera)
        for index, camera in enumerate(cameras if isinstance(cameras, tuple) else ())
        if isinstance(camera, Mapping)
    }
    chosen = recording.get("cameras")
    for index, name in enumerate(chosen if isinstance(chosen, tuple) else ()):
        if isinstance(name, str) and name not in by_id:
            yield Conflict(("recording", "cameras", index), "unknown-camera", "no camera has this id")
    for name, (index, camera) in by_id.items():
        if not isinstance(chosen, tuple) or name in chosen:
            yield from (conflict.below("cameras", index) for conflict in _camera_conflicts(camera))
    if config.get("state_dir") is None:
        message = "expected state_dir too, the folder in which the recorded files are listed"
        yield Conflict(("recording",), "needs-state-dir", message)


def _camera_conflicts(camera: Mapping[str, object]) -> Iterator[Conflict]:
    source = camera.get("source")
    try:
        address = parse_source(source) if isinstance(source, str) else None
    except InvalidValue:
        return
    if address is not None and not isinstance(address, (Rtsp, Http)):
        message = "expected rtsp:// or http://, because only the video of network cameras is recorded; "
        message += "list the cameras to record in recording.cameras"
        yield Conflict(("source",), "not-recordable", message)
    elif camera.get("reader") == "gstreamer":
        message = "expected 'ffmpeg', 'nvdec' or 'auto', because recordings need packets from FFmpeg"
        yield Conflict(("reader",), "not-recordable", message)
