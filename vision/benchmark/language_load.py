"""Load on a language model during `vision plan`, if the model runs on the same machine as the pipeline."""

from __future__ import annotations

import ipaddress
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from typing import Final
from urllib.parse import urlsplit

import psutil

from vision.benchmark.language import NO, QUESTION, YES, Sample, sample_images
from vision.benchmark.loops import Durations
from vision.config.language import LanguageServer
from vision.errors import InvalidAnswer, LanguageError
from vision.language.client import ChatServer
from vision.language.parallel_limit import ParallelLimit

_IMAGES: Final = 60  # number of different images
_PAUSE_S: Final = 1.0  # pause after a failure
_STOP_S: Final = 1.0  # longest wait for the end of a thread


@dataclass(frozen=True, slots=True)
class LanguageRun:
    """Answers of the language model during the runs of a plan."""

    durations: Durations  # latencies of the answers
    failures: Mapping[str, int]  # number of failures by the code of the error


class LanguageLoad:
    """Threads that keep a server busy. Each thread asks its next question after an answer, or 1 s after a failure."""

    def __init__(self, config: LanguageServer) -> None:
        self._config = config
        self._server, self._limit = ChatServer(config), ParallelLimit(config.parallel)
        self._images = cycle(list(sample_images(_IMAGES, config.max_image_px)))
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._latencies_ns: list[int] = []
        self._failures: Counter[str] = Counter()
        self._threads = [
            threading.Thread(target=self._ask, name=f"language-load-{number}", daemon=True)
            for number in range(self._limit.most)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop the threads. Wait at most 1 s for each thread, because the server may not answer. Idempotent."""
        self._stop.set()
        for thread in self._threads:
            thread.join(_STOP_S)

    def result(self) -> LanguageRun:
        """Return the durations of all answers, and the number of failures, since the start."""
        with self._lock:
            return LanguageRun(Durations.of(self._latencies_ns), dict(self._failures))

    def _ask(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                image = next(self._images)
            with self._limit.slot():
                if (failure := self._failure(image)) is None:
                    continue
            with self._lock:
                self._failures[failure] += 1
            self._stop.wait(_PAUSE_S)

    def _failure(self, image: Sample) -> str | None:
        """Ask about an image. Return the code of the error, or None if there is an answer."""
        request = self._limit.begin("load")
        try:
            answer = self._server.complete(QUESTION, [image.jpeg], choices=(YES, NO))
        except LanguageError as error:
            is_answer = isinstance(error, InvalidAnswer)
            self._limit.ended(request, "" if is_answer else error.code, self._config.timeout_s)
            return error.code
        self._limit.ended(request)
        with self._lock:
            self._latencies_ns.append(round(answer.latency_ms * 1e6))
        return None


@contextmanager
def language_load(config: LanguageServer | None) -> Iterator[LanguageLoad | None]:
    """Keep a server busy during a `with` block. Yield the load, or None if there is no server on this machine."""
    if config is None or not is_local(config.url):
        yield None
        return
    load = LanguageLoad(config)
    load.start()
    try:
        yield load
    finally:
        load.close()


def is_local(url: str) -> bool:
    """Return True if the host in a URL is `localhost` or an address of this machine."""
    host = urlsplit(url).hostname or ""
    with suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return True
    own = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    return host == "localhost" or host in own
