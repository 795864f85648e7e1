"""Conflicts of the section `privacy:` with the rest of a camera.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vision.config.fields import Conflict


def privacy_conflicts(config: Mapping[str, object]) -> Iterator[Conflict]:
    """Yield a conflict for each unknown camera, and for each recorded camera with masks or classes to blur."""
    privacy = config.get("privacy")
    if not isinstance(privacy, Mapping):
        return
    cameras = config.get("cameras")
    listed = cameras if isinstance(cameras, tuple) else ()
    ids = {str(camera.get("id")) for camera in listed if isinstance(camera, Mapping)}
    for name, section in privacy.items():
        if ids and name not in ids:
            yield Conflict(("privacy", name), "unknown-camera", "no camera has this id")
        if not isinstance(section, Mapping) or not (section.get("masks") or section.get("blur")):
            continue
        if _is_recorded(name, config.get("recording")):
            message = (
                "expected a camera that is not recorded, because recordings contain the video as the camera sends "
            )
            message += "it; list the other cameras in recording.cameras, or set the masks in the camera"
            yield Conflict(("privacy", name), "recorded-unmasked", message)


def _is_recorded(camera: object, recording: object) -> bool:
    if not isinstance(recording, Mapping):
        return False
    chosen = recording.get("cameras")
    return camera in chosen if isinstance(chosen, tuple | list) else True
