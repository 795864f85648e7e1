"""Tests of layer times, layer descriptions, timelines, and command lines."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine_models import needs_tensorrt
from vision.engine.build_plan import Precision
from vision.engine.library import Flavour
from vision.engine.profiler import LayerTimes, make_profiler, parse_layers
from vision.engine.profiler import Profile as EngineProfile
from vision.engine.profiles import Profile, Range
from vision.engine.trace import Span, SpanRecorder, chrome_trace, layer_spans, write_chrome_trace
from vision.engine.trtexec import (
    Dialect,
    Tool,
    build_line,
    dialect_of,
    find_tool,
    installed_tool,
    layers_command,
    nsys_command,
    nsys_text,
    run_command,
    trtexec_text,
)
from vision.errors import ModelError


def times() -> LayerTimes:
    made = LayerTimes()
    for run in range(4):
        made.begin_run()
        made.add("conv", 1.0 + run)
        made.add("nms", 0.5)
        made.add("conv", 1.0)  # two times in one run are added
    made.begin_run()  # a run without times
    return made


def test_layer_times_are_in_the_order_of_execution() -> None:
    conv, nms = times().layers()
    assert (conv.name, conv.mean_ms, conv.median_ms, conv.min_ms, conv.max_ms) == ("conv", 3.5, 3.5, 2.0, 5.0)
    assert (nms.name, nms.mean_ms) == ("nms", 0.5)
    assert conv.share == pytest.approx(3.5 / 4.0)
    assert times().total_ms() == 4.0
    assert times().runs == 4


def test_profile_without_runs_has_no_times() -> None:
    assert LayerTimes().layers() == ()
    assert LayerTimes().total_ms() == 0.0


@needs_tensorrt
def test_tensorrts_profiler_fills_the_times() -> None:
    made = LayerTimes()
    profiler = make_profiler(made)
    made.begin_run()
    profiler.report_layer_time("conv", 0.25)
    assert made.layers()[0].mean_ms == 0.25


# ------------------------------------------------------------------------------------------------ layers

TENSORRT_10 = {
    "Layers": [
        {
            "Name": "conv_1 + relu_1 [profile 1]",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "images", "Dimensions": [8, 3, 416, 416], "Format/Datatype": "Row major linear FP16"}],
            "Outputs": [{"Name": "a", "Dimensions": [8, 24, 208, 208], "Format/Datatype": "Half"}],
            "TacticName": "sm80_xmma_fprop",
            "TacticValue": "0x1",
            "StreamId": 0,
            "Metadata": "[ONNX Layer: conv_1]\u001e[ONNX Layer: relu_1]",
        }
    ],
    "Bindings": ["images", "scores"],
}
TENSORRT_11 = {
    "Layers": [
        {
            "Name": "fused",
            "LayerType": "kgen",
            "Inputs": [],
            "Outputs": [
                {"Name": "a", "Dimensions": [1, 2], "DataType": "Half", "Format": "Linear"},
                {"Name": "b", "Dimensions": [1, 2], "DataType": "Float", "Format": "Linear"},
                {"Name": "c", "Dimensions": "unknown", "DataType": "Half"},
            ],
            "TacticValue": "0x7",
        }
    ],
    "I/O Tensors": [{"Name": "images"}],
}


def test_layer_descriptions_of_tensorrt_10_are_parsed() -> None:
    (layer,) = parse_layers(json.dumps(TENSORRT_10))
    assert (layer.name, layer.profile, layer.kind, layer.tactic) == (
        "conv_1 + relu_1", 1, "CaskConvolution", "sm80_xmma_fprop",
    )  # fmt: skip
    assert layer.inputs[0].dimensions == (8, 3, 416, 416)
    assert layer.inputs[0].dtype == "Row major linear FP16"
    assert layer.onnx_nodes == ("conv_1", "relu_1")
    assert layer.dtypes == "Half"


def test_layer_descriptions_of_tensorrt_11_are_parsed() -> None:
    (layer,) = parse_layers(json.dumps(TENSORRT_11))
    assert layer.dtypes == "Half, Float"
    assert layer.tactic == "0x7"
    assert layer.outputs[2].dimensions == ()
    assert layer.onnx_nodes == ()


def test_layer_names_without_details_are_parsed() -> None:
    layers = parse_layers(json.dumps({"Layers": ["conv [profile 0]", "nms"]}))
    assert [(layer.name, layer.profile, layer.kind) for layer in layers] == [("conv", 0, ""), ("nms", 0, "")]


@pytest.mark.parametrize("text", ["", "no JSON", "{}", "[]", "null"])
def test_missing_layer_information_is_refused(text: str) -> None:
    with pytest.raises(ModelError) as caught:
        parse_layers(text)
    assert caught.value.code == "no-layers"


def test_report_joins_times_and_layers() -> None:
    made = LayerTimes()
    made.begin_run()
    made.add("fast", 0.25)
    made.add("conv_1 + relu_1 [profile 1]", 0.75)
    layers = parse_layers(json.dumps(TENSORRT_10))
    report = EngineProfile("tiny", "images 8x3x416x416", made.runs, made.total_ms(), made.layers(), layers)
    lines = report.table().splitlines()
    assert lines[1].split()[:4] == ["0.7500", "75.0", "0.7500", "CaskConvolution"]
    assert lines[2].endswith("fast")
    assert re.search(r"\b2\b", lines[-1]), "the number of layers"
    assert len(report.table(most=1).splitlines()) == 3
    plain = json.loads(json.dumps(asdict(report)))
    assert plain["times"][1]["share"] == 0.75
    assert plain["layers"][0]["onnx_nodes"] == ["conv_1", "relu_1"]


# ------------------------------------------------------------------------------------------------ timelines


def events(trace: dict[str, Any], phase: str) -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event["ph"] == phase]


def test_chrome_trace_has_a_lane_for_each_slot_and_microseconds_from_zero(tmp_path: Path) -> None:
    spans = [
        Span("engine", "slot 1", 5_002_000, 5_004_000, {"batch": 8}),
        Span("copy", "slot 0", 5_000_000, 5_001_500),
        Span("engine", "slot 0", 5_001_500, 5_003_000),
    ]
    write_chrome_trace(tmp_path / "t.json", spans)
    trace = json.loads((tmp_path / "t.json").read_text())
    lanes = {event["args"]["name"]: event["tid"] for event in events(trace, "M") if event["name"] == "thread_name"}
    assert lanes == {"slot 0": 1, "slot 1": 2}
    drawn = [(event["name"], event["tid"], event["ts"], event["dur"]) for event in events(trace, "X")]
    assert drawn == [("copy", 1, 0.0, 1.5), ("engine", 1, 1.5, 1.5), ("engine", 2, 2.0, 2.0)]
    assert events(trace, "X")[2]["args"] == {"batch": 8}


def test_chrome_trace_without_spans_has_no_events() -> None:
    assert events(chrome_trace([]), "X") == []


def test_recorder_keeps_the_newest() -> None:
    recorder = SpanRecorder(keep=2, clock=iter(range(0, 1000, 10)).__next__)
    for name in ("a", "b", "c"):
        with recorder.span(name, "host", batch=1):
            pass
    assert [(span.name, span.start_ns, span.end_ns) for span in recorder.spans()] == [("b", 20, 30), ("c", 40, 50)]


def test_recorder_keeps_a_block_that_fails() -> None:
    recorder = SpanRecorder(clock=iter(range(10)).__next__)
    with pytest.raises(ZeroDivisionError), recorder.span("a", "host"):
        raise ZeroDivisionError
    assert recorder.spans()[0].end_ns == 1


def test_layer_spans_are_consecutive() -> None:
    spans = layer_spans([("a", 0.5), ("b", 0.25)], "layers", 100)
    assert [(span.name, span.start_ns, span.end_ns) for span in spans] == [("a", 100, 500_100), ("b", 500_100, 750_100)]


# ------------------------------------------------------------------------------------------------ command lines


PLAN = Path("/var/cache/vision/engines/a b.engine")
SHAPES = {"images": (8, 3, 416, 416)}


def tool(dialect: Dialect) -> Tool:
    return Tool(dialect, "/usr/src/tensorrt/bin/trtexec", True)


@pytest.mark.parametrize(
    ("flavour", "weak", "dialect"),
    [("tensorrt", True, "trtexec-10"), ("tensorrt", False, "trtexec-11"), ("tensorrt-rtx", False, "tensorrt_rtx")],
)
def test_dialect_follows_from_the_library(flavour: Flavour, weak: bool, dialect: Dialect) -> None:
    assert dialect_of(flavour, weak_typing=weak) == dialect


@pytest.mark.parametrize(
    ("dialect", "has", "lacks"),
    [
        ("trtexec-10", ["--useCudaGraph", "--useSpinWait", "--noDataTransfers"], ["--specializeStrategyDS=eager"]),
        ("trtexec-11", [], ["--useCudaGraph", "--useSpinWait", "--noDataTransfers"]),
        ("tensorrt_rtx", ["--specializeStrategyDS=eager", "--rtxCudaGraphStrategy=wholeGraph"], ["--useCudaGraph"]),
    ],
)
def test_run_command_measures_the_same_in_every_version(dialect: Dialect, has: list[str], lacks: list[str]) -> None:
    words = shlex.split(run_command(tool(dialect), PLAN, SHAPES, 1, streams=2))
    assert words[0] == "/usr/src/tensorrt/bin/trtexec"
    assert f"--loadEngine={PLAN}" in words, "a blank in a path survives the shell"
    assert "--shapes=images:8x3x416x416" in words
    assert "--useProfile=1" in words
    assert "--infStreams=2" in words
    assert set(has) <= set(words)
    assert not set(lacks) & set(words)


@pytest.mark.parametrize(
    ("dialect", "precision", "has"),
    [
        ("trtexec-10", "fp16", {"--fp16"}),
        ("trtexec-10", "bf16", {"--bf16"}),
        ("trtexec-10", "int8", {"--int8", "--fp16"}),
        ("trtexec-10", "fp8", {"--fp8", "--fp16"}),
        ("trtexec-10", "fp32", {"--noTF32"}),
        ("trtexec-10", "tf32", set()),
        ("trtexec-11", "fp16", set()),  # TensorRT 11 has no such option, because the ONNX file determines the precision
        ("trtexec-11", "fp32", {"--noTF32"}),
        ("tensorrt_rtx", "fp16", set()),
    ],
)
def test_build_command_has_the_precision_options_of_the_tool(
    dialect: Dialect, precision: Precision, has: set[str]
) -> None:
    profiles = [
        Profile({"images": Range((1, 3, 8, 8), (4, 3, 8, 8), (4, 3, 8, 8))}, {}),
        Profile({"images": Range((4, 3, 8, 8), (8, 3, 8, 8), (8, 3, 8, 8))}, {}),
    ]
    line = build_line(tool(dialect), onnx=Path("m.onnx"), plan=PLAN, profiles=profiles, precision=precision)
    words = shlex.split(line)
    options = {"--fp16", "--bf16", "--int8", "--fp8", "--noTF32"}
    assert options & set(words) == has
    at = words.index("--profile=1")
    assert words[at + 1 : at + 4] == [
        "--minShapes=images:4x3x8x8", "--optShapes=images:8x3x8x8", "--maxShapes=images:8x3x8x8",
    ]  # fmt: skip
    assert "--skipInference" in words
    assert not {"--buildOnly", "--explicitBatch"} & set(words), "removed in 10.0"
    assert not any(word.startswith("--workspace") for word in words)


@pytest.mark.parametrize(("dialect", "said"), [("trtexec-10", True), ("trtexec-11", False), ("tensorrt_rtx", False)])
def test_trtexec_command_states_the_input_type(dialect: Dialect, said: bool) -> None:
    profiles = [Profile({"images": Range((1, 3, 8, 8), (4, 3, 8, 8), (4, 3, 8, 8))}, {})]
    line = build_line(
        tool(dialect), onnx=Path("m.onnx"), plan=PLAN, profiles=profiles, precision="fp16", half_input=True
    )
    assert ("--inputIOFormats=fp16:chw" in shlex.split(line)) == said


@pytest.mark.parametrize(
    ("dialect", "separate"), [("trtexec-10", True), ("trtexec-11", False), ("tensorrt_rtx", False)]
)
def test_layers_are_profiled_in_a_separate_run(dialect: Dialect, separate: bool) -> None:
    words = shlex.split(layers_command(tool(dialect), PLAN, SHAPES, 0))
    assert ("--separateProfileRun" in words) == separate
    assert "--dumpProfile" in words


@pytest.mark.parametrize(("name", "quoted"), [("images", "images"), ("a:0", '"a:0"'), ("a,b", '"a,b"')])
def test_names_with_separators_are_quoted_in_shapes(name: str, quoted: str) -> None:
    words = shlex.split(run_command(tool("trtexec-11"), PLAN, {name: (1, 2)}, 0))
    assert f"--shapes={quoted}:1x2" in words


def test_trtexec_is_found_in_the_jetpack_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    place = tmp_path / "jetpack"
    assert find_tool("trtexec-10", [place]) == Tool("trtexec-10", "trtexec", False)
    place.write_text("")
    assert find_tool("trtexec-10", [place]) == Tool("trtexec-10", str(place), True)
    assert find_tool("tensorrt_rtx", [place]) == Tool("tensorrt_rtx", "tensorrt_rtx", False)
    in_path = tmp_path / "trtexec"
    in_path.write_text("")
    in_path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_tool("trtexec-10", [place]) == Tool("trtexec-10", str(in_path), True)


@pytest.mark.parametrize("tegra", [False, True])
def test_nsys_traces_the_kernels_of_graphs(tegra: bool) -> None:
    words = shlex.split(nsys_command(["vision", "run", "my camera.yaml"], tegra=tegra))
    assert words[-3:] == ["vision", "run", "my camera.yaml"]
    assert "--cuda-graph-trace=node" in words
    assert "--trace=cuda,nvtx,osrt" in words
    assert ("--accelerator-trace=tegra-accelerators" in words) == tegra
    assert (words[0] == "sudo") == tegra
    assert "nsys profile" in nsys_text(["vision", "run", "demo"]).replace("/usr/bin/", "")


@pytest.mark.parametrize("dialect", ["trtexec-10", "trtexec-11", "tensorrt_rtx"])
def test_printed_commands_follow_their_comments(dialect: Dialect) -> None:
    lines = trtexec_text(find_tool(dialect), PLAN, SHAPES, 0).splitlines()
    assert lines[0].startswith(f"# {dialect}")
    assert [line.startswith("#") for line in lines] == [True, True, False, True, False, True, False]


@needs_tensorrt
def test_printed_commands_are_for_the_installed_library() -> None:
    assert trtexec_text(installed_tool(), PLAN, SHAPES, 0).startswith(("# tensorrt_rtx", "# trtexec"))
