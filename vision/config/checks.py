"""Functions that find values that are valid separately but conflict with each other.

They read plain data, and ignore values that are missing or of the wrong type. Therefore, one fault does not hide a
second fault, and the same functions check files with faults and configurations that were built in Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeAlias

from vision.config.fields import IDENTIFIER, Conflict
from vision.config.language import language_conflicts
from vision.config.privacy_conflicts import privacy_conflicts
from vision.config.recording import recording_conflicts
from vision.config.rules import KINDS_OF_LINES, KINDS_OF_ZONES, RULE, Condition, parse_when
from vision.config.sinks import sinks_conflicts
from vision.config.source_address import (
    Csi,
    File,
    Folder,
    Http,
    Rtsp,
    SourceAddress,
    Synthetic,
    Usb,
    has_account,
    parse_source,
)
from vision.config.wording import InvalidValue, Loc, did_you_mean, dotted, nearest, one_of, quoted, with_advice

Section: TypeAlias = Mapping[str, object]

TRACK_SCORES: Final[Mapping[str, float]] = {"low_score": 0.15, "high_score": 0.5, "new_score": 0.55}
"""Defaults of the tracker's scores, in ascending order: a detection that can start a track can also extend a track."""

_WITHOUT_ANALYTICS: Final = ("detect", "track")

_SIZED: Final = (Csi, Usb, Synthetic)
_SIZED_TEXT: Final = "csi:, /dev/video and synthetic: sources; the frames of other sources keep their size"
_CAPTURE_OPTIONS: Final[Mapping[str, tuple[tuple[type[SourceAddress], ...], str]]] = {
    "transport": ((Rtsp,), "rtsp:// and rtsps:// sources"),
    "user": ((Rtsp, Http), "rtsp:// and http:// sources"),
    "password": ((Rtsp, Http), "rtsp:// and http:// sources"),
    "tls": ((Rtsp, Http), "rtsps:// and https:// sources"),
    "loop": ((File, Folder), "files and folders"),
    "width": (_SIZED, _SIZED_TEXT),
    "height": (_SIZED, _SIZED_TEXT),
    "fps": (
        (*_SIZED, File, Folder, Http),
        "folders, snapshot addresses, and csi:, /dev/video and synthetic: sources; see max_fps",
    ),
}
"""For each option, the kinds of sources that have it, and the text that names these kinds."""

_READERS: Final[Mapping[type[SourceAddress], tuple[str, ...]]] = {
    Rtsp: ("auto", "gstreamer", "ffmpeg", "nvdec"),
    Http: ("auto", "ffmpeg", "nvdec"),
    Csi: ("auto", "gstreamer"),
    Usb: ("auto", "opencv", "gstreamer"),
    Synthetic: ("auto",),
    File: ("auto", "ffmpeg", "nvdec"),
    Folder: ("auto",),
}
"""Values of `reader` that each kind of source accepts."""


@dataclass(frozen=True, slots=True)
class References:
    """Functions that describe a configured value, or the place where it is written, for a message, without secrets."""

    written: Callable[[Loc], str] = dotted  # the value itself
    line: Callable[[Loc], str] = lambda loc: f"in {dotted(loc)}"  # where the value is


def config_conflicts(config: Section, references: References = References()) -> Iterator[Conflict]:
    """Yield all conflicts between the values of a camera.yaml."""
    cameras, rules = list(_sections(config, "cameras")), list(_sections(config, "rules"))
    analytics = _mapping(config, "analytics")
    for loc, camera in cameras:
        yield from (conflict.below(*loc) for conflict in camera_conflicts(camera))
        if camera.get("reader") == "nvdec" and _mapping(config, "detect").get("backend") == "onnxruntime":
            message = "expected 'auto' or 'ffmpeg' with detect.backend: onnxruntime, which cannot read NVDEC's frames"
            yield Conflict((*loc, "reader"), "nvdec-detector", message)
        if camera.get("id") == "node":
            message = "expected a different name, because status/node is the topic of the program"
            yield Conflict((*loc, "id"), "reserved-id", message)
    yield from _repeated("id", cameras, references)
    devices = [(loc, camera) for loc, camera in cameras if str(camera.get("source")).startswith(("csi:", "/dev/"))]
    yield from _repeated("source", devices, references)
    yield from (conflict.below("track") for conflict in tracking_conflicts(_mapping(config, "track")))
    yield from _unknown_cameras(analytics, cameras, references)
    for name in analytics:
        yield from analytics_conflicts(_mapping(analytics, name), references, ("analytics", name))
    yield from _undetected_classes(config)
    for loc, rule in rules if analytics or not config.get("analytics") else ():
        yield from (conflict.below(*loc) for conflict in _rule_conflicts(rule, analytics))
    yield from _repeated("name", rules, references)
    yield from _pipeline_conflicts(config)
    yield from language_conflicts(config, _event_kinds(config))
    yield from _replay_conflicts(config)
    yield from recording_conflicts(config)
    yield from privacy_conflicts(config)
    yield from sinks_conflicts(config)
    yield from _repeated("name", list(_sections(config, "sinks")), references)
    yield from (conflict.below("publish") for conflict in publish_conflicts(_mapping(config, "publish")))
    for name in ("http", "page"):
        server = _mapping(config, name)
        if isinstance(server.get("bind"), str) and not _is_local(f"tcp://{server['bind']}") and not server.get("token"):
            message = "expected `token` too, because other machines can reach this address"
            yield Conflict((name, "bind"), "insecure-address", message)
    yield from (conflict.below("onvif") for conflict in _onvif_conflicts(_mapping(config, "onvif")))


