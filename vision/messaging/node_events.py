"""Events about the program and its cameras, such as a lost camera, a disk with little free space, or lost events.

The journal stores these events like the events of lines and zones, so subscribers can request missed events. The topic
of an event about the program is ``events/node``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vision.config import AppConfig
from vision.config.reporting import ReportAfter
from vision.errors import conceal
from vision.messaging import codec
from vision.messaging.schema import NODE, REMOVED, CameraReport, DiskStatus, EventMessage, NodeReport, StatusReport
from vision.messaging.times import rfc3339
from vision.state.run_record import RunRecord

_DELIVERS: Final = ("streaming", "ended")
_LOST_INTERVAL_NS: Final = 60_000_000_000  # minimum time between two events that report lost events
_STORES: Final = ("journal", "archive", "snapshots")  # each has a counter `<name>.stopped`
_RECOVERED: Final = 1.2  # multiple of the limit from which the disk counts as free again
_DEFAULT_PATIENCE: Final = ReportAfter.model_construct()


@dataclass(frozen=True, slots=True)
class NodeEventSettings:
    """Settings of `NodeEvents`: how long a camera can fail without a report, and the limit of free disk space."""

    patience: Mapping[str, ReportAfter] = field(default_factory=dict)  # by camera
    folders: Sequence[Path] = ()  # folders whose disks are checked
    min_free_bytes: int = 0

    @classmethod
    def of(cls, config: AppConfig) -> NodeEventSettings:
        """Return the settings of a configuration."""
        sections = (config.snapshots, config.recording, config.archive)
        folders = [config.state_dir, *(section.folder for section in sections if section is not None)]
        return cls(
            patience={camera.id: config.report_after(camera) for camera in config.cameras},
            folders=[Path(folder) for folder in folders if folder is not None],
            min_free_bytes=config.status.min_free_mb * 1_000_000,
        )


@dataclass(slots=True)
class _Outage:
    since_ns: int
    kind: str = ""  # kind of the event that was reported; empty if the camera has not failed for long enough


class NodeEvents:
    """Source of the events that follow from status reports. One thread calls `of`, once for each report.

    The publisher replaces `settings` when the configuration changes.
    """

    def __init__(self, settings: NodeEventSettings, run: RunRecord | None = None) -> None:
        """Create the source. `run` records this run, and reports how the previous run ended.

        If `run` is None, the event `started` does not report how the previous run ended.
        """
        self.settings = settings
        self._run = run
        self._outages: dict[str, _Outage] = {}
        self._low: set[str] = set()
        self._recording_stopped = False
        self._stopped: set[str] = set()  # names of `_STORES`
        self._lost = 0
        self._lost_at_ns: int | None = None
        self._started = False

    def of(self, report: StatusReport) -> Iterator[EventMessage]:
        """Yield the events that follow from a report of a camera or of the program."""
        if isinstance(report, CameraReport):
            yield from self._of_camera(report)
        elif isinstance(report, NodeReport):
            yield from self._of_program(report)

    def _of_camera(self, report: CameraReport) -> Iterator[EventMessage]:
        now_ns, patience = report.at_monotonic_ns, self.settings.patience.get(report.camera, _DEFAULT_PATIENCE)
        outage = self._outages.get(report.camera)
        if report.state == REMOVED:
            self._outages.pop(report.camera, None)
            return
        if report.state in _DELIVERS:
            if outage is None or (report.state == "streaming" and report.state_for_s < patience.back):
                return
            if outage.kind:
                data = {"after": outage.kind, "outage_s": round((now_ns - outage.since_ns) / 1e9, 1)}
                yield _event("camera_back", report, report.camera, report.epoch, data)
            del self._outages[report.camera]
            return
        if outage is None:
            outage = self._outages[report.camera] = _Outage(now_ns - round(report.state_for_s * 1e9))
        # A camera that is frozen is connected again and again, which is the same outage.
        is_frozen = report.state == "frozen" or report.error_code == "frozen"
        patience_s = patience.frozen if is_frozen else patience.lost
        if patience_s is None or outage.kind or now_ns - outage.since_ns < patience_s * 1e9:
            return
        outage.kind = "camera_frozen" if is_frozen else "camera_lost"
        data = {"state": report.state, "outage_s": round((now_ns - outage.since_ns) / 1e9, 1)}
        if report.last_error is not None:
            data["reason"] = conceal(report.last_error)
        yield _event(outage.kind, report, report.camera, report.epoch, data)

    def _of_program(self, report: NodeReport) -> Iterator[EventMessage]:
        if not self._started:
            self._started = True
            data = {"version": report.version, "backend": report.backend, "model": report.model}
            yield _event("started", report, NODE, 0, data | self._after())
            if report.detector is not None and report.detector.gpu_unused is not None:
                yield _event("gpu_unused", report, NODE, 0, {"reason": report.detector.gpu_unused})
        elif self._run is not None:
            self._run.beat()
        for folder, disk in self.disks().items():
            yield from self._of_disk(folder, disk, report)
        yield from self._of_recording(report)
        yield from self._of_stores(report)
        lost, now_ns = report.counters.get("journal.lost", 0), report.at_monotonic_ns
        is_due = self._lost_at_ns is None or now_ns >= self._lost_at_ns + _LOST_INTERVAL_NS
        if lost > self._lost and is_due:
            yield _event("events_lost", report, NODE, 0, {"count": lost - self._lost})
            self._lost, self._lost_at_ns = lost, now_ns

    def _of_recording(self, report: NodeReport) -> Iterator[EventMessage]:
        stopped = report.counters.get("recording.stopped", 0)
        if stopped and not self._recording_stopped:
            yield _event("recording_stopped", report, NODE, 0, {"cameras": stopped})
        elif not stopped and self._recording_stopped:
            yield _event("recording_resumed", report, NODE, 0, {})
        self._recording_stopped = stopped > 0

    def _of_stores(self, report: NodeReport) -> Iterator[EventMessage]:
        for name in _STORES:
            is_stopped = report.counters.get(f"{name}.stopped", 0) > 0
            if is_stopped and name not in self._stopped:
                self._stopped.add(name)
                yield _event("storage_stopped", report, NODE, 0, {"of": name})
            elif not is_stopped and name in self._stopped:
                self._stopped.remove(name)
                yield _event("storage_resumed", report, NODE, 0, {"of": name})

    def _after(self) -> dict[str, str | bool]:
        """Record that this run has started.

        Return the data of the event `started`, which describes how the previous run ended, and whether its events and
        counters are lost.
        """
        if self._run is None:
            return {}
        last = self._run.begin()
        lost: dict[str, str | bool] = {"state_lost": True} if self._run.is_state_lost else {}
        return lost if last is None else lost | {"after": last.end, "ended_at": rfc3339(last.at_utc_ns)}

    def disks(self) -> dict[str, DiskStatus]:
        """Return, for each folder in the settings, the free space of its disk. Omit missing folders."""
        found = {}
        for folder in self.settings.folders:
            with contextlib.suppress(OSError):  # the part that writes to it reports the error
                disk = os.statvfs(folder)
                found[str(folder)] = DiskStatus(
                    free_bytes=disk.f_bavail * disk.f_frsize,
                    size_bytes=disk.f_blocks * disk.f_frsize,
                    min_free_bytes=self.settings.min_free_bytes,
                )
        return found

    def _of_disk(self, folder: str, disk: DiskStatus, report: NodeReport) -> Iterator[EventMessage]:
        data = {"folder": folder, "free_mb": disk.free_bytes // 1_000_000}
        if folder not in self._low and disk.free_bytes < disk.min_free_bytes:
            self._low.add(folder)
            yield _event("disk_low", report, NODE, 0, data)
        elif folder in self._low and disk.free_bytes > _RECOVERED * disk.min_free_bytes:
            self._low.remove(folder)
            yield _event("disk_free", report, NODE, 0, data)


def _event(kind: str, report: CameraReport | NodeReport, camera: str, epoch: int, data: dict[str, Any]) -> EventMessage:
    return EventMessage(
        **codec.UNNUMBERED,
        camera=camera,
        epoch=epoch,
        frame=0,
        at=report.at,
        at_monotonic_ns=report.at_monotonic_ns,
        kind=kind,
        name=camera,
        data=data,
    )
