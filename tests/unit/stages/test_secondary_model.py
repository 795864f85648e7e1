"""Tests of the stage with the second model: its schedule, its crops, skipped objects, and failures."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from tests.frame_buffers import frame_on_device
from tests.messages.processes import wait_until
from tests.unit.detect.test_classifier import save
from tests.unit.runtime.test_pixel_stages import leased
from tests.unit.runtime.test_runtime import Collector, check_accounts
from vision.cli.check import check_configuration
from vision.config import AppConfig, CascadeConfig
from vision.detect.reference.classifier import Box
from vision.drawing.test_pattern import FAKE_CLASSES
from vision.errors import DeviceError, ModelError
from vision.pipelines import load_pipeline
from vision.runtime.builder import RunOptions
from vision.runtime.runtime import Runtime
from vision.stages.secondary_model import CascadeStage
from vision.types import Attribute, Detections, Frame, FrameMeta, Result, Timing, Tracks

S = 1_000_000_000
CLASSES = ("person", "car")


@dataclass
class Grey:
    """Classifier of gray levels: dark below 100, light above 150, and uncertain in between."""

    exclusive: bool = True
    max_batch: int = 4
    go: threading.Event | None = None  # the event for which the classifier waits
    called: threading.Event = field(default_factory=threading.Event)
    batches: list[int] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    closed: bool = False
    fails: bool = False
    name: str = "grey"
    class_names: tuple[str, ...] = ("dark", "light")

    def allocate(self, count: int) -> list[NDArray[np.uint8]]:
        return list(np.empty((count, 4, 4, 3), np.uint8))

    def is_reading(self) -> bool:
        return False

    def wait_until_read(self) -> None: ...

    def crop(self, frame: Frame, box: Box, out: NDArray[np.uint8]) -> None:
        self.boxes.append(box)
        left, top, right, bottom = box
        out[:] = frame.pixels[top:bottom, left:right].mean(axis=(0, 1))

    def classify(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.called.set()
        if self.go is not None:
            assert self.go.wait(60)
        if self.fails:
            raise DeviceError("it fails")
        self.batches.append(len(crops))
        levels = np.array([crop.mean() for crop in crops], np.float32)
        return np.asarray(0.9 * np.stack([levels < 100, levels > 150], axis=1), np.float32)

    def close(self) -> None:
        self.closed = True


@contextmanager
def stage(classifier: Grey, *, lossless: bool = True, **config: Any) -> Iterator[CascadeStage]:
    given = CascadeConfig.model_validate({"model": "m", "min_size_px": 4} | config)
    with closing(CascadeStage(classifier, given, CLASSES, lossless=lossless)) as cascade_stage:
        yield cascade_stage
    assert classifier.closed
    assert not cascade_stage._worker._thread.is_alive()


@dataclass(frozen=True)
class Thing:
    track_id: int
    box: tuple[float, float, float, float] = (10, 10, 30, 40)
    level: int = 20
    class_id: int = 0


def image(*things: Thing, time_s: float = 0, camera: str = "gate", epoch: int = 0) -> tuple[Result, Frame]:
    at_ns = round((100 + time_s) * S)
    meta = FrameMeta(camera, 0, epoch, at_ns, at_ns, 64, 48)
    pixels = np.full((48, 64, 3), 125, np.uint8)
    for thing in things:
        x1, y1, x2, y2 = (max(0, int(side)) for side in thing.box)
        pixels[y1:y2, x1:x2] = thing.level
    count = len(things)
    tracks = Tracks(
        np.array([thing.box for thing in things], np.float32).reshape(-1, 4),
        np.ones(count, np.float32),
        np.array([thing.class_id for thing in things], np.int32),
        np.array([thing.track_id for thing in things], np.int64),
        np.zeros(count, np.int64),
    )
    return Result(meta, tracks, Timing(at_ns, at_ns, at_ns)), Frame.wrap(meta, pixels, "bgr")


def look(cascade_stage: CascadeStage, *things: Thing, **where: Any) -> dict[int, list[str]]:
    after = cascade_stage.with_frame(*image(*things, **where))
    return {track_id: [entry.class_name for entry in attributes] for track_id, attributes in after.attributes.items()}


def test_each_object_gets_its_own_attributes() -> None:
    grey = Grey()
    with stage(grey) as cascade_stage:
        first = Thing(1), Thing(2, (40, 5, 60, 45), level=200)
        assert look(cascade_stage, *first) == {1: ["dark"], 2: ["light"]}
        after = cascade_stage.with_frame(*image(first[0], time_s=1))
    (entry,) = after.attributes[1]
    assert (entry.model, entry.class_name, entry.seen_ns) == ("grey", "dark", 100 * S)
    assert entry.score == pytest.approx(0.9)
    assert grey.boxes == [(10, 10, 30, 40), (40, 5, 60, 45)]


def test_crops_of_gpu_frames_are_copied() -> None:
    with stage(Grey()) as cascade_stage:
        result, frame = image(Thing(1, level=200))
        after = cascade_stage.with_frame(result, frame_on_device(frame))
    assert [entry.class_name for entry in after.attributes[1]] == ["light"]


def test_object_is_classified_once_and_again_on_schedule() -> None:
    grey = Grey()
    with stage(grey, refresh_s=5.0) as cascade_stage:
        for step in range(50):
            look(cascade_stage, Thing(1, level=20 if step < 42 else 200), time_s=step / 10)
        assert grey.batches == [1]
        assert look(cascade_stage, Thing(1, level=200), time_s=5.0) == {1: ["light"]}
        assert grey.batches == [1, 1]


def test_object_is_classified_once_if_refresh_is_null() -> None:
    grey = Grey()
    with stage(grey, refresh_s=None) as cascade_stage:
        for step in range(100):
            look(cascade_stage, Thing(1), time_s=100.0 * step if step < 2 else 100 + step)
        assert grey.batches in ([1], [1, 1])  # after a pause of 100 s, the object can count as new


def test_unsure_result_is_repeated_soon_and_keeps_attributes() -> None:
    grey = Grey()
    with stage(grey, refresh_s=5.0) as cascade_stage:
        assert look(cascade_stage, Thing(1, level=125)) == {}
        assert look(cascade_stage, Thing(1, level=20), time_s=0.9) == {}
        assert look(cascade_stage, Thing(1, level=20), time_s=1.0) == {1: ["dark"]}
        assert look(cascade_stage, Thing(1, level=125), time_s=6.0) == {1: ["dark"]}
        assert look(cascade_stage, Thing(1, level=200), time_s=7.0) == {1: ["light"]}


def test_multi_label_model_can_give_no_attribute() -> None:
    grey = Grey(exclusive=False)
    with stage(grey, refresh_s=5.0) as cascade_stage:
        assert look(cascade_stage, Thing(1, level=20)) == {1: ["dark"]}
        assert look(cascade_stage, Thing(1, level=125), time_s=5) == {}
        assert look(cascade_stage, Thing(1, level=20), time_s=6) == {}


@dataclass
class Both(Grey):
    def classify(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        return np.tile(np.array([0.6, 0.8], np.float32), (len(crops), 1))


@pytest.mark.parametrize(("exclusive", "expected"), [(True, ["light"]), (False, ["light", "dark"])])
def test_exclusive_model_gives_one_attribute_and_others_many(exclusive: bool, expected: list[str]) -> None:
    with stage(Both(exclusive=exclusive), score_threshold=0.6) as cascade_stage:
        assert look(cascade_stage, Thing(1)) == {1: expected}
    with stage(Both(exclusive=exclusive), score_threshold=0.81) as cascade_stage:
        assert look(cascade_stage, Thing(1)) == {}


@pytest.mark.parametrize(
    ("thing", "config", "expected"),
    [
        (Thing(1), {"classes": ("person",)}, True),
        (Thing(1, class_id=1), {"classes": ("person",)}, False),
        (Thing(1, class_id=7), {}, False),
        (Thing(1), {"min_size_px": 20}, True),
        (Thing(1), {"min_size_px": 21}, False),
        (Thing(1, (50, 10, 90, 40)), {"min_size_px": 14}, True),  # the part that lies in the frame
        (Thing(1, (50, 10, 90, 40)), {"min_size_px": 15}, False),
        (Thing(1, (70, 10, 90, 40)), {}, False),
        (Thing(1, (-30, -30, -10, -10)), {}, False),
    ],
)
def test_only_large_objects_of_the_classes_are_classified(thing: Thing, config: dict[str, Any], expected: bool) -> None:
    grey = Grey()
    with stage(grey, **config) as cascade_stage:
        look(cascade_stage, thing)
    assert bool(grey.boxes) is expected


@pytest.mark.parametrize(
    ("box", "margin", "expected"),
    [
        ((10.4, 10.6, 29.5, 40.0), 0.0, (10, 10, 30, 40)),
        ((10, 10, 30, 40), 0.1, (8, 7, 32, 43)),
        ((10, 10, 30, 40), 1.0, (0, 0, 50, 48)),
        ((-5, -5, 30, 40), 0.0, (0, 0, 30, 40)),
        ((50, 30, 80, 60), 0.0, (50, 30, 64, 48)),
    ],
)
def test_crop_has_the_configured_margin(box: tuple[float, ...], margin: float, expected: Box) -> None:
    grey = Grey()
    with stage(grey, margin=margin) as cascade_stage:
        look(cascade_stage, Thing(1, box))  # type: ignore[arg-type]
    assert grey.boxes == [expected]


def test_batches_contain_crops_of_several_cameras() -> None:
    grey = Grey(go=threading.Event(), max_batch=8)
    with stage(grey, lossless=False) as cascade_stage:
        look(cascade_stage, Thing(1), camera="first")  # the worker is busy with a batch of one
        assert grey.called.wait(60)
        for step, camera in enumerate(("gate", "yard", "lane")):
            look(cascade_stage, Thing(10 + step), Thing(20 + step, (40, 5, 60, 45), level=200), camera=camera)
        assert grey.go is not None
        grey.go.set()
        wait_until(lambda: cascade_stage.counters()["cascade.looked"] == 7, "all were looked at")
        assert grey.batches == [1, 6]
        assert look(cascade_stage, Thing(11), camera="yard") == {11: ["dark"]}
        assert look(cascade_stage, Thing(11), camera="gate") == {}  # ids of the other camera have no effect here


def test_full_queue_skips_objects_and_tries_again() -> None:
    grey = Grey(go=threading.Event(), max_batch=2)
    things = [Thing(step, (3 * step, 0, 3 * step + 4, 10), level=20) for step in range(10)]
    with stage(grey, lossless=False, queue=3) as cascade_stage:
        assert look(cascade_stage, *things) == {}
        assert cascade_stage.counters() == {"cascade.looked": 0, "cascade.skipped": 5, "cascade.waiting": 5}
        look(cascade_stage, *things, time_s=0.1)
        assert cascade_stage.counters()["cascade.skipped"] == 10
        assert grey.go is not None
        grey.go.set()
        wait_until(lambda: cascade_stage.counters()["cascade.waiting"] == 0, "there is room")
        look(cascade_stage, *things, time_s=0.2)
        wait_until(lambda: cascade_stage.counters()["cascade.looked"] == 10, "the others had their turn")
        assert sorted(look(cascade_stage, *things, time_s=0.3)) == list(range(10))
        assert max(grey.batches) == 2


def test_longest_waiting_objects_are_classified_first() -> None:
    grey = Grey()
    things = [Thing(step, (3 * step, 0, 3 * step + 4, 10)) for step in range(6)]
    with stage(grey, refresh_s=1.0) as cascade_stage:
        for step, thing in enumerate(things[:4]):
            look(cascade_stage, thing, time_s=step / 10)
        grey.boxes.clear()
        look(cascade_stage, *reversed(things), time_s=5)
        assert [left // 3 for left, *_ in grey.boxes] == [5, 4, 0, 1, 2, 3]


def test_new_epoch_and_long_absence_forget_objects() -> None:
    grey = Grey()
    with stage(grey) as cascade_stage:
        look(cascade_stage, Thing(1))
        assert look(cascade_stage, Thing(1, level=125), epoch=1, time_s=0.1) == {}
        look(cascade_stage, Thing(2, level=200), epoch=1, time_s=0.2)
        look(cascade_stage, epoch=1, time_s=10.0)
        assert len(cascade_stage._cameras["gate"][1]) == 2
        look(cascade_stage, epoch=1, time_s=10.3)
        assert len(cascade_stage._cameras["gate"][1]) == 0


def test_object_that_becomes_small_keeps_its_attributes() -> None:
    with stage(Grey()) as cascade_stage:
        look(cascade_stage, Thing(1))
        for step in range(1, 100):
            class_names = look(cascade_stage, Thing(1, (10, 10, 12, 12)), time_s=step)
        assert class_names == {1: ["dark"]}


@pytest.mark.integration
def test_number_of_object_states_is_bounded() -> None:
    with stage(Grey()) as cascade_stage:
        for step in range(3000):
            look(cascade_stage, Thing(step), time_s=step / 10)
        assert len(cascade_stage._cameras["gate"][1]) <= 102


def test_backward_clock_jump_does_not_stop_classification() -> None:
    grey = Grey()
    with stage(grey, refresh_s=5.0) as cascade_stage:
        for step in range(10):
            look(cascade_stage, Thing(1), Thing(100 + step), time_s=step)
        count = len(grey.batches)
        for step in range(12):
            look(cascade_stage, Thing(1), time_s=step - 90)
        assert len(grey.batches) == count + 3  # at the first frame, and after 5 and 10 s
        assert len(cascade_stage._cameras["gate"][1]) == 1


def test_attributes_of_an_earlier_cascade_are_kept() -> None:
    before, frame = image(Thing(1))
    before = replace(before, attributes={1: (Attribute("first", "x", 1.0, 0),), 9: ()})
    with stage(Grey()) as cascade_stage:
        after = cascade_stage.with_frame(before, frame)
    assert [entry.model for entry in after.attributes[1]] == ["first", "grey"]


def test_cascade_refuses_detections() -> None:
    result, frame = image()
    with stage(Grey()) as cascade_stage, pytest.raises(TypeError):
        cascade_stage.with_frame(replace(result, objects=Detections.empty()), frame)


@pytest.mark.parametrize("lossless", [True, False])
def test_failing_model_raises_and_blocks_nothing(lossless: bool) -> None:
    grey = Grey(fails=True)
    with stage(grey, lossless=lossless, queue=1) as cascade_stage:
        with pytest.raises(DeviceError):
            for step in range(1000):
                look(cascade_stage, Thing(step))
                wait_until(lambda: cascade_stage.counters()["cascade.waiting"] == 0, "the worker goes on")
        wait_until(lambda: cascade_stage._worker._free.qsize() == 1 + grey.max_batch, "no array is lost")


def test_close_waits_for_one_batch_only() -> None:
    grey = Grey(go=threading.Event(), max_batch=1)
    with stage(grey, lossless=False) as cascade_stage:
        look(cascade_stage, *(Thing(step) for step in range(9)))
        assert grey.go is not None
        threading.Timer(0.1, grey.go.set).start()
        cascade_stage.close()
    assert len(grey.batches) <= 2


def test_crop_arrays_are_reused_and_frames_are_released() -> None:
    grey = Grey()
    kept: list[weakref.ref[Any]] = []
    with stage(grey, refresh_s=0.001, queue=4) as cascade_stage:
        free = cascade_stage._worker._free
        crops = [free.get() for _ in range(4 + grey.max_batch)]
        addresses = {crop.ctypes.data for crop in crops}
        for crop in crops:
            free.put(crop)
        for step in range(50):
            result, frame = image(Thing(step % 3), time_s=step)
            kept.append(weakref.ref(frame.pixels))
            cascade_stage.with_frame(result, frame)
            del result, frame
        crops = [free.get() for _ in range(4 + grey.max_batch)]
        assert {crop.ctypes.data for crop in crops} == addresses
        gc.collect()
        assert [ref for ref in kept if ref() is not None] == []


# --- through the pipelines --------------------------------------------------------------------------------------------


PAINT = {"red": "reddish", "green": "greenish", "blue": "bluish"}


@contextmanager
def built(
    folder: Path, sources: list[str], *, offline: bool, fragile: bool = False, **cascade: Any
) -> Iterator[tuple[Runtime, Collector]]:
    save(folder / "paint", fragile=fragile)
    site = AppConfig.model_validate(
        {
            "pipeline": "track",
            "detect": {"backend": "fake", "max_batch": 4},
            "cameras": tuple({"id": f"camera-{step}", "source": source} for step, source in enumerate(sources)),
            "cascade": {"model": f"{folder}/paint", "min_size_px": 8} | cascade,
        }
    )
    sink = Collector()
    with ExitStack() as resources:
        options = RunOptions(threading.Event(), offline=offline, sink=sink)
        yield load_pipeline("track")(site, options, resources), sink


@pytest.mark.parametrize("pixel_format", ["bgr", "nv12", "i420"])
def test_every_rectangle_gets_its_colour_as_attribute(tmp_path: Path, pixel_format: str) -> None:
    sources = [f"synthetic:320x240@20?frames=60&seed={seed}&objects=4&format={pixel_format}" for seed in (1, 2, 3)]
    with built(tmp_path, sources, offline=True) as (runtime, sink):
        report = runtime.run(threading.Event())
    pairs: list[tuple[str, str]] = []
    objects = 0
    for camera in runtime.cameras.cameras.values():
        results = sink.results[camera.slot.camera_id]
        assert len(results) == 60
        for result in results:
            assert isinstance(result.objects, Tracks)
            objects += len(result.objects)
            for track_id, class_id in zip(result.objects.track_ids, result.objects.class_ids, strict=True):
                attributes = result.attributes.get(int(track_id), ())
                pairs += [(attribute.class_name, PAINT[FAKE_CLASSES[class_id]]) for attribute in attributes]
        check_accounts(camera, results)
        assert leased(camera) == 0
    assert [pair for pair in pairs if pair[0] != pair[1]] == []
    assert len(pairs) == objects > 300
    assert (report.node.counters["cascade.skipped"], report.node.counters["cascade.waiting"]) == (0, 0)


def test_offline_runs_are_repeatable(tmp_path: Path) -> None:
    said = []
    for _ in range(2):
        with built(tmp_path, ["synthetic:320x240@20?frames=40&seed=5&objects=4"], offline=True) as (runtime, sink):
            runtime.run(threading.Event())
        results = sink.results["camera-0"]
        said.append(
            [
                sorted(attribute.class_name for attributes in r.attributes.values() for attribute in attributes)
                for r in results
            ]
        )
    assert said[0] == said[1]
    assert any(said[0])


@pytest.mark.integration
def test_live_run_with_too_many_objects_skips_some(tmp_path: Path) -> None:
    sources = [f"synthetic:320x240@30?seed={seed}&objects=8" for seed in range(3)]
    with built(tmp_path, sources, offline=False, refresh_s=0.001, queue=1, max_batch=1) as (runtime, sink):
        report = runtime.run(threading.Event(), for_s=3)
    assert report.node.counters["cascade.looked"] > 20
    assert report.node.counters["cascade.skipped"] > 20
    for camera in runtime.cameras.cameras.values():
        results = sink.results[camera.slot.camera_id]
        assert results
        check_accounts(camera, results)
        assert leased(camera) == 0


def test_failing_model_ends_the_run_and_releases_every_lease(tmp_path: Path) -> None:
    sources = ["synthetic:320x240@30?objects=6"] * 2
    with (
        built(tmp_path, sources, offline=False, fragile=True) as (runtime, _),
        pytest.raises(DeviceError) as caught,
    ):
        runtime.run(threading.Event(), for_s=20)
    assert "paint" in str(caught.value)
    assert [leased(camera) for camera in runtime.cameras.cameras.values()] == [0, 0]


def test_check_opens_the_second_model(tmp_path: Path) -> None:
    save(tmp_path / "paint")
    config = tmp_path / "camera.yaml"
    cascade = {"model": f"{tmp_path}/paint", "min_size_px": 8}
    cameras = [{"id": "gate", "source": "synthetic:320x240@20"}]
    config.write_text(
        json.dumps({"pipeline": "track", "detect": {"backend": "fake"}, "cameras": cameras, "cascade": cascade})
    )
    check_configuration(str(config))
    (tmp_path / "paint" / "paint.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError):
        check_configuration(str(config))
