"""Tests of result workers: equal messages, kills, exact accounting, events, counters, the stop, and the common log."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from tests.messages.processes import Program, wait_until
from tests.unit.detect.test_classifier import save
from tests.unit.runtime.worker_children import worker_children
from vision.client import Gap, Item, Restart, Subscription
from vision.config import AppConfig
from vision.errors import ConfigError, VisionError
from vision.messaging.schema import CameraReport, DetectionsMessage, EventMessage, Kind, ObjectMessage
from vision.pipelines import load_pipeline
from vision.runtime.builder import RunOptions, open_state
from vision.runtime.result_processes import ResultProcesses
from vision.runtime.runtime import Runtime
from vision.runtime.worker_process import worker_name
from vision.stages.stage import Report
from vision.state.database import StateDatabase

pytestmark = pytest.mark.integration

KINDS: tuple[Kind, ...] = ("detections", "events", "counts", "status", "objects")
LINE = {"name": "middle", "points": [[0.5, 0.0], [0.5, 1.0]], "anchor": "center"}
ZONE = {"name": "left", "polygon": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]], "anchor": "center"}
RULE = {"name": "visited", "when": "zone_entered left"}


def site(folder: Path, *, processes: int, cameras: int = 3, source: str = "", **top: Any) -> AppConfig:
    """Return a configuration with synthetic cameras, each of which has a line and a zone."""
    source = source or "synthetic:160x120@30?objects=3"
    ids = [f"c{number}" for number in range(cameras)]
    section = {"units": "fraction", "lines": [LINE], "zones": [ZONE]}
    content = {
        "pipeline": "count",
        "processes": processes,
        "detect": {"backend": "fake"},
        "cameras": [{"id": name, "source": f"{source}&seed={number}"} for number, name in enumerate(ids)],
        "analytics": dict.fromkeys(ids, section),
        "publish": {"bind": f"ipc://{folder}/out-{processes}", "queue": 100_000},
        "status": {"interval_s": 0.1},
    }
    return AppConfig.model_validate(content | top)


@dataclass
class Running:
    """Program in this process, and all data that a subscriber received from it."""

    runtime: Runtime
    stop: threading.Event = field(default_factory=threading.Event)
    items: list[Item] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    failure: BaseException | None = None

    def workers(self) -> list[psutil.Process]:
        """Return the processes of the result workers."""
        found = by_name(worker_children())
        return [found[name] for name in sorted(found) if name.startswith("result worker")]

    def spare(self) -> psutil.Process:
        """Wait until the spare process runs. Return the spare process."""
        wait_until(lambda: "spare worker" in by_name(worker_children()), "the spare process")
        return by_name(worker_children())["spare worker"]

    def of(self, kind: type[Any]) -> list[Any]:
        return [item for item in self.items if isinstance(item, kind)]

    def cameras(self) -> dict[str, CameraReport]:
        return {camera.camera: camera for camera in self.reports[-1].cameras}


def by_name(processes: list[psutil.Process]) -> dict[str, psutil.Process]:
    found: dict[str, psutil.Process] = {}
    for process in processes:
        with suppress(psutil.Error):  # the process has just ended
            found[worker_name(process.cmdline())] = process
    return found


@contextmanager
def running(
    config: AppConfig,
    *,
    offline: bool = False,
    state: StateDatabase | None = None,
    record: Path | None = None,
    started: Callable[[Running], None] | None = None,
) -> Iterator[Running]:
    """Run the program in a thread until the end of the `with` block. Cameras start after the subscriber has joined."""
    stop = threading.Event()
    options = RunOptions(stop=stop, offline=offline, state=state, record=record)
    with ExitStack() as resources:
        runtime = load_pipeline(config.pipeline)(config, options, resources)
        program = Running(runtime, stop)
        subscription = resources.enter_context(Subscription(config.publish.bind, kinds=KINDS, queue=1_000_000))
        wait_until(lambda: runtime.results.sinks[0].socket.joins >= len(KINDS), "the subscriber joins")  # type: ignore[attr-defined]
        time.sleep(0.1)  # until the workers have received the subscriptions

        def run() -> None:
            try:
                runtime.run(stop, on_report=program.reports.append)
            except BaseException as error:  # noqa: BLE001 - checked by the test
                program.failure = error

        def receive() -> None:
            while thread.is_alive() or subscription._guarded.socket.poll(300):
                if (item := subscription.receive(0.05)) is not None:
                    program.items.append(item)

        thread, receiver = threading.Thread(target=run), threading.Thread(target=receive)
        thread.start()
        receiver.start()
        try:
            yield program
        finally:
            stop.set()
            thread.join(60)
            resources.callback(receiver.join)
    assert not worker_children()


def finished(program: Running) -> bool:
    return bool(program.reports) and all(camera.state == "ended" for camera in program.reports[-1].cameras)


def comparable(program: Running) -> dict[str, list[bytes]]:
    """Return the messages of each topic in JSON, with times relative to the first frame of the camera."""
    starts_ns = {item.camera: item.captured_monotonic_ns for item in reversed(program.of(DetectionsMessage))}
    found: dict[str, list[bytes]] = {}
    for item in [*program.of(DetectionsMessage), *program.of(EventMessage), *program.of(ObjectMessage)]:
        content = msgspec.to_builtins(item)
        for key in ("instance", "timing_ms", "captured_at", "at", "first_seen", "snapshot_at"):
            content.pop(key, None)
        for visit in [*content.get("lines", ()), *content.get("zones", ())]:
            for key in {"at", "entered_at", "left_at"} & visit.keys():
                visit[key] = ""
        for key in {"captured_monotonic_ns", "at_monotonic_ns"} & content.keys():
            content[key] -= starts_ns[item.camera]
        found.setdefault(item.topic, []).append(msgspec.json.encode(content))
    return found


def test_offline_messages_equal_those_of_one_process(tmp_path: Path) -> None:
    messages, records = [], []
    for processes in (1, 2):
        bind = {"bind": f"ipc://{tmp_path}/{processes}", "queue": 100_000}
        source = "synthetic:160x120@30?objects=3&frames=120"
        lost: dict[str, Any] = {"track": {"lost_s": 0.1}, "objects": {}}
        config = site(tmp_path, processes=processes, source=source, publish=bind, rules=[RULE], **lost)
        record = tmp_path / f"{processes}.jsonl"
        with running(config, offline=True, record=record) as program:
            wait_until(lambda program=program: finished(program), "the end")  # type: ignore[misc]
            assert isinstance(program.runtime.results, ResultProcesses) == (processes == 2)
        assert program.failure is None
        messages.append(comparable(program))
        records.append(Counter(msgspec.json.decode(line)["camera"] for line in record.read_bytes().splitlines()))
    kinds = ("detections", "events", "objects")
    assert messages[0].keys() == {f"{kind}/c{number}" for kind in kinds for number in range(3)}
    assert all(b'"snapshot":"/9j/' in each for each in messages[0]["objects/c0"])
    assert messages[0] == messages[1]
    assert records == [Counter({"c0": 120, "c1": 120, "c2": 120})] * 2


def test_killed_worker_loses_no_event_and_disturbs_no_other_camera(tmp_path: Path) -> None:
    config = site(tmp_path, processes=2, cameras=4, state_dir=str(tmp_path / "state"))
    with ExitStack() as resources:
        state = open_state(config, resources)
        with running(config, state=state) as program:
            wait_until(lambda: len(program.of(EventMessage)) > 5, "events")
            wait_until(lambda: all(camera.published > 5 for camera in program.cameras().values()), "frames")
            spare, killed = program.spare(), program.workers()[0]
            wait_until(lambda: "spare worker" in program.reports[-1].node.memory_bytes, "the memory of the process")
            killed.kill()
            wait_until(lambda: program.cameras()["c0"].epoch == 1, "a new epoch")
            before = program.cameras()["c0"].published
            wait_until(lambda: program.cameras()["c0"].published > before + 20, "the camera is back")
            assert program.workers()[0] == spare
    status, events = program.cameras(), program.of(EventMessage)
    assert {name: camera.epoch for name, camera in status.items()} == {"c0": 1, "c1": 0, "c2": 1, "c3": 0}
    for name, camera in status.items():
        assert camera.grabbed == camera.published + sum(camera.dropped.values())
        received = [item for item in program.of(DetectionsMessage) if item.camera == name]
        assert len({item.seq for item in received}) == len(received)
        assert {item.epoch for item in received} == ({0, 1} if name in ("c0", "c2") else {0})
        assert received[-1].seq >= camera.published
        if name in ("c1", "c3"):  # the killed worker can have had no frame of the others at that moment
            assert "worker" not in camera.dropped
    assert not program.of(Restart)
    # Every published event is stored, each number once, and the counters agree with the events.
    with closing(sqlite3.connect(tmp_path / "state" / "state.db")) as database:
        stored = [msgspec.json.decode(payload) for (payload,) in database.execute("SELECT payload FROM events")]
        rows = database.execute("SELECT camera, key, value FROM counters WHERE name = 'middle'").fetchall()
    numbers = [event.number for event in events]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(stored) >= len(events)
    crossings = Counter(
        (event["camera"], event["data"]["direction"]) for event in stored if event["kind"] == "line_crossed"
    )
    assert crossings == {(camera, key): value for camera, key, value in rows if key in ("in", "out") and value}


def test_states_of_a_killed_worker_and_of_a_stopped_program_end(tmp_path: Path) -> None:
    zone = {**ZONE, "crowd_threshold": 0, "dwell_s": 0.1}
    section = {"units": "fraction", "zones": [zone]}
    rules = [{"name": "full", "when": "crowded left"}]
    folder = tmp_path / "state"
    more: dict[str, Any] = {"analytics": {"c0": section, "c1": section}, "rules": rules, "state_dir": str(folder)}
    config = site(tmp_path, processes=2, cameras=2, **more)

    def phases(events: list[EventMessage]) -> dict[tuple[str, str, int | None], list[tuple[str, int]]]:
        found: dict[tuple[str, str, int | None], list[tuple[str, int]]] = {}
        for event in events:
            if event.data.get("phase") in ("begin", "end"):
                state = event.camera, event.kind, event.track_id
                found.setdefault(state, []).append((event.data["phase"], event.epoch))
        return found

    with ExitStack() as resources:
        state = open_state(config, resources)
        with running(config, state=state) as program:
            rule = ("c0", "rule", None)
            wait_until(lambda: phases(program.of(EventMessage)).get(rule, [])[-1:] == [("begin", 0)], "the rule begins")
            program.workers()[0].kill()
            wait_until(lambda: ("begin", 1) in phases(program.of(EventMessage)).get(rule, []), "it begins again")
    with closing(sqlite3.connect(folder / "state.db")) as database:
        rows = database.execute("SELECT payload FROM events ORDER BY number")
        events = [msgspec.json.decode(payload, type=EventMessage) for (payload,) in rows]
    for place, reports in phases(events).items():
        assert reports == [(phase, epoch) for _, epoch in reports[::2] for phase in ("begin", "end")], place
    assert any(event.camera == "c0" and event.data.get("interrupted") for event in events)


def test_ids_of_tracks_are_never_used_again(tmp_path: Path) -> None:
    with running(site(tmp_path, processes=2, cameras=2)) as program:
        wait_until(lambda: len(program.of(DetectionsMessage)) > 60, "detections")
        kinds = ("capture worker", "result worker")
        processes = {"main", *(f"{kind} {number}" for kind in kinds for number in (1, 2))}
        wait_until(lambda: program.reports[-1].node.memory_bytes.keys() >= processes, "the memory of all processes")
        time.sleep(1.2)  # until the worker has reported its ids
        program.workers()[0].kill()
        wait_until(lambda: program.cameras()["c0"].epoch == 1, "a new epoch")
        wait_until(lambda: any(item.epoch == 1 and item.objects for item in program.of(DetectionsMessage)), "objects")
    ids: dict[tuple[str, int], set[int | None]] = {}
    for item in program.of(DetectionsMessage):
        ids.setdefault((item.camera, item.epoch), set()).update(detected.track_id for detected in item.objects)
    assert len(ids) == 3
    assert len(set().union(*ids.values())) == sum(map(len, ids.values()))


def test_gaps_in_the_numbers_are_the_lost_messages(tmp_path: Path) -> None:
    with running(site(tmp_path, processes=2, cameras=2, source="synthetic:160x120@60?objects=3")) as program:
        for _ in range(3):
            wait_until(lambda: len(program.workers()) == 2, "two workers")
            published = program.cameras()["c0"].published if program.reports else 0
            wait_until(lambda: bool(program.reports), "a report")
            wait_until(lambda p=published: program.cameras()["c0"].published > p + 20, "frames")  # type: ignore[misc]
            os.kill(program.workers()[0].pid, signal.SIGSTOP)
            time.sleep(0.2)  # results wait for the worker
            program.workers()[0].kill()
    camera = program.cameras()["c0"]
    received = [item for item in program.of(DetectionsMessage) if item.camera == "c0"]
    lost = sum(item.lost for item in program.of(Gap) if item.topic == "detections/c0")
    assert received[-1].seq == len(received) + lost
    assert camera.grabbed == camera.published + sum(camera.dropped.values())
    assert sum(item.dropped_before.get("worker", 0) for item in received) <= camera.dropped["worker"]


def test_killed_spare_process_changes_nothing_for_a_worker_that_is_killed_next(tmp_path: Path) -> None:
    with running(site(tmp_path, processes=2, cameras=2)) as program:
        wait_until(lambda: len(program.of(DetectionsMessage)) > 20, "detections")
        program.spare().kill()
        program.workers()[0].kill()
        wait_until(lambda: any(item.epoch == 1 for item in program.of(DetectionsMessage)), "the camera is back")
    assert {name: camera.epoch for name, camera in program.cameras().items()} == {"c0": 1, "c1": 0}


def test_both_kinds_of_workers_use_the_same_spare_process(tmp_path: Path) -> None:
    with running(site(tmp_path, processes=2, cameras=2)) as program:
        wait_until(lambda: len(program.of(DetectionsMessage)) > 20, "detections")
        for number, kind in enumerate(("capture", "result", "capture")):
            name, spare = f"{kind} worker 1", program.spare()
            by_name(worker_children())[name].kill()
            wait_until(lambda name=name, spare=spare: by_name(worker_children()).get(name) == spare, "it is replaced")  # type: ignore[misc]
            epoch = number + 1
            wait_until(
                lambda epoch=epoch: any(item.epoch == epoch for item in program.of(DetectionsMessage)),  # type: ignore[misc]
                "the camera is back",
            )
    camera = program.cameras()["c0"]
    assert camera.grabbed == camera.published + sum(camera.dropped.values())


def test_program_with_one_process_starts_no_spare_process(tmp_path: Path) -> None:
    with running(site(tmp_path, processes=1)) as program:
        wait_until(lambda: bool(program.reports) and program.reports[-1].node.uptime_s > 4, "the time of a first start")
        assert not worker_children()


def test_stop_ends_a_worker_that_is_stuck(tmp_path: Path) -> None:
    with running(site(tmp_path, processes=2)) as program:
        wait_until(lambda: len(program.of(DetectionsMessage)) > 20, "detections")
        os.kill(program.workers()[0].pid, signal.SIGSTOP)
        program.stop.set()
        wait_until(lambda: not worker_children(), "all workers end")
    for camera in program.cameras().values():
        assert camera.grabbed == camera.published + sum(camera.dropped.values())


def test_an_answer_after_the_time_for_the_stop_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running(site(tmp_path, processes=2, cameras=2)) as program:
        wait_until(lambda: len(program.of(DetectionsMessage)) > 10, "detections")
        worker = program.workers()[0]
        os.kill(worker.pid, signal.SIGSTOP)
        time.sleep(0.3)  # results wait for the worker
        program.stop.set()
        wait_until(lambda: "results did not end within" in caplog.text, "the time for the stop is over")
        os.kill(worker.pid, signal.SIGCONT)
    assert program.failure is None
    assert "results failed" not in caplog.text


def test_lost_worker_of_an_offline_run_is_an_error(tmp_path: Path) -> None:
    config = site(tmp_path, processes=2, source="synthetic:160x120@30?objects=3&frames=100000")
    with running(config, offline=True) as program:
        wait_until(lambda: len(program.of(DetectionsMessage)) > 20, "detections")
        program.workers()[0].kill()
        wait_until(lambda: program.failure is not None, "the failure")
    assert isinstance(program.failure, VisionError)
    assert program.failure.code == "worker-lost"


PIPELINE = """
import logging
from msgspec.structs import replace
from vision.pipelines import pipeline_with
from vision.types import Event

