"""Comparison of two configurations of one deployment, and changes to a configuration while the program runs.

The program applies a `Plan` as a whole. If any key that differs needs a restart, the program applies nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from vision.config.analytics import CameraAnalytics
from vision.config.app import AppConfig, CameraConfig
from vision.config.checks import config_conflicts
from vision.config.document import Document, faulty
from vision.config.fields import ACCEPT_ANY, VERIFY
from vision.config.language import Inquiry
from vision.config.load import validated_part
from vision.config.privacy import CameraPrivacy
from vision.config.recording import RecordingConfig, recorded_cameras
from vision.config.sinks import SinkConfig
from vision.config.source_address import File, Folder, parse_source
from vision.config.wording import Loc, dotted
from vision.config.yaml_reader import read_document
from vision.errors import ConfigError, Fault

_WITHOUT_REOPENING: Final = ("max_fps", "max_frame_age_s", "report_after_s")
"""Keys of a camera that can change while it is connected."""

_LIVE_SECTIONS: Final = ("cameras", "report_after_s", "analytics", "privacy", "rules")
"""Sections that can change while the program runs."""

_NEEDS_RESTART: Final = "restart-needed"

_Part = TypeVar("_Part", CameraAnalytics, CameraPrivacy)
_Choosing = TypeVar("_Choosing", RecordingConfig, SinkConfig, Inquiry)
"""A section that applies to the cameras in its list `cameras`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The difference between the configuration of the running program and a new configuration."""

    added: tuple[str, ...] = ()  # ids of cameras, like the next three fields
    removed: tuple[str, ...] = ()
    reopened: tuple[str, ...] = ()  # cameras that connect again, with a new epoch
    adjusted: tuple[str, ...] = ()  # cameras whose rate, age limit, or report changes without a new connection
    stages: tuple[str, ...] = ()  # keys of tracking, analytics, privacy, rules, scores, and reports of all cameras
    restart: tuple[Loc, ...] = ()  # keys that need a restart

    @property
    def is_empty(self) -> bool:
        """True if the two configurations are equal."""
        return self == Plan()


def compare(running: AppConfig, new: AppConfig, detector_score: float) -> Plan:
    """Return the changes that the program must apply to switch from the configuration `running` to `new`.

    `detector_score` is the threshold with which the detector was opened. If `new` requires lower scores, the plan needs
    a restart.
    """
    before, after = _cameras(running), _cameras(new)
    removed = tuple(camera for camera in before if camera not in after)
    running, new = _unmentioned(running, removed), _unmentioned(new, removed)
    common = [camera for camera in after if camera in before]
    changed = {camera: _differing(before[camera], after[camera]) for camera in common}
    # Recording changes how a camera is read, so the camera must be opened again.
    recording = {*recorded_cameras(running.recording, common)} ^ {*recorded_cameras(new.recording, common)}
    reopened = [camera for camera in common if camera in recording or not changed[camera] <= set(_WITHOUT_REOPENING)]
    return Plan(
        added=tuple(camera for camera in after if camera not in before),
        removed=removed,
        reopened=tuple(reopened),
        adjusted=tuple(camera for camera in common if changed[camera] and camera not in reopened),
        stages=tuple(_stage_keys(running, new)),
        restart=tuple(_restart_keys(running, new, detector_score)),
    )


def _cameras(config: AppConfig) -> dict[str, dict[str, Any]]:
    return {camera.id: camera.model_dump() for camera in config.cameras}


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


def _stage_keys(running: AppConfig, new: AppConfig) -> Iterator[str]:
    before, after = running.model_dump(), new.model_dump()
    for key in ("analytics", "privacy"):
        yield from (f"{key}.{camera}" for camera in sorted(_differing(before[key], after[key])))
    for key in ("report_after_s", "rules"):
        if before[key] != after[key]:
            yield key
    if before["detect"]["score_threshold"] != after["detect"]["score_threshold"]:
        yield "detect.score_threshold"
    yield from (f"track.{key}" for key in sorted(_differing(before["track"], after["track"])))


def _restart_keys(running: AppConfig, new: AppConfig, detector_score: float) -> Iterator[Loc]:
    before, after = running.model_dump(), new.model_dump()
    if not running.watched_views:  # the stage that watches views is not open
        yield from _view_keys(new)
    for key in before:
        if key in _LIVE_SECTIONS or before[key] == after[key]:
            continue
        if not isinstance(before[key], dict) or not isinstance(after[key], dict):
            yield (key,)
            continue
        for part in sorted(_differing(before[key], after[key])):
            if not _is_live(key, part, new, detector_score):
                yield (key, part)


def _view_keys(config: AppConfig) -> Iterator[Loc]:
    """Yield the location of each key for which the program must compare frames with a camera's background."""
    yield from (("analytics", camera, "realign") for camera, section in config.analytics.items() if section.realign)
    for key in ("moved", "covered"):
        if getattr(config.report_after_s, key) is not None:
            yield ("report_after_s", key)
        for index, camera in enumerate(config.cameras):
            if getattr(camera.report_after_s, key) is not None:
                yield ("cameras", index, "report_after_s", key)


