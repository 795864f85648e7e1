"""`ObjectStage` summarizes each object that has left the scene, and adds the summary to a result.

The stage examines all objects of a camera five times per second. In other frames, it examines only objects that appear
or disappear. Per frame, the stage takes at most one snapshot, and adds at most 20 summaries. Further summaries wait for
the next frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from msgspec.structs import replace

from vision.config import AppConfig
from vision.config.privacy import CameraPrivacy
from vision.types import Attribute, Event, Frame, FrameMeta, ObjectSnapshot, ObjectSummary, Result, Tracks
from vision.version import require_cv2

Box: TypeAlias = tuple[float, float, float, float]
Crop: TypeAlias = Callable[[Frame, Box], bytes]
"""Type of functions that return the JPEG of a part of a frame."""

_LOOK_NS: Final = 200_000_000
_MAX_POSITIONS: Final = 64
_MAX_VISITS: Final = 64
_MAX_PER_FRAME: Final = 20
_MAX_WAITING: Final = 10_000
_CANDIDATES: Final = 3  # objects that are examined for one snapshot
_GROWTH: Final = 1.25  # factor by which a new snapshot must be better than the last snapshot
_UNCLEAR: Final = 0.25  # value of an object that is cut off or hidden, relative to one that is not
_MAX_OVERLAP: Final = 0.3  # part of a box that another box can cover while the object counts as clear


@dataclass(slots=True)
class _Object:
    """The history of one object, such as its path and its crossings of lines. Times are in ns."""

    track_id: int
    class_id: int
    score: float
    first_ns: int
    last_ns: int
    box: Box
    path: list[tuple[int, float, float]] = field(default_factory=list)
    spacing_ns: int = _LOOK_NS  # minimum time between two positions of the path
    crossings: deque[tuple[str, str, int]] = field(default_factory=lambda: deque(maxlen=_MAX_VISITS))
    visits: deque[tuple[str, int, int | None]] = field(default_factory=lambda: deque(maxlen=_MAX_VISITS))
    attributes: tuple[Attribute, ...] = ()
    snapshot: ObjectSnapshot | None = None
    value: float = 0.0  # of the snapshot: its area in px², lower if the object is not clear

    def seen(self, box: Box, score: float, class_id: int, at_ns: int) -> None:
        """Store the object's box (x1, y1, x2, y2 in px), score, and class at the time `at_ns`.

        If the newest position in the path is at least `spacing_ns` old, also append the position of the object.
        """
        self.box, self.class_id, self.last_ns = box, class_id, at_ns
        self.score = max(self.score, score)
        if not self.path or at_ns - self.first_ns - self.path[-1][0] * 1_000_000 >= self.spacing_ns:
            self.add_position(at_ns)

    def add_position(self, at_ns: int) -> None:
        """Append the bottom center of the box to the path.

        If the path then has more than `_MAX_POSITIONS` positions, remove every second position except the newest, and
        double `spacing_ns`.
        """
        x1, _, x2, y2 = self.box
        self.path.append(((at_ns - self.first_ns) // 1_000_000, (x1 + x2) / 2, y2))
        if len(self.path) > _MAX_POSITIONS:
            self.path = [*self.path[:-1:2], self.path[-1]]
            self.spacing_ns *= 2

    def happened(self, event: Event) -> None:
        """Store a crossing of a line, the start of a stay in a zone, or the time at which the object left the zone.

        Ignore events of other kinds. Also ignore a stay that ends for a different reason, such as a lost object.
        """
        if event.kind == "line_crossed":
            self.crossings.append((event.name, str(event.data.get("direction", "")), event.at_ns))
        elif event.kind == "zone_entered":
            self.visits.append((event.name, event.at_ns, None))
        elif event.kind == "zone_left" and event.data.get("how") in ("crossed", "changed"):
            for index in range(len(self.visits) - 1, -1, -1):
                name, entered_ns, left_ns = self.visits[index]
                if name == event.name and left_ns is None:
                    self.visits[index] = name, entered_ns, event.at_ns
                    return


@dataclass(slots=True)
class _Camera:
    """The objects of one camera in one epoch, which ends with a reconnection or a change of the frame size."""

    meta: FrameMeta  # of the last frame
    objects: dict[int, _Object] = field(default_factory=dict)
    present: frozenset[int] = frozenset()  # ids in the last frame
    last: Tracks | None = None  # objects of the last frame
    gone_ns: dict[int, int] = field(
        default_factory=dict
    )  # time of the last frame with each absent object, oldest first
    look_ns: int = 0  # time of the next look at all objects
    finished: deque[ObjectSummary] = field(default_factory=lambda: deque(maxlen=_MAX_WAITING))


class ObjectStage:
    """Stage that summarizes each object that left the scene, and adds the summaries, without snapshots, to results."""

    def __init__(self, forget_s: float) -> None:
        """Create the stage. An object has left if it was not detected for `forget_s` seconds, or if its epoch ended.

        An epoch ends when the camera reconnects or changes its frame size.
        """
        self._forget_ns = int(forget_s * 1e9)
        self._cameras: dict[str, _Camera] = {}

    def reconfigure(self, config: AppConfig) -> None:
        """Use the new time after which undetected objects have left, and forget the objects of removed cameras."""
        self._forget_ns = int(config.track.lost_s * 1e9)
        cameras = {camera.id for camera in config.cameras}
        self._cameras = {camera_id: each for camera_id, each in self._cameras.items() if camera_id in cameras}

    def __call__(self, result: Result) -> Result:
        return self.process(result, None)

    def process(self, result: Result, frame: Frame | None) -> Result:
        """Return the result with summaries of up to 20 objects that left.

        Subsequent results contain the remaining summaries. `frame` is the frame of the result, for snapshots. It is
        None if the stage takes no snapshots.

        Raises:
            TypeError: the objects of the result are not tracked.
        """
        if not isinstance(result.objects, Tracks):
            raise TypeError(f"expected tracks, got {type(result.objects).__name__}: add a TrackStage before this stage")
        camera = self._camera(result.meta)
        self._update(camera, result, result.objects, frame)
        if not camera.finished:
            return result
        count = min(_MAX_PER_FRAME, len(camera.finished))
        return replace(result, left=tuple(camera.finished.popleft() for _ in range(count)))

    def _camera(self, meta: FrameMeta) -> _Camera:
        camera = self._cameras.get(meta.camera_id)
        if camera is None or camera.meta.epoch != meta.epoch:
            new = _Camera(meta)
            if camera is not None:
                self._absent(camera, camera.present)
                for track_id in list(camera.gone_ns):
                    self._finish(camera, track_id)
                new.finished = camera.finished
            camera = self._cameras[meta.camera_id] = new
        return camera

    def _update(self, camera: _Camera, result: Result, tracks: Tracks, frame: Frame | None) -> None:
        now_ns, present = result.meta.captured_ns, frozenset(tracks.track_ids.tolist())
        if present != camera.present:
            self._absent(camera, camera.present - present)
            for track_id in present:
                camera.gone_ns.pop(track_id, None)
        is_due = now_ns >= camera.look_ns
        if is_due or present - camera.objects.keys():
            self._look(camera, result, tracks, everything=is_due)
        for event in result.events:
            if event.track_id in camera.objects:
                camera.objects[event.track_id].happened(event)
        if is_due:
            camera.look_ns = now_ns + _LOOK_NS
            if frame is not None:
                self.take_snapshot(camera.objects, tracks, frame)
        camera.meta, camera.present, camera.last = result.meta, present, tracks
        while camera.gone_ns and now_ns - next(iter(camera.gone_ns.values())) > self._forget_ns:
            self._finish(camera, next(iter(camera.gone_ns)))

    @staticmethod
    def _look(camera: _Camera, result: Result, tracks: Tracks, *, everything: bool) -> None:
        """Add the new objects. If `everything` is True, also update the known objects."""
        now_ns = result.meta.captured_ns
        for track_id, box, score, class_id, age_ms in _rows(tracks):
            known = camera.objects.get(track_id)
            if known is None:
                first_ns = now_ns - age_ms * 1_000_000
                known = camera.objects[track_id] = _Object(track_id, class_id, score, first_ns, now_ns, box)
            elif not everything:
                continue
            known.seen(box, score, class_id, now_ns)
            known.attributes = result.attributes.get(track_id, known.attributes)

    @staticmethod
    def _absent(camera: _Camera, track_ids: frozenset[int]) -> None:
        """Store the last detection of objects that are not in the current frame."""
        if not track_ids or camera.last is None:
            return
        last_ns = camera.meta.captured_ns
        for track_id, box, score, class_id, _ in _rows(camera.last):
            if track_id in track_ids:
                camera.objects[track_id].seen(box, score, class_id, last_ns)
                camera.gone_ns[track_id] = last_ns

    @staticmethod
    def _finish(camera: _Camera, track_id: int) -> None:
        del camera.gone_ns[track_id]
        known, meta = camera.objects.pop(track_id), camera.meta
        if known.path[-1][0] != (known.last_ns - known.first_ns) // 1_000_000:
            known.add_position(known.last_ns)
        camera.finished.append(
            ObjectSummary(
                track_id=track_id,
                epoch=meta.epoch,
                width_px=meta.width_px,
                height_px=meta.height_px,
                class_id=known.class_id,
                score=known.score,
                first_ns=known.first_ns,
                last_ns=known.last_ns,
                box_xyxy=known.box,
                path=tuple(known.path),
                crossings=tuple(known.crossings),
                visits=tuple(known.visits),
                attributes=known.attributes,
                snapshot=known.snapshot,
            )
        )

    def take_snapshot(self, objects: dict[int, _Object], tracks: Tracks, frame: Frame) -> None:
        """Do nothing. `ObjectSnapshotStage` overrides this method."""


class ObjectSnapshotStage(ObjectStage):
    """`ObjectStage` with a snapshot of each object, if possible from a frame in which the object is large and clear."""

    def __init__(self, forget_s: float, crop: Crop, use: Callable[[AppConfig], Collection[str]] | None = None) -> None:
        """Create the stage.

        Args:
            forget_s: time in seconds without a detection after which an object has left.
            crop: function that returns the JPEG of a part of a frame.
            use: function that is called with each new configuration, and returns the ids of the cameras whose `privacy`
                differs from the previous configuration. None means that no camera has masks.
        """
        super().__init__(forget_s)
        self._crop = crop
        self._use = use

    def reconfigure(self, config: AppConfig) -> None:
        """Use a new configuration. If the `privacy` of a camera changes, discard the snapshots of its objects."""
        super().reconfigure(config)
        for camera_id in () if self._use is None else self._use(config):
            for known in self._cameras[camera_id].objects.values() if camera_id in self._cameras else ():
                known.snapshot, known.value = None, 0.0

    def with_frame(self, result: Result, frame: Frame) -> Result:
        """Take snapshots from `frame`, and return the result with summaries of objects that left. See `process`."""
        return self.process(result, frame)

    def take_snapshot(self, objects: dict[int, _Object], tracks: Tracks, frame: Frame) -> None:
        """Take a snapshot of the object whose clear area has grown most since its snapshot, if by more than 25 %.

        The clear area is the area of the box, reduced by a factor if the box touches the edge of the frame or is
        covered.
        """
        if not len(tracks):
            return
        width_px, height_px = frame.meta.width_px, frame.meta.height_px
        x1, y1, x2, y2 = tracks.boxes_xyxy.T.astype(np.float64)
        areas = np.maximum(0, x2 - x1) * np.maximum(0, y2 - y1)
        values = np.where((x1 > 1) & (y1 > 1) & (x2 < width_px - 1) & (y2 < height_px - 1), areas, _UNCLEAR * areas)
        last = np.array([max(objects[track_id].value, 1.0) for track_id in tracks.track_ids.tolist()])
        gains = values / last
        for row in np.argsort(-gains)[:_CANDIDATES].tolist():
            value = float(values[row]) * (_UNCLEAR if _is_covered(tracks, row) else 1.0)
            known = objects[int(tracks.track_ids[row])]
            if value <= _GROWTH * max(known.value, 1.0):
                continue
            x1_px, y1_px, x2_px, y2_px = tracks.boxes_xyxy[row].tolist()
            box = (x1_px, y1_px, x2_px, y2_px)
            known.snapshot = ObjectSnapshot(self._crop(frame, box), frame.meta.captured_ns, box)
            known.value = value
            return


def open_objects(config: AppConfig) -> list[ObjectStage]:
    """Create the stage that summarizes the objects that left. Return an empty list if `objects` is not configured.

    Raises:
        ConfigError: snapshots are configured, but OpenCV cannot be imported.
    """
    objects, forget_s = config.objects, config.track.lost_s
    if objects is None:
        return []
    if not objects.snapshots:
        return [ObjectStage(forget_s)]
    require_cv2("objects.snapshots")
    from vision.detect.reference.crops import JpegEncoder
    from vision.drawing.privacy import hide_without_objects

    encoder = JpegEncoder(max_side_px=objects.max_side_px, quality=objects.quality)

    present: dict[str, CameraPrivacy] = {}

    def use(new: AppConfig) -> list[str]:
        nonlocal present
        previous, present = present, dict(new.privacy)
        encoder.hide = hide_without_objects(present)
        return [camera for camera in {**previous, **present} if previous.get(camera) != present.get(camera)]

    use(config)
    return [ObjectSnapshotStage(forget_s, encoder.encode_part, use)]


def _rows(tracks: Tracks) -> Sequence[tuple[int, Box, float, int, int]]:
    """Return the id, box, score, class id, and age in ms of each track."""
    return list(
        zip(
            tracks.track_ids.tolist(),
            map(tuple, tracks.boxes_xyxy.tolist()),
            tracks.scores.tolist(),
            tracks.class_ids.tolist(),
            tracks.age_ms.tolist(),
            strict=True,
        )
    )


def _is_covered(tracks: Tracks, row: int) -> bool:
    """Return True if the box of one other object covers more than 30 % of the box in this row.

    Only boxes whose bottom edge is lower in the frame count, because their objects are probably nearer to the camera.
    """
    boxes = tracks.boxes_xyxy.astype(np.float64)
    x1, y1, x2, y2 = boxes[row]
    wide = np.minimum(boxes[:, 2], x2) - np.maximum(boxes[:, 0], x1)
    high = np.minimum(boxes[:, 3], y2) - np.maximum(boxes[:, 1], y1)
    covered = np.maximum(0, wide) * np.maximum(0, high) * (boxes[:, 3] > y2)
    area = max(1.0, float((x2 - x1) * (y2 - y1)))
    return float(covered.max(initial=0.0)) > _MAX_OVERLAP * area
