"""Checks for values that are valid alone but conflict with each other.

The checks read plain data and ignore values that are missing or of the wrong type. So one fault does not hide another,
and the same functions check a file with faults and a configuration that was built in Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeAlias

from vision.config.rules import KINDS_OF_LINES, KINDS_OF_ZONES, RULE, rule_conflicts
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
from vision.config.wording import InvalidValue, Loc, dotted, nearest, one_of, quoted

Conflict: TypeAlias = tuple[Loc, str]

PIPELINES_WITHOUT_ANALYTICS: Final = ("detect", "track")
PIPELINES_WITHOUT_TRACKS: Final = ("detect",)

TRACK_SCORES: Final[Mapping[str, float]] = {"low_score": 0.15, "high_score": 0.5, "new_score": 0.55}
"""Defaults of the tracker's scores, in ascending order."""

_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

_CAPTURE_OPTIONS: Final[Mapping[str, tuple[tuple[type[SourceAddress], ...], str]]] = {
    "transport": ((Rtsp,), "rtsp:// and rtsps:// sources have"),
    "user": ((Rtsp, Http), "rtsp:// and http:// sources have"),
    "password": ((Rtsp, Http), "rtsp:// and http:// sources have"),
    "loop": ((File, Folder), "files have"),
    "width": (
        (Csi, Usb, Synthetic),
        "csi:, /dev/video and synthetic: sources have; other frames come as they are",
    ),
    "height": (
        (Csi, Usb, Synthetic),
        "csi:, /dev/video and synthetic: sources have; other frames come as they are",
    ),
    "fps": (
        (Csi, Usb, Synthetic, File, Folder),
        "csi:, /dev/video and synthetic: sources and folders have; see max_fps",
    ),
}

_READERS: Final[Mapping[type[SourceAddress], tuple[str, ...]]] = {
    Rtsp: ("auto", "gstreamer", "ffmpeg", "nvdec"),
    Http: ("auto", "ffmpeg", "nvdec"),
    Csi: ("auto", "gstreamer"),
    Usb: ("auto", "opencv", "gstreamer"),
    Synthetic: ("auto",),
    File: ("auto", "ffmpeg", "nvdec"),
    Folder: ("auto",),
}


@dataclass(frozen=True, slots=True)
class References:
    """Ways to refer to another value without printing a secret."""

    place: Callable[[Loc], str] = dotted
    written: Callable[[Loc], str] = dotted
    line: Callable[[Loc], str] = lambda loc: f"in {dotted(loc)}"


def config_conflicts(config: Mapping[str, object], references: References) -> Iterator[Conflict]:
    """Yield the conflicts of a whole camera.yaml."""
    cameras = list(_sections(config.get("cameras")))
    for index, camera in cameras:
        yield from _below(("cameras", index), camera_conflicts(camera))
    yield from _repeated([(("cameras", index, "id"), _text(camera, "id")) for index, camera in cameras], references)
    for index, camera in cameras:
        if _text(camera, "id") == "node":
            yield ("cameras", index, "id"), "expected another name: status/node is the topic of the program itself"
    yield from _shared_devices(cameras, references)
    track = config.get("track")
    if isinstance(track, Mapping):
        yield from _below(("track",), tracking_conflicts(track))
    analytics = config.get("analytics")
    if isinstance(analytics, Mapping) and analytics:
        yield from _unwatched(config)
        yield from _unknown_cameras(analytics, cameras, references)
        for name, section in analytics.items():
            if isinstance(section, Mapping):
                yield from _below(
                    ("analytics", str(name)), analytics_conflicts(section, references, ("analytics", str(name)))
                )
        yield from _filtered_classes(config, analytics)
    for index, rule in _sections(config.get("rules")):
        yield from _below(("rules", index), rule_conflicts(rule, analytics))
    yield from _repeated(
        [(("rules", index, "name"), _text(rule, "name")) for index, rule in _sections(config.get("rules"))], references
    )
    yield from _without_tracks(config)
    yield from _unheard_events(config)
    yield from _replay_conflicts(config)


def pipeline_name(config: Mapping[str, object]) -> object:
    """Return the pipeline of a configuration. Default: count if there are analytics, otherwise detect."""
    return config.get("pipeline", "count" if config.get("analytics") else "detect")


