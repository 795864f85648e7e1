"""Tracks become events and counts: who crossed which line, who is in which zone for how long, where it is crowded.

`Analytics` is the stage, `CounterJournal` what survives a restart, and `Forcer` waits for the disk. Shapes are
configured by `vision.config.analytics`; docs/analytics.md explains them with drawings.
"""

from vision.analytics.counters import CounterJournal
from vision.analytics.forcing import Forcer
from vision.analytics.stage import Analytics

__all__ = ["Analytics", "CounterJournal", "Forcer"]
