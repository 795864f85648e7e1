"""Report of an evaluation of prompts, as a table and as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vision.evaluation.language.judgments import Judgments, PromptEvaluation, Share
from vision.version import version

SCHEMA: Final = "vision.llm-evaluation/1"
LIMITS: Final = (0.0, 0.01, 0.02, 0.05, 0.1)
"""Shares of lost true events for which the table shows the share of false alarms that a threshold can remove."""


def print_report(evaluation: PromptEvaluation, console: Console) -> None:
    """Print two tables, and then the notes.

    The first table shows how many false alarms and true events each prompt removes. The second table shows how many
    false alarms each prompt can remove if at most a given share (one of `LIMITS`) of the true events is lost.
    """
    effect = _table("prompt", "events", "false alarms removed", "true events lost", "no answer", "p50 ms", "p95 ms")
    for result in evaluation.results:
        errors = ", ".join(f"{count} {code}" for code, count in result.errors.items()) or "0"
        latencies = [f"{quantile:.0f}" for quantile in _quantiles(result)] or ["-", "-"]
        events = str(len(result.judgments))
        effect.add_row(escape(result.name), events, _shown(result.removed), _shown(result.lost), errors, *latencies)
    console.print(effect)
    curve = _table("false alarms removed if at most", *(f"{limit:.0%} lost" for limit in LIMITS))
    for result in evaluation.results:
        best = [result.best(limit) for limit in LIMITS]
        total = max(1, result.removed.total)
        curve.add_row(escape(result.name), *(f"{point.removed / total:.0%}" for point in best))
    console.print()
    console.print(curve)
    for note in evaluation.notes:
        console.print(f"[yellow]note: {escape(note)}[/]", highlight=False, soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _shown(share: Share) -> str:
    low, high = share.interval
    return f"{share.count} of {share.total} ({low:.0%} to {high:.0%})"


def _quantiles(result: Judgments) -> list[float]:
    """Return p50 and p95 of the latency in ms, or an empty list if there are no answers."""
    latencies = result.latencies_ms()
    return [float(np.quantile(latencies, part, method="inverted_cdf")) for part in (0.5, 0.95)] if latencies else []


def as_json(evaluation: PromptEvaluation) -> dict[str, Any]:
    """Return the evaluation, with every answer, as data that JSON can represent."""
    return {
        "schema": SCHEMA,
        "version": version(),
        "config": evaluation.config,
        "labels": evaluation.labels,
        "prompts": [_as_json(result) for result in evaluation.results],
        "notes": list(evaluation.notes),
    }


def _as_json(result: Judgments) -> dict[str, Any]:
    quantiles = _quantiles(result)
    return {
        "name": result.name,
        "prompt": result.prompt,
        "model": result.model,
        "false_alarms": {
            "removed": result.removed.count,
            "total": result.removed.total,
            "interval": result.removed.interval,
        },
        "true_events": {"lost": result.lost.count, "total": result.lost.total, "interval": result.lost.interval},
        "errors": result.errors,
        "latency_ms": {"p50": quantiles[0], "p95": quantiles[1]} if quantiles else None,
        "curve": [
            {
                "threshold": point.threshold if math.isfinite(point.threshold) else None,
                "removed": point.removed,
                "lost": point.lost,
            }
            for point in result.curve()
        ],
        "judgments": [asdict(judgment) for judgment in result.judgments],
    }


def _totals(share: Share) -> dict[str, Any]:
    return {"total": share.total, "interval": share.interval}
