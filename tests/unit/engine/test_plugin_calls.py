"""Tests that call plugins, written in Python and in C++, through the C++ interface of TensorRT."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.paths import ROOT
from tests.plugins.driver import CUDA, HEADERS, MISSING, TOOLKIT, drive
from tests.unit.engine.test_plugins import collection, needs_registry
from tests.unit.engine_models import needs_no_gpu, needs_tensorrt, spec
from vision.engine.library import trt
from vision.engine.plugins import load_plugins, plugin_registry
from vision.errors import ModelError
from vision.state.private_files import sha256_of

pytestmark = [
    pytest.mark.engine,
    needs_tensorrt,
    pytest.mark.skipif(not (CUDA / ".done").exists(), reason=MISSING),
]


def report_of(plugin: str, attributes: dict[str, float], dims: tuple[int, ...]) -> list[str]:
    from vision.detect.tensorrt.plugins.base import Creator
    from vision.detect.tensorrt.plugins.nms import VisionNms
    from vision.detect.tensorrt.plugins.star_relu import StarRelu

    return drive(Creator(StarRelu if plugin == "relu" else VisionNms), attributes, dims)


@needs_no_gpu
def test_every_method_of_star_relu_is_reached(capfd: pytest.CaptureFixture[str]) -> None:
    assert report_of("relu", {"scale": 2.0, "bias": 0.5}, (2, 3, 4, 5)) == [
        "creator VisionStarRelu 1, fields 2",
        "core VisionStarRelu 1",
        "output type 0 shape n 3 4 5",
        "takes bool 0",
        "workspace 0",
        "fields scale=2 bias=0.5",
        "loaded scale=2 bias=0.5",
        "set tactic 0",
        "shape change -1",  # there is no GPU: an error of Python becomes a status
    ]


@needs_no_gpu
def test_every_method_of_nms_is_reached(capfd: pytest.CaptureFixture[str]) -> None:
    fields = {"layout": 5, "classes": 3, "width": 64, "height": 64, "score_threshold": 0.5, "max_objects": 20}
    report = report_of("nms", fields, (2, 7, 84))
    saved = (
        "layout=5 classes=3 width=64 height=64 fraction=0 activation=0 score_threshold=0.5 iou_threshold=0.6 "
        "iou_across_classes=0.7 max_candidates=1024 max_objects=20"
    )
    assert report[1:6] == [
        "core VisionNMS 1",
        "output type 3 shape n 1",
        "output type 0 shape n 20 4",
        "output type 0 shape n 20",
        "output type 3 shape n 20",
    ]
    assert report[6] == "takes bool 0"
    assert int(report[7].removeprefix("workspace ")) > 0
    assert report[8:] == [f"fields {saved}", f"loaded {saved}", "set tactic 0", "shape change -1"]


def test_invalid_attribute_creates_no_plugin(capfd: pytest.CaptureFixture[str]) -> None:
    report = report_of("nms", {"layout": 99, "classes": 3, "width": 64, "height": 64}, (2, 7, 84))
    assert report[-1] == "failed: createPlugin"
    assert "layout" in capfd.readouterr().err, "the error of Python is shown"


# ------------------------------------------------------------------------------------------------ C++


@pytest.fixture(scope="module")
def star_relu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the example plugin, and return the library."""
    folder = tmp_path_factory.mktemp("cpp")
    example = ROOT / "examples" / "cpp_plugin"
    command = ["make", "-s", "-C", str(example), f"NVCC={TOOLKIT / 'bin' / 'nvcc'} -L{TOOLKIT / 'lib'}"]
    subprocess.run([*command, f"INCLUDE={HEADERS}", "ARCH=sm_87", f"OUT={folder}"], check=True, capture_output=True)
    (folder / "model.yaml").touch()
    return folder / "libstar_relu.so"


@needs_registry
def test_library_in_cpp_is_loaded_and_creates_its_plugin(star_relu: Path) -> None:
    listed = spec(plugins=[{"file": star_relu.name, "sha256": sha256_of(star_relu.read_bytes())}])
    for _ in range(2):  # the second time, the library is already loaded
        load_plugins(star_relu.parent, listed)
    creator = plugin_registry().get_creator("ExampleStarRelu", "1", "")
    assert [field.name for field in creator.field_names] == ["scale", "bias"]
    given, _kept = collection(("scale", np.array([2.0], np.float32), "FLOAT32"))
    plugin = creator.create_plugin("relu", given, trt.TensorRTPhase.BUILD)
    core: Any = plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
    assert (core.plugin_name, core.plugin_version) == ("ExampleStarRelu", "1")
    unknown, _kept = collection(("slope", np.array([2.0], np.float32), "FLOAT32"))
    assert creator.create_plugin("relu", unknown, trt.TensorRTPhase.BUILD) is None


@needs_registry
def test_library_that_was_built_again_needs_its_new_hash(star_relu: Path, tmp_path: Path) -> None:
    old = sha256_of(star_relu.read_bytes())
    (tmp_path / "libstar_relu.so").write_bytes(star_relu.read_bytes() + b"\0")
    with pytest.raises(ModelError) as caught:
        load_plugins(tmp_path, spec(plugins=[{"file": "libstar_relu.so", "sha256": old}]))
    assert caught.value.code == "plugin-sha256"
