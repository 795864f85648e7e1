"""Video of a simulated scene for the detector `fake`, with the ground truth and a configuration.

Each object is a rectangle in the color of a class of `vision.drawing.test_pattern`. Nearer objects hide objects that
are farther away. A gray border around each object separates objects of the same class, which would otherwise count as
one object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import yaml
from numpy.typing import NDArray

from vision.capture.synthetic.frames import GRAY
from vision.config.user_files import write_output
from vision.drawing.test_pattern import FAKE_CLASSES, FAKE_COLORS
from vision.errors import VisionError
from vision.evaluation.simulation.scenes import Scene
from vision.evaluation.simulation.simulate import PreparedScene
from vision.evaluation.simulation.truth import Solids
from vision.stages.video_encoder import open_encoder

PAINTED_AS: Final[Mapping[str, str]] = {"person": "red", "bicycle": "green", "car": "blue", "truck": "blue"}
"""Class of the detector `fake` for each class of the simulator."""

_OBSTACLE: Final = 70  # gray level of obstacles
_BORDER_PX: Final = 4  # width of the gray border around objects
_BLOCK_PX: Final = 2  # rectangles start and end at multiples of this, because a codec stores color for 2x2 pixels


def painted_classes(scene: Scene) -> list[str]:
    """Return the classes of the detector `fake` that occur in the video of a scene."""
    painted = {PAINTED_AS[actor.kind.class_name] for actor in scene.actors}
    return [name for name in FAKE_CLASSES if name in painted]


def outputs(video: Path, scene: Scene) -> list[Path]:
    """Return the paths of all files that `write_painted` writes for the video OUT.mp4.

    These are the video, the configuration OUT.yaml, the ground truth OUT.txt, and, for a scene with several classes, a
    file OUT-CLASS.txt for each class.
    """
    classes = painted_classes(scene)
    of_class = [video.with_name(f"{video.stem}-{name}.txt") for name in classes] if len(classes) > 1 else []
    return [video, video.with_suffix(".yaml"), video.with_suffix(".txt"), *of_class]


def write_painted(video: Path, prepared: PreparedScene, progress: Callable[[int], None]) -> None:
    """Write the video of a scene, a configuration, and the ground truth. `outputs` returns the paths of these files.

    Raises:
        VisionError: a file cannot be written.
    """
    scene, view = prepared.scene, prepared.scene.view
    times_s = np.array([frame.time_s for frame in prepared.frames])
    solids = Solids(scene, times_s)
    _, config, *truths = outputs(video, scene)
    with open_encoder(video, view.width_px, view.height_px) as encoder:
        for index, time_s in enumerate(times_s.tolist()):
            encoder.write(paint(scene, solids, index), time_s)
            progress(index + 1)
    _write(config, yaml.safe_dump(_configuration(video, prepared), sort_keys=False))
    classes = painted_classes(scene)
    for path, names in zip(truths, [classes, *([name] for name in classes)], strict=False):
        _write(path, "".join(_truth_rows(prepared, names)))


def paint(scene: Scene, solids: Solids, index: int) -> NDArray[np.uint8]:
    """Paint the frame with the 0-based index `index`. Return the frame as an array (H, W, 3) in BGR."""
    image = np.full((scene.view.height_px, scene.view.width_px, 3), GRAY, np.uint8)
    for solid in reversed(solids.nearest_first(index).tolist()):
        x1, y1, x2, y2 = (_BLOCK_PX * round(side / _BLOCK_PX) for side in solids.clipped[solid, index].tolist())
        image[max(y1 - _BORDER_PX, 0) : y2 + _BORDER_PX, max(x1 - _BORDER_PX, 0) : x2 + _BORDER_PX] = GRAY
        image[y1:y2, x1:x2] = _color(scene, solid)
    return image


def _color(scene: Scene, solid: int) -> tuple[int, int, int]:
    if solid >= len(scene.actors):
        return _OBSTACLE, _OBSTACLE, _OBSTACLE
    return FAKE_COLORS[FAKE_CLASSES.index(PAINTED_AS[scene.actors[solid].kind.class_name])]


def _configuration(video: Path, prepared: PreparedScene) -> dict[str, object]:
    camera = prepared.scene.name
    section = prepared.section.model_dump(mode="json", exclude_defaults=True)
    return {
        "detect": {"backend": "fake"},
        "cameras": [{"id": camera, "source": video.name}],
        "analytics": {camera: section},
    }


def _truth_rows(prepared: PreparedScene, classes: Sequence[str]) -> Iterator[str]:
    """Yield the rows of the ground truth for `classes`. Columns 8 and 9 are the class and the visible fraction.

    Classes are numbered from 1. MOT16 uses the same columns.
    """
    actors = prepared.scene.actors
    for number, frame in enumerate(prepared.frames, start=1):
        for object_id, box, visible in zip(frame.ids.tolist(), frame.boxes_xyxy, frame.visible.tolist(), strict=True):
            name = PAINTED_AS[actors[object_id - 1].kind.class_name]
            if name in classes:
                x, y, right, bottom = box.tolist()
                box_text = f"{x:.2f},{y:.2f},{right - x:.2f},{bottom - y:.2f}"
                yield f"{number},{object_id},{box_text},1,{FAKE_CLASSES.index(name) + 1},{visible:.2f}\n"


def _write(path: Path, text: str) -> None:
    try:
        write_output(path, text)
    except OSError as error:
        raise VisionError(f"cannot write {path}: {error.strerror}") from error