def _onvif_conflicts(onvif: Section) -> Iterator[Conflict]:
    for given, other in (("user", "password"), ("password", "user")):
        if onvif.get(given) is not None and onvif.get(other) is None:
            yield Conflict((given,), "given-alone", f"expected {other} too, because the keys are only valid together")
    if isinstance(onvif.get("bind"), str) and not _is_local(f"tcp://{onvif['bind']}") and not onvif.get("user"):
        message = "expected `user` and `password` too, because other machines can reach this address"
        yield Conflict(("bind",), "insecure-address", message)


def pipeline_name(config: Section) -> object:
    """Return the name of the configured pipeline. Its default depends on `analytics` and `objects`."""
    default = "count" if config.get("analytics") else "track" if config.get("objects") is not None else "detect"
    return config.get("pipeline", default)


# --- cameras ----------------------------------------------------------------------------------------------------------


def camera_conflicts(camera: Section) -> Iterator[Conflict]:
    """Yield the conflicts of a camera's options with its source or with each other."""
    for given, other in (("width", "height"), ("height", "width"), ("user", "password"), ("password", "user")):
        if camera.get(given) is not None and camera.get(other) is None:
            yield Conflict((given,), "given-alone", f"expected {other} too, because the keys are only valid together")
    source, reader = camera.get("source"), camera.get("reader")
    try:
        address = parse_source(source) if isinstance(source, str) else None
    except InvalidValue:
        address = None
    if address is None:
        return
    if has_account(address) and (camera.get("user") is not None or camera.get("password") is not None):
        message = "expected no user and password in the address, because the keys user and password contain them"
        yield Conflict(("source",), "two-accounts", message)
    for option, (kinds, kinds_text) in _CAPTURE_OPTIONS.items():
        value = camera.get(option)
        if not isinstance(address, kinds) and (value is True if option == "loop" else value is not None):
            yield Conflict((option,), "no-effect", f"has no effect on this source, only on {kinds_text}")
    libraries = _READERS[type(address)]
    if reader in ("opencv", "gstreamer", "ffmpeg", "nvdec") and reader not in libraries:
        expected = one_of([f"'{name}'" for name in libraries])
        yield Conflict(("reader",), "wrong-reader", f"expected {expected} for this kind of source, got '{reader}'")
    if reader == "nvdec" and camera.get("transport") == "udp":
        message = "expected tcp with reader: nvdec, which does not report frames that lost packets have damaged"
        yield Conflict(("transport",), "lossy-transport", message)


def tracking_conflicts(track: Section) -> Iterator[Conflict]:
    """Yield the conflicts in `track:`: scores not in the order of `TRACK_SCORES`, and classes in two `class_groups`."""
    scores = [(key, track.get(key, default)) for key, default in TRACK_SCORES.items()]
    for (key, value), (next_key, next_value) in pairwise(scores):
        if isinstance(value, int | float) and isinstance(next_value, int | float) and value > next_value:
            wrong_key = key if key in track else next_key
            message = f"expected {key} ({value:g}) to be at most {next_key} ({next_value:g})"
            yield Conflict((wrong_key,), "score-order", message)
    yield from _classes_in_two_groups(track.get("class_groups"))


