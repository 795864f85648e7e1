"""Tests that the kernels compile for every supported architecture. NVRTC needs neither a GPU nor a driver."""

from __future__ import annotations

import pytest
from cuda.bindings import nvrtc

from vision.config import HeadSpec, InputSpec, ModelSpec, NmsSpec
from vision.config.model_spec import CropSpec
from vision.detect.reference.heads import make_head
from vision.detect.tensorrt.crop_kernel import CropProgram
from vision.detect.tensorrt.kernels import KERNELS, Definitions, LetterboxProgram, Output, PostprocessProgram
from vision.gpu.cuda import check
from vision.gpu.nvrtc import Source, compile_cubin, nvrtc_version

pytestmark = pytest.mark.integration

ARCHS = {
    "sm_72": "Xavier, dropped in CUDA 13",
    "sm_75": "Turing",
    "sm_80": "A100",
    "sm_86": "A10, RTX 30",
    "sm_87": "Orin",
    "sm_89": "L4, RTX 40",
    "sm_90": "H100",
    "sm_110": "Thor, new in CUDA 13",
    "sm_120": "RTX 50, new in CUDA 12.8",
}

LEVELS = {8: 2704, 16: 676, 32: 169, 64: 49}  # cells of a 416x416 input by stride

OUTPUTS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "nanodet": ("nanodet", {"scores": (3549, 80), "distances": (3549, 44)}),
    "nanodet, one output": ("nanodet", {"both": (3549, 124)}),
    "nanodet, two outputs per stride": (
        "nanodet",
        {f"{kind}_{stride}": (LEVELS[stride], n) for kind, n in (("cls", 80), ("dis", 44)) for stride in (8, 16, 32)},
    ),
    "nanodet-plus": ("nanodet-plus", {"output": (3598, 112)}),
    "picodet": (
        "picodet",
        {f"{kind}_{stride}": (LEVELS[stride], n) for kind, n in (("a", 80), ("b", 32)) for stride in LEVELS},
    ),
    "yolov5": ("yolov5", {"output": (25200, 85)}),
    "yolox": ("yolox", {"output": (3549, 85)}),
    "yolov8": ("yolov8", {"output": (84, 8400)}),
    "yunet": (
        "yunet",
        {
            f"{kind}_{stride}": (LEVELS[stride], n)
            for kind, n in (("cls", 80), ("obj", 1), ("bbox", 4), ("kps", 10))
            for stride in (8, 16, 32)
        },
    ),
    "corners": ("corners", {"boxes": (8400, 1, 4), "scores": (80, 8400)}),
    "end-to-end": ("end-to-end", {"output": (300, 6)}),
    "efficient nms": (
        "end-to-end",
        {"num_dets": (1,), "det_boxes": (100, 4), "det_scores": (100,), "det_classes": (100,)},
    ),
    "rt-detr": ("rt-detr", {"boxes": (300, 4), "logits": (300, 80)}),
}

SHAPED: dict[str, dict[str, tuple[int, ...]]] = {
    "pose": {"output0": (4 + 80 + 51, 8400)},
    "obb": {"output0": (4 + 80 + 1, 8400)},
    "segment": {"output0": (4 + 80 + 32, 8400), "output1": (32, 104, 104)},
}


def definitions(kind: str, *, half: bool, candidates: int = 1024) -> Definitions:
    head, shapes = OUTPUTS[kind]
    spec = ModelSpec(
        name="test",
        file="test.onnx",
        input=InputSpec(width=416, height=416),
        head=HeadSpec(kind=head, activation="sigmoid" if half else "none"),  # type: ignore[arg-type]
        classes="coco80",
        nms=NmsSpec(max_candidates=candidates),
        licence="none",
    )
    made = make_head(spec, 80, 0.35)
    real = "float16" if half else "float32"
    whole = {"num_dets", "det_classes"}
    outputs = {name: Output(shape, "int32" if name in whole else real) for name, shape in shapes.items()}
    return PostprocessProgram.of(spec, made, outputs, 100_000).definitions


@pytest.mark.parametrize(("task", "half"), [("pose", False), ("obb", False), ("segment", True)])
def test_kernels_for_shapes_compile(task: str, half: bool) -> None:
    spec = ModelSpec(
        name="test",
        file="test.onnx",
        input=InputSpec(width=416, height=416),
        head=HeadSpec(kind="yolov8", task=task),  # type: ignore[arg-type]
        classes="coco80",
        licence="none",
    )
    outputs = {name: Output(shape, "float16" if half else "float32") for name, shape in SHAPED[task].items()}
    program = PostprocessProgram.of(spec, make_head(spec, 80, 0.35), outputs, 100_000)
    assert compile_cubin(Source.read(KERNELS / program.file, program.definitions), "sm_87")


def supported(arch: str) -> bool:
    version = nvrtc_version()
    known = int(arch[3:]) in check(nvrtc.nvrtcGetSupportedArchs(), "reading the architectures")
    newest = {"sm_72": (13, 0)}
    first = {"sm_110": (13, 0), "sm_120": (12, 8)}
    assert known == (version < newest.get(arch, (99, 0)) and version >= first.get(arch, (11, 0))), (arch, version)
    return known


def letterbox(dtype: str, channels: int, width: int, arch: str) -> bytes:
    program = LetterboxProgram(InputSpec(width=width, height=416), dtype, channels)
    return compile_cubin(Source.read(KERNELS / program.file, program.definitions), arch)


def crop(dtype: str, color: str, arch: str) -> bytes:
    program = CropProgram(CropSpec(width=128, height=256, color=color), dtype)  # type: ignore[arg-type]
    return compile_cubin(Source.read(KERNELS / program.file, program.definitions), arch)


# One variant of each kernel is enough for an architecture, because only the conversion of 16-bit numbers depends on it.
@pytest.mark.parametrize("arch", ARCHS)
def test_letterbox_kernel_compiles(arch: str) -> None:
    if supported(arch):
        assert letterbox("float16", 4, 417, arch)


@pytest.mark.parametrize(
    ("dtype", "channels", "width"),
    [
        ("float32", 0, 417),
        ("float16", 0, 416),
        ("float16", 3, 416),
        ("float16", 4, 416),
        ("uint8", 0, 416),
        ("uint8", 3, 417),
    ],
)
def test_letterbox_kernel_compiles_for_every_input_format(dtype: str, channels: int, width: int) -> None:
    assert letterbox(dtype, channels, width, "sm_87")


@pytest.mark.parametrize("arch", ARCHS)
def test_crop_kernel_compiles(arch: str) -> None:
    if supported(arch):
        assert crop("float16", "bgr", arch)


def test_crop_kernel_compiles_for_the_other_input_format() -> None:
    assert crop("float32", "rgb", "sm_87")


@pytest.mark.parametrize("arch", ARCHS)
def test_postprocess_kernels_compile(arch: str) -> None:
    if supported(arch):
        source = Source.read(KERNELS / "postprocess.cu", definitions("efficient nms", half=True))
        assert compile_cubin(source, arch)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_postprocess_kernels_compile_for_every_head(kind: str) -> None:
    half = kind not in ("yolov5", "yolov8", "yolox", "end-to-end")
    source = Source.read(KERNELS / "postprocess.cu", definitions(kind, half=half))
    assert compile_cubin(source, "sm_87")


def test_many_candidates_use_global_memory() -> None:
    given = definitions("yolov8", half=False, candidates=8192)
    assert given["SHARED_WORK"] == 0
    assert compile_cubin(Source.read(KERNELS / "postprocess.cu", given), "sm_87")
