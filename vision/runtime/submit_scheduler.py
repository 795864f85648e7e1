"""`SubmitScheduler`: when to form the next batch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class _Running:
    size: int
    submitted_ns: int


@dataclass(slots=True)
class SubmitScheduler:
    """Decides when to form the next batch: just before the detector can start on it.

    Frames that are batched while the detector is busy only grow old in its queue. The scheduler learns, per batch size,
    how long a batch takes alone (`latency`) and how far apart batches come out when the detector never idles
    (`interval`). From these it predicts when the running batches will be done, and subtracts the time that a new batch
    needs before it reaches the point where it would have to wait. Simulated with batches of 50 ms in two slots, this
    keeps the throughput of submitting at once and reduces the median age of a frame when its result is back from
    100 ms to 51 ms (tests/unit/runtime/test_batcher.py).

    Args:
        parallel: batches that the detector works on at the same time.
        margin_ns: host work between forming and submitting a batch, and the error of the estimates.
        weight: of a new sample in the moving averages.
    """

    parallel: int
    margin_ns: int = 1_000_000
    weight: float = 0.2
    _running: list[_Running] = field(default_factory=list)
    _latency_ns: dict[int, float] = field(default_factory=dict)
    _interval_ns: dict[int, float] = field(default_factory=dict)
    _last_done_ns: int = 0

    def submitted(self, size: int, now_ns: int) -> None:
        """Record that a batch of `size` frames was submitted."""
        self._running.append(_Running(size, now_ns))

    def done(self, now_ns: int) -> None:
        """Record that the oldest batch came back."""
        batch = self._running.pop(0)
        if batch.submitted_ns >= self._last_done_ns and not self._queued_behind(batch):
            self._learn(self._latency_ns, batch.size, now_ns - batch.submitted_ns)
        else:
            self._learn(self._interval_ns, batch.size, now_ns - max(self._last_done_ns, batch.submitted_ns))
        self._last_done_ns = now_ns

    def _queued_behind(self, batch: _Running) -> bool:
        return any(other.submitted_ns < batch.submitted_ns for other in self._running)

    def form_at_ns(self, size: int) -> int:
        """Return the earliest useful time to form a batch of about `size` frames; 0 for at once."""
        ahead = len(self._running) - self.parallel
        if ahead < 0:
            return 0
        end_ns = float(self._last_done_ns)
        for batch in self._running[: ahead + 1]:
            interval_ns = self._near(self._interval_ns, batch.size)
            latency_ns = self._near(self._latency_ns, batch.size)
            if interval_ns is None and latency_ns is None:
                return 0
            end_ns = max(
                end_ns + (interval_ns or 0.0), batch.submitted_ns + (latency_ns or 0.0) * (interval_ns is None)
            )
        return int(end_ns - self._fill_ns(size) - self.margin_ns)

    def _fill_ns(self, size: int) -> float:
        """Return the time of a batch in the detector beyond the interval between batches: work that overlaps."""
        latency_ns, interval_ns = self._near(self._latency_ns, size), self._near(self._interval_ns, size)
        return max(0.0, latency_ns - interval_ns) if latency_ns is not None and interval_ns is not None else 0.0

    def _learn(self, table: dict[int, float], size: int, sample_ns: int) -> None:
        old_ns = table.get(size)
        table[size] = sample_ns if old_ns is None else old_ns + self.weight * (sample_ns - old_ns)

    @staticmethod
    def _near(table: dict[int, float], size: int) -> float | None:
        return table[min(table, key=lambda learned: abs(learned - size))] if table else None