def _classes_in_two_groups(groups: object) -> Iterator[Conflict]:
    seen: set[str] = set()
    for number, group in enumerate(groups if isinstance(groups, tuple | list) else ()):
        names = {name for name in group if isinstance(name, str)} if isinstance(group, tuple | list) else set()
        for name in sorted(names & seen):
            message = f"expected {name!r} in one group only"
            yield Conflict(("class_groups", number), "class-in-two-groups", message)
        seen |= names


# --- lines and zones --------------------------------------------------------------------------------------------------


def analytics_conflicts(
    section: Section, references: References = References(), base: tuple[str, ...] = ()
) -> Iterator[Conflict]:
    """Yield the conflicts between lines, zones, and ground points of one camera. `base` is the section's location."""
    shapes = [*_sections(section, "lines", *base), *_sections(section, "zones", *base)]
    yield from _repeated("name", shapes, references)
    units = section.get("units", "pixels")
    for loc, shape in shapes:
        key = "points" if loc[-2] == "lines" else "polygon"
        yield from _unit_conflicts((*loc, key), shape.get(key), units)
        holes = shape.get("holes")
        for number, hole in enumerate(holes if isinstance(holes, tuple) else ()):
            yield from _unit_conflicts((*loc, "holes", number), hole, units)
        if shape.get("crowded_for_s") is not None and "crowd_threshold" not in shape:
            yield Conflict((*loc, "crowded_for_s"), "no-effect", "has no effect without crowd_threshold")
    yield from _unit_conflicts((*base, "ground", "points"), _mapping(section, "ground").get("points"), units)


def _unit_conflicts(loc: Loc, shape: object, units: object) -> Iterator[Conflict]:
    points = {
        index: [value for value in point if isinstance(value, int | float)]
        for index, point in enumerate(shape if isinstance(shape, tuple) else ())
        if isinstance(point, tuple)
    }
    largest = max((value for point in points.values() for value in point), default=0.0)
    whole = {"fraction": 1, "percent": 100}.get(str(units), math.inf)
    expected = "fractions from 0 to 1" if units == "fraction" else "percent from 0 to 100"
    for index, point in points.items():
        if any(value > whole for value in point):
            yield Conflict((*loc, index), "wrong-unit", f"expected {expected}, because units is {units}")
    if 0 < largest <= 1 and units in ("percent", "pixels"):
        unit, other = ("percent", "percent from 0 to 100") if units == "percent" else ("pixel", "coordinates in pixels")
        message = f"expected {other}, or `units: fraction` next to lines and zones, got points within one {unit}"
        yield Conflict(loc, "wrong-unit", message)


def _unknown_cameras(
    analytics: Section, cameras: Sequence[tuple[Loc, Section]], references: References
) -> Iterator[Conflict]:
    places = {name: (*loc, "id") for loc, camera in cameras if isinstance(name := camera.get("id"), str)}
    if not places or any(not isinstance(camera.get("id"), str) for _, camera in cameras):
        return  # the section can belong to the camera without a valid id
    for name in analytics:
        if name not in places and IDENTIFIER.fullmatch(name):
            advice = f"; expected {one_of([references.written(place) for place in places.values()])}"
            if (near := nearest(name, places)) is not None:
                advice = f" (did you mean {references.written(places[near])}?)"
            yield Conflict(("analytics", name), "unknown-camera", f"no camera has this id{advice}")


def class_lists(config: Section) -> Iterator[tuple[Loc, tuple[object, ...]]]:
    """Yield the location and the content of every list of class names."""
    analytics = _mapping(config, "analytics")
    shapes = [(("analytics", *loc), shape) for camera in analytics for loc, shape in _shapes(analytics, camera)]
    sections = [((key,), _mapping(config, key)) for key in ("detect", "cascade")]
    inquiries = [*_sections(config, "verify"), *_sections(config, "describe")]
    for loc, section in [*sections, *shapes, *inquiries]:
        names = section.get("classes")
        if isinstance(names, tuple):
            yield (*loc, "classes"), names
    groups = _mapping(config, "track").get("class_groups")
    for number, names in enumerate(groups if isinstance(groups, tuple) else ()):
        if isinstance(names, tuple):
            yield ("track", "class_groups", number), names
    privacy = _mapping(config, "privacy")
    for camera in privacy:
        names = _mapping(privacy, camera).get("blur")
        if isinstance(names, tuple):
            yield ("privacy", camera, "blur"), names


