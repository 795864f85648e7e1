"""Tests of the search for TensorRT, of the error if TensorRT is missing, and of the collection of its log."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from tests.unit.engine_models import needs_tensorrt
from vision.engine import library
from vision.engine.library import (
    collect_log,
    find_library,
    missing_hint,
    network_flags,
    recent_errors,
    take_message,
)
from vision.errors import EXIT_CONFIG, DeviceError, DeviceMissing


def module_in(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Create a module that can be imported until the end of the test."""
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


@pytest.mark.engine
def test_importing_the_engine_package_imports_no_tensorrt() -> None:
    import subprocess

    code = (
        "import sys, vision.engine.runtime, vision.engine.build, vision.engine.cache, vision.engine.memory, "
        "vision.engine.open, vision.engine.profiler, vision.engine.trtexec\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('tensorrt', 'tensorrt_rtx', 'tensorrt_rtx_bindings', "
        "'onnx', 'onnxruntime', 'cuda')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_missing_library_is_reported_with_every_attempt() -> None:
    with pytest.raises(DeviceMissing) as caught:
        find_library(("vision_no_such_module", "vision_nor_this"))
    assert isinstance(caught.value, DeviceError)
    assert "vision_no_such_module" in str(caught.value)
    assert "vision_nor_this" in str(caught.value)
    assert caught.value.hint
    assert caught.value.exit_code == EXIT_CONFIG


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise OSError('libnvinfer.so.10: cannot open shared object file')", "libnvinfer.so.10"),
        ("raise ImportError('undefined symbol: createInferBuilder')", "createInferBuilder"),
        ("__version__ = '1'", "vision_broken_tensorrt"),
    ],
)
def test_library_that_does_not_load_is_reported_with_the_cause(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module_in(tmp_path, "vision_broken_tensorrt", text, monkeypatch)
    with pytest.raises(DeviceMissing) as caught:
        find_library((name,))
    assert said in caught.value.args[0]


def test_first_library_that_loads_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = module_in(tmp_path, "vision_broken", "raise ImportError('no')", monkeypatch)
    whole = module_in(tmp_path, "vision_whole", "class Builder: ...\n__version__ = '10.3.0'", monkeypatch)
    rtx = module_in(tmp_path, "vision_rtx", "class Runtime: ...\n__version__ = '1.6.1'", monkeypatch)
    assert str(find_library((broken, whole, rtx))) == "TensorRT 10.3.0"
    assert str(find_library((broken, rtx))) == "TensorRT-RTX 1.6.1"
    assert find_library((rtx,)).flavour == "tensorrt-rtx"


@pytest.mark.parametrize(
    ("system", "machine", "tegra", "says"),
    [
        ("Linux", "aarch64", True, "python3-libnvinfer"),
        ("Linux", "aarch64", False, "tensorrt-cu13"),
        ("Linux", "x86_64", False, "tensorrt-cu13"),
        ("Darwin", "arm64", False, "Darwin"),
    ],
)
def test_hint_fits_the_platform(system: str, machine: str, tegra: bool, says: str) -> None:
    assert says in missing_hint(system, machine, tegra=tegra, python=(3, 10))


def test_jetson_hint_names_the_python_version_with_bindings() -> None:
    hint = missing_hint("Linux", "aarch64", tegra=True, python=(3, 11))
    assert "3.11" in hint
    assert "3.10" in hint


def test_messages_are_sent_to_the_log_and_to_every_collector(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "vision.tensorrt"), collect_log() as outer:
        take_message("INFO", "one")
        with collect_log() as inner:
            take_message("ERROR", " two ")
            take_message("ERROR", "two")
            take_message("VERBOSE", "three")
        take_message("WARNING", "four")
    assert [line.text for line in outer.lines] == ["one", " two ", "two", "four"]
    assert [line.text for line in inner.lines] == [" two ", "two"]
    assert outer.errors() == ("two",)
    assert [line.text for line in outer.lines if "o" in line.text] == ["one", " two ", "two", "four"]
    levels = [(record.levelno, record.message.strip()) for record in caplog.records]
    assert levels == [(logging.DEBUG, "one"), (logging.ERROR, "two"), (logging.ERROR, "two"), (logging.WARNING, "four")]


def test_collector_receives_only_messages_of_its_block(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "vision.tensorrt")
    take_message("ERROR", "before")
    with collect_log() as log:
        pass
    take_message("ERROR", "after")
    assert log.lines == []
    assert recent_errors().endswith("after")


@needs_tensorrt
def test_flags_are_computed_from_the_library_at_hand() -> None:
    flag = library.trt.NetworkDefinitionCreationFlag
    assert network_flags(strongly_typed=False) == 0
    assert network_flags(strongly_typed=True) == 1 << int(flag.STRONGLY_TYPED)
    assert library.member_of("BuilderFlag", "TF32") == library.trt.BuilderFlag.TF32
    assert library.member_of("BuilderFlag", "NO_SUCH_FLAG") is None
    assert library.member_of("NoSuchEnumeration", "X") is None


@needs_tensorrt
def test_real_logger_is_one_object_and_reaches_the_collector() -> None:
    assert library.logger() is library.logger()
    with collect_log() as log:
        library.logger().log(library.trt.ILogger.Severity.ERROR, "from TensorRT")
    assert log.errors() == ("from TensorRT",)


@needs_tensorrt
def test_rtx_is_strongly_typed_with_any_flags() -> None:
    found = library.find_library()
    if found.flavour != "tensorrt-rtx":
        pytest.skip("TensorRT")
    assert not library.has_weak_typing()
    assert (8, 6) in library.supported_capabilities()
    assert (12, 0) in library.supported_capabilities()
