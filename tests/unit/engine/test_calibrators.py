"""Tests of the calibrators for TensorRT 10. The tests call them through the real bindings, as the builder does."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.plugins.driver import CUDA, MISSING, compiled
from tests.unit.engine_models import needs_tensorrt
from vision.engine.calibrators import (
    Batch,
    CalibratorKind,
    make_calibrator,
    require_calibrators,
    scales_in,
    thresholds_in,
)
from vision.engine.library import trt
from vision.errors import Closed, DeviceError, ModelError

pytestmark = [pytest.mark.engine, needs_tensorrt]


def has_calibrators() -> bool:
    try:
        require_calibrators()
    except (ModelError, DeviceError):
        return False
    return True


needs_calibrators = pytest.mark.skipif(not has_calibrators(), reason="a library that has calibrators")
needs_compiler = pytest.mark.skipif(not (CUDA / ".done").exists(), reason=MISSING)

ALGORITHMS: Mapping[CalibratorKind, int] = {"entropy": 2, "minmax": 3}  # numbers of CalibrationAlgoType


def upload(batch: Batch) -> dict[str, int]:
    """Return the host addresses of a batch instead of copying it, because the tests read host memory."""
    return {name: array.ctypes.data for name, array in batch.items()}


def batches(count: int) -> Iterator[dict[str, NDArray[Any]]]:
    generator = np.random.default_rng(3)
    for index in range(count):
        images = generator.uniform(-1, 1, (2, 3, 4, 5)).astype(np.float32)
        images[0, 0, 0, 0] = -10 * (index + 1)
        yield {"images": images, "size": np.full((2, 2), index, np.float32)}


def drive(calibrator: Any, names: Sequence[str], sizes: Sequence[int]) -> list[str]:
    """Call all methods of a calibrator. Return a report of their results."""
    # The first value of an object of pybind11, after its head of 16 bytes, is the address of the C++ object.
    pointer = ctypes.c_void_p.from_address(id(calibrator) + 16)
    texts = (ctypes.c_char_p * len(names))(*(name.encode() for name in names))
    report = ctypes.create_string_buffer(1024)
    numbers = (ctypes.c_int64 * len(sizes))(*sizes)
    compiled("calibrate.cpp").calibrate(pointer, texts, numbers, ctypes.c_int32(len(names)), report, 1024)
    return report.value.decode().splitlines()


@needs_calibrators
@needs_compiler
@pytest.mark.parametrize("kind", ALGORITHMS)
def test_builder_gets_every_batch_and_hands_over_the_scales(kind: CalibratorKind) -> None:
    ended = threading.Event()
    calibrator = make_calibrator(kind, batches(3), upload, ended)
    assert isinstance(calibrator, trt.IInt8Calibrator)
    report = drive(calibrator, ["size", "images"], [4, 120])  # in the order of the network
    assert report == ["batch size 1", f"algorithm {ALGORITHMS[kind]}", "cache 0", "batches 3"]
    assert ended.is_set()
    scales = scales_in(calibrator.table)
    assert scales == {"size": pytest.approx(2 / 127), "images": pytest.approx(30 / 127)}
    assert thresholds_in(scales, ["images"], "m") == {"images": pytest.approx(30)}


@needs_calibrators
@needs_compiler
@pytest.mark.parametrize("failing", ["batches", "upload", "names"])
def test_error_in_a_call_ends_the_calibration_and_is_kept(failing: str) -> None:
    def stopped() -> Iterator[Batch]:
        yield from batches(2)
        raise Closed("stopped")

    def broken(_batch: Batch) -> dict[str, int]:
        raise DeviceError("out of memory")

    source = stopped() if failing == "batches" else batches(2)
    ended = threading.Event()
    calibrator = make_calibrator("minmax", source, broken if failing == "upload" else upload, ended)
    report = drive(calibrator, ["images", "other"] if failing == "names" else ["images"], [120, 1])
    assert report[-1] == ("batches 2" if failing == "batches" else "batches 0")
    expected = {"batches": Closed, "upload": DeviceError, "names": KeyError}
    assert isinstance(calibrator.error, expected[failing])
    assert ended.is_set()


@pytest.mark.skipif(has_calibrators(), reason="a library without calibrators")
def test_library_without_calibrators_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        require_calibrators()
    assert caught.value.code == "no-calibrators"


def test_table_is_read() -> None:
    table = b"TRT-100300-EntropyCalibration2\nimages: 3c010204\n/conv/act: output: 3f800000\nzero: 0\n"
    assert scales_in(table) == {"images": pytest.approx(1 / 127), "/conv/act: output": 1.0, "zero": 0.0}


@pytest.mark.parametrize(
    "table",
    [b"", b"images: 3c010204\n", b"TRT-1\nimages 3c01\n", b"TRT-1\na: xyz\n", b"TRT-1\na: 3c01020400\n", b"\xff"],
)
def test_table_in_an_unknown_format_is_refused(table: bytes) -> None:
    with pytest.raises(ModelError) as caught:
        scales_in(table)
    assert caught.value.code == "bad-table"


def test_tensor_without_a_scale_is_named() -> None:
    with pytest.raises(ModelError) as caught:
        thresholds_in({"a": 1.0}, ["a", "b"], "m")
    assert caught.value.code == "calibration-incomplete"
    assert "b" in caught.value.args[0]
