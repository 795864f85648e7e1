"""`InquiryStage` sends events and their frames to the process that asks the language model.

The results thread only copies a frame when a question needs an image. One thread of the stage encodes the copies, and
another thread sends the questions. If no buffer for a copy is free, a question gets its image from a subsequent frame.

The stage does not wait for the process: if the process receives nothing, the stage skips and counts questions. The
stage also reports each question that it cannot send, so that the event of the question does not wait for an answer.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import numpy as np
import zmq
from msgspec import structs

from vision.config.app import AppConfig
from vision.config.language import DescribeConfig, Inquiry, VerifyConfig
from vision.language.image_budget import ImageBudget
from vision.language.messages import (
    IMAGE_BUDGET_BYTES,
    LARGEST_IMAGE_BYTES,
    LARGEST_QUESTION_BYTES,
    Purpose,
    Question,
    Subject,
    Unasked,
    chosen,
    encode_line,
    failures_address,
)
from vision.language.question_channel import QuestionSender
from vision.messaging.times import rfc3339
from vision.stages.frame_worker import FrameWorker
from vision.types import Event, Frame, FrameMeta, Result, Tracks

log = logging.getLogger(__name__)

_BUFFERS: Final = 8  # number of frames that can wait to be encoded
_MOST_OPEN: Final = 8  # maximum number of questions of one camera that still need images
_LINGER_MS: Final = 100
_STOP_S: Final = 1.0
_LOG_S: Final = 60.0  # time between two log lines with the same code

Box: TypeAlias = tuple[float, float, float, float]
"""x1, y1, x2, y2 of a part of a frame, in pixels. The box can extend beyond the frame."""

Encode: TypeAlias = Callable[[Frame, Box | None], bytes]


@dataclass(slots=True, eq=False)
class _Open:
    """A question to the language model, which still needs images of its camera."""

    entry: Inquiry
    purpose: Purpose
    event: Event | None  # None for a statement, which is about a camera
    id: str
    meta: FrameMeta  # the frame of the event, or of the check of the statement
    expires_ns: int  # on the monotonic clock
    next_ns: int  # capture time from which the next image is taken
    images: list[bytes] = field(default_factory=list)
    offsets_ms: list[int] = field(default_factory=list)
    copied: int = 0  # number of frames that were copied
    is_given_up: bool = False
    complete: Question | None = None  # the question, when it has all its images

    @property
    def question(self) -> Question:
        assert self.complete is not None
        return self.complete

    @property
    def is_complete(self) -> bool:
        return self.copied == self.entry.frames or self.is_given_up


class _Failures:
    """Counts, reports, and logs the questions that are not asked. Thread-safe."""

    def __init__(self, address: str) -> None:
        """Connect to the socket on which the program receives reports about questions that cannot be sent.

        `address` is the address for questions, from which the address for these reports follows.
        """
        self.counters = Counter(skipped=0, failed=0)
        self._lock = threading.Lock()
        self._logged_s: dict[str, float] = {}  # monotonic time of the last log line with each code
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.connect(failures_address(address))

    def add(self, question: _Open, code: str, text: str, *, counter: str) -> bool:
        """Abandon a question, so that its event does not wait for an answer.

        Return False if the question is already abandoned. Log each code at most once per minute. If the report cannot
        be sent immediately, discard it.
        """
        with self._lock:
            if question.is_given_up:
                return False
            question.is_given_up = True
            self.counters[counter] += 1
            now_s = time.monotonic()
            if now_s - self._logged_s.get(code, -_LOG_S) >= _LOG_S:
                self._logged_s[code] = now_s
                log.warning("language: no question about %s: %s", question.meta.camera_id, text)
            if question.event is not None:
                subject = _subject_of(question.event, question.id, question.purpose, question.entry, question.meta)
                self._report(subject, code)
            return True

    def add_unopened(self, event: Event | None, purpose: Purpose, entry: Inquiry, meta: FrameMeta) -> None:
        """Count a question that was not started, because too many questions of the camera are open.

        If the question is about an event, also report it. The event has no id, and therefore does not wait for an
        answer. `event` is None if the question is about a statement that is checked periodically.
        """
        with self._lock:
            self.counters["skipped"] += 1
            if event is not None:
                self._report(_subject_of(event, "", purpose, entry, meta), "not-asked")

    def close(self) -> None:
        """Send the waiting reports, and close the socket. Idempotent."""
        with self._lock:
            self._socket.close(linger=_LINGER_MS)
        self._context.term()

    def _report(self, subject: Subject, code: str) -> None:
        if not self._socket.closed:
            with contextlib.suppress(zmq.Again):
                self._socket.send(encode_line(Unasked(subject=subject, reason=code)).encode(), zmq.NOBLOCK)


def _subject_of(event: Event, id_: str, purpose: Purpose, entry: Inquiry, meta: FrameMeta) -> Subject:
    return Subject(
        id=id_,
        purpose=purpose,
        check=entry.name,
        camera=event.camera_id,
        at=rfc3339(meta.captured_utc_ns),
        kind=event.kind,
        name=event.name,
    )


class InquiryStage:
    """Stage that sends questions to a language model, about events, and about statements that it checks periodically.

    For each question, the stage collects the images of the camera.
    """

    def __init__(
        self,
        config: AppConfig,
        address: str,
        encode: Encode,
        use: Callable[[AppConfig], None] | None = None,
        *,
        most_bytes: int = IMAGE_BUDGET_BYTES,
    ) -> None:
        """Start the threads, and connect to the process that asks the language model.

        Args:
            config: the configuration, with `language`.
            address: address of the process that asks the language model.
            encode: function that encodes a frame, or only the part in a box, as JPEG. A thread of the stage calls it.
            use: function that is called with each new configuration, or None if `encode` does not depend on the
                configuration.
            most_bytes: maximum size in bytes of the images that wait. The copies of frames have a separate limit of the
                same size. A single question or a single copy can exceed its limit.
        """
        self._use = use
        assert config.language is not None
        self._verify, self._describe = config.verify, config.describe
        self._watches = [entry for entry in config.describe if entry.statement is not None]
        self._max_age_ns = int(config.language.max_age_s * 1e9)
        self._encode = encode
        self._open: dict[str, list[_Open]] = {}  # by camera
        self._watched_ns: dict[tuple[str, str], int] = {}  # next check of each statement, by its name and the camera
        self._due: deque[list[_Open]] = deque()  # questions that get each copy, in the order of the copies
        self._sent = 0
        self._budget: ImageBudget[_Open] = ImageBudget(max(most_bytes, LARGEST_QUESTION_BYTES))
        self._failures = _Failures(address)
        self._sender = QuestionSender(address, sent=self._count_sent, given_up=self._give_up_unsent)
        self._worker = FrameWorker("inquiries", self._work, buffers=_BUFFERS, lossless=False, most_bytes=most_bytes)

    def reconfigure(self, config: AppConfig) -> None:
        """Pass a new configuration to the function `use` of `__init__`. Nothing else in this stage can change."""
        if self._use is not None:
            self._use(config)

    def with_frame(self, result: Result, frame: Frame) -> Result:
        """Start questions about the events of a result, and copy the frame if a question needs it.

        Return the result, in which each event with a question has an id.
        """
        camera_id, now_ns = result.meta.camera_id, result.meta.captured_ns
        result = self._with_new_questions(result)
        self._start_watches(result.meta)
        waiting = self._open.get(camera_id)
        if not waiting:
            return result
        due = [each for each in waiting if each.next_ns <= now_ns or each.meta.epoch != result.meta.epoch]
        if due:
            self._copy(due, result, frame)
        real_ns = time.monotonic_ns()
        late = [each for each in waiting if not each.is_complete and each.expires_ns < real_ns]
        for each in late:
            self._give_up(each, "image-late", "no frame came in time", counter="skipped")
        self._open[camera_id] = [each for each in waiting if not each.is_complete and each not in late]
        return result

    def counters(self) -> dict[str, int]:
        """Return the numbers of questions that were sent, skipped, and failed."""
        counters = {"sent": self._sent, **self._failures.counters}
        return {f"language.questions.{name}": count for name, count in counters.items()}

    def close(self) -> None:
        """Send the waiting questions, and stop the threads. Wait at most two seconds. Idempotent."""
        self._worker.finish()
        self._worker.join(_STOP_S)
        self._sender.close(_STOP_S)
        self._failures.close()

    # --- in the results thread ----------------------------------------------------------------------------------------

    def _with_new_questions(self, result: Result) -> Result:
        if not result.events:
            return result
        events = tuple(self._questioned(event, result.meta) for event in result.events)
        return structs.replace(result, events=events)

    def _questioned(self, event: Event, meta: FrameMeta) -> Event:
        """Start the questions about an event, and return the event with an id.

        Without questions, return the event unchanged. If too many questions of the camera are open, report that they
        are skipped, and return the event unchanged.
        """
        about: dict[str, Any] = {"camera": event.camera_id, "kind": event.kind, "name": event.name, "data": event.data}
        found: list[tuple[Purpose, VerifyConfig | DescribeConfig]] = []
        if (verify := chosen(self._verify, **about)) is not None:
            found.append(("verify", verify))
        if (describe := chosen(self._describe, **about)) is not None:
            found.append(("describe", describe))
        waiting = self._open.setdefault(event.camera_id, [])
        if not found:
            return event
        if len(waiting) + len(found) > _MOST_OPEN:
            for purpose, entry in found:
                self._failures.add_unopened(event, purpose, entry, meta)
            return event
        event = replace(event, id=secrets.token_hex(8))
        for purpose, entry in found:
            waits_s = entry.wait_s if isinstance(entry, VerifyConfig) else None
            age_ns = self._max_age_ns if waits_s is None else int(waits_s * 1e9)
            expires_ns = time.monotonic_ns() + age_ns
            waiting.append(_Open(entry, purpose, event, event.id, meta, expires_ns, meta.captured_ns))
        return event

    def _start_watches(self, meta: FrameMeta) -> None:
        """Start a question about each configured statement whose next periodic check is due.

        If too many questions of the camera are open, skip the question.
        """
        for entry in self._watches:
            if entry.cameras is not None and meta.camera_id not in entry.cameras:
                continue
            watched, every_ns = (entry.name, meta.camera_id), int((entry.every_s or 0.0) * 1e9)
            next_ns = self._watched_ns.get(watched, 0)
            if next_ns - every_ns <= meta.captured_ns < next_ns:
                continue
            self._watched_ns[watched] = meta.captured_ns + every_ns
            waiting = self._open.setdefault(meta.camera_id, [])
            if len(waiting) >= _MOST_OPEN:
                self._failures.add_unopened(None, "describe", entry, meta)
                continue
            expires_ns = time.monotonic_ns() + self._max_age_ns
            waiting.append(_Open(entry, "describe", None, "", meta, expires_ns, meta.captured_ns))

    def _copy(self, due: list[_Open], result: Result, frame: Frame) -> None:
        """Copy the frame for the questions in `due`. If no buffer is free, these questions wait for the next frame."""
        self._due.append(due)
        if not self._worker.add(frame, result):
            self._due.pop()
            return
        for each in due:
            each.copied += 1
            each.next_ns = result.meta.captured_ns + int(each.entry.spacing_s * 1e9)

    # --- in the thread of the stage -----------------------------------------------------------------------------------

    def _work(self, copies: Iterator[tuple[Frame, Result]]) -> None:
        for frame, result in copies:
            for question in self._due.popleft():
                if question.is_given_up:
                    continue
                try:
                    self._add_image(question, frame, result)
                except Exception as error:  # noqa: BLE001 - no failure of a question may end the program
                    self._give_up(question, "image-failed", str(error), counter="failed")

    def _add_image(self, question: _Open, frame: Frame, result: Result) -> None:
        box = _box_of(question, result)
        image = self._encode(frame, box)
        if len(image) > LARGEST_IMAGE_BYTES:
            raise ValueError(f"the image has {len(image)} bytes; set a lower `language.max_image_px`")
        if (size := len(image) + sum(map(len, question.images))) > LARGEST_QUESTION_BYTES:
            raise ValueError(f"the images have {size} bytes; set lower `frames` or `language.max_image_px`")
        question.images.append(image)
        question.offsets_ms.append(round((result.meta.captured_ns - question.meta.captured_ns) / 1e6))
        self._limit_memory(question, len(image))
        if question.is_given_up or len(question.images) < question.entry.frames:
            return
        question.complete = _question_of(question, is_cropped=box is not None)
        self._sender.put(question)

    def _limit_memory(self, question: _Open, added_bytes: int) -> None:
        """Count the added bytes of a question's images. Abandon the questions whose images exceed the limit."""
        text = "the images of the waiting questions need too much memory"
        for each in self._budget.add(question.meta.camera_id, question, added_bytes):
            if each.complete is None or self._sender.remove(each.meta.camera_id, each):
                self._give_up(each, "image-budget", text, counter="skipped")
        if question.is_given_up:  # the results thread has given it up in the meantime
            self._budget.remove(question.meta.camera_id, question)

    # --- in all threads -----------------------------------------------------------------------------------------------

    def _give_up(self, question: _Open, code: str, text: str, *, counter: str) -> None:
        if self._failures.add(question, code, text, counter=counter):
            self._release(question)

    def _give_up_unsent(self, question: _Open) -> None:
        text = "the process that asks the language model does not receive questions fast enough"
        self._give_up(question, "process-busy", text, counter="skipped")

    def _count_sent(self, question: _Open) -> None:
        self._sent += 1
        self._release(question)

    def _release(self, question: _Open) -> None:
        """Release the images of a question, so that they no longer count toward the limit of memory."""
        question.images = []
        self._budget.remove(question.meta.camera_id, question)


