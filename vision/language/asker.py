"""`Asker` queues questions, asks the server, and reports the outcome of each question."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vision.config.language import DescribeConfig, LanguageConfig, VerifyConfig
from vision.errors import InvalidAnswer, LanguageError, ServerFailure, ServerRefusal, redact
from vision.language.breaker import CircuitBreaker
from vision.language.client import Answer, ChatServer
from vision.language.fair_queue import FairQueue
from vision.language.image_budget import ImageBudget
from vision.language.ledger import Ledger
from vision.language.messages import (
    IMAGE_BUDGET_BYTES,
    MOST_TEXT,
    STATEMENT,
    Line,
    LogLine,
    Outcome,
    Question,
    Received,
    Statement,
    Totals,
    TrueStatement,
    Unasked,
    subject_of,
)
from vision.language.parallel_limit import ParallelLimit
from vision.language.prompts import TRUE, answers_of, is_json, prompt_of, schema_of
from vision.language.refusals import log_text
from vision.messaging import codec
from vision.messaging.schema import Description, EventMessage, Verdict
from vision.metrics import LatencyHistogram

_LOG_S: Final = 60.0  # time between two log lines about the same kind of error
_BROKEN: Final = ("too-long", "not-http", "rubbish")
"""Codes of invalid answers that are signs of a server that does not work."""
_PASSABLE: Final = ("images-refused", "image-too-large", "refused")
"""Codes of refusals that concern only one question, and are no sign of a server that does not work."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A question with its images, and the time at which it arrived."""

    question: Question
    images: Sequence[bytes]
    arrived_s: float


