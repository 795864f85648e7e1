"""Tests that the metrics and labels in the documentation, the dashboard, and the alert rules exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.messages.samples import CLASSES, HEADER, PUBLISHED_NS, result
from tests.paths import ROOT
from tests.unit.runtime.monitoring.test_server import state_of
from vision.messaging import codec
from vision.types import Event

EXAMPLES = ROOT / "examples" / "monitoring"
_NAME = re.compile(r"\bvision_[a-z_]+")
_SELECTOR = re.compile(r"(vision_[a-z_]+)\{([^}]*)\}")
_ADDED_BY_PROMETHEUS = {"instance", "job"}

GPU = {
    f"vision_gpu_{name}"
    for name in ("memory_used_bytes", "memory_total_bytes", "temperature_celsius", "clock_hertz", "utilization_ratio")
} | {
    "vision_gpu_throttled",
    "vision_temperature_celsius",
    "vision_detector_graphs",
    "vision_detector_graphs_off",
    "vision_detector_device_bytes",
}
"""Metrics that exist only on machines with a GPU or a sensor. test_server.py tests those of a GPU."""


def metrics() -> dict[str, set[str]]:
    """Return the labels of each metric of a program, by metric name."""
    state = state_of("streaming")
    state.add(codec.detections(HEADER, result(camera="c0"), CLASSES, PUBLISHED_NS))
    state.add(codec.event(HEADER, Event("line_crossed", "door", "c0", 1, 0), result()))
    labels: dict[str, set[str]] = {name: {"gpu", "reason", "zone"} for name in GPU}
    for family in text_string_to_metric_families(state.exposition().decode()):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
        labels.setdefault(family.name, set())
    return labels


def rules() -> list[dict[str, object]]:
    groups = yaml.safe_load((EXAMPLES / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> Iterator[str]:
    for panel in json.loads((EXAMPLES / "grafana.json").read_text())["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (str(rule["expr"]) for rule in rules())


@pytest.mark.parametrize("expression", list(expressions()))
def test_expression_uses_existing_metrics_and_labels(expression: str) -> None:
    known = metrics()
    names = _NAME.findall(expression)
    assert names or "up{" in expression
    assert set(names) <= set(known)
    for name, selectors in _SELECTOR.findall(expression):
        used = set(re.findall(r"(\w+)\s*[=!]", selectors))
        assert used <= known[name] | _ADDED_BY_PROMETHEUS, name
    assert expression.count("(") == expression.count(")")
    for group in re.findall(r"by \(([^)]*)\)", expression):
        labels = set().union(*(known[name] for name in names))
        assert set(group.replace(" ", "").split(",")) <= labels | _ADDED_BY_PROMETHEUS


def test_each_rule_has_a_name_a_severity_and_a_summary() -> None:
    assert len({rule["alert"] for rule in rules()}) == len(rules())
    for rule in rules():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("info", "warning", "critical")  # type: ignore[index]
        assert rule["annotations"]["summary"]  # type: ignore[index]


def test_page_lists_every_metric() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    table = page[page.index("<!-- metrics -->") : page.index("<!-- end of metrics -->")]
    listed = set(_NAME.findall(table))
    parts = ("_bucket", "_count", "_sum", "_created")
    existing = {name for name in metrics() if not name.endswith(parts)}
    families = {name for name in existing if f"{name}_total" in existing}  # of counters, without their suffix
    assert listed == existing - families
