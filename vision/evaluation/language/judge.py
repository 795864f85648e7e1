"""Functions that ask a language model whether labeled events are true, with the questions of a running program."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from vision.config.language import LanguageServer, VerifyConfig
from vision.config.user_files import read_input
from vision.detect.reference.crops import JpegEncoder
from vision.drawing.frame_size import frame_size
from vision.errors import Closed, ConfigError, LanguageError, ServerRefusal
from vision.evaluation.language.judgments import Judgment, Judgments
from vision.evaluation.language.labels import LabeledEvent
from vision.language.client import Answer, ChatServer
from vision.language.messages import Question
from vision.language.prompts import answers_of, is_json, prompt_of, schema_of
from vision.types import Frame, FrameMeta

_OF_ONE_EVENT: Final = ("images-refused", "image-too-large", "refused")
"""Codes of refusals that can concern a single event. Every other refusal ends the evaluation."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt to evaluate, in an entry of the section `verify:`, and the labeled events that this entry selects."""

    name: str  # name in the report
    entry: VerifyConfig
    events: tuple[LabeledEvent, ...]


def judge(
    server: ChatServer, limits: LanguageServer, prompt: Prompt, progress: Callable[[int], None], stop: threading.Event
) -> Judgments:
    """Ask the server about every event of a prompt. Return the judgments, in the order of the events.

    Args:
        server: the client of the server.
        limits: the section `language`. Only its values `parallel` and `max_image_px` are used.
        prompt: the prompt and its events.
        progress: function that receives the number of finished events, in the caller's thread.
        stop: event that ends the evaluation when it is set.

    Raises:
        Closed: `stop` was set.
        ConfigError: an image cannot be read.
        ServerRefusal: the server refuses the key or the model.
        ServerFailure: the server cannot be reached.
    """
    models: set[str] = set()

    def ask(event: LabeledEvent) -> Judgment:
        if stop.is_set():
            raise Closed("stopped before the work was complete")
        judgment, model = _judge_event(server, limits.max_image_px, prompt.entry, event)
        models.update({model} - {""})
        return judgment

    judgments = []
    with ThreadPoolExecutor(limits.parallel or 1) as pool:
        futures = [pool.submit(ask, event) for event in prompt.events]
        try:
            for done, future in enumerate(futures, start=1):
                judgments.append(future.result())
                progress(done)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return Judgments(prompt.name, prompt.entry.prompt, ", ".join(sorted(models)), tuple(judgments))


def _judge_event(
    server: ChatServer, max_image_px: int, entry: VerifyConfig, event: LabeledEvent
) -> tuple[Judgment, str]:
    """Ask about one event. Return the judgment, and the name of the model, which is empty if there is no answer.

    If the request fails for a reason that concerns only this event, the judgment contains the error.

    Raises:
        ConfigError: an image cannot be read.
        ServerRefusal: the server refuses the key, the model, or every request.
        ServerFailure: the server cannot be reached.
    """
    encoder = JpegEncoder(max_side_px=max_image_px)
    box = _box_with_margin(event, entry)
    images = [_jpeg(encoder, path, box) for path in event.images[: entry.frames]]
    words = answers_of(entry)
    try:
        answer = server.complete(
            prompt_of(entry, _question(entry, event, len(images), cropped=box is not None)),
            images,
            schema=schema_of(words) if is_json(entry) else None,
            choices=() if is_json(entry) else words,
        )
    except LanguageError as error:
        if (isinstance(error, ServerRefusal) and error.code not in _OF_ONE_EVENT) or error.code == "unreachable":
            raise
        keeps = entry.on_timeout == "send"
        return Judgment(event.line, event.is_true, keeps, None, "", error.code, None), ""
    word, confidence = _word(answer)
    keeps = word in (entry.keep or words[:1])
    probability = 1.0 if confidence is None else confidence
    probability = probability if keeps else 1.0 - probability
    return Judgment(event.line, event.is_true, keeps, probability, word, "", answer.latency_ms), answer.model


def _word(answer: Answer) -> tuple[str, float | None]:
    if isinstance(answer.parsed, dict):
        return str(answer.parsed["answer"]), float(answer.parsed["confidence"])
    return str(answer.parsed), answer.confidence


def _question(entry: VerifyConfig, event: LabeledEvent, images: int, *, cropped: bool) -> Question:
    return Question(
        id=str(event.line),
        purpose="verify",
        check=entry.name,
        camera=event.camera,
        epoch=0,
        frame=0,
        at=event.at,
        at_monotonic_ns=0,
        facts={"kind": event.kind, "name": event.name, **event.data},
        expires_ns=0,
        offsets_ms=[round(number * entry.spacing_s * 1e3) for number in range(images)],
        cropped=cropped,
    )


def _box_with_margin(event: LabeledEvent, entry: VerifyConfig) -> tuple[float, float, float, float] | None:
    """Return the box of the event's object in pixels, enlarged by the `margin` of `entry`.

    Return None if `entry` asks about whole images, or if the event has no box.
    """
    if not entry.crop or event.box is None:
        return None
    x1, y1, x2, y2 = event.box
    dx, dy = entry.margin * (x2 - x1), entry.margin * (y2 - y1)
    return x1 - dx, y1 - dy, x2 + dx, y2 + dy


def _jpeg(encoder: JpegEncoder, path: Path, box: tuple[float, float, float, float] | None) -> bytes:
    """Encode an image, or the part of the image inside `box`, as a JPEG, as a running program does.

    If the image is a snapshot of a larger frame, `box` is in pixels of the frame.

    Raises:
        ConfigError: the image cannot be read.
    """
    with suppress(OSError, cv2.error):
        file = read_input(path)
        decoded: Any = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
        if decoded is not None:
            height_px, width_px = decoded.shape[:2]
            frame = Frame.wrap(FrameMeta("", 0, 0, 0, 0, width_px, height_px), decoded, "bgr")
            if box is None:
                return encoder.encode(frame)
            full_width_px, full_height_px = frame_size(file) or (width_px, height_px)
            scale_x, scale_y = width_px / full_width_px, height_px / full_height_px
            x1, y1, x2, y2 = box
            return encoder.encode_part(frame, (x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y))
    raise ConfigError(f"{path} is not an image that OpenCV can read", hint="use JPEG or PNG files", code="not-an-image")
