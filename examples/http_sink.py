"""Post every event to an HTTP server as JSON.

    pipeline: examples/http_sink.py

Set the environment variable EVENTS_URL to the address of the server. A thread with a bounded queue sends the requests,
so a slow server never delays detection. If the queue is full, the sink drops events, and counts them in `status/node`.
"""

import contextlib
import json
import os
import queue
import threading
import urllib.request

from vision.pipelines import pipeline_with
from vision.stages.stage import Report
from vision.types import Event, Result

QUEUE_SIZE = 1000


class HttpSink:
    """A sink: an object with the methods `publish` and `report`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._queue: queue.Queue[Event] = queue.Queue(QUEUE_SIZE)
        self._counters = {"http.sent": 0, "http.failed": 0, "http.dropped": 0}
        threading.Thread(target=self._send_all, name="http-sink", daemon=True).start()

    def publish(self, result: Result) -> None:
        """Queue the events of one frame. The results thread calls this method, so it must not block."""
        for event in result.events:
            try:
                self._queue.put_nowait(event)
            except queue.Full:
                self._counters["http.dropped"] += 1

    def report(self, report: Report) -> None:
        """Do nothing: this sink does not send the status."""

    def counters(self) -> dict[str, int]:
        """Return counters, which become part of `status/node`."""
        return dict(self._counters)

    def _send_all(self) -> None:
        while True:
            event = self._queue.get()
            body = {"kind": event.kind, "name": event.name, "camera": event.camera_id, "data": dict(event.data)}
            request = urllib.request.Request(
                self._url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
            )
            outcome = "http.failed"
            with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=10):
                outcome = "http.sent"
            self._counters[outcome] += 1


build = pipeline_with([], after="count", sinks=[HttpSink(os.environ.get("EVENTS_URL", "http://127.0.0.1:8080/events"))])
