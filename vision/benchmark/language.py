"""Measurements of `vision llm check`, which show whether a language model sees images, and how fast it answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from vision.benchmark.frames import load_frames, shipped_clip
from vision.benchmark.loops import Durations
from vision.config.language import LanguageServer
from vision.errors import InvalidAnswer, ServerFailure, ServerRefusal
from vision.language.client import Answer, ChatServer

SCHEMA: Final = "vision.llm-check/1"
YES, NO = "yes", "no"

QUESTION: Final = "Is at least one person visible in this image?"
_ANSWER: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"answer": {"type": "string", "enum": [YES, NO]}},
    "required": ["answer"],
    "additionalProperties": False,
}
_FIRST_TOKENS, _TEXT_TOKENS = 16, 64  # maximum length of the first answer, and of a description
_DESCRIBE: Final = "Describe this image in detail."
_DARKEST_GRAY, _GRAYS = 70, 120
_EXTRA_IMAGES: Final = 3  # number of images for the first answer and the two descriptions
_QUALITY: Final = 4  # JPEG quality of FFmpeg, from 2 (best) to 31 (worst)


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to one kind of question. Each question is about an image with people or an empty image."""

    durations: Durations  # latencies of the valid answers
    right: int  # number of valid and right answers
    wrong: int  # number of valid but wrong answers
    invalid: Mapping[str, int]  # number of questions without a valid answer, by the code of the error

    @property
    def asked(self) -> int:
        """Number of questions that were sent to the model."""
        return self.right + self.wrong + sum(self.invalid.values())


@dataclass(frozen=True, slots=True)
class LanguageCheck:
    """Result of `vision llm check`."""

    url: str
    models: tuple[str, ...]  # the models that the server lists
    model: str  # the model that answered
    words: Answers  # answers of one word
    json: Answers  # answers as JSON that follows a schema
    reports_confidence: bool  # True if the server reports the probabilities of words
    tokens_per_s: float | None  # rate of a long answer, after its first token; None if it could not be measured
    notes: tuple[str, ...]

    @property
    def works(self) -> bool:
        """True if every answer was valid and correct."""
        return all(answers.right == answers.asked for answers in (self.words, self.json))

    def as_json(self) -> dict[str, Any]:
        """Return the result as data that JSON can represent."""
        return {"schema": SCHEMA, **asdict(self), "works": self.works}


def check_server(
    config: LanguageServer, requests: int, progress: Callable[[str], None] = lambda _: None
) -> LanguageCheck:
    """Ask a server for its models, and ask one model questions about images. Return the result.

    Args:
        config: the server. This function sends up to `config.parallel` requests at the same time, or one if
            this is None.
        requests: number of questions of each kind.
        progress: function that receives a description of each step.

    Raises:
        ServerRefusal: the server refuses the key, the name of the model, or images.
        ServerFailure: the server cannot be reached, or is too slow or busy at the first request.
        InvalidAnswer: the server is not a server of language models.
    """
    server = ChatServer(config)
    progress("the list of models")
    models = server.models()
    _check_model(config.model, models)
    images = sample_images(2 * requests + _EXTRA_IMAGES, config.max_image_px)
    progress("the first answer")
    first = server.complete(QUESTION, [next(images).jpeg], max_tokens=_FIRST_TOKENS)
    progress(f"{requests} answers of one word")
    words, confident = _ask(config, images, requests, partial(server.complete, choices=(YES, NO)))
    progress(f"{requests} answers as JSON")
    in_json, _ = _ask(config, images, requests, partial(server.complete, schema=_ANSWER))
    progress("a long answer")
    tokens_per_s = _generation_rate(server, images)
    return LanguageCheck(
        url=config.url,
        models=models,
        model=first.model,
        words=words,
        json=in_json,
        reports_confidence=confident,
        tokens_per_s=tokens_per_s,
        notes=tuple(_notes(config, first, words, in_json)),
    )


def _check_model(model: str | None, models: Sequence[str]) -> None:
    """Raise `ServerRefusal` if the server does not list the model, because some servers ignore the name in requests."""
    if model is not None and model not in models and f"{model}:latest" not in models:
        text = f"the server has no model {model!r}; it lists {', '.join(models)}"
        raise ServerRefusal(text, hint="correct `model`", code="no-model")