def camera_conflicts(camera: Mapping[str, object]) -> Iterator[Conflict]:
    """Yield options that a source of this kind does not support, and options that need another one."""
    for given, missing in (("width", "height"), ("height", "width"), ("user", "password"), ("password", "user")):
        if _is_given(camera, given) and not _is_given(camera, missing):
            yield (given,), f"expected {missing} too: they are given together"
    source = _text(camera, "source")
    if source is None:
        return
    try:
        address = parse_source(source)
    except InvalidValue:
        return
    if has_account(address) and (_is_given(camera, "user") or _is_given(camera, "password")):
        yield ("source",), "expected no user and password in the address, since the keys user and password hold them"
    for option, (kinds, who) in _CAPTURE_OPTIONS.items():
        value = camera.get(option)
        if not isinstance(address, kinds) and (value is True if option == "loop" else value is not None):
            yield (option,), f"has no effect on this source; only {who}"
    reader, libraries = _text(camera, "reader"), _READERS[type(address)]
    if reader in ("opencv", "gstreamer", "ffmpeg", "nvdec") and reader not in libraries:
        yield (
            ("reader",),
            f"expected {one_of([quoted(name) for name in libraries])} for this kind of source, got '{reader}'",
        )
    if reader == "nvdec" and _text(camera, "transport") == "udp":
        yield (
            ("transport",),
            "expected tcp with reader: nvdec, which does not report frames that lost packets have damaged",
        )


def tracking_conflicts(track: Mapping[str, object]) -> Iterator[Conflict]:
    """Yield scores in the wrong order: a detection that starts a track must be able to extend one."""
    scores = [(key, track.get(key, default)) for key, default in TRACK_SCORES.items()]
    for (key, value), (next_key, next_value) in pairwise(scores):
        if isinstance(value, int | float) and isinstance(next_value, int | float) and value > next_value:
            wrong_key = key if key in track else next_key
            yield (wrong_key,), f"expected {key} ({value:g}) to be at most {next_key} ({next_value:g})"


def analytics_conflicts(
    section: Mapping[str, object], references: References | None = None, base: Loc = ()
) -> Iterator[Conflict]:
    """Yield duplicate names, coordinates outside of their unit, and options without effect."""
    shapes = [((kind, index), shape) for kind in ("lines", "zones") for index, shape in _sections(section.get(kind))]
    named = [((*loc, "name"), _text(shape, "name")) for loc, shape in shapes]
    yield from _repeated(named, references or References(), base)
    units = section.get("units", "pixels")
    for loc, shape in shapes:
        key = "points" if loc[0] == "lines" else "polygon"
        yield from _below((*loc, key), _unit_conflicts(_coordinates(shape.get(key)), units))
        if _is_given(shape, "crowded_for_s") and "crowd_threshold" not in shape:
            yield (*loc, "crowded_for_s"), "has no effect without crowd_threshold"
    ground = section.get("ground")
    if isinstance(ground, Mapping):
        yield from _below(("ground", "points"), _unit_conflicts(_coordinates(ground.get("points")), units))


# --- parts ------------------------------------------------------------------------------------------------------------


def _sections(value: object) -> Iterator[tuple[int, Mapping[str, object]]]:
    for index, entry in enumerate(value if isinstance(value, tuple) else ()):
        if isinstance(entry, Mapping):
            yield index, entry


def _text(section: Mapping[str, object], key: str) -> str | None:
    value = section.get(key)
    return value if isinstance(value, str) else None


def _is_given(section: Mapping[str, object], key: str) -> bool:
    return section.get(key) is not None


def _below(base: Loc, conflicts: Iterator[Conflict]) -> Iterator[Conflict]:
    return (((*base, *loc), text) for loc, text in conflicts)


def _repeated(named: Sequence[tuple[Loc, str | None]], references: References, base: Loc = ()) -> Iterator[Conflict]:
    first: dict[str, Loc] = {}
    for loc, name in named:
        if name is None:
            continue
        if name in first:
            yield (
                loc,
                (
                    f"duplicate {loc[-1]} {references.written((*base, *loc))}, "
                    f"first {references.line((*base, *first[name]))}"
                ),
            )
        else:
            first[name] = loc


def _shared_devices(cameras: Sequence[tuple[int, Mapping[str, object]]], references: References) -> Iterator[Conflict]:
    first: dict[str, Loc] = {}
    for index, camera in cameras:
        source = _text(camera, "source") or ""
        if not source.startswith(("csi:", "/dev/")):
            continue
        loc: Loc = ("cameras", index, "source")
        if source in first:
            yield (
                loc,
                f"expected another device than {references.place(first[source])}: a device can be opened only once",
            )
        else:
            first[source] = loc


def _unwatched(config: Mapping[str, object]) -> Iterator[Conflict]:
    pipeline = pipeline_name(config)
    if pipeline in PIPELINES_WITHOUT_ANALYTICS:
        yield (
            ("analytics",),
            f"the pipeline {pipeline} has no lines and zones; expected pipeline: count, or a file of your own",
        )


def _without_tracks(config: Mapping[str, object]) -> Iterator[Conflict]:
    pipeline = pipeline_name(config)
    if pipeline in PIPELINES_WITHOUT_TRACKS and config.get("cascade") is not None:
        yield (
            ("cascade",),
            f"the pipeline {pipeline} does not track objects; expected pipeline: track or count, or a file of your own",
        )


