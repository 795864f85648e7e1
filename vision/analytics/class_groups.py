"""Groups of classes that a detector confuses with each other, such as car, truck, and bus.

Without groups, a vehicle becomes two objects if the detector classifies it as a car in one frame and as a truck in the
next frame. With groups, the vehicle is one track, and its class is the class with the most votes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy import count_nonzero
from numpy.typing import NDArray

from vision.analytics.geometry import BoolArray, FloatArray, IndexArray, iou

ClassIds = NDArray[np.int32]

DEFAULT_GROUPS: Final = (("car", "truck", "bus"),)
"""The groups of a model that has these classes: vehicles with four wheels."""

_SAME_OBJECT_IOU: Final = 0.6  # two boxes of one group that overlap this much are one object
_MARGIN: Final = 0.2  # lead of a new class, as a fraction of all votes


class ClassGroups:
    """Assignment of each class to a group. The number of a group is the id of one of its classes.

    Args:
        class_names: classes of the model, by class id.
        groups: class names of each group. Class names that the model does not have are ignored.
    """

    def __init__(self, class_names: Sequence[str], groups: Sequence[Sequence[str]]) -> None:
        self._group: ClassIds = np.arange(len(class_names), dtype=np.int32)
        for names in groups:
            members = np.isin(class_names, names)
            if count_nonzero(members):
                self._group[members] = members.argmax()
        self.grouped = len(set(self._group.tolist())) < len(self._group)  # whether any class shares its group

    def of(self, class_ids: ClassIds) -> ClassIds:
        """Return the group of each class id (N,). A class that the model does not name is its own group."""
        named = (class_ids >= 0) & (class_ids < len(self._group))
        return np.where(named, self._group.take(class_ids, mode="clip"), class_ids)


def single_boxes(
    boxes_xyxy: FloatArray,
    scores: FloatArray,
    classes: ClassIds,
    groups: ClassIds,
    cameras: IndexArray | None = None,
) -> BoolArray:
    """Return a mask (N,) of the boxes to keep, so that one object has only one box.

    If boxes of different classes in one group overlap (IoU of at least 0.6), keep only the box with the highest score.
    The detector itself suppresses the weaker boxes only within each class.

    Args:
        boxes_xyxy: boxes (N, 4).
        scores: scores (N,) of the boxes.
        classes: class ids (N,) of the boxes.
        groups: groups (N,) of these classes.
        cameras: index of the camera of each box (N,), or None if all boxes are of one frame.
    """
    kept = np.ones(len(scores), np.bool_)
    members = np.isin(groups, groups[groups != classes]).nonzero()[0]
    if len(members) < 2:
        return kept
    same = iou(boxes_xyxy[members], boxes_xyxy[members]) >= _SAME_OBJECT_IOU
    same &= groups[members][:, None] == groups[members]
    same &= classes[members][:, None] != classes[members]
    if cameras is not None:
        same &= cameras[members][:, None] == cameras[members]
    if count_nonzero(same):
        kept_members = kept[members]
        for best in np.argsort(-scores[members], kind="stable"):
            if kept_members[best]:
                kept_members &= ~same[best]
        kept[members] = kept_members
    return kept


def vote(classes: ClassIds, lead: FloatArray, total: FloatArray, seen: ClassIds, scores: FloatArray) -> None:
    """Count the classes of the detections of M tracks as votes, weighted by the scores of the detections.

    A track changes its class only if another class leads by a margin. Without the margin, an uncertain detector would
    change the class repeatedly. See Boyer and Moore, "MJRTY: A Fast Majority Vote Algorithm", 1981.

    Args:
        classes: classes (M,) of the tracks, updated in place.
        lead: votes (M,) for the class of each track minus all other votes, updated in place.
        total: sum (M,) of all votes, updated in place.
        seen: classes (M,) of the detections.
        scores: scores (M,) of the detections.
    """
    lead += np.where(classes == seen, scores, -scores)
    total += scores
    lost = lead < -_MARGIN * total
    if count_nonzero(lost):
        classes[lost] = seen[lost]
        lead[lost] *= -1.0
