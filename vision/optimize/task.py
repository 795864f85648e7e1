"""Parts that `vision calibrate` and `vision sparsify` share: frames, the maximum loss of accuracy, and the result."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from vision.config import CameraConfig, ModelSpec
from vision.detect.open import refuse_plugins
from vision.errors import VisionError
from vision.evaluation.passes import Progress
from vision.evaluation.progress import show_progress
from vision.optimize.accuracy import Accuracy, Labels, require_labels
from vision.optimize.frames import Frames, frames_of_cameras, frames_of_images
from vision.optimize.model_folder import REJECTED, derived_spec, install, require_free


@dataclass(frozen=True, slots=True)
class Task:
    """A model to change, the frames and labels with which it is measured, and the folder of the result."""

    folder: Path  # folder of the model to change
    spec: ModelSpec
    output: Path  # folder of the result
    images: Path | None = None  # folder of images; None means that `cameras` provide the frames
    cameras: Sequence[CameraConfig] = ()
    frames: int = 300  # maximum number of frames to choose
    seconds: float = 60.0  # time for which live cameras are read
    max_drop: float = 0.01  # largest allowed loss of accuracy
    labels: Labels | None = None  # None means that boxes are compared with those of the model before the change
    force: bool = False  # True if the result may replace the model in `output`

    @property
    def rejected(self) -> Path:
        """Folder for the changed model if it lost too much accuracy: `output` with a suffix."""
        return self.output.with_name(self.output.name + REJECTED)

    @property
    def reference(self) -> str:
        """Value of `model` in camera.yaml: the output folder with a slash, so that it is not read as a name."""
        text = str(self.output)
        return text if "/" in text else f"./{text}"

    def require_valid(self) -> None:
        """Check the model, the labels, and the folders before frames are read, which can take minutes.

        Raises:
            ConfigError: the labels cannot be used, or `output` or `rejected` cannot be replaced. See
                `require_labels` and `model_folder.require_free`.
            SourceError: the labeled video cannot be read.
            ModelError: the model needs TensorRT plugins, so its accuracy cannot be measured with ONNX Runtime.
        """
        refuse_plugins(self.spec)
        if self.labels is not None:
            require_labels(self.spec, self.labels)
        require_free(self.output, force=self.force)
        require_free(self.rejected, force=True)

    def collect(self, folder: Path, stop: threading.Event) -> Frames:
        """Read frames, and store them in the temporary `folder`. See `vision.optimize.frames` for the errors."""
        size = self.spec.input
        with show_progress("reading frames", None, stop) as step:
            if self.images is not None:
                return frames_of_images(self.images, folder, size, self.frames, step)
            return frames_of_cameras(self.cameras, folder, size, self.frames, seconds=self.seconds, step=step)

    def install(self, contents: bytes, accuracy: Accuracy, change: str, report: Mapping[str, object]) -> None:
        """Write the model and a report to `output` or, if the model lost too much accuracy, to `rejected`.

        Args:
            contents: contents of the ONNX file.
            change: description of the change, as a sentence for model.yaml.
            report: further entries of the report.

        Raises:
            ConfigError: the folder cannot be written.
            Unavailable: the folder cannot be written at present, for example because the disk is full.
        """
        spec = derived_spec(self.spec, self.output.name, contents, change)
        whole = {
            "schema": "vision.optimization/1",
            "parent": {"name": self.spec.name, "sha256": self.spec.sha256},
            **report,
            "accuracy": {"metric": accuracy.metric, "parent": accuracy.parent, "value": accuracy.value},
            "max_drop": self.max_drop,
        }
        install(self._target(accuracy), spec, contents, whole)

    def conclude(self, accuracy: Accuracy, hint: str, console: Console) -> None:
        """Print the folder to which the changed model was written, unless it lost too much accuracy.

        Args:
            hint: advice for the case that the model lost too much accuracy.

        Raises:
            VisionError: the model lost too much accuracy (code ``accuracy-drop``).
        """
        target = self._target(accuracy)
        if target == self.rejected:
            raise VisionError(
                f"{accuracy.metric} drops by {accuracy.drop:.4f}, from {accuracy.parent:.4f} to {accuracy.value:.4f}; "
                f"at most {self.max_drop:g} is allowed; the model is in {target}",
                hint=hint,
                code="accuracy-drop",
            )
        console.print(f"{target}: written", soft_wrap=True, highlight=False, markup=False)

    def _target(self, accuracy: Accuracy) -> Path:
        """Return `output`, or `rejected` if the accuracy dropped by more than `max_drop`."""
        return self.output if accuracy.drop <= self.max_drop else self.rejected


@dataclass(frozen=True, slots=True)
class Progresses:
    """Callable that starts the progress display of one step. The display raises `Closed` if `stop` is set."""

    stop: threading.Event

    def __call__(self, words: str, total: int | None) -> AbstractContextManager[Progress]:
        return show_progress(words, total, self.stop)


def print_sources(frames: Frames, console: Console) -> None:
    """Print how many frames were chosen for the calibration, left out as near-duplicates, or unreadable."""
    sources = frames.sources
    text = f"{len(frames.paths)} frames chosen of {sources.read}, {sources.duplicates} near-duplicates left out"
    if sources.unreadable:
        text += f", {len(sources.unreadable)} skipped because they cannot be read: {sources.names_of_unreadable()}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def report_of(frames: Frames) -> Mapping[str, object]:
    """Return the entries of a report that describe the frames: their number, their hash, and the unreadable sources."""
    return {
        "frames": len(frames.paths),
        "frames_sha256": frames.sha256,
        "unreadable": frames.sources.unreadable,
    }