def _is_live(section: str, key: str, new: AppConfig, detector_score: float) -> bool:
    """Return True if the program can apply a new value of a key of a section without a restart."""
    if section == "recording":
        return key == "cameras"
    if section == "track":
        return key != "class_groups" and required_score(new) >= detector_score
    has_filter = not new.pipeline.endswith(".py")  # the stages of a file are unknown
    return (section, key) == ("detect", "score_threshold") and has_filter and required_score(new) >= detector_score


def required_score(config: AppConfig) -> float:
    """Return the lowest score that the detector must report. A tracker also needs objects below the threshold."""
    score = config.detect.score_threshold
    return score if config.pipeline == "detect" else min(score, config.track.low_score)


def restart_error(plan: Plan, path: Path | None) -> ConfigError:
    """Return the error for a plan that needs a restart. If `path` is not None, the error shows lines of this file."""
    document: Document | None = None
    if path is not None:
        try:
            document = read_document(path)
        except ConfigError:  # the file has changed since it was loaded
            document = None
    message = "cannot change while the program runs"
    hint = "nothing was changed; restart the program to apply the file"
    if document is None:
        faults = [Fault(0, 0, dotted(loc), _NEEDS_RESTART, message) for loc in plan.restart]
        return faulty("", faults, hint=hint)
    return faulty(document.name, [document.fault(loc, _NEEDS_RESTART, message) for loc in plan.restart], hint=hint)


# --- changes of a running program -------------------------------------------------------------------------------------


def read_camera(path: Path) -> dict[str, Any]:
    """Return the keys of one camera from a file, with absolute paths. ``${NAME}`` is not replaced.

    Raises:
        ConfigError: the file cannot be read, or is not valid YAML with keys and values.
    """
    document = read_document(path)
    if document.faults:
        raise document.error(document.faults)
    camera, folder = document.plain(), Path(os.path.abspath(path)).parent  # noqa: PTH100 - as `load_config`
    source, tls = camera.get("source"), camera.get("tls")
    if isinstance(source, str):
        try:
            is_path = isinstance(parse_source(source), File | Folder)
        except ValueError:  # the program reports the error
            is_path = False
        camera["source"] = str(folder / source) if is_path else source
    if isinstance(tls, str) and tls not in (VERIFY, ACCEPT_ANY):
        camera["tls"] = str(folder / tls)
    return camera


def with_camera(config: AppConfig, camera: Mapping[str, Any], environ: Mapping[str, str]) -> AppConfig:
    """Return `config` with one more camera, given by its keys as in camera.yaml. ``${NAME}`` comes from `environ`.

    Raises:
        ConfigError: a key is invalid or conflicts with the rest of the configuration, or a path is not absolute.
    """
    added = validated_part(CameraConfig, json.dumps(camera, ensure_ascii=False), "camera", environ)
    address, tls = added.address, added.tls
    if isinstance(address, File | Folder) and not Path(address.path).is_absolute():
        raise ConfigError("camera: source: expected the whole path of a file or folder", code="relative-path")
    if tls not in (VERIFY, ACCEPT_ANY) and not Path(tls).is_absolute():
        raise ConfigError("camera: tls: expected the whole path of a file", code="relative-path")
    return _checked(config, cameras=(*config.cameras, added))


