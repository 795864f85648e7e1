"""Comparison of the plugins' kernels with NumPy. The tests make the calls that TensorRT makes for a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.gpu.launching import Bench
from tests.gpu.test_postprocess_kernels import Case
from tests.plugin_descriptions import FORMATS, dynamic_desc, packed, tensor_desc
from tests.plugins.driver import CUDA, MISSING, drive
from vision.detect.reference.heads import make_head
from vision.detect.reference.letterbox import Letterbox
from vision.detect.reference.postprocess import to_detections
from vision.engine.library import find_library
from vision.errors import DeviceError, DeviceMissing
from vision.gpu.cuda import Graph
from vision.gpu.memory import allocated
from vision.types import Detections

try:
    find_library()
except DeviceMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)

from vision.detect.tensorrt.plugins.base import Creator, KernelPlugin
from vision.detect.tensorrt.plugins.nms import ACTIVATIONS, LAYOUTS, NmsSettings, VisionNms
from vision.detect.tensorrt.plugins.star_relu import StarRelu, StarReluSettings

TOLERANCE = 1e-3  # relative to the largest value
SETTINGS = StarReluSettings(1.7, -0.25)  # the same in all tests, because different settings are compiled separately


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Store compiled kernels in a cache of this test session."""
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path_factory.getbasetemp() / "plugin-cache"))


def star_relu(values: NDArray[Any], settings: StarReluSettings) -> NDArray[np.float32]:
    positive = np.maximum(values.astype(np.float32), np.float32(0))
    result: NDArray[np.float32] = np.float32(settings.scale) * positive * positive + np.float32(settings.bias)
    return result


def run(plugin: KernelPlugin, bench: Bench, inputs: Sequence[Any], outputs: Sequence[Any], *, graph: bool) -> None:
    """Run a plugin once, and check that the run allocates no memory.

    `inputs` and `outputs` contain pairs of a tensor description and an address.
    """
    plugin.on_shape_change([desc for desc, _ in inputs], [desc for desc, _ in outputs])
    dynamic = [dynamic_desc(tuple(desc.dims), "float32", batch=desc.dims[0]) for desc, _ in inputs]
    for each, (desc, _) in zip(dynamic, inputs, strict=True):
        each.desc = desc
    workspace = bench.buffer(max(1, plugin.get_workspace_size(dynamic, [])))
    calls = allocated().calls

    def enqueue() -> None:
        addresses = [address for _, address in inputs], [address for _, address in outputs]
        descriptions = [desc for desc, _ in inputs], [desc for desc, _ in outputs]
        plugin.enqueue(*descriptions, *addresses, workspace.address, bench.stream.address)

    if graph:
        with Graph.capture(bench.stream, enqueue, "a plugin") as captured:
            captured.launch(bench.stream)
            bench.stream.synchronize()
    else:
        enqueue()
        bench.stream.synchronize()
    assert allocated().calls == calls, "a run allocates memory"


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(
    ("dtype", "format_name"), [(dtype, name) for dtype, names in FORMATS.items() for name in names]
)
def test_star_relu_matches_numpy_in_every_format(device: Any, dtype: str, format_name: str, graph: bool) -> None:
    values = np.random.default_rng(0).normal(size=(2, 19, 5, 3), scale=2).astype(dtype)
    wanted = packed(star_relu(values, SETTINGS).astype(dtype), format_name)
    plugin = StarRelu(SETTINGS).attach_to_context(None)
    with Bench(device) as bench:
        memory = packed(values, format_name)
        source, target = bench.put(memory), bench.buffer(memory.nbytes)
        desc = tensor_desc(values.shape, dtype, format_name)
        run(plugin, bench, [(desc, source)], [(desc, target.address)], graph=graph)
        given = target.read(memory.shape, dtype).astype(np.float32)
    assert np.abs(given - wanted.astype(np.float32)).max() <= TOLERANCE * np.abs(wanted.astype(np.float32)).max()
    np.testing.assert_array_equal(given == 0, wanted == 0)  # the padding stays 0


