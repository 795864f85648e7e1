"""Class names of a configuration, checked against those of its model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vision.config.analytics import CameraAnalytics
from vision.config.app import AppConfig
from vision.config.document import Document, render
from vision.config.document_reader import read_document
from vision.config.wording import Loc, did_you_mean_class, dotted, one_of, quoted
from vision.errors import ConfigError


def check_classes(config: AppConfig, class_names: Sequence[str], path: Path | None = None) -> None:
    """Check every class name of a configuration.

    Args:
        config: The configuration.
        class_names: The classes of its model.
        path: The file of the configuration, for the lines of the faults.

    Raises:
        ConfigError: Every unknown name, with the nearest that the model has.
    """
    filters = [(("detect", "classes"), config.detect.classes), *_analytics_filters(config.analytics)]
    if config.cascade is not None:
        filters.append((("cascade", "classes"), config.cascade.classes))
    _refuse_unknown(filters, class_names, config.model, path)


def _refuse_unknown(
    filters: Sequence[tuple[Loc, Sequence[str] | None]],
    class_names: Sequence[str],
    model: str,
    path: Path | None,
) -> None:
    unknown: dict[Loc, str] = {}
    for loc, names in filters:
        for index, name in enumerate(names or ()):
            if name not in class_names:
                advice = did_you_mean_class(name, class_names) or f"it has {one_of(list(class_names))}"
                place: Loc = (*loc, index)
                unknown[place] = f"the model {model} has no class {quoted(name)} ({advice})"
    document = _reread(path) if unknown and path is not None else None
    if document is not None:
        faults = [document.fault(loc, text) for loc, text in unknown.items()]
        raise ConfigError(render(document.name, faults, document.text), code="unknown-class")
    if unknown:
        text = "\n".join(f"{dotted(loc)}: {text}" for loc, text in unknown.items())
        raise ConfigError(text, code="unknown-class")


def _analytics_filters(sections: Mapping[str, CameraAnalytics]) -> Iterator[tuple[Loc, Sequence[str] | None]]:
    for camera_id, section in sections.items():
        for index, line in enumerate(section.lines):
            yield ("analytics", camera_id, "lines", index, "classes"), line.classes
        for index, zone in enumerate(section.zones):
            yield ("analytics", camera_id, "zones", index, "classes"), zone.classes


def _reread(path: Path) -> Document | None:
    try:
        return read_document(path)
    except ConfigError:
        return None
