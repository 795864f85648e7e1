"""`ViewTracker` determines how a fixed camera has moved since its lines and zones were drawn.

The tracker stores the background of the scene as one or more appearances (day, night, snow), each with points that are
easy to recognize. It compares every image with the appearances, beginning with the appearance that fitted most
recently:

1. The pyramidal Lucas-Kanade method (Bouguet, 2001) searches for the points near their expected positions, forward and
   backward. RANSAC (Fischler and Bolles, 1981) then fits a similarity: a shift, a rotation, and a zoom.
2. If too few points agree, matches of ORB features (Rublee et al., 2011) give a first estimate for step 1.

An appearance contains no points on detected objects, because the objects can leave.

All images are first normalized by their local contrast, so shadows and the brightness of daylight have little effect.
In experiments with images of different scenes, at most 6 points agreed by chance.

All computations use images of `WIDTH_PX` columns. The module requires OpenCV.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vision.config.analytics import CameraAnalytics, Point, pixels_per_unit

Image: TypeAlias = NDArray[np.uint8]
Points32: TypeAlias = NDArray[np.float32]
Boxes: TypeAlias = NDArray[np.float32]
Similarity: TypeAlias = NDArray[np.float64]
"""Matrix (2, 3) that maps points of the reference view to the present view, both in images of `WIDTH_PX` columns."""

WIDTH_PX: Final = 480
INTERVAL_S: Final = 2.5
"""Minimum time in seconds between two images of a camera."""

_MOVED: Final = 0.003  # shift of a corner, in widths of the image, above which the view has changed
_LEAST_KNOWN: Final = 9  # minimum number of points that agree with the present view
_LEAST_NEW: Final = 14  # minimum number of points that agree with a new view
_LEAST_PART: Final = 0.1  # minimum part of all points that agrees with a new view
_LEAST_MATCHES: Final = 8  # minimum number of matches of features that justify step 1
_LEAST_SPREAD: Final = 0.25  # minimum extent of the points that agree, in widths and heights of the image
_LEAST_KNOWN_SPREAD: Final = 0.4  # minimum extent of the points of an appearance
_LARGEST_SHIFT: Final = 0.3  # of a corner, in widths of the image; a camera that moved farther needs new lines
_AGREE_PX: Final = 1.2  # largest distance of a point from the place that a similarity predicts, if both agree
_BACK_PX: Final = 0.7  # largest distance of a point from its place after the search forward and back
_POINTS: Final = 200  # maximum number of points of an appearance
_APPEARANCES: Final = 8  # maximum number of stored appearances
_FRAMES: Final = 5  # the median of these images shows no moving objects
_FADED: Final = 0.4  # part of the usual points below which a new appearance is stored
_AGREEING: Final = 2  # number of images that must agree on a new view
_AGREEING_IN_WIND: Final = 6  # the same, if images of the last `_WIND_S` seconds showed other views
_WIND_S: Final = 30.0  # time after such an image for which `_AGREEING_IN_WIND` applies
_UNSEEN_S: Final = 7.0  # time without a fit after which the camera counts as moved or covered
_FLAT: Final = 1.5  # mean contrast in gray levels below which an image shows nothing
_BLACK: Final = 24.0  # mean brightness in gray levels below which an image without contrast shows a dark scene
_MOST_HIDDEN: Final = 0.5  # if boxes of objects cover a larger part of an image, its background is not compared
_SUDDEN: Final = 4.0  # if the contrast falls by more than this factor between two images, the camera may be covered

_NO_BOXES: Final[Boxes] = np.empty((0, 4), np.float32)

State: TypeAlias = Literal["learning", "aligned", "unsure", "moved", "covered", "dark"]


class ViewImage(NamedTuple):
    """One normalized image of a camera."""

    pixels: Image  # (H, WIDTH_PX)
    contrast: float  # mean local deviation before the normalization, in gray levels
    brightness: float  # mean before the normalization, in gray levels
    boxes_xyxy: Boxes  # (N, 4) boxes of the objects, in pixels of the image


class _Fit(NamedTuple):
    view: Similarity
    points: int  # number of points that agree with `view`
    of: int  # number of points that were searched for


@dataclass(slots=True, eq=False)
class Appearance:
    """Background of a scene at one time of the day, and the view of the camera at that time."""

    pixels: Image
    view: Similarity
    points: Points32  # (N, 1, 2)
    hidden: float = 0.0  # part of the image that boxes of objects cover
    usual: float = 1.0  # largest part of the points that agreed; 1 before the first fit
    _features: tuple[Points32, NDArray[np.uint8]] | None = None

    @classmethod
    def of(cls, pixels: Image, view: Similarity, boxes_xyxy: Boxes = _NO_BOXES) -> Appearance:
        """Return the appearance of an image that shows `view`.

        The points of the appearance are easy to find in other images, and lie outside the boxes of objects.
        """
        import cv2

        background = np.full_like(pixels, 255)
        for x1, y1, x2, y2 in boxes_xyxy.round().astype(int).clip(0).tolist():
            background[y1:y2, x1:x2] = 0
        points: Any = cv2.goodFeaturesToTrack(pixels, _POINTS, 0.02, 10, mask=background, blockSize=5)
        found = np.empty((0, 1, 2), np.float32) if points is None else points
        return cls(pixels, view, found, hidden=1.0 - float(background.mean()) / 255)

    def is_usable(self) -> bool:
        """Return True if the appearance has enough points, and the points cover enough of the image."""
        height, width = self.pixels.shape
        extent = _LEAST_KNOWN_SPREAD * np.array([width, height])
        return len(self.points) >= 3 * _LEAST_NEW and bool((np.ptp(self.points[:, 0], axis=0) >= extent).all())

    def features(self) -> tuple[Points32, NDArray[np.uint8]]:
        """Return the positions (N, 2) and the descriptors (N, 32) of the ORB features of `pixels`."""
        if self._features is None:
            self._features = _features(self.pixels)
        return self._features


def view_image(gray: Image, boxes_xyxy: Boxes = _NO_BOXES) -> ViewImage:
    """Scale an image (H, W) to `WIDTH_PX` columns, and normalize it by its local mean and deviation.

    `boxes_xyxy` (N, 4) are the boxes of the objects, in pixels of `gray`.
    """
    import cv2

    scale = WIDTH_PX / gray.shape[1]
    height = max(16, round(gray.shape[0] * scale))
    brightness = float(gray.mean())
    image = cv2.resize(gray, (WIDTH_PX, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    image -= cv2.blur(cv2.blur(image, (17, 17)), (17, 17))
    squares = cv2.blur(cv2.blur(image * image, (25, 25)), (25, 25))
    deviation = np.sqrt(np.maximum(squares, 0.0))  # rounding makes some of them negative
    pixels = np.clip(image / (deviation + 4.0) * 40.0 + 128.0, 0, 255).astype(np.uint8)
    return ViewImage(pixels, float(deviation.mean()), brightness, boxes_xyxy * np.float32(scale))


class ViewTracker:
    """Tracker of the view of one camera. Call `update` with an image about every `INTERVAL_S` seconds.

    Attributes:
        view: similarity from the reference view to the current view, for points in images of `WIDTH_PX` columns.
        state: ``learning`` until the first appearance is stored. ``aligned`` means that the latest image confirmed
            `view`, and ``unsure`` means that it did not. ``moved`` and ``covered`` mean that no image has fitted for
            `_UNSEEN_S` seconds. ``dark`` means that the background is not visible, for example behind a crowd, without
            light, or at night, when successive images differ by noise.
        appearances: the stored appearances. The appearance that fitted most recently comes first.
    """

    def __init__(self, appearances: list[Appearance] | None = None, view: Similarity | None = None) -> None:
        """Continue with the stored `appearances` and the latest `view`.

        If there are no appearances, the first images define the reference view. If `view` is None, the tracker starts
        from the reference view.
        """
        self.view: Similarity = np.eye(2, 3) if view is None else view
        self.state: State = "learning" if not appearances else "unsure"
        self.appearances = appearances or []
        self.changes = 0  # number of appearances stored so far
        self._recent: deque[Image] = deque(maxlen=_FRAMES)
        self._candidate: Similarity | None = None
        self._agreeing = 0  # number of images in a row that agree with the candidate
        self._stray_s = -math.inf  # time of the last image that did not agree with the candidate
        self._updated_s: float | None = None
        self._fitted_s = 0.0
        self._contrast: float | None = None
        self._sudden = False
        self._hidden: deque[Boxes] = deque(maxlen=_FRAMES)  # boxes of the last images, if they did not fit
        self._unfit: Appearance | None = None  # the last image, if it did not fit

    def update(self, image: ViewImage, now_s: float) -> None:
        """Compare an image, which was captured at `now_s` (seconds), with the appearances. Update `view` and `state`.

        If the scene looks clearly different, store a new appearance. If the size of the images changes, restart without
        appearances.
        """
        if self._updated_s is None or now_s - self._updated_s > _UNSEEN_S:  # for example without a connection
            self._fitted_s = now_s
        self._updated_s = now_s
        if self.appearances and image.pixels.shape != self.appearances[0].pixels.shape:
            self.appearances, self.state, self.view = [], "learning", np.eye(2, 3)
            self._recent.clear()
        self._watch_contrast(image.contrast)
        if not self.appearances:
            self._fitted_s = now_s
            self._learn(image)
            return
        fit = None if image.contrast < _FLAT else self._fit(image.pixels)
        if fit is None:
            self._candidate, self._agreeing = None, 0
            self._recent.clear()
            self._miss(image, now_s)
            return
        self._fitted_s, self._unfit = now_s, None
        self._hidden.clear()
        if distance(fit.view, self.view, image.pixels.shape) <= _MOVED:
            if self._candidate is not None:
                self._stray_s = now_s
            self._confirm(image, fit)
        elif self._is_new(fit.view, image, now_s):
            self.view = fit.view
            self._confirm(image, fit)
        elif self.state in ("aligned", "learning", "dark"):
            self.state = "unsure"

    def _is_new(self, view: Similarity, image: ViewImage, now_s: float) -> bool:
        """Return True if `image` and the images before it confirm that the view has changed to `view`."""
        self._recent.clear()
        if self._candidate is not None and distance(view, self._candidate, image.pixels.shape) <= _MOVED:
            self._agreeing += 1
            is_windy = now_s - self._stray_s < _WIND_S
            return self._agreeing >= (_AGREEING_IN_WIND if is_windy else _AGREEING)
        if self._candidate is not None:
            self._stray_s = now_s
        self._candidate, self._agreeing = view, 1
        return False

    def _learn(self, image: ViewImage) -> None:
        """Store the first appearance as soon as enough successive images show the scene.

        Ignore dark images, because they contain only noise, and would not fit after the light is switched on.
        """
        if image.contrast < _FLAT or image.brightness < _BLACK:
            self._recent.clear()
            return
        self._recent.append(image.pixels)
        if len(self._recent) == _FRAMES:
            first = Appearance.of(median(self._recent), np.eye(2, 3), image.boxes_xyxy)
            if first.is_usable():
                self.appearances.append(first)
                self.changes += 1
                self.state = "aligned"

    def _confirm(self, image: ViewImage, fit: _Fit) -> None:
        self._candidate, self._agreeing, self._sudden = None, 0, False
        self.state = "aligned"
        self._recent.append(image.pixels)
        part, best = fit.points / fit.of, self.appearances[0]
        best.usual = max(best.usual, part) if best.usual < 1.0 else part
        if part < _FADED * best.usual and len(self._recent) == _FRAMES:
            self._recent.clear()
            added = Appearance.of(image.pixels, fit.view, image.boxes_xyxy)
            if added.is_usable():
                self._add(added)

    def _add(self, added: Appearance) -> None:
        """Insert an appearance before all others. If this makes the list too long, remove the last appearance.

        Never remove the appearance whose view is nearest to the reference view, because it defines the reference view.
        """
        self.appearances.insert(0, added)
        self.changes += 1
        if len(self.appearances) > _APPEARANCES:
            original = min(self.appearances, key=lambda each: distance(each.view, np.eye(2, 3), each.pixels.shape))
            last = next(each for each in reversed(self.appearances) if each is not original)
            self.appearances.remove(last)

    def _watch_contrast(self, contrast: float) -> None:
        if self._contrast is not None and contrast * _SUDDEN < self._contrast:
            self._sudden = True
        self._contrast = contrast

    def _miss(self, image: ViewImage, now_s: float) -> None:
        """Set the state after an image that does not fit.

        The state becomes ``moved`` only if the backgrounds of this image and of the previous image fit each other.
        """
        flat, before = image.contrast < _FLAT, self._unfit
        self._hidden.append(image.boxes_xyxy)
        self._unfit = None if flat else Appearance.of(image.pixels, np.eye(2, 3), np.concatenate(self._hidden))
        is_held = self.state in ("moved", "covered")
        if flat and (not self._sudden or image.brightness < _BLACK):
            self.state, self._fitted_s = self.state if is_held else "dark", now_s
        elif now_s - self._fitted_s < _UNSEEN_S:
            self.state = "unsure" if self.state == "aligned" else self.state
        elif flat:
            self.state = "covered"
        elif before is not None and self._unfit is not None and _is_steady(before, self._unfit):
            self.state = "moved"
        elif not is_held:
            self.state, self._fitted_s = "dark", now_s

    def _fit(self, pixels: Image) -> _Fit | None:
        """Return the view of an image, or None if no appearance fits. Move the fitting appearance to the front."""
        others: list[tuple[_Fit, Appearance]] = []
        for appearance in self.appearances:
            fit = _track(appearance, pixels, self.view)
            if fit is None:
                continue
            if fit.points >= _LEAST_KNOWN and distance(fit.view, self.view, pixels.shape) <= _MOVED:
                return self._first(appearance, fit)
            others.append((fit, appearance))
        # The view has changed. A search near the old positions finds wrong points in repeated patterns, so compare its
        # result with that of a search that does not depend on the old positions.
        found = _features(pixels)
        for appearance in self.appearances:
            estimate = _match(appearance, found)
            fit = None if estimate is None else _track(appearance, pixels, estimate)
            if fit is not None:
                others.append((fit, appearance))
        others = [(fit, each) for fit, each in others if _is_sure(fit) and _is_small(fit.view, pixels.shape)]
        if not others:
            return None
        fit, appearance = max(others, key=lambda other: other[0].points / other[0].of)
        return self._first(appearance, fit)

    def _first(self, appearance: Appearance, fit: _Fit) -> _Fit:
        self.appearances.remove(appearance)
        self.appearances.insert(0, appearance)
        return fit


def distance(a: Similarity, b: Similarity, shape: tuple[int, ...]) -> float:
    """Return the largest distance between the two positions to which `a` and `b` map a corner of the image.

    The unit is the width of the image, whose `shape` is (height, width, ...).
    """
    height, width = shape[:2]
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], np.float64)
    return float(np.linalg.norm(corners @ (a - b).T, axis=1).max()) / width


def displacement(view: Similarity, before: Similarity | None = None) -> float:
    """Return the largest shift of a corner between `before` and `view`, in widths of a square image.

    If `before` is None, compare `view` with the reference view.
    """
    return distance(view, np.eye(2, 3) if before is None else before, (WIDTH_PX, WIDTH_PX))


def in_pixels(view: Similarity, width_px: int) -> Similarity:
    """Convert a view of images of `WIDTH_PX` columns to a view of frames of `width_px` columns."""
    return np.column_stack([view[:, :2], view[:, 2] * (width_px / WIDTH_PX)])


def moved(section: CameraAnalytics, view: Similarity, width_px: int, height_px: int) -> CameraAnalytics:
    """Return a copy of `section` with all points at their positions in the current view, in pixels of the frame.

    The points are those of the lines, of the zones, and of the ground.
    """
    scale = np.array(pixels_per_unit(section.units, width_px, height_px))
    view = in_pixels(view, width_px)

    def place(points: Sequence[Point]) -> tuple[Point, ...]:
        places = np.array(points, np.float64) * scale @ view[:, :2].T + view[:, 2]
        return tuple((x, y) for x, y in places.round(2).tolist())

    ground = section.ground
    changes = {
        "units": "pixels",
        "lines": tuple(line.model_copy(update={"points": place(line.points)}) for line in section.lines),
        "zones": tuple(
            zone.model_copy(update={"polygon": place(zone.polygon), "holes": tuple(map(place, zone.holes))})
            for zone in section.zones
        ),
        "ground": None if ground is None else ground.model_copy(update={"points": place(ground.points)}),
    }
    return section.model_copy(update=changes)


def median(images: deque[Image]) -> Image:
    """Return the median (H, W) of several images (H, W). The median does not show objects that move."""
    middle: Image = np.median(np.stack(images), axis=0).astype(np.uint8)
    return middle


def compose(outer: Similarity, inner: Similarity) -> Similarity:
    """Return the similarity that applies `inner` first, and then `outer`."""
    return outer[:, :2] @ inner + np.column_stack([np.zeros((2, 2)), outer[:, 2]])


def _inverse(view: Similarity) -> Similarity:
    inverse = np.linalg.inv(view[:, :2])
    return np.column_stack([inverse, -inverse @ view[:, 2]])


def _is_steady(before: Appearance, after: Appearance) -> bool:
    """Return True if the backgrounds of two successive images match, which means that the camera has not moved."""
    if max(before.hidden, after.hidden) > _MOST_HIDDEN:
        return False
    fits = _track(before, after.pixels, np.eye(2, 3)), _track(after, before.pixels, np.eye(2, 3))
    shape = after.pixels.shape
    return all(fit and _is_sure(fit) and distance(fit.view, np.eye(2, 3), shape) <= _MOVED for fit in fits)


def _is_small(view: Similarity, shape: tuple[int, ...]) -> bool:
    return distance(view, np.eye(2, 3), shape) <= _LARGEST_SHIFT


def _is_sure(fit: _Fit) -> bool:
    return fit.points >= max(_LEAST_NEW, _LEAST_PART * fit.of)


def _track(appearance: Appearance, pixels: Image, guess: Similarity) -> _Fit | None:
    """Search for the points of an appearance in an image. `guess` is the expected view of the image.

    Return the view of the image, and how many of the points agree with it. Return None if too few points agree or the
    points are too close together.
    """
    import cv2

    from_appearance = compose(guess, _inverse(appearance.view))
    points = appearance.points
    expected = (points[:, 0] @ from_appearance[:, :2].T + from_appearance[:, 2]).astype(np.float32)[:, None]
    height, width = pixels.shape
    inside = ((expected[:, 0] > 8) & (expected[:, 0] < (width - 8, height - 8))).all(axis=1)
    points, expected = np.ascontiguousarray(points[inside]), np.ascontiguousarray(expected[inside])
    if len(points) < _LEAST_KNOWN:
        return None
    found, there, back, again = _forth_and_back(appearance.pixels, pixels, points, expected)
    agree = there & again & (np.abs(back - points).max(axis=(1, 2)) < _BACK_PX)
    before, after = points[agree, 0], found[agree, 0]
    if len(before) < _LEAST_KNOWN:
        return None
    matrix, inliers = cv2.estimateAffinePartial2D(
        before, after, method=cv2.RANSAC, ransacReprojThreshold=_AGREE_PX, maxIters=500, confidence=0.995
    )
    if matrix is None:
        return None
    kept = after[inliers[:, 0] > 0]
    if (np.ptp(kept, axis=0) < (_LEAST_SPREAD * width, _LEAST_SPREAD * height)).any():
        return None
    return _Fit(compose(matrix, appearance.view), len(kept), len(points))


def _forth_and_back(
    first: Image, second: Image, points: Points32, expected: Points32
) -> tuple[Points32, NDArray[np.bool_], Points32, NDArray[np.bool_]]:
    """Search for points of the first image in the second image, and then for the found points in the first image.

    Returns:
        For each of the two searches, the positions (N, 1, 2), and a mask (N,) of the points that were found.
    """
    import cv2

    settings: dict[str, Any] = {
        "winSize": (15, 15),
        "flags": cv2.OPTFLOW_USE_INITIAL_FLOW,
        "criteria": (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 12, 0.03),
    }
    found: Any
    back: Any
    found, there, _ = cv2.calcOpticalFlowPyrLK(first, second, points, expected.copy(), maxLevel=2, **settings)
    back, again, _ = cv2.calcOpticalFlowPyrLK(second, first, found, points.copy(), maxLevel=1, **settings)
    return found, there[:, 0] > 0, back, again[:, 0] > 0


@functools.cache
def _orb() -> Any:
    import cv2

    return cv2.ORB_create(600, 1.2, 5, edgeThreshold=15, patchSize=25, fastThreshold=12)  # type: ignore[attr-defined]


def _features(pixels: Image) -> tuple[Points32, NDArray[np.uint8]]:
    keypoints, descriptors = _orb().detectAndCompute(pixels, None)
    if descriptors is None:
        return np.empty((0, 2), np.float32), np.empty((0, 32), np.uint8)
    return np.array([keypoint.pt for keypoint in keypoints], np.float32).reshape(-1, 2), descriptors


def _match(appearance: Appearance, found: tuple[Points32, NDArray[np.uint8]]) -> Similarity | None:
    """Return an estimate of the view of an image, or None if too few features match features of the appearance.

    `found` contains the positions (N, 2) and the descriptors (N, 32) of the features of the image.
    """
    import cv2

    (places, descriptors), (found_places, found_descriptors) = appearance.features(), found
    if min(len(places), len(found_places)) < _LEAST_MATCHES:
        return None
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(descriptors, found_descriptors)
    if len(matches) < _LEAST_MATCHES:
        return None
    before = places[[match.queryIdx for match in matches]]
    after = found_places[[match.trainIdx for match in matches]]
    matrix: Any
    matrix, inliers = cv2.estimateAffinePartial2D(
        before, after, method=cv2.RANSAC, ransacReprojThreshold=3.0, maxIters=2000, confidence=0.999
    )
    if matrix is None or inliers.sum() < _LEAST_MATCHES:
        return None
    return compose(matrix, appearance.view)
