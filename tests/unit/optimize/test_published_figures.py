"""Tests that the committed measurements of optimized models meet the goals, and equal those in the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pytest

from tests.paths import ROOT
from tests.perf import results
from vision.optimize.thresholds import ALGORITHMS

_SERVER: Final = "intel-r-xeon-r-processor-16-cores"
_TWO_CORES: Final = "intel-r-xeon-r-processor-2-cores"
_NEWER_TWO_CORES: Final = "intel-r-xeon-r-processor-2-80ghz-2-cores"
_H200: Final = "nvidia-h200"

_LARGEST_DROP: Final = 0.010  # of the best algorithm for int8, as AP@0.5
_LARGEST_DROP_16_BITS: Final = 0.005
_LEAST_RECOVERED: Final = 0.5  # fraction of the loss that the repair of sparse weights recovers
_LONGEST_CALIBRATION_S: Final = 90

_NETWORKS: Final = {
    "nanodet_g_416": "nanodet-g-416",
    "resnet50": "ResNet-50, 224x224",
    "yolov8s": "YOLOv8s, 640x640",
    "yolov8x": "YOLOv8x, 640x640",
    "bert_base": "BERT-Base, 128 tokens",
}


def figures(machine: str, name: str) -> Mapping[str, Any]:
    return results.load(results.FOLDER / machine / f"{name}.json").figures


@pytest.fixture(scope="module")
def page() -> str:
    return " ".join((ROOT / "docs" / "optimization.md").read_text().split())


@pytest.fixture(scope="module")
def measured() -> Mapping[str, Any]:
    return figures(_SERVER, "optimization")


def with_difference(value: float, reference: float) -> str:
    return f"{value:.4f} ({value - reference:+.4f})"


def test_best_algorithm_loses_little(measured: Mapping[str, Any]) -> None:
    assert set(measured["int8"]) == set(ALGORITHMS)
    best = max(each["ap50"]["kept_0"] for each in measured["int8"].values())
    assert measured["float32_ap50"] - best <= _LARGEST_DROP


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_accuracy_in_int8_is_documented(page: str, measured: Mapping[str, Any], algorithm: str) -> None:
    ap, float32 = measured["int8"][algorithm]["ap50"], measured["float32_ap50"]
    row = f"| `{algorithm}` | {with_difference(ap['kept_0'], float32)} | {with_difference(ap['kept_4'], float32)} |"
    assert row in page


@pytest.mark.parametrize("algorithm", ["minmax", "entropy"])
def test_accuracy_with_modelopt_is_documented(page: str, algorithm: str) -> None:
    found = figures(_NEWER_TWO_CORES, "modelopt")
    cell = with_difference(found["modelopt"][algorithm]["ap50"], found["float32_ap50"])
    assert f"| `{algorithm}` of ModelOpt 0.47 | {cell} |" in page


def test_sparse_weights_comply_and_the_repair_recovers_the_loss(page: str, measured: Mapping[str, Any]) -> None:
    float32, sparse = measured["float32_ap50"], measured["sparsity"]
    loss = float32 - sparse["magnitude"]["ap50"]
    assert sparse["repaired"]["ap50"] - sparse["magnitude"]["ap50"] >= _LEAST_RECOVERED * loss
    for name, label in (("magnitude", "pruned by magnitude"), ("repaired", "pruned, and repaired with 64 of")):
        found = sparse[name]
        assert found["least_compliance"] == 1, "all groups of every eligible layer are sparse"
        layers = f"{found['layers']} of {found['layers']}"
        assert re.search(rf"\| {label}[^|]* \| {found['ap50']:.4f} \| {layers} \|", page)


def test_16_bits_lose_little(page: str) -> None:
    rows = {(row["backend"], row["precision"]): row["ap50"] for row in figures(_H200, "precision_accuracy")["rows"]}
    float32 = rows["onnxruntime", "fp32"]
    for precision in ("fp16", "bf16"):
        assert float32 - rows["tensorrt", precision] <= _LARGEST_DROP_16_BITS
        assert f"{rows['tensorrt', precision]:.4f} in {precision}" in page
    assert f"{rows['tensorrt', 'fp32']:.4f} in fp32" in page
    assert f"With ONNX Runtime, it was {float32:.4f}" in page


def test_calibration_of_500_frames_is_fast_enough(page: str) -> None:
    found = figures(_TWO_CORES, "calibration")
    assert found["frames"] == 500
    assert found["wall_s"] <= _LONGEST_CALIBRATION_S
    assert f"500 frames took {found['wall_s']:.0f} s" in page
    assert f"{found['peak_resident_mib']} MiB" in page


def documented_precisions() -> Iterator[str]:
    """Yield the rows of the precision table in the documentation, in the form of the committed measurement."""
    measured = figures(_H200, "precisions")
    assert measured.keys() == _NETWORKS.keys()
    for key, network in _NETWORKS.items():
        for row in measured[key]:
            if "reason" in row:
                continue
            cells = (
                network, row["batch"], row["precision"], f"{row['mean_ms']:.2f}", f"{row['p99_ms']:.2f}",
                f"{row['mean_without_graph_ms']:.2f}", f"{row['rows_per_s']:,.0f}",
                f"{row['engine_bytes'] / 2**20:.1f}", f"{100 * row['relative_error']:.2g} %",
            )  # fmt: skip
            yield f"| {' | '.join(map(str, cells))} |"


def test_precisions_of_networks_are_documented(page: str) -> None:
    rows = list(documented_precisions())
    assert len(rows) == len(re.findall(r"\| (?:fp32|tf32|fp16|bf16) \|", page))
    assert [row for row in rows if row not in page] == []