log = logging.getLogger("vision.tests.stage")

seen = set()

def stage(result):
    if result.meta.camera_id not in seen:
        seen.add(result.meta.camera_id)
        log.warning("first frame of %s", result.meta.camera_id)
    event = Event("counted", "own", result.meta.camera_id, None, result.meta.captured_ns, {"index": result.meta.index})
    return replace(result, events=(*result.events, event)) if result.meta.index % 10 == 0 else result

build = pipeline_with([stage], after="track")
"""


def test_own_pipeline_file_runs_in_workers_and_logs_through_the_main_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "own.py"
    path.write_text(PIPELINE)
    config = site(tmp_path, processes=2, pipeline=str(path), analytics={})
    with running(config) as program:
        wait_until(lambda: len({item.camera for item in program.of(EventMessage)} - {"node"}) == 3, "events")
        assert len(program.workers()) == 2
    warned = [record for record in caplog.records if record.name == "vision.tests.stage"]
    assert sorted(record.getMessage().split()[-1] for record in warned) == ["c0", "c1", "c2"]
    assert {record.processName for record in warned} == {"result worker 1", "result worker 2"}


SINK = """
from vision.pipelines import pipeline_with

class Nothing:
    def publish(self, result):
        pass

    def report(self, report):
        pass

build = pipeline_with([], after="count", sinks=[Nothing()])
"""


def test_pipeline_that_workers_cannot_run_uses_one_process(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(SINK)
    with running(site(tmp_path, processes=2, pipeline=str(path))) as program:
        wait_until(lambda: bool(program.of(EventMessage)), "an event")
        assert not program.workers()


def test_snapshots_of_workers_equal_those_of_one_process(tmp_path: Path) -> None:
    images: list[dict[str, bytes]] = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        source = "synthetic:160x120@30?objects=3&frames=60"
        config = site(
            tmp_path, processes=processes, source=source, snapshots={"folder": str(folder), "annotate": False}
        )
        with running(config, offline=True) as program:
            wait_until(lambda program=program: finished(program), "the end")  # type: ignore[misc]
            assert isinstance(program.runtime.results, ResultProcesses) == (processes == 2)
        assert program.failure is None
        events = program.of(EventMessage)
        assert events
        assert all(event.snapshot for event in events)
        # The name contains the camera, the time of the run, the epoch, and the frame.
        found = {f"{path.name.split('-')[0]}-{path.stem.split('-')[-1]}": path for path in folder.iterdir()}
        images.append({name: path.read_bytes() for name, path in found.items()})
    assert images[0] == images[1]


def test_second_model_reads_frames_in_a_worker_that_is_replaced(tmp_path: Path) -> None:
    model = save(tmp_path / "paint")
    config = site(tmp_path, processes=2, cameras=2, cascade={"model": str(model), "min_size_px": 8})

    def classified(epoch: int) -> set[tuple[str, str]]:
        return {
            (detected.class_name, attribute.class_name)
            for item in program.of(DetectionsMessage)
            for detected in item.objects
            for attribute in detected.attributes or ()
            if (item.camera, item.epoch) == ("c0", epoch)
        }

    with running(config) as program:
        wait_until(lambda: bool(classified(0)), "attributes")
        program.workers()[0].kill()
        wait_until(lambda: bool(classified(1)), "attributes of the next process")
    assert classified(0) | classified(1) <= {("red", "reddish"), ("green", "greenish"), ("blue", "bluish")}
    for camera in program.cameras().values():
        assert camera.grabbed == camera.published + sum(camera.dropped.values())


def test_error_of_the_stages_is_raised_before_the_start(tmp_path: Path) -> None:
    config = site(tmp_path, processes=2)
    section = config.analytics["c0"].model_copy(update={"accuracy": str(tmp_path / "none.json")})
    config = config.model_copy(update={"analytics": {**config.analytics, "c0": section}})
    with pytest.raises(ConfigError), running(config):
        pass


def test_no_process_and_no_socket_stays_after_kill_of_the_main_process(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_bytes(msgspec.json.encode(site(tmp_path, processes=2).model_dump(mode="json", exclude_defaults=True)))
    with Program([sys.executable, "-m", "vision.cli.main", "run", path]) as program:
        with Subscription(f"ipc://{tmp_path}/out-2", kinds=("detections",)) as subscription:
            next(item for item in subscription.items(30) if isinstance(item, DetectionsMessage))
        main = psutil.Process(program.pid)
        wait_until(lambda: "spare worker" in by_name(main.children()), "the spare process")
        children = main.children(recursive=True)
        assert len([child for child in children if "result worker" in " ".join(child.cmdline())]) == 2
        program.send(signal.SIGKILL)
        wait_until(lambda: not any(child.is_running() and child.status() != "zombie" for child in children), "the end")