class Asker:
    """A queue of questions, and the threads that ask the server. Only `ask_next` waits for the server."""

    def __init__(
        self,
        config: LanguageConfig,
        entries: Sequence[VerifyConfig | DescribeConfig],
        report: Callable[[Line], None],
        *,
        ledger: Ledger | None = None,
        breaker: CircuitBreaker | None = None,
        true_statements: Sequence[TrueStatement] = (),
    ) -> None:
        """Create the queue. `start` starts the threads.

        Args:
            config: the section `language` of the configuration.
            entries: the entries of `verify:` and `describe:`.
            report: function that receives outcomes, statements, and log lines. Several threads call it.
            ledger: files for all questions and answers. None means that questions and answers are not stored.
            breaker: breaker for the server. If None, create a breaker.
            true_statements: statements that an earlier process has reported as true.
        """
        self._config, self._report, self._ledger = config, report, ledger
        self._entries = {entry.name: entry for entry in entries}
        self._server = ChatServer(config)
        self._limit = ParallelLimit(config.parallel)
        self._breaker = breaker or CircuitBreaker(config.timeout_s)
        self._queue: FairQueue[_Waiting] = FairQueue(most=config.queue)
        self._images: ImageBudget[_Waiting] = ImageBudget(IMAGE_BUDGET_BYTES)
        self._latency = LatencyHistogram()
        self._lock = threading.Lock()
        self._counters: Counter[str] = Counter(requests=0)
        self._logged: dict[str, float] = {}  # time of the last log line about each code
        self._true_until = {
            (each.check, each.camera): float("inf") if each.until_s is None else each.until_s
            for each in true_statements
        }
        """Monotonic time in seconds until which a statement counts as true, by entry and camera."""

    def start(self, on_failure: Callable[[], None]) -> None:
        """Start the threads, which call `ask_next` in a loop. A thread that fails calls `on_failure`."""

        def run() -> None:
            try:
                while True:
                    self.ask_next()
            finally:
                on_failure()

        for number in range(self._limit.most):
            threading.Thread(target=run, name=f"ask-{number}", daemon=True).start()

    def add(self, question: Question, images: Sequence[bytes]) -> None:
        """Queue a question with its images (JPEG files), or report immediately that it gets no answer.

        Ignore a question about a statement that was reported as true, and whose checks are suspended.
        """
        waiting = _Waiting(question, images, time.monotonic())
        if self._is_true(question):
            return
        if (subject := subject_of(question)) is not None:
            self._report(Received(subject=subject))
        if question.check not in self._entries:
            self._skip(waiting, "unknown-check")
        elif not self._breaker.admits():
            self._skip(waiting, "breaker-open")
        else:
            self._put(waiting)

    def ask_next(self) -> None:
        """Wait for a question, ask the server, and report the outcome.

        Report the outcome of a statement only if it is true. Do not ask if the question has expired, if the breaker has
        opened since the question arrived, or if the checks of its statement are suspended.
        """
        with self._limit.slot():  # choose the question after this wait, because newer questions come first
            waiting = self._queue.take()
            assert waiting is not None
            self._images.remove(waiting.question.camera, waiting)
            self._process(waiting)

    def totals(self) -> Totals:
        """Return the counters since the start, the current state, and the latencies since the previous call."""
        latency = self._latency.snapshot(reset=True)
        gauges = {
            "queue": len(self._queue),
            "queue_bytes": self._images.nbytes,
            "breaker_open": int(self._breaker.is_open),
            "parallel": self._limit.limit,
            "latency_p50_ms": round(latency.p50_ms),
            "latency_p99_ms": round(latency.p99_ms),
        }
        with self._lock:
            counters = dict(self._counters)
        if self._ledger is not None:
            counters["ledger_lost"] = self._ledger.lost
        return Totals(counters=counters, gauges=gauges)

    def _process(self, waiting: _Waiting) -> None:
        if self._is_true(waiting.question):
            return
        left_s = (waiting.question.expires_ns - time.monotonic_ns()) / 1e9
        if left_s <= 0:
            self._skip(waiting, "expired")
        elif self._breaker.opened_after(waiting.arrived_s):
            self._skip(waiting, "breaker-open")
        else:
            self._ask(waiting, left_s)

    def _put(self, waiting: _Waiting) -> None:
        """Queue a question.

        If the queue then exceeds the limit of waiting questions or images, report the displaced questions.
        """
        camera = waiting.question.camera
        removed = self._images.add(camera, waiting, sum(map(len, waiting.images)))
        for each in removed:
            if each is waiting or self._queue.remove(each.question.camera, each):
                self._skip(each, "queue-full")
        if waiting in removed:
            return
        for each in self._queue.put(camera, waiting):
            self._images.remove(each.question.camera, each)
            self._skip(each, "queue-full")

    def _ask(self, waiting: _Waiting, left_s: float) -> None:
        question = waiting.question
        entry = self._entries[question.check]
        prompt, answers = prompt_of(entry, question), answers_of(entry)
        asked_s = time.monotonic()
        self._count("requests")
        request = self._limit.begin(entry.name)
        try:
            answer = self._server.complete(
                prompt,
                waiting.images,
                schema=schema_of(answers) if answers and is_json(entry) else None,
                choices=() if is_json(entry) else answers,
                deadline_s=left_s,
            )
        except LanguageError as error:
            is_answer = isinstance(error, InvalidAnswer) and error.code not in _BROKEN
            self._limit.ended(request, "" if is_answer else error.code, min(left_s, self._config.timeout_s))
            if error.code == "busy" and self._limit.fixed is None and not request.is_alone:
                self._put(waiting)  # the server works, but it had too many requests, and gets fewer from now on
                return
            self._log(error.code, log_text(entry, question.camera, error))
            self._judge(error, asked_s)
            self._fail(waiting, error, prompt)
            return
        self._limit.ended(request)
        self._judge(None, asked_s)
        self._latency.observe(int(answer.latency_ms * 1e6))
        self._answered(waiting, entry, prompt, answer)

    def _judge(self, error: LanguageError | None, asked_s: float) -> None:
        """Report the result of a question that was asked at `asked_s` to the breaker.

        Log if the breaker opens or closes.
        """
        if error is None or not _shows_failure(error):
            if self._breaker.succeeded():
                self._report(LogLine(text="the server responds again, so it gets all questions", is_problem=False))
            return
        opens = self._breaker.timed_out(asked_s) if error.code == "too-slow" else self._breaker.failed(asked_s)
        if opens:
            text = "the server fails, so it gets only a question from time to time, until it responds again"
            self._report(LogLine(text=text, is_problem=False))

    def _answered(self, waiting: _Waiting, entry: VerifyConfig | DescribeConfig, prompt: str, answer: Answer) -> None:
        question, latency_ms = waiting.question, round(answer.latency_ms, 1)
        if not answers_of(entry):
            text = redact(answer.text.strip()[:MOST_TEXT])
            description = Description(check=entry.name, text=text, model=answer.model, latency_ms=latency_ms)
            self._count(f"answers.{entry.name}")
            self._record(waiting, prompt, {"model": answer.model, "answer": text, "latency_ms": latency_ms})
            self._report(Outcome(id=question.id, purpose=question.purpose, description=description))
            return
        chosen, confidence = answer.parsed, answer.confidence
        if isinstance(chosen, Mapping):
            chosen, confidence = chosen["answer"], float(chosen["confidence"])
        verdict = Verdict(
            check=entry.name,
            answer=chosen,
            confidence=None if confidence is None else round(confidence, 4),
            model=answer.model,
            latency_ms=latency_ms,
        )
        self._count(f"answers.{entry.name}.{chosen}")
        details = {"model": answer.model, "answer": chosen, "confidence": confidence, "latency_ms": latency_ms}
        self._record(waiting, prompt, details)
        if isinstance(entry, DescribeConfig):
            self._watched(question, entry, verdict)
        else:
            self._report(Outcome(id=question.id, purpose=question.purpose, verdict=verdict))

    def _is_true(self, question: Question) -> bool:
        """Return True if a question is about a statement whose checks are suspended, because the statement was true."""
        return not question.id and self._true_until.get((question.check, question.camera), 0.0) > time.monotonic()

    def _watched(self, question: Question, entry: DescribeConfig, verdict: Verdict) -> None:
        """If a statement is true, report it, and suspend its checks.

        The checks resume after `again_after_s` seconds. If `again_after_s` is None, they resume at the next start of
        the program.
        """
        with self._lock:
            if verdict.answer != TRUE or self._is_true(question):
                return
            until_s = None if entry.again_after_s is None else time.monotonic() + entry.again_after_s
            self._true_until[entry.name, question.camera] = float("inf") if until_s is None else until_s
        event = EventMessage(
            **codec.UNNUMBERED,
            camera=question.camera,
            epoch=question.epoch,
            frame=question.frame,
            at=question.at,
            at_monotonic_ns=question.at_monotonic_ns,
            kind=STATEMENT,
            name=entry.name,
            data={"phase": "instant", "statement": entry.statement},
            verdict=verdict,
        )
        self._report(Statement(event=event, until_s=until_s))

    def _skip(self, waiting: _Waiting, code: str) -> None:
        """Count and report a question that is not asked."""
        self._count(f"errors.{code}")
        if (subject := subject_of(waiting.question)) is not None:
            self._report(Unasked(subject=subject, reason=code))

    def _fail(self, waiting: _Waiting, error: LanguageError, prompt: str) -> None:
        question = waiting.question
        self._count(f"errors.{error.code}")
        details = {"model": error.model or self._server.model, "error": error.code}
        self._record(waiting, prompt, details | ({"response": error.response} if error.response else {}))
        if question.id:
            self._report(Outcome(id=question.id, purpose=question.purpose, error=error.code))

    def _record(self, waiting: _Waiting, prompt: str, details: Mapping[str, Any]) -> None:
        if self._ledger is None:
            return
        question = waiting.question
        about = {"id": question.id, "check": question.check, "camera": question.camera, "at": question.at}
        with self._lock:
            self._ledger.write({**about, "prompt": prompt, **details}, waiting.images)

    def _count(self, name: str) -> None:
        with self._lock:
            self._counters[name] += 1

    def _log(self, code: str, text: str) -> None:
        """Log an error, but log each code at most once per minute."""
        now_s = time.monotonic()
        with self._lock:
            if now_s - self._logged.get(code, -_LOG_S) < _LOG_S:
                return
            self._logged[code] = now_s
        self._report(LogLine(text=text, is_problem=True))


def _shows_failure(error: LanguageError) -> bool:
    """Return True if the next question will probably fail too."""
    if isinstance(error, InvalidAnswer):
        return error.code in _BROKEN
    if isinstance(error, ServerRefusal):
        return error.code not in _PASSABLE
    return isinstance(error, ServerFailure)