def _question_of(open_: _Open, *, is_cropped: bool) -> Question:
    meta, event = open_.meta, open_.event
    facts: Mapping[str, Any] = {}
    if event is not None:
        facts = {"kind": event.kind, "name": event.name, **event.data}
    return Question(
        id=open_.id,
        purpose=open_.purpose,
        check=open_.entry.name,
        camera=meta.camera_id,
        epoch=meta.epoch,
        frame=meta.index,
        at=rfc3339(meta.captured_utc_ns),
        at_monotonic_ns=meta.captured_ns,
        facts=facts,
        expires_ns=open_.expires_ns,
        offsets_ms=open_.offsets_ms,
        cropped=is_cropped,
    )


def _box_of(question: _Open, result: Result) -> Box | None:
    """Return the box around the object of the event, with a margin. Return None if the whole frame must be sent."""
    event, objects = question.event, result.objects
    if not question.entry.crop or event is None or event.track_id is None or not isinstance(objects, Tracks):
        return None
    rows = (objects.track_ids == event.track_id).nonzero()[0]
    if not len(rows) or not np.isfinite(box := objects.boxes_xyxy[rows[0]]).all():
        return None
    x1, y1, x2, y2 = box.tolist()
    dx, dy = question.entry.margin * (x2 - x1), question.entry.margin * (y2 - y1)
    return x1 - dx, y1 - dy, x2 + dx, y2 + dy