def _unheard_events(config: Mapping[str, object]) -> Iterator[Conflict]:
    """Yield rules and snapshots of events that the pipeline does not have."""
    pipeline = pipeline_name(config)
    if pipeline in PIPELINES_WITHOUT_ANALYTICS:
        for key in ("rules", "snapshots"):
            if config.get(key):
                text = f"the pipeline {pipeline} has no events; expected pipeline: count, or a file of your own"
                yield (key,), text
    snapshots, event_kinds = config.get("snapshots"), (*KINDS_OF_LINES, *KINDS_OF_ZONES, RULE)
    kinds = snapshots.get("kinds") if isinstance(snapshots, Mapping) else None
    for index, kind in enumerate(kinds if pipeline == "count" and isinstance(kinds, tuple) else ()):
        if isinstance(kind, str) and kind not in event_kinds:
            near = nearest(kind, event_kinds)
            advice = f" (did you mean {quoted(near)}?)" if near is not None else ""
            yield ("snapshots", "kinds", index), f"expected {one_of(event_kinds)}, got {quoted(kind)}{advice}"


def _replay_conflicts(config: Mapping[str, object]) -> Iterator[Conflict]:
    publish = config.get("publish")
    replay = publish.get("replay") if isinstance(publish, Mapping) else None
    if not isinstance(publish, Mapping) or not isinstance(replay, str):
        return
    if config.get("state_dir") is None:
        yield ("publish", "replay"), "needs state_dir: the folder in which events are kept"
    bind = publish.get("bind", "tcp://127.0.0.1:5555")
    port = replay.rpartition(":")[2]
    same_port = isinstance(bind, str) and port.isdigit() and port != "0" and port == bind.rpartition(":")[2]
    if (replay == bind and not replay.endswith((":*", ":0"))) or same_port:
        yield ("publish", "replay"), "expected another address and port than publish.bind has"


def _unknown_cameras(
    analytics: Mapping[object, object], cameras: Sequence[tuple[int, Mapping[str, object]]], references: References
) -> Iterator[Conflict]:
    places = {name: index for index, camera in cameras if (name := _text(camera, "id")) is not None}
    if not cameras or any(_text(camera, "id") is None for _, camera in cameras):
        return  # the camera without a valid id may be the one that is meant
    for name in map(str, analytics):
        if name in places or not _IDENTIFIER.fullmatch(name):
            continue
        near = nearest(name, places)
        if near is not None:
            text = f"no camera has this id (did you mean {references.written(('cameras', places[near], 'id'))}?)"
        else:
            ids = one_of([references.written(("cameras", index, "id")) for index in places.values()])
            text = f"no camera has this id; expected {ids}"
        yield ("analytics", name), text


def _unit_conflicts(points: Sequence[tuple[int, tuple[float, ...]]], units: object) -> Iterator[Conflict]:
    largest = max((value for _, point in points for value in point), default=0.0)
    whole, expected = {"fraction": (1, "fractions from 0 to 1"), "percent": (100, "percent from 0 to 100")}.get(
        str(units), (None, "")
    )
    if whole is not None:
        for index, point in points:
            if any(value > whole for value in point):
                yield (index,), f"expected {expected}, because units is {units}"
    if units == "percent" and 0 < largest <= 1:
        yield (), "all within one percent; expected units: fraction next to lines and zones, or percent from 0 to 100"
    elif units == "pixels" and 0 < largest <= 1:
        yield (), "all within one pixel; expected units: fraction next to lines and zones, or coordinates in pixels"


def _coordinates(shape: object) -> list[tuple[int, tuple[float, ...]]]:
    points = enumerate(shape if isinstance(shape, tuple) else ())
    return [
        (index, tuple(float(value) for value in point if isinstance(value, int | float)))
        for index, point in points
        if isinstance(point, tuple)
    ]


def _filtered_classes(config: Mapping[str, object], analytics: Mapping[object, object]) -> Iterator[Conflict]:
    detect = config.get("detect")
    kept = detect.get("classes") if isinstance(detect, Mapping) else None
    if not isinstance(kept, tuple) or not all(isinstance(name, str) for name in kept):
        return
    for loc, names in _analytics_classes(analytics):
        for index, name in enumerate(names):
            if isinstance(name, str) and name not in kept:
                yield (*loc, index), "never detected, because detect.classes does not include it"


def _analytics_classes(analytics: Mapping[object, object]) -> Iterator[tuple[Loc, tuple[object, ...]]]:
    """Yield the `classes` of every line and zone."""
    for camera, section in analytics.items():
        for kind in ("lines", "zones"):
            for index, shape in _sections(section.get(kind) if isinstance(section, Mapping) else None):
                names = shape.get("classes")
                if isinstance(names, tuple):
                    yield ("analytics", str(camera), kind, index, "classes"), names
