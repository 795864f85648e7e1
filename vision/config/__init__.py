"""Configuration: camera.yaml and model.yaml as frozen typed objects; all that is wrong with a file in one error.

::

    path = resolve_config("demo")                 # a shipped configuration, or a path
    site = load_site(path, os.environ)            # SiteConfig, paths absolute; ConfigError lists every fault
    folder = folder_of_model(site.model, shipped_models())
    card = load_model_card(folder)                # ModelCard; ModelError lists every fault
    check_classes(site, names_of_classes, path)   # ConfigError for classes that the model does not have

The only place that imports pydantic and PyYAML.
"""

from vision.config.addresses import SourceKind, source_kind
from vision.config.analytics import Anchor, CameraAnalytics, LineConfig, Point, ZoneConfig
from vision.config.app import (
    CameraConfig,
    DetectConfig,
    HeadCard,
    InputCard,
    ModelCard,
    NmsCard,
    PublishConfig,
    SiteConfig,
    StatusConfig,
    folder_of_model,
)
from vision.config.cascade import CascadeConfig, ClassifierCard
from vision.config.load import (
    check_classes,
    load_classifier_card,
    load_model_card,
    load_site,
    load_site_text,
    resolve_paths,
)
from vision.config.rules import RuleConfig
from vision.config.schema import site_schema
from vision.config.shipped import resolve_config, shipped_configs, shipped_models
from vision.config.snapshots import SnapshotConfig
from vision.config.wording import nearest

__all__ = [
    "Anchor",
    "CameraAnalytics",
    "CameraConfig",
    "CascadeConfig",
    "ClassifierCard",
    "DetectConfig",
    "HeadCard",
    "InputCard",
    "LineConfig",
    "ModelCard",
    "NmsCard",
    "Point",
    "PublishConfig",
    "RuleConfig",
    "SiteConfig",
    "SnapshotConfig",
    "SourceKind",
    "StatusConfig",
    "ZoneConfig",
    "check_classes",
    "folder_of_model",
    "load_classifier_card",
    "load_model_card",
    "load_site",
    "load_site_text",
    "nearest",
    "resolve_config",
    "resolve_paths",
    "shipped_configs",
    "shipped_models",
    "site_schema",
    "source_kind",
]