def _undetected_classes(config: Section) -> Iterator[Conflict]:
    kept = _mapping(config, "detect").get("classes")
    if not isinstance(kept, tuple) or not all(isinstance(name, str) for name in kept):
        return
    for loc, names in class_lists(config):
        for index, name in enumerate(names):
            if loc[0] in ("analytics", "verify", "describe", "privacy") and isinstance(name, str) and name not in kept:
                message = "this class is never detected, because detect.classes does not include it"
                yield Conflict((*loc, index), "never-detected", message)


# --- rules ------------------------------------------------------------------------------------------------------------

# For each state, the key that a zone needs, and the key that already delays the state.
_NEEDED: Final = {"crowded": "crowd_threshold", "dwelling": "dwell_s"}
_DELAY: Final = {"crowded": "crowded_for_s", "dwelling": "dwell_s"}


def _rule_conflicts(rule: Section, analytics: Section) -> Iterator[Conflict]:
    """Yield the conflicts of a rule: unknown cameras and names, and lines or zones that cannot report its event."""
    when, cameras = rule.get("when"), rule.get("cameras")
    try:
        condition = parse_when(when) if isinstance(when, str) else None
    except InvalidValue:
        condition = None
    if condition is None:
        return
    chosen = [name for name in map(str, cameras) if name in analytics] if isinstance(cameras, tuple) else [*analytics]
    if isinstance(cameras, tuple) and len(chosen) < len(cameras):
        message = "expected a camera that has lines or zones under analytics"
        unknown = [index for index, name in enumerate(cameras) if name not in analytics]
        yield from (Conflict(("cameras", index), "unknown-camera", message) for index in unknown)
        return
    shapes = [(camera, loc[1], shape) for camera in chosen for loc, shape in _shapes(analytics, camera)]
    having = [(camera, key, shape) for camera, key, shape in shapes if shape.get("name") == condition.name]
    missing = [name for name in chosen if name not in {camera for camera, _, _ in having}]
    if not having or (missing and isinstance(cameras, tuple)):
        names = sorted({name for _, _, shape in shapes if isinstance(name := shape.get("name"), str)})
        where = f" of camera {one_of(missing)}" if missing and isinstance(cameras, tuple) else ""
        text = f"no line or zone{where} is called {quoted(condition.name)}; expected "
        text += one_of(names) if names else "some under analytics"
        advice = did_you_mean(condition.name, [name for name in names if name != condition.name])
        yield Conflict(("when",), "unknown-name", with_advice(text, advice))
        return
    for camera, key, shape in having:
        misfit = _misfit(condition, f"analytics.{camera}", str(key), shape)
        if misfit is not None:
            yield Conflict(("when",), *misfit)


def _misfit(condition: Condition, place: str, key: str, shape: Section) -> tuple[str, str] | None:
    """Return a code and a message if a line or zone never reports a rule's event, or reports the event too late.

    Otherwise, return None.
    """
    kind, where = condition.kind, f"{condition.name} in {place}"
    kinds = KINDS_OF_LINES if key == "lines" else KINDS_OF_ZONES
    if kind not in kinds:
        return "wrong-kind", f"{where} is a {key.removesuffix('s')}; expected {one_of(kinds)}, got {quoted(kind)}"
    if kind in _NEEDED and shape.get(_NEEDED[kind]) is None:
        return "never-begins", f"{where} has no {_NEEDED[kind]}, so it is never {kind}"
    delay_s = shape.get(_DELAY.get(kind, ""))
    if condition.for_s and isinstance(delay_s, int | float) and condition.for_s < delay_s:
        return "short-duration", f"expected a duration of at least {_DELAY[kind]} of {where}, which is {delay_s:g}s"
    return None


# --- the pipeline and the sockets -------------------------------------------------------------------------------------


