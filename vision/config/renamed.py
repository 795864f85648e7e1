"""Keys that were renamed, and words that other programs use for a key of this one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vision.config.wording import Loc

RENAMED: Final[Mapping[str, str]] = {
    "cameras[].via": "reader",
    "cameras[].staleness_s": "max_frame_age_s",
    "detect.score": "score_threshold",
    "detect.iou": "iou_threshold",
    "detect.slots": "batches_in_flight",
    "analytics.*.zones[].crowded_above": "crowd_threshold",
    "cascade.score": "score_threshold",
    "snapshots.most_files": "max_files",
    "snapshots.most_mb": "max_mb",
    "snapshots.longest_side_px": "max_side_px",
    "publish.keep_events": "max_events",
    "state": "state_dir",
    "nms.iou": "iou_threshold",  # model.yaml
}
"""The new key by the path of the old one."""

SYNONYMS: Final[Mapping[str, str]] = {
    "cameras[].name": "id",
    "cameras[].url": "source",
    "cameras[].path": "source",
    "detect.confidence": "score_threshold",
    "detect.threshold": "score_threshold",
    "analytics.*.zones[].points": "polygon",
    "analytics.*.zones[].coordinates": "polygon",
    "analytics.*.lines[].polygon": "points",
    "analytics.*.ground.polygon": "points",
}
"""The key by the path of a word that is used for it elsewhere."""


def key_path(loc: Loc) -> str:
    """Return the path of a key as the tables have it: ``cameras[].via``, ``analytics.*.zones[].points``."""
    path = ""
    for depth, part in enumerate(loc):
        if isinstance(part, int):
            path += "[]"
        else:
            key = "*" if depth == 1 and loc[0] == "analytics" else part
            path += f".{key}" if path else key
    return path


def with_new_keys(section: Mapping[str, object], loc: Loc = ()) -> Mapping[str, object]:
    """Return plain data with every renamed key replaced, so that the old key is its only fault."""
    return {
        RENAMED.get(key_path((*loc, key)), key): _with_new_keys(value, (*loc, key)) for key, value in section.items()
    }


def _with_new_keys(value: object, loc: Loc) -> object:
    if isinstance(value, tuple):
        return tuple(_with_new_keys(entry, (*loc, index)) for index, entry in enumerate(value))
    return with_new_keys(value, loc) if isinstance(value, dict) else value