@pytest.mark.parametrize("shape", [(7,), (3, 1001), (1, 0, 4, 4)])
def test_star_relu_takes_tensors_of_any_rank(device: Any, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    plugin = StarRelu(SETTINGS)
    with Bench(device) as bench:
        source, target = bench.put(values), bench.buffer(max(1, values.nbytes))
        desc = tensor_desc(shape, "float32")
        run(plugin, bench, [(desc, source)], [(desc, target.address)], graph=False)
        np.testing.assert_allclose(target.read(shape, np.float32), star_relu(values, SETTINGS), rtol=TOLERANCE)


needs_compiled_driver = pytest.mark.skipif(not (CUDA / ".done").exists(), reason=MISSING)


@needs_compiled_driver
def test_calls_in_cpp_reach_the_kernels(device: Any) -> None:
    values = np.random.default_rng(2).normal(size=(2, 7, 3, 3)).astype(np.float32)
    attributes = {"scale": SETTINGS.scale, "bias": SETTINGS.bias}
    with Bench(device) as bench:
        source, target, workspace = bench.put(values), bench.buffer(values.nbytes), bench.buffer(1)
        memory = (source, [target.address], workspace.address, bench.stream.address)
        report = drive(Creator(StarRelu), attributes, values.shape, memory=memory)
        bench.stream.synchronize()
        assert report[-2:] == ["shape change 0", "enqueue 0"]
        given = target.read(values.shape, np.float32)
    np.testing.assert_allclose(given, star_relu(values, SETTINGS), rtol=TOLERANCE)


CASES = [
    Case("yolov8"),
    Case("yolov8", half=True),
    Case("yolov8", objects=5, score=0.0, candidates=65),
    Case("yolov8", content="not numbers"),
    Case("yolov8", content="nothing"),
    Case("yolov8", across=1.0, iou=0.3),
    Case("yolov5", sigmoid=True),
    Case("nanodet"),
]


def settings_of(case: Case) -> NmsSettings:
    head = case.spec.head
    return NmsSettings(
        layout=LAYOUTS.index(head.kind),
        classes=case.classes,
        width=96,
        height=64,
        fraction=int(case.fraction),
        activation=ACTIVATIONS.index(head.activation),
        score_threshold=case.score,
        iou_threshold=case.iou,
        iou_across_classes=case.across,
        max_candidates=case.candidates,
        max_objects=case.objects,
    )


def reference(case: Case, arrays: Sequence[NDArray[Any]], frame: int) -> Detections:
    spec = case.spec
    outputs = {f"input{number}": array for number, array in enumerate(arrays)}
    decoder = make_head(spec, case.classes, case.score).bind({name: value.shape for name, value in outputs.items()})
    with np.errstate(all="ignore"):
        candidates = decoder.decode([outputs[name][frame].astype(np.float32) for name in decoder.outputs])
        limits = spec.nms if decoder.needs_nms else None
        return to_detections(candidates, limits, Letterbox.fit(96, 64, 96, 64, "top-left"), 96, 64)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case)[5:-1])
def test_nms_matches_the_reference(device: Any, case: Case, graph: bool) -> None:
    batch, objects = 3, case.objects
    arrays = list(case.outputs(batch, seed=CASES.index(case)).values())
    plugin = VisionNms(settings_of(case)).attach_to_context(None)
    shapes = {(batch, 1): "int32", (batch, objects, 4): "float32"}
    kinds = [*shapes.items(), ((batch, objects), "float32"), ((batch, objects), "int32")]
    with Bench(device) as bench:
        inputs = [(tensor_desc(array.shape, str(array.dtype)), bench.put(array)) for array in arrays]
        targets = [bench.buffer(int(np.prod(shape)) * 4) for shape, _ in kinds]
        descriptions = [tensor_desc(shape, dtype) for shape, dtype in kinds]
        outputs = [(desc, target.address) for desc, target in zip(descriptions, targets, strict=True)]
        run(plugin, bench, inputs, outputs, graph=graph)
        number, boxes, scores, ids = (
            target.read(shape, dtype) for target, (shape, dtype) in zip(targets, kinds, strict=True)
        )
    for frame in range(batch):
        wanted = reference(case, arrays, frame)
        found = int(number[frame, 0])
        assert found == len(wanted)
        np.testing.assert_allclose(boxes[frame, :found], wanted.boxes_xyxy, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(scores[frame, :found], wanted.scores, rtol=TOLERANCE)
        np.testing.assert_array_equal(ids[frame, :found], wanted.class_ids)
        assert not boxes[frame, found:].any()
        assert not scores[frame, found:].any()
        assert not ids[frame, found:].any()


def test_new_shapes_are_prepared_and_the_same_shapes_are_kept(device: Any) -> None:
    plugin = StarRelu(SETTINGS)
    with pytest.raises(DeviceError):
        plugin.enqueue([], [], [0], [0], 0, 0)
    with Bench(device) as bench:
        for rows in (3, 3, 5):
            before = plugin._step
            values = np.arange(rows, dtype=np.float32)
            source, target = bench.put(values), bench.buffer(values.nbytes)
            desc = tensor_desc(values.shape, "float32")
            run(plugin, bench, [(desc, source)], [(desc, target.address)], graph=False)
            given, wanted = target.read(values.shape, np.float32), star_relu(values, SETTINGS)
            np.testing.assert_allclose(given, wanted, rtol=TOLERANCE)
            assert (plugin._step is before) == (before is not None and rows == 3)


def test_memory_is_freed_with_the_plugin(device: Any) -> None:
    before = allocated().device_bytes
    plugin = VisionNms(NmsSettings(LAYOUTS.index("yolov8"), 3, 96, 64))
    plugin.on_shape_change([tensor_desc((2, 7, 200), "float32")], [])
    assert allocated().device_bytes > before
    del plugin
    assert allocated().device_bytes == before