def require_camera(config: AppConfig, camera_id: str) -> None:
    """Raise `ConfigError` if the configuration has no camera with this id."""
    if camera_id not in (camera.id for camera in config.cameras):
        known = ", ".join(camera.id for camera in config.cameras)
        raise ConfigError(f"expected the id of a camera ({known}), got {camera_id!r}", code="unknown-camera")


def without_camera(config: AppConfig, camera_id: str) -> AppConfig:
    """Return `config` without a camera, its lines and zones, and the rules that apply to no other camera.

    Also remove the camera from the lists of cameras of other sections, and from `privacy`.

    Raises:
        ConfigError: there is no such camera, it is the only one, or the rest of the configuration needs it.
    """
    require_camera(config, camera_id)
    if len(config.cameras) == 1:
        raise ConfigError(f"{camera_id} is the only camera", hint="stop the program instead", code="last-camera")
    analytics = {name: section for name, section in config.analytics.items() if name != camera_id}
    names = {line.name for section in analytics.values() for line in section.lines}
    names |= {zone.name for section in analytics.values() for zone in section.zones}
    rules = []
    for rule in config.rules:
        cameras = None if rule.cameras is None else tuple(name for name in rule.cameras if name != camera_id)
        if rule.condition.name in names and cameras != ():
            rules.append(rule.model_copy(update={"cameras": cameras}) if cameras != rule.cameras else rule)
    cameras_left = tuple(camera for camera in config.cameras if camera.id != camera_id)
    unmentioned = _unmentioned(config, (camera_id,))
    return _checked(unmentioned, cameras=cameras_left, analytics=analytics, rules=tuple(rules))


def _unmentioned(config: AppConfig, camera_ids: Collection[str]) -> AppConfig:
    """Return `config` without these cameras in `recording`, `sinks`, `verify`, `describe`, and `privacy`."""
    changes: dict[str, object] = {
        key: tuple(_without(section, camera_ids) for section in getattr(config, key))
        for key in ("sinks", "verify", "describe")
        if getattr(config, key)
    }
    if config.recording is not None:
        changes["recording"] = _without(config.recording, camera_ids)
    if config.privacy:
        changes["privacy"] = {name: part for name, part in config.privacy.items() if name not in camera_ids}
    return config.model_copy(update=changes)


def _without(section: _Choosing, camera_ids: Collection[str]) -> _Choosing:
    if section.cameras is None or not set(section.cameras) & set(camera_ids):
        return section
    cameras = tuple(name for name in section.cameras if name not in camera_ids)
    return section.model_copy(update={"cameras": cameras})


def with_analytics(config: AppConfig, camera_id: str, section: Mapping[str, Any] | None) -> AppConfig:
    """Return `config` with `section` as the lines and zones of one camera. If `section` is None, remove them.

    Raises:
        ConfigError: a key is invalid, or conflicts with the rest of the configuration.
    """
    return _checked(config, analytics=_with_part("analytics", config.analytics, camera_id, section, CameraAnalytics))


def with_privacy(config: AppConfig, camera_id: str, section: Mapping[str, Any] | None) -> AppConfig:
    """Return `config` with `section` as the masks and hidden classes of one camera. If `section` is None, remove them.

    Raises:
        ConfigError: a key is invalid, or conflicts with the rest of the configuration.
    """
    return _checked(config, privacy=_with_part("privacy", config.privacy, camera_id, section, CameraPrivacy))


def _with_part(
    name: str, parts: Mapping[str, _Part], camera_id: str, section: Mapping[str, Any] | None, kind: type[_Part]
) -> dict[str, _Part]:
    """Return `parts`, the entries of all cameras in the section `name`, with `section` as the entry of one camera.

    If `section` is None, remove the entry of this camera.
    """
    changed = {own: part for own, part in parts.items() if own != camera_id}
    if section is not None:
        changed[camera_id] = validated_part(kind, json.dumps(section, ensure_ascii=False), f"{name}.{camera_id}", {})
    return changed


def _checked(config: AppConfig, **changes: object) -> AppConfig:
    """Return `config` with changes. Raise `ConfigError` if they conflict with each other or with the rest."""
    changed = config.model_copy(update=changes)
    plain = changed.model_dump(exclude_unset=True)
    faults = [Fault(0, 0, dotted(loc), code, message) for loc, code, message in config_conflicts(plain)]
    if faults:
        raise faulty("", faults)
    return changed