class Sample(NamedTuple):
    """JPEG file, and the correct answer to `QUESTION` about this file."""

    jpeg: bytes
    right: str


def sample_images(count: int, max_px: int) -> Iterator[Sample]:
    """Yield `count` images: alternately a frame with people and an empty image of the same size.

    All images differ, because a server can reuse previous results for the same image. The longer side of each image has
    at most `max_px` pixels.
    """
    frames = load_frames(shipped_clip(), (count + 1) // 2)
    for number in range(count):
        people = frames[number // 2 % len(frames)]
        empty = np.full_like(people, _DARKEST_GRAY + number // 2 % _GRAYS)
        yield Sample(_jpeg(empty, max_px), NO) if number % 2 else Sample(_jpeg(people, max_px), YES)


def _jpeg(pixels: NDArray[np.uint8], max_px: int) -> bytes:
    """Encode pixels (H, W, 3) in BGR as a JPEG file whose longer side has at most `max_px` pixels."""
    height_px, width_px = pixels.shape[:2]
    scale = min(1.0, max_px / max(height_px, width_px))
    frame = av.VideoFrame.from_ndarray(pixels, format="bgr24").reformat(
        width=round(width_px * scale), height=round(height_px * scale), format="yuvj420p"
    )
    encoder = av.CodecContext.create("mjpeg", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, "yuvj420p"
    encoder.options = {"qmin": str(_QUALITY), "qmax": str(_QUALITY)}
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def _ask(
    config: LanguageServer, images: Iterator[Sample], requests: int, complete: Callable[..., Answer]
) -> tuple[Answers, bool]:
    """Ask the language model about the next `requests` images with `complete`, which sends one question.

    Return the answers, and whether any answer has a confidence.
    """
    samples = list(islice(images, requests))

    def ask(sample: Sample) -> Answer | str:
        try:
            return complete(QUESTION, [sample.jpeg])
        except (InvalidAnswer, ServerFailure) as error:
            return error.code

    with ThreadPoolExecutor(config.parallel or 1) as pool:
        outcomes = list(pool.map(ask, samples))
    answers = [(sample, answer) for sample, answer in zip(samples, outcomes, strict=True) if isinstance(answer, Answer)]
    right = sum(sample.right == _word(answer) for sample, answer in answers)
    durations = Durations.of([round(answer.latency_ms * 1e6) for _, answer in answers])
    invalid = Counter(code for code in outcomes if isinstance(code, str))
    confident = any(answer.confidence is not None for _, answer in answers)
    return Answers(durations, right, len(answers) - right, dict(invalid)), confident


def _word(answer: Answer) -> str:
    return str(answer.parsed["answer"] if isinstance(answer.parsed, Mapping) else answer.parsed)


def _generation_rate(server: ChatServer, images: Iterator[Sample]) -> float | None:
    """Request a short and a long answer. Return the tokens per second of the long answer after its first token.

    Return None if a request fails, if the server does not count tokens, or if the long answer does not have more
    tokens and a longer duration than the short answer.
    """
    try:
        short, long = (server.complete(_DESCRIBE, [next(images).jpeg], max_tokens=most) for most in (1, _TEXT_TOKENS))
    except (InvalidAnswer, ServerFailure):
        return None
    seconds = (long.latency_ms - short.latency_ms) / 1e3
    if short.tokens is None or long.tokens is None or long.tokens <= short.tokens or seconds <= 0:
        return None
    return (long.tokens - short.tokens) / seconds


def _notes(config: LanguageServer, first: Answer, words: Answers, in_json: Answers) -> list[str]:
    notes = []
    if config.model is not None and first.model != config.model:
        notes.append(f"the model {first.model!r} answered instead of {config.model!r}")
    if words.wrong or in_json.wrong:
        notes.append("wrong answers: the model is too weak, does not see images, or does not follow instructions")
    if in_json.invalid.get("schema"):
        notes.append("the server does not enforce JSON schemas: use answers of one word")
    if in_json.invalid.get("cut-short"):
        notes.append("the model does not end its JSON answers: use answers of one word")
    if max(words.durations.p95_ms, in_json.durations.p95_ms) > config.timeout_s * 500:
        notes.append("the p95 of the latency is more than half of `timeout_s`")
    return notes