def _pipeline_conflicts(config: Section) -> Iterator[Conflict]:
    """Yield a conflict for each section that the pipeline does not use, and each unknown kind in `snapshots.kinds`."""
    pipeline = pipeline_name(config)
    unused = [
        ("analytics", _WITHOUT_ANALYTICS, "has no lines and zones; expected pipeline: count"),
        ("rules", _WITHOUT_ANALYTICS, "has no events; expected pipeline: count"),
        ("snapshots", _WITHOUT_ANALYTICS, "has no events; expected pipeline: count"),
        ("archive", ("detect",), "does not track objects; expected pipeline: track or count"),
        ("cascade", ("detect",), "does not track objects; expected pipeline: track or count"),
        ("objects", ("detect",), "does not track objects; expected pipeline: track or count"),
    ]
    if _mapping(config, "recording").get("mode") != "continuous":
        unused.append(("recording", _WITHOUT_ANALYTICS, "has no events; expected mode: continuous, pipeline: count"))
    for key, pipelines, problem in unused:
        if (config.get(key) or (config.get(key) == {} and key == "objects")) and pipeline in pipelines:
            yield Conflict((key,), "wrong-pipeline", f"the pipeline {pipeline} {problem}, or your own file")
    event_kinds = _event_kinds(config) or ()
    kinds = _mapping(config, "snapshots").get("kinds")
    for index, kind in enumerate(kinds if pipeline == "count" and isinstance(kinds, tuple) else ()):
        if isinstance(kind, str) and kind not in event_kinds:
            expected = f"expected {one_of(event_kinds)}, got {quoted(kind)}"
            message = with_advice(expected, did_you_mean(kind, event_kinds))
            yield Conflict(("snapshots", "kinds", index), "unknown-kind", message)


def _event_kinds(config: Section) -> tuple[str, ...] | None:
    """Return the kinds of events of the pipeline, or None if they are not known."""
    kinds = {"count": (*KINDS_OF_LINES, *KINDS_OF_ZONES, RULE)} | dict.fromkeys(_WITHOUT_ANALYTICS, ())
    return kinds.get(str(pipeline_name(config)))


def _replay_conflicts(config: Section) -> Iterator[Conflict]:
    publish = _mapping(config, "publish")
    replay, bind = publish.get("replay"), publish.get("bind", "tcp://127.0.0.1:5555")
    if not isinstance(replay, str):
        return
    loc = ("publish", "replay")
    if config.get("state_dir") is None:
        yield Conflict(loc, "needs-state-dir", "expected state_dir too, the folder in which events are stored")
    port = replay.rpartition(":")[2]
    same_port = isinstance(bind, str) and port.isdigit() and port != "0" and port == bind.rpartition(":")[2]
    if (replay == bind and not replay.endswith((":*", ":0"))) or same_port:
        yield Conflict(loc, "same-address", "expected an address and a port that differ from those of publish.bind")


def publish_conflicts(publish: Section) -> Iterator[Conflict]:
    """Yield a conflict for each address that other machines can reach, unless `curve` or `insecure` is set."""
    if publish.get("curve") is not None or publish.get("insecure") is True:
        return
    for key in ("bind", "replay"):
        address = publish.get(key)
        if isinstance(address, str) and not _is_local(address):
            message = (
                "expected `curve` too, because other machines can reach this address, and everyone there can read the "
                "messages; if you want this, add `insecure: true`"
            )
            yield Conflict((key,), "insecure-address", message)


def _is_local(bind: str) -> bool:
    """Return True if only this machine can reach an address, or if it is malformed."""
    host = bind.removeprefix("tcp://").rpartition(":")[0]
    return not bind.startswith("tcp://") or host in ("", "lo", "[::1]") or host.startswith("127.")


# --- plain data -------------------------------------------------------------------------------------------------------


def _mapping(section: Section, key: str) -> Section:
    value = section.get(key)
    return value if isinstance(value, Mapping) else {}


def _sections(section: Section, key: str, *base: str) -> Iterator[tuple[Loc, Section]]:
    """Yield the location and content of each mapping in the list at `key`."""
    value = section.get(key)
    for index, entry in enumerate(value if isinstance(value, tuple) else ()):
        if isinstance(entry, Mapping):
            yield (*base, key, index), entry


def _shapes(analytics: Section, camera: str) -> Iterator[tuple[Loc, Section]]:
    """Yield the location, such as ``(camera, "zones", 0)``, and content of each line and zone of a camera."""
    for key in ("lines", "zones"):
        yield from _sections(_mapping(analytics, camera), key, camera)


def _repeated(key: str, named: Iterable[tuple[Loc, Section]], references: References) -> Iterator[Conflict]:
    first: dict[str, Loc] = {}
    for base, section in named:
        name, loc = section.get(key), (*base, key)
        if isinstance(name, str) and first.setdefault(name, loc) != loc:
            message = f"duplicate {key} {references.written(loc)}, first {references.line(first[name])}"
            yield Conflict(loc, f"duplicate-{key}", message)
