"""Tests of plugins with the real bindings and, if the library has one without a driver, the real plugin registry."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.paths import ROOT
from tests.plugin_descriptions import FORMATS, dynamic_desc, tensor_desc
from tests.unit.engine_models import needs_tensorrt, spec
from vision.config import ModelSpec
from vision.detect.reference.heads import make_head
from vision.engine.library import find_library, trt
from vision.engine.plugins import load_plugins, plugin_registry, register
from vision.errors import DeviceMissing, ModelError
from vision.state.private_files import Untrusted, sha256_of

pytestmark = needs_tensorrt


def _has_registry() -> bool:
    try:
        return find_library().flavour == "tensorrt" and trt.get_plugin_registry() is not None
    except DeviceMissing:
        return False


needs_registry = pytest.mark.skipif(not _has_registry(), reason="a library whose plugin registry needs no driver")


@pytest.fixture
def plugins() -> Any:
    """Return the modules of the plugins, which import TensorRT."""
    from vision.detect.tensorrt.plugins import base, fields, nms, quick, star_relu

    return {"base": base, "fields": fields, "nms": nms, "quick": quick, "star_relu": star_relu}


# ------------------------------------------------------------------------------------------------ fields


def collection(*fields: tuple[str, Any, str]) -> tuple[Any, list[Any]]:
    """Return a field collection, and the arrays that must exist while the collection is used."""
    arrays = [np.asarray(data) for _, data, _ in fields]
    made = [
        trt.PluginField(name, array, getattr(trt.PluginFieldType, kind))
        for (name, _, kind), array in zip(fields, arrays, strict=True)
    ]
    return trt.PluginFieldCollection(made), arrays


def integer(name: str, value: int) -> tuple[str, Any, str]:
    return name, np.array([value], np.int32), "INT32"


YOLOV8 = 5
REQUIRED = (integer("layout", YOLOV8), integer("classes", 3))
SIZES = (integer("width", 64), integer("height", 32))


def test_settings_survive_their_fields(plugins: Any) -> None:
    nms = plugins["nms"]
    settings = nms.NmsSettings(0, 80, 416, 320, 1, 1, 0.125, 0.5, 0.75, 64, 5)
    plugin = nms.VisionNms(settings)
    creator = plugins["base"].Creator(nms.VisionNms)
    again = creator.create_plugin("again", plugin.get_fields_to_serialize(), trt.TensorRTPhase.RUNTIME)
    assert again.settings == settings
    assert again.clone().settings == settings
    assert (again.plugin_name, again.plugin_version, again.num_outputs) == ("VisionNMS", "1", 4)


def test_absent_fields_have_defaults(plugins: Any) -> None:
    creator = plugins["base"].Creator(plugins["nms"].VisionNms)
    given, _kept = collection(*REQUIRED, *SIZES, ("iou_threshold", np.array([0.6], np.float32), "FLOAT32"))
    plugin = creator.create_plugin("nms", given, trt.TensorRTPhase.BUILD)
    assert plugin.spec.head.kind == "yolov8"
    assert plugin.spec.nms.iou_threshold == 0.6, "a threshold is not widened by the precision of a field"
    assert [field.name for field in creator.field_names][:4] == ["layout", "classes", "width", "height"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        (REQUIRED, "plugin-field"),  # the sizes are missing
        ((*REQUIRED, *SIZES, ("threshold", np.array([1.0], np.float32), "FLOAT32")), "plugin-field"),
        ((*REQUIRED, *SIZES, ("iou_threshold", np.array([0.1, 0.2], np.float32), "FLOAT32")), "plugin-field"),
        ((*REQUIRED, *SIZES, ("max_objects", np.array([1.5], np.float32), "FLOAT32")), "plugin-field"),
        ((*REQUIRED, *SIZES, ("layout", np.frombuffer(b"8", np.int8), "CHAR")), "plugin-field"),
        ((*REQUIRED, *SIZES, integer("layout", 99)), "plugin-field"),
        ((*REQUIRED, *SIZES, integer("activation", -1)), "plugin-field"),
        ((*REQUIRED, *SIZES, integer("max_objects", 0)), "greater-than-equal"),
    ],
)
def test_invalid_fields_are_refused(plugins: Any, fields: tuple[tuple[str, Any, str], ...], code: str) -> None:
    creator = plugins["base"].Creator(plugins["nms"].VisionNms)
    given, _kept = collection(*fields)
    with pytest.raises(ModelError) as caught:
        creator.create_plugin("nms", given, trt.TensorRTPhase.BUILD)
    assert caught.value.code == code


# ------------------------------------------------------------------------------------------------ build


def test_star_relu_takes_the_formats_of_convolutions(plugins: Any) -> None:
    plugin = plugins["star_relu"].StarRelu(plugins["star_relu"].StarReluSettings())
    shape = (4, 19, 5, 5)
    for dtype in ("float32", "float16", "int8"):
        for name in trt.TensorFormat.__members__:
            desc = dynamic_desc(shape, dtype, name)
            assert plugin.supports_format_combination(0, [desc, desc], 1) == (name in FORMATS.get(dtype, ()))
    half, linear = dynamic_desc(shape, "float16", "HWC8"), dynamic_desc(shape, "float16")
    assert plugin.supports_format_combination(1, [half, half], 1)
    assert not plugin.supports_format_combination(1, [half, linear], 1), "the output has the format of the input"
    assert not plugin.supports_format_combination(0, [dynamic_desc((4, 19), "float16", "HWC8")] * 2, 1)
    assert plugin.get_output_data_types([trt.DataType.HALF]) == [trt.DataType.HALF]
    assert plugin.get_workspace_size([linear], [linear]) == 0


def test_nms_takes_raw_outputs_and_returns_fixed_types(plugins: Any) -> None:
    nms = plugins["nms"]
    plugin = nms.VisionNms(nms.NmsSettings(YOLOV8, 3, 64, 64))
    raw = [dynamic_desc((4, 7, 84), dtype) for dtype in ("float32", "float16")]
    kinds = [trt.DataType.INT32, trt.DataType.FLOAT, trt.DataType.FLOAT, trt.DataType.INT32]
    assert plugin.get_output_data_types([trt.DataType.HALF]) == kinds
    found = [dynamic_desc((4, 1), name) for name in ("int32", "float32", "float32", "int32")]
    for given in raw:
        tensors = [given, *found]
        assert all(plugin.supports_format_combination(position, tensors, 1) for position in range(5))
    assert not plugin.supports_format_combination(0, [dynamic_desc((4, 7, 84), "int32"), *found], 1)
    assert not plugin.supports_format_combination(1, [raw[0], found[1], *found[1:]], 1)
    assert not plugin.supports_format_combination(0, [dynamic_desc((4, 7, 8, 8), "float16", "HWC8"), *found], 1)


def test_workspace_is_for_the_largest_batch(plugins: Any) -> None:
    nms = plugins["nms"]
    plugin = nms.VisionNms(nms.NmsSettings(YOLOV8, 3, 64, 64))
    one, four = (plugin.get_workspace_size([dynamic_desc((-1, 7, 84), "float32", batch=b)], []) for b in (1, 4))
    assert 3 * one < four <= 4 * one
    with pytest.raises(ModelError) as caught:
        plugin.get_workspace_size([dynamic_desc((-1, 9, 84), "float32")], [])
    assert caught.value.code == "head-mismatch"


def test_plugin_needs_no_gpu_until_a_run(plugins: Any) -> None:
    plugin = plugins["star_relu"].StarRelu(plugins["star_relu"].StarReluSettings())
    assert plugin.get_capability_interface(trt.PluginCapabilityType.RUNTIME) is plugin
    plugin.configure_plugin([dynamic_desc((4, 3, 8, 8), "float32")], [dynamic_desc((4, 3, 8, 8), "float32")])
    plugin.set_tactic(0)
    copy = plugin.attach_to_context(None)
    assert copy is not plugin
    assert copy.settings == plugin.settings


@pytest.mark.parametrize(
    ("shape", "format_name", "padding"),
    [
        ((2, 19, 5, 3), "LINEAR", (0, 1, 1, 1, 570)),
        ((2, 19, 5, 3), "HWC8", (19, 24, 1, 15, 720)),
        ((2, 19, 5, 3), "CHW16", (19, 16, 2, 15, 960)),
        ((2, 19, 5, 3), "CHW32", (19, 32, 1, 15, 960)),
        ((), "LINEAR", (0, 1, 1, 1, 1)),
    ],
)
def test_padding_follows_the_format(
    plugins: Any, shape: tuple[int, ...], format_name: str, padding: tuple[int, ...]
) -> None:
    cls = plugins["star_relu"].Padding
    assert cls.of(shape, format_name) == cls(*padding)


def test_layouts_keep_their_numbers(plugins: Any) -> None:
    """The numbers must not change, because engines and ONNX files contain them."""
    layouts = plugins["nms"].LAYOUTS
    assert layouts[:6] == ("nanodet", "nanodet-plus", "picodet", "yolov5", "yolox", "yolov8")
    assert plugins["nms"].ACTIVATIONS[:3] == ("none", "sigmoid", "softmax")
    assert layouts[6:14] == (
        "yunet", "corners", "end-to-end", "rt-detr", "paddle", "tensorflow", "yolov7", "yolo-nas-flat",
    )  # fmt: skip


def test_documented_program_adds_the_node(plugins: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    raw = helper.make_tensor_value_info("raw", onnx.TensorProto.FLOAT, ["batch", 84, 8400])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["raw"])], "g", [raw], [raw])
    onnx.save(helper.make_model(graph), tmp_path / "yolov8n.onnx")
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    (node,) = [node for node in onnx.load("yolov8n-nms.onnx").graph.node if node.op_type == "VisionNMS"]
    settings = plugins["nms"].NmsSettings(**{each.name: helper.get_attribute_value(each) for each in node.attribute})
    plugin = plugins["nms"].VisionNms(settings)
    assert plugin.spec.head.kind == "yolov8"
    assert plugin.get_workspace_size([dynamic_desc((-1, 84, 8400), "float32")], []) > 0
    outputs = {
        value.name: (None, *(axis.dim_value for axis in value.type.tensor_type.shape.dim[1:]))
        for value in onnx.load("yolov8n-nms.onnx").graph.output
    }
    card = spec(head={"kind": "end-to-end"}, classes="coco80")
    assert make_head(card, 80, 0.3).bind(outputs).outputs == ("boxes", "scores", "classes", "number")


# ------------------------------------------------------------------------------------------------ registry


@needs_registry
def test_registry_creates_registered_plugins(plugins: Any) -> None:
    from vision.detect.tensorrt.plugins.register import register_plugins

    chosen = spec(plugins=["VisionNMS"])
    for _ in range(2):  # the second time, all plugins are already registered
        register_plugins(chosen)
    registry = plugin_registry()
    names = [each.name for each in registry.all_creators]
    assert {name: names.count(name) for name in ("VisionNMS", "VisionStarRelu")} == {
        "VisionNMS": 1, "VisionStarRelu": 1,
    }  # fmt: skip
    settings = plugins["star_relu"].StarReluSettings(2.0, 0.5)
    original = plugins["star_relu"].StarRelu(settings)
    creator = registry.get_creator("VisionStarRelu", "1", "")
    created = creator.create_plugin("relu", original.get_fields_to_serialize(), trt.TensorRTPhase.RUNTIME)
    assert created.settings == settings
    assert created.get_capability_interface(trt.PluginCapabilityType.BUILD) is created


@needs_registry
def test_ahead_of_time_plugin_is_registered(plugins: Any) -> None:
    plugins["quick"].register_star_relu()
    found = {(each.plugin_namespace, each.name) for each in plugin_registry().all_creators}
    assert ("vision", "StarRelu") in found


def test_ahead_of_time_kernel_is_compiled_to_ptx(plugins: Any) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    settings = plugins["star_relu"].StarReluSettings(2.0, 0.5)
    for dtype in ("float32", "float16"):
        ptx = plugins["quick"].kernel_of(dtype, settings, "sm_87")
        assert b".target sm_87" in ptx
        assert b".entry star_relu" in ptx


@needs_registry
def test_creator_is_registered_once(plugins: Any) -> None:
    class Other(plugins["star_relu"].StarRelu):  # type: ignore[misc]
        name = "VisionTestOnly"

    creators = [plugins["base"].Creator(Other) for _ in range(2)]
    for creator in creators:
        register(creator)
    assert [each.name for each in plugin_registry().all_creators].count("VisionTestOnly") == 1
    plugin_registry().deregister_creator(creators[0])


def test_rtx_has_no_plugins() -> None:
    if find_library().flavour == "tensorrt":
        pytest.skip("TensorRT")
    from vision.detect.tensorrt.plugins.register import register_plugins

    register_plugins(spec())
    with pytest.raises(ModelError) as caught:
        register_plugins(spec(plugins=["VisionNMS"]))
    assert caught.value.code == "plugins-unsupported"


# ------------------------------------------------------------------------------------------------ libraries


def listing(folder: Path, contents: bytes | None, *, sha256: str = "") -> ModelSpec:
    """Write a library, unless `contents` is None, and an empty model.yaml. Return a specification with the library."""
    (folder / "model.yaml").touch()
    if contents is not None:
        (folder / "libplugin.so").write_bytes(contents)
    digest = sha256 or sha256_of(contents or b"")
    return spec(plugins=[{"file": "libplugin.so", "sha256": digest}])


def shared_library() -> bytes:
    """Return a small shared library without plugins: an extension module of Python."""
    import _ctypes

    return Path(_ctypes.__file__).read_bytes()


@needs_registry
@pytest.mark.parametrize(
    ("contents", "sha256", "code"),
    [
        (None, "", "plugin-missing"),
        (b"\x7fELF", "0" * 64, "plugin-sha256"),
        (b"\x7fELF\0libnvinfer.so.8\0", "", "plugin-other-tensorrt"),
        (b"\x7fELF\0libnvinfer_plugin.so.99\0", "", "plugin-other-tensorrt"),
        (b"no library", "", "plugin-not-loaded"),
        (b"", "", "plugin-not-loaded"),
    ],
)
def test_unusable_library_is_refused(tmp_path: Path, contents: bytes | None, sha256: str, code: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_plugins(tmp_path, listing(tmp_path, contents, sha256=sha256))
    assert caught.value.code == code
    assert caught.value.hint


@needs_registry
@pytest.mark.parametrize("changed", [".", "model.yaml"])
def test_library_that_other_users_can_list_is_refused(tmp_path: Path, changed: str) -> None:
    listed = listing(tmp_path, shared_library())
    (tmp_path / changed).chmod(0o777)
    with pytest.raises(Untrusted):
        load_plugins(tmp_path, listed)


@needs_registry
def test_library_without_plugins_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_plugins(tmp_path, listing(tmp_path, shared_library()))
    assert caught.value.code == "plugin-not-registered"


def test_description_of_a_run_has_the_types_of_the_library() -> None:
    desc = tensor_desc((1, 2), "float16", "HWC8")
    assert (tuple(desc.dims), desc.type, desc.format) == ((1, 2), trt.DataType.HALF, trt.TensorFormat.HWC8)
