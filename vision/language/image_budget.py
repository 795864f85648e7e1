"""`ImageBudget` limits the memory of the images of waiting questions, and divides this memory between the cameras."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

_T = TypeVar("_T")


class ImageBudget(Generic[_T]):
    """The sizes of the images of all waiting questions, with a limit for their sum. Thread-safe.

    Beyond the limit, the camera whose images have the most bytes loses its oldest question. Therefore, a camera with
    many or large images cannot displace the images of other cameras.
    """

    def __init__(self, most_bytes: int) -> None:
        """Create an empty budget. `most_bytes` is the maximum size of all images in bytes."""
        self.nbytes = 0
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._sizes: dict[str, dict[_T, int]] = {}
        """The size in bytes of the images of each question, by camera, oldest question first."""

    def add(self, camera: str, question: _T, nbytes: int) -> list[_T]:
        """Add `nbytes` of images to a question, which can have images already.

        Return the questions that were removed to stay within the limit. They can include `question`. The caller must
        release the images of the removed questions.
        """
        with self._lock:
            sizes = self._sizes.setdefault(camera, {})
            sizes[question] = sizes.get(question, 0) + nbytes
            self.nbytes += nbytes
            removed = []
            while self.nbytes > self._most_bytes:
                largest = max(self._sizes, key=lambda name: sum(self._sizes[name].values()))
                oldest = next(iter(self._sizes[largest]))
                self._remove(largest, oldest)
                removed.append(oldest)
            return removed

    def remove(self, camera: str, question: _T) -> None:
        """Remove the images of a question, if they are in the budget."""
        with self._lock:
            if question in self._sizes.get(camera, ()):
                self._remove(camera, question)

    def _remove(self, camera: str, question: _T) -> None:
        sizes = self._sizes[camera]
        self.nbytes -= sizes.pop(question)
        if not sizes:
            del self._sizes[camera]
