"""`RemoteSlot`, a slot whose frames a capture worker writes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from vision.runtime.frame_messages import CommittedFrame, frame_meta
from vision.runtime.latest_slot import Allocate, Clock, LatestSlot, Lease, WaitingFrame
from vision.types import DropReason, Frame, FrameBuffer, PixelFormat

GiveBack = Callable[[int, int], None]
"""Function that returns a buffer to the worker. Its arguments are the generation and the number of the buffer."""


class RemoteSlot(LatestSlot):
    """Slot for the newest frame of a camera that a capture worker reads. The inference thread takes the frames.

    The worker owns the buffers to which it writes frames. After the worker has sent a message about a frame, the buffer
    of this frame belongs to the slot until the slot returns it. The methods `configure`, `forget_buffers`,
    `write_buffer`, and `commit` of `LatestSlot` are not used.

    In a lossless slot, frames wait in a queue, whose length the number of buffers limits.
    """

    def __init__(
        self,
        camera_id: str,
        *,
        leases: int,
        lossless: bool,
        max_fps: float | None,
        max_frame_age_s: float | None,
        clock: Clock = time.monotonic_ns,
        changed: threading.Condition,
    ) -> None:
        """Create the slot, without buffers. `LatestSlot` describes the arguments."""
        super().__init__(
            camera_id,
            FrameBuffer.allocate,  # not called, because `adopt` sets the buffers
            leases=leases,
            lossless=lossless,
            max_fps=max_fps,
            max_frame_age_s=max_frame_age_s,
            clock=clock,
            changed=changed,
        )
        self.epoch = 0  # epoch of the newest frame
        self._generation = 0
        self._give_back: GiveBack | None = None
        self._queue: deque[WaitingFrame] = deque()

    @property
    def lossless(self) -> bool:
        """True if the writer waits instead of dropping frames."""
        return self._lossless

    def adopt(
        self, generation: int, layout: tuple[int, int, PixelFormat], buffers: Sequence[FrameBuffer], give_back: GiveBack
    ) -> None:
        """Replace the buffers with `buffers` of a new generation. Drop the frames that wait in the old buffers.

        The worker owns each new buffer until it sends a frame in this buffer. `give_back` returns a buffer to the
        worker.
        """
        self.abandon(DropReason.EPOCH)
        self._replace_buffers(layout, buffers)
        with self.changed:
            self._generation, self._give_back = generation, give_back

    def reopen(self, allocate: Allocate, *, max_fps: float | None, max_frame_age_s: float | None) -> None:
        self.abandon(DropReason.EPOCH)
        super().reopen(allocate, max_fps=max_fps, max_frame_age_s=max_frame_age_s)

    def abandon(self, reason: DropReason) -> None:
        """Drop the waiting frames and the buffers. Leased frames stay valid until they are released."""
        with self.changed:
            self._give_back = None
            self._drop_all(reason)
        self._replace_buffers(None, ())

    def receive(self, generation: int, number: int, fields: CommittedFrame) -> None:
        """Receive the frame that the worker has written to the buffer `number` of a generation of buffers.

        If the buffers were replaced after the worker wrote the frame, drop the frame. The caller must hold `changed`.

        Args:
            generation: number of the generation of buffers.
            number: number of the buffer in its generation.
            fields: fields of the frame, from `frame_messages.decode_commit`.

        Raises:
            IndexError: there is no such buffer.
        """
        layout = self._buffers.layout
        if layout is None or generation != self._generation:
            self.drop(DropReason.EPOCH)
            return
        meta = frame_meta(fields, self.camera_id, layout[0], layout[1])
        self.epoch = meta.epoch
        frame = Frame(meta, self._buffers.all[number])
        if self._lossless and self._waiting is not None:
            self._counts.grabbed += 1
            self._queue.append(self._arrived(frame))
        else:
            self._put(frame)

    def take(self) -> Lease | None:
        with self.changed:
            lease = super().take()
            if self._queue and self._waiting is None:
                self._waiting = self._queue.popleft()
            return lease

    def flush(self, reason: DropReason) -> None:
        with self.changed:
            self._drop_all(reason)

    def close(self) -> None:
        with self.changed:
            super().close()
            self._drop_all(DropReason.STOPPED)

    def _drop_all(self, reason: DropReason) -> None:
        self._drop_waiting(reason)
        while self._queue:
            self._waiting = self._queue.popleft()
            self._drop_waiting(reason)

    def _free(self, buffer: FrameBuffer) -> None:
        if self._give_back is not None:
            self._give_back(self._generation, self._buffers.all.index(buffer))
